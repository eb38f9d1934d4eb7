"""Subgroups of a pack's column, from the file to the gap; and whose heads answer for a hospital."""

import numpy as np
import pytest
import torch

from protocols.errors import DataError
from secure_natfl.data.arrays import to_float
from secure_natfl.seeds import Seeds
from secure_natfl.study.analysis import Analysis
from secure_natfl.study.cell import keys_of
from secure_natfl.study.cell_run import Job
from secure_natfl.study.file import read_study
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import Cell, plan_of
from secure_natfl.study.newcomers import heads_of
from secure_natfl.study.subgroups import Subgroups
from secure_natfl.systems.natimg_fl import NatImgFL
from secure_natfl.toml_config import parse
from tests.secure_natfl.packs import federate as federate
from tests.secure_natfl.packs import hospital, pack

IMAGES = 80
LABELS = np.arange(IMAGES) % 2
VIEWS = np.where(np.arange(IMAGES) % 4 < 2, "AP", "PA")
FOLDS = np.arange(IMAGES) // (IMAGES // 2)


@pytest.fixture
def study(tmp_path):
    """Two folds of a pack with a column `view`."""
    pack(tmp_path / "h.npz", LABELS)
    with np.load(tmp_path / "h.npz") as arrays:
        np.savez(tmp_path / "h.npz", **arrays, view=VIEWS)
    study = read_study("smoke-study")
    common = {**study.common, "data.root": str(tmp_path), "data.size": 32}
    common["data.hospitals"] = [hospital("h", "h.npz")]
    changes = {"common": common, "arms": {"all": {}}, "grid": {}, "folds": 2}
    return study.model_copy(update=changes | {"models": ["central"], "subgroups": ["view"]})


@pytest.fixture
def keys(study, tmp_path):
    """The name of each image in cells, in the pack's order."""
    with np.load(tmp_path / "h.npz") as arrays:
        return keys_of(torch.from_numpy(to_float(arrays["images"], 32)))


def test_a_column_is_found_again_by_the_image_in_any_order(study, keys):
    found, (setting,) = Subgroups(["view", "sex"]), plan_of(study).settings
    order = np.random.default_rng(0).permutation(IMAGES)
    unknown = np.setdiff1d([1, -1, np.iinfo(np.int64).max], keys)
    columns = found.of(setting.config, "h", np.concatenate([keys[order], unknown]))
    # A column that this pack lacks is none; an image that it lacks has no value.
    assert list(columns) == ["view"]
    assert columns["view"].tolist() == [*VIEWS[order], *("" for _ in unknown)]


def test_a_column_that_no_pack_has_is_refused(study):
    plan = plan_of(study)
    Subgroups(["view"]).check(plan)
    with pytest.raises(DataError, match=r"no pack has a column 'sex'.*view"):
        Subgroups(["view", "sex"]).check(plan)


def test_the_gap_is_between_the_best_and_the_worst_value(study, keys, tmp_path):
    """All of AP is ranked right, and all of PA in reverse."""
    plan = plan_of(study)
    folder = StudyFolder.open(tmp_path / "S", study, "", resume=False)
    right = np.where(VIEWS == "AP", LABELS, 1 - LABELS)
    for cell in plan.cells():
        rows = np.flatnonzero(cell.config.data.fold == FOLDS)
        arrays = {
            "keys": keys[rows],
            "units": rows,
            "targets": np.stack([1 - LABELS, LABELS], 1)[rows].astype(np.float32),
            "known": np.ones((len(rows), 2), np.float32),
            "multi_label": np.array(False),
            "patients": np.array(False),
            "central": np.stack([1 - right, right], 1)[None, rows].astype(np.float32),
        }
        folder.finish(cell, {f"h:{name}": values for name, values in arrays.items()}, {})
    (gap,) = Analysis(folder, plan, Subgroups(["view"])).gaps()
    assert (gap.hospital, gap.model, gap.column) == ("h", "central", "view")
    assert {value: one.value for value, one in gap.values.items()} == {"AP": 1.0, "PA": 0.0}
    assert (gap.gap.value, gap.gap.low, gap.gap.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("heads", "name", "answering"),
    [
        ("group", "children", [0]),
        ("group", "adults", [1]),
        ("group", "of-adults", [1]),
        ("group", "stranger", [0, 1]),
        ("single", "adults", [0]),
        ("single", "of-adults", [0]),
    ],
)
def test_the_head_of_its_group_answers_or_all_where_its_group_took_no_part(
    federate, tmp_path, heads, name, answering
):
    labels = np.arange(12) % 2
    parties = {"children": "children", "adults": "adults"}
    late = {"of-adults": "adults", "stranger": "elsewhere"}
    for seed, party in enumerate(parties):
        pack(tmp_path / f"{party}.npz", labels, seed=seed)
    tables = {n: hospital(n, f"{n}.npz", group=g) for n, g in (parties | late).items()}
    federation = federate(*(tables[party] for party in parties))
    config = parse(
        {
            "data": {"size": 32, "hospitals": list(tables.values())},
            "models": {"central": "test_resnet"},
            "system": {"heads": heads},
        },
        "test",
    )
    system = NatImgFL(config, federation, Seeds.of_study(0))
    cell = Cell("federation", config, ("central",), tuple(config.data.hospitals[2:]))
    job = Job(cell, StudyFolder(tmp_path, tmp_path))
    assert heads_of(system, name, job) == answering
