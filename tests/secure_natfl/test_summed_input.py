"""Bad input to systems that learn from sums: one clear line, and nothing half-done.

Each run is stopped before a ledger is charged, a message is sent, or a step is on disk.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from protocols.errors import ConfigError, DataError, ModelError, NatflError
from secure_natfl.run_folder import RunFolder
from secure_natfl.summed.run import SummedRun
from secure_natfl.systems.fedavg import Averaging
from secure_natfl.toml_config import parse

SMALL = "secure_natfl.methods.small_network:small"
VIT = "secure_natfl.methods.masked_images:vit_smallest"
LABELLED = {"labels": [0, 1] * 6, "class_names": ["normal", "pneumonia"]}


@pytest.fixture
def hospital(tmp_path):
    """A hospital's pack of 16-pixel images, and its table."""

    def made(name: str, *, masks: Any = None, number: int = 12, **more: Any) -> dict[str, Any]:
        rng = np.random.default_rng(sum(name.encode()))
        arrays = {"images": rng.integers(0, 256, (number, 16, 16), dtype=np.uint8)}
        labels, names = more.pop("labels", LABELLED["labels"]), more.pop("names", None)
        arrays |= {"labels": np.array(labels[:number]), "cluster": np.arange(number)}
        arrays["class_names"] = np.array(names or LABELLED["class_names"])
        if masks is not None:
            arrays["mask"] = masks
            more |= {"target": "mask"}
        np.savez(tmp_path / f"{name}.npz", **arrays)
        network = "unet-4" if masks is not None else SMALL
        table = {"name": name, "kind": "npz", "path": f"{name}.npz", "architectures": [network]}
        return table | more

    return made


def config(root: Path, *hospitals: dict[str, Any], **system: Any):
    return parse(
        {
            "run": {"seed": 0, "baselines": False},
            "data": {"root": str(root), "size": 16, "hospitals": list(hospitals)},
            "proxies": {"images": 64, "per_round": 20},
            "models": {"central": SMALL, "pretrain_epochs": 0},
            "system": {"kind": "fedavg", "rounds": 1} | system,
            "aggregation": {"kind": "plain"},
            "privacy": {"mechanism": "none", "clip": 8.0},
            "ledger": {"folder": str(root / "ledgers")},
        },
        "test",
    )


def refused(root: Path, asked, kind: type[NatflError], *said: str) -> None:
    """The run stops with one line that says all of this, and has left no half of anything."""
    folder = RunFolder.open(root / "run", asked, "", resume=False)
    with pytest.raises(kind) as caught:
        SummedRun(asked, folder, Console(file=io.StringIO())).play()
    line = str(caught.value)
    assert "\n" not in line
    for part in said:
        assert part in line
    lines = [p.stat().st_size for p in (root / "run").glob("transcript/**/*") if p.is_file()]
    assert not sum(lines)
    assert not list((root / "run").glob("state/*"))
    for ledger in (root / "ledgers").glob("*/ledger.db"):
        assert charged(ledger) == 0


def charged(ledger: Path) -> int:
    import sqlite3

    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as database:
        return int(database.execute("SELECT count(*) FROM lines").fetchone()[0])


def masks(*values: int) -> np.ndarray:
    found = np.zeros((12, 16, 16), dtype=np.uint8)
    for column, value in enumerate(values):
        found[:, :, column] = value
    return found


def test_different_class_lists(tmp_path, hospital):
    other = hospital("c", names=["normal", "tumour"])
    asked = config(tmp_path, hospital("a"), hospital("b"), other)
    refused(tmp_path, asked, DataError, "c: class list differs", "lacks pneumonia", "adds tumour")


@pytest.mark.parametrize(
    ("kind", "at_c", "classes", "said"),
    [
        (DataError, (1, 3), ["background", "lung"], "c.npz, mask: the mask holds 3"),
        (DataError, (1,), ["background", "liver"], "c: class list differs"),
        (DataError, (1,), ["lung", "background"], "c: the background is not that of a"),
        (DataError, (), ["background", "lung"], "c: no mask marks anything but background"),
    ],
    ids=["an unknown value", "other classes", "another background", "an empty mask"],
)
def test_masks_that_do_not_fit_the_other_sites(tmp_path, hospital, kind, at_c, classes, said):
    lungs = {"classes": ["background", "lung"]}
    sites = [hospital(name, masks=masks(1), **lungs) for name in "ab"]
    sites.append(hospital("c", masks=masks(*at_c), classes=classes))
    refused(tmp_path, config(tmp_path, *sites), kind, said)


def test_a_site_with_one_image(tmp_path, hospital):
    asked = config(tmp_path, hospital("a"), hospital("b"), hospital("c", number=1))
    refused(tmp_path, asked, DataError, "c: 1 ")


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (1e200, "too large for any grid")],
)
def test_an_update_that_fits_no_grid(tmp_path, hospital, monkeypatch, value, said):
    old = Averaging.contribute

    def broken(self, site, *given):
        vector = old(self, site, *given)
        if site.name == "c":
            vector[-1] = value
        return vector

    monkeypatch.setattr(Averaging, "contribute", broken)
    asked = config(tmp_path, *map(hospital, "abc"))
    where = "c, layer network.xray.bias, round 1"
    refused(tmp_path, asked, ModelError, said, where, "system.learning_rate")


def test_a_contribution_of_another_size(tmp_path, hospital, monkeypatch):
    monkeypatch.setattr(Averaging, "contribute", lambda *_: np.zeros(3))
    asked = config(tmp_path, *map(hospital, "abc"))
    refused(tmp_path, asked, ModelError, "a, round 1, update: a contribution of shape (3,)")


@pytest.mark.parametrize(
    "system",
    [
        {},
        {"kind": "pppml-hmi"},
        {"kind": "distilled", "method": "feddf"},
        {"kind": "distilled", "method": "fedaux"},
    ],
    ids=lambda table: table.get("method", table.get("kind", "fedavg")),
)
def test_architectures_that_cannot_be_averaged(tmp_path, hospital, system):
    other = hospital("c", architectures=["test_resnet"])
    asked = config(tmp_path, hospital("a"), hospital("b"), other, **system)
    refused(tmp_path, asked, ConfigError, "data.hospitals", "architecture")


@pytest.mark.parametrize(
    ("joins", "said"),
    [
        ({"a": 2, "b": 2, "c": 0}, "no task takes part in the first stage"),
        ({"c": 3}, "c would join after the last stage, which is 2"),
    ],
)
def test_an_empty_cohort(tmp_path, hospital, joins, said):
    sites = [hospital(name, architectures=[VIT]) for name in "abc"]
    asked = config(tmp_path, *sites, kind="unimed", rounds=2, joins=joins)
    refused(tmp_path, asked, ConfigError, "system.joins", said)


def test_a_network_for_volumes_on_flat_images(tmp_path, hospital):
    lungs = {"classes": ["background", "lung"], "architectures": ["unet3d-4"]}
    asked = config(tmp_path, *(hospital(name, masks=masks(1), **lungs) for name in "abc"))
    refused(tmp_path, asked, ModelError, "unet3d-4", "for volumes, and here are flat images")
