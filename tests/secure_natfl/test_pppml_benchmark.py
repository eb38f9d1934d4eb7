"""The benchmark of PPPML-HMI: all arms train on the same images; what is there is not replayed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import pppml_arms
from benchmarks.pppml import keep, play, read, table
from benchmarks.pppml_arms import ARMS, FEDAVG, PPPML, Setting, config_of, federation_of, played
from secure_natfl.systems.fedavg import Averaging
from secure_natfl.systems.pppml_hmi import PppmlHmi

QUICK = {"local_epochs": 1}
COMMITTED = Path("docs/results/systems/pppml-strength.csv")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A pack as the benchmark reads it: 36 cells, three grey levels for three classes."""
    monkeypatch.setattr(pppml_arms, "ROUNDS", 1)
    monkeypatch.setattr(pppml_arms, "FEDAVG", FEDAVG | QUICK)
    monkeypatch.setattr(pppml_arms, "PPPML", PPPML | QUICK | {"own_steps": 1})
    random = np.random.default_rng(0)
    mask = np.zeros((36, 48, 48), np.uint8)
    mask[:, 8:40, 8:40], mask[:, 16:32, 16:32] = 1, 2
    images = (80 * mask + random.integers(0, 60, mask.shape)).astype(np.uint8)
    (tmp_path / "wbc_seg").mkdir()
    np.savez(
        tmp_path / "wbc_seg" / "wbc_seg.dev.npz",
        images=images,
        mask=mask,
        labels=np.arange(36) % 2,
        cluster=np.arange(36),
        class_names=np.array(["a", "b"]),
    )
    return str(tmp_path)


def rows_seen(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("tuning", [False, True])
def test_no_arm_trains_on_the_images_that_choose_among_own_steps(root: str, tuning: bool) -> None:
    setting, systems = Setting(network="unet-4"), []
    for keys in (pppml_arms.FEDAVG, pppml_arms.PPPML):
        config = config_of(setting, keys, 1, root)
        systems.append(played(config, federation_of(config, setting, tuning=tuning)))
    fedavg, pppml = systems
    assert isinstance(fedavg, Averaging)
    assert isinstance(pppml, PppmlHmi)
    for site in fedavg.federation.sites:
        parts = pppml._parts[site.name]
        assert parts.chooses is not None
        assert rows_seen(site.train.images) == rows_seen(parts.fit.images)
        assert len(site.train) == len(site.train_patients)
        assert not rows_seen(site.train.images) & rows_seen(parts.chooses.images)
        assert not rows_seen(parts.fit.images) & rows_seen(site.test.images)


def test_an_arm_that_is_missing_is_played_and_orders_are_told_apart(
    root: str, tmp_path: Path
) -> None:
    old = read(COMMITTED)
    assert {row["order"] for row in old} == {"first"}
    out = tmp_path / "rows.csv"
    first = [row for row in old if row["seed"] == "1" and row["strength"] == "1.0"]
    keep(first, out)
    before = out.read_text()
    play("orders", [1], root, out)
    assert out.read_text().startswith(before)
    whole = read(out)
    found = [row for row in whole if row["order"] == "hessian-free"]
    assert [row["arm"] for row in found] == [arm for arm in ARMS for _ in range(3)]
    assert "hessian-free" in table(out)

    marked = [row | {"dice": "0.5"} for row in whole if not row["arm"].startswith("fedavg")]
    keep(marked, out)
    play("orders", [1], root, out)
    again = read(out)
    assert again[: len(marked)] == marked
    fedavg = [row for row in found if row["arm"].startswith("fedavg")]
    assert [row["dice"] for row in again[len(marked) :]] == [row["dice"] for row in fedavg]
