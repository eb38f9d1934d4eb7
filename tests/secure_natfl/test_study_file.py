"""A study file, its grid, and everything that is refused before the first cell runs."""

import io
import math
import tomllib

import numpy as np
import pytest
from rich.console import Console

from protocols.errors import ConfigError, DataError, LedgerError, NatflError, RunFolderError
from secure_natfl.data.records import Records
from secure_natfl.study.conduct import Wish, conduct
from secure_natfl.study.file import StudyFile, read_study, seconds_of, shipped
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import plan_of
from secure_natfl.study.preflight import check_folds, check_plan

BASE = """
name = "little"
base = "smoke"
folds = 3
seeds = [0, 1]

[set]
data.size = 32
privacy.mechanism = "shard-teachers"
"""

LATE = """
[set.data.hospitals.late]
kind = "phantom"
hospital = "county"
architectures = ["test_resnet"]
"""


@pytest.fixture
def study(tmp_path):
    def made(text: str, base: str = BASE) -> StudyFile:
        file = tmp_path / "little.toml"
        file.write_text(base + text, encoding="utf-8")
        return read_study(str(file))

    return made


@pytest.fixture
def pack(tmp_path):
    """A study on one npz pack with these labels, each image a patient of its own."""

    def made(labels, *more: str, sites: int = 1) -> StudyFile:
        rng = np.random.default_rng(0)
        np.savez(
            tmp_path / "pack.npz",
            images=rng.integers(0, 256, (len(labels), 32, 32), dtype=np.uint8),
            labels=np.asarray(labels),
            class_names=np.array(["normal", "pneumonia"]),
            cluster=np.arange(len(labels)),
        )
        tables = [f'{{ name = "a", sites = {sites}, group = "one"', *more]
        rest = f'kind = "npz", path = "{tmp_path}/pack.npz", architectures = ["test_resnet"] }}'
        hospitals = ",".join(f"{table}, {rest}" for table in tables)
        file = tmp_path / "packed.toml"
        file.write_text(
            'name = "packed"\nbase = "smoke"\nfolds = 3\n[set]\n'
            f'"data.hospitals" = [{hospitals}]\n"proxies.images" = 40\n"proxies.per_round" = 20\n',
            encoding="utf-8",
        )
        return read_study(str(file))

    return made


def test_every_arm_has_its_first_seed_whole_before_any_second(study):
    plan = plan_of(
        study('[grid]\nprivacy.epsilon = [1, 8]\n[arms.a]\n[arms.b]\nsystem.alpha="equal"')
    )
    cells = plan.cells()
    assert [cell.config.run.seed for cell in cells] == sorted(c.config.run.seed for c in cells)
    federations = [cell for cell in cells if cell.kind == "federation"]
    assert len(federations) == 2 * 2 * 2 * 3
    # Local-only and pooled training know neither ε nor α: one of each per seed and fold.
    assert len(cells) - len(federations) == 2 * 3
    assert {cell.config.data.fold for cell in cells} == {0, 1, 2}


def test_an_epsilon_of_inf_takes_only_the_noise_away(study):
    text = '[grid]\nprivacy.epsilon = [4.0, "inf"]\n[arms.shards]\nprivacy.shards = 7\n'
    text += '[arms.heads]\nprivacy.mechanism = "dp-sgd"\n'
    settings = {s.label: s.config.privacy for s in plan_of(study(text)).settings}
    assert settings["shards, ε = 4"].mechanism == "shard-teachers"
    silent = settings["shards, ε = ∞"]
    assert (silent.mechanism, silent.speaking, silent.shards) == ("none", "shards", 7)
    assert silent.clip == settings["shards, ε = 4"].clip
    assert settings["heads, ε = 4"].mechanism == "dp-sgd"
    assert settings["heads, ε = ∞"].speaking == "head"


def test_equal_configurations_are_one_cell(study):
    text = "[arms.a]\nsystem.temperature = 2.0\n[arms.b]\nsystem.temperature = 2\n[arms.c]\n"
    plan = plan_of(study(text))
    ids = {plan.federation(setting, 0, 0).id for setting in plan.settings}
    assert len(ids) == 1


def test_an_arm_that_sets_an_axis_stands_at_one_value_of_it(study):
    text = "[grid]\nprivacy.epsilon = [1, 2]\n[arms.a]\n"
    text += '[arms.exact]\nprivacy.epsilon = "inf"\n'
    labels = [setting.label for setting in plan_of(study(text)).settings]
    assert labels == ["a, ε = 1", "exact, ε = ∞", "a, ε = 2"]


def test_an_arm_has_models_seeds_and_hospitals_of_its_own(study):
    text = LATE + "[arms.a]\n[arms.b]\nstudy.seeds = [1]\nstudy.models = ['central']\n"
    text += "data.hospitals.children.sites = 4\nstudy.left_out = ['late']\n"
    plan = plan_of(study(text))
    whole, part = plan.settings
    assert (part.models, part.seeds, part.against) == (("central",), (1,), "a")
    assert [h.name for h in whole.config.data.hospitals] == ["children", "late"]
    assert [(h.name, h.sites) for h in part.config.data.hospitals] == [("children", 4)]
    assert [h.name for h in part.newcomers] == ["late"]
    assert len(plan.cells()) == 2 * 2 * 3 + 3
    assert {c.config.run.seed for c in plan.cells() if c.newcomers} == {1}


def test_cells_of_other_models_are_other_cells(study):
    text = "[arms.a]\nstudy.models = ['central']\n[arms.b]\nstudy.models = ['personalised']\n"
    plan = plan_of(study(text))
    assert len({plan.federation(setting, 0, 0).id for setting in plan.settings}) == 2


def test_base_path_starts_at_the_study_file(tmp_path, study):
    (tmp_path / "own.toml").write_text('[models]\ncentral = "test_resnet"\n[data]\n')
    found = study("", 'name = "x"\nbase = "own.toml"\n')
    assert found.base == str(tmp_path / "own.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sedes = [1]", ("unknown key", "seeds")),
        ("budget = '3 days'", ("budget", "8h")),
        ("[arms.a]\nstudy.models = ['centrl']", ("study.models", "centrl")),
        ("[arms.a]\nstudy.against = 'b'", ("study.against", "no such arm")),
        ("[arms.a]\nstudy.seeds = [7]", ("study.seeds", "[0, 1]")),
        ("[arms.a]\nstudy.left_out = ['nowhere']", ("study.left_out", "children")),
        ("[arms.a]\nstudy.models = ['fitted']", ("fitted with no newcomer", "study.left_out")),
        (
            "[arms.a]\nstudy.left_out = ['children']",
            ("study.left_out", "children"),
        ),
        ("[arms.a]\nrun.seed = 3", ("run.seed", "seeds")),
        ("[grid]\nledger.folder = ['x']", ("ledger.folder", "ledger")),
        ("[arms.a]\nsystem.betta = 'natural'", ("impossible cell", "arm a", "beta")),
        ("[grid]\nprivacy.epsilon = [-1.0]", ("impossible cell", "greater than 0")),
        (
            "[arms.a]\nsystem.beta = 'class'\nprivacy.mechanism = 'dp-sgd'",
            ("impossible cell", "dp-sgd"),
        ),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(study, text, said):
    with pytest.raises(ConfigError) as caught:
        plan_of(study(text, BASE.partition("[set]")[0]))
    assert all(part in str(caught.value) for part in said), caught.value


def test_hospital_in_two_groups(study, pack):
    twice = 'data.hospitals = [{ name="a", group="x", kind="phantom", hospital="children", '
    twice += 'architectures=["test_resnet"] }, { name="a", group="y", kind="phantom", '
    twice += 'hospital="county", architectures=["test_resnet"] }]'
    with pytest.raises(ConfigError, match="a is in two groups, x and y"):
        plan_of(study(twice))
    again = '{ name = "b", group = "two"'
    with pytest.raises(NatflError, match="a and b are the same images in two groups"):
        check_plan(plan_of(pack([0, 1] * 20, again)))


def test_fold_with_one_class(pack):
    with pytest.raises(DataError, match="has one class") as caught:
        check_plan(plan_of(pack([0] * 40 + [1, 1])))
    assert "fold" in str(caught.value)
    assert "system" in str(caught.value)


def test_fewer_patients_than_folds(pack):
    with pytest.raises(DataError, match="cannot fill 3 folds"):
        check_plan(plan_of(pack([0, 1] * 4, sites=4)))


def test_a_hospital_of_one_class_may_take_part():
    config = plan_of(read_study("smoke-study")).cells()[0].config
    records = Records(
        np.zeros((9, 4, 4), np.uint8),
        np.ones(9, np.int64),
        ("normal", "pneumonia"),
        tuple(map(str, range(9))),
        "patient",
        "positives",
    )
    check_folds(records, config.data.hospitals[0].model_copy(update={"sites": 1}), config)


def test_group_under_its_floor(pack):
    with pytest.raises(NatflError, match="system") as caught:
        check_plan(plan_of(pack([0, 1] * 30, sites=2)))
    assert "3" in str(caught.value)


@pytest.fixture
def with_newcomer(tmp_path):
    """A plan of one hospital of sixty patients, and of a newcomer with these labels."""

    def made(labels, patients: int = 100, names=("normal", "pneumonia"), **more: str):
        rng, numbers = np.random.default_rng(0), np.arange(len(labels))
        for name, given, classes, cluster in (
            ("in", [0, 1] * 30, ("normal", "pneumonia"), np.arange(60)),
            ("late", labels, names, 1000 + numbers % patients),
        ):
            images = rng.integers(0, 256, (len(given), 32, 32), dtype=np.uint8)
            pack = {"images": images, "labels": np.asarray(given), "cluster": cluster}
            np.savez(tmp_path / f"{name}.npz", class_names=np.array(classes), **pack)
        late = {"kind": "npz", "path": "late.npz", "architectures": ["test_resnet"]} | more
        inside = {"name": "a", "sites": 3, "unit": "patient"} | late | {"path": "in.npz"}
        arm = {"study.left_out": ["b"], "study.models": ["central", "fitted"]}
        return plan_of(
            StudyFile(
                name="late",
                base="smoke",
                folds=3,
                set={
                    "data.root": str(tmp_path),
                    "data.size": 32,
                    "data.hospitals": [inside, {"name": "b", "unit": "patient"} | late],
                    "proxies.images": 40,
                    "proxies.per_round": 20,
                },
                arms={"system": arm},
            )
        )

    return made


def test_a_newcomer_that_can_be_asked_passes(with_newcomer):
    assert check_plan(with_newcomer([0, 1] * 30))


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        ([0, 1] * 30, {"path": "nowhere.npz"}, "nowhere.npz"),
        ([0] * 40 + [1, 1], {}, "fold . has one class"),
        ([0, 1] * 30, {"patients": 2}, "cannot fill 3 folds"),
        ([0, 1] * 30, {"names": ("normal", "covid")}, "left out tell apart normal, covid"),
        ([0] * 57 + [1] * 3, {}, "no 20 images of whole patients"),
        ([0, 1] * 30, {"path": "in.npz"}, "b has the images of a, which takes part"),
    ],
)
def test_a_newcomer_is_checked_before_anything_runs(with_newcomer, labels, more, said):
    with pytest.raises(NatflError, match=said) as caught:
        check_plan(with_newcomer(labels, **more))
    assert "system" in str(caught.value)


def test_a_newcomer_whose_patients_take_part_is_refused(with_newcomer, tmp_path):
    """The same people in another folder."""
    plan = with_newcomer([0, 1] * 30, path="copy/in.npz")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "in.npz").write_bytes((tmp_path / "in.npz").read_bytes())
    with pytest.raises(DataError, match=r"patient\(s\) are also at a-1"):
        check_plan(plan)


def test_on_real_images_it_says_that_sites_ledgers_know_nothing_of_it(
    with_newcomer, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    console = Console(record=True, file=io.StringIO())
    study = with_newcomer([0, 1] * 30).study
    assert conduct(study, Wish(tmp_path / "out", "", dry=True), console) is None
    said = console.export_text()
    assert "not on your sites' ledgers" in said
    assert "subtract the page's figure yourself" in said
    assert not (tmp_path / "state").exists()


def test_a_study_never_charges_somebody_elses_ledgers(tmp_path, study):
    (tmp_path / "sites" / "nih").mkdir(parents=True)
    (tmp_path / "sites" / "nih" / "ledger.db").write_bytes(b"theirs")
    chosen = study("").model_copy(update={"ledger": str(tmp_path / "sites")})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(LedgerError, match="belong to somebody else"):
        StudyFolder.open(tmp_path / "out", chosen, "", resume=False)
    with pytest.raises(LedgerError, match="belong to somebody else"):
        conduct(chosen, Wish(tmp_path / "out", "", dry=True), Console(quiet=True))
    assert set(tmp_path.rglob("*")) == before


def test_what_is_asked_for_is_written_down_by_whoever_plays_it(tmp_path, study):
    first = StudyFolder.open(tmp_path / "out", study(""), "first", resume=False)
    with first.alone():
        second = StudyFolder.open(tmp_path / "out", study(""), "second", resume=True)
        with pytest.raises(RunFolderError, match="another process"), second.alone():
            pass
        assert (tmp_path / "out" / "study.toml").read_text() == "first"
    with second.alone():
        assert (tmp_path / "out" / "study.toml").read_text() == "second"


def test_a_folder_is_taken_up_by_its_own_study_alone(tmp_path, study):
    chosen = study("")
    StudyFolder.open(tmp_path / "out", chosen, "", resume=False)
    with pytest.raises(RunFolderError, match="--resume"):
        StudyFolder.open(tmp_path / "out", chosen, "", resume=False)
    other = chosen.model_copy(update={"name": "other"})
    with pytest.raises(RunFolderError, match="holds the study little"):
        StudyFolder.open(tmp_path / "out", other, "", resume=True)
    folder = StudyFolder.open(tmp_path / "out", chosen, "", resume=True)
    with folder.alone(), pytest.raises(RunFolderError, match="another process"), folder.alone():
        pass


def test_time_in_words():
    assert (seconds_of("8h"), seconds_of("90min"), seconds_of("1.5 h")) == (28800, 5400, 5400)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_studies_hold_no_impossible_cell(name):
    plan = plan_of(read_study(name))
    assert plan.cells()
    assert all(setting.config.mode for setting in plan.settings)
    tomllib.loads(shipped()[name].read_text(encoding="utf-8"))
    assert math.isfinite(min(setting.epsilon for setting in plan.settings))
