"""The presets of PPPML-HMI: what has no data here is played on small volumes made on the spot."""

from pathlib import Path

import numpy as np
import pytest

from secure_natfl.federation import build
from secure_natfl.seeds import Seeds
from secure_natfl.systems.pppml_hmi import make
from secure_natfl.systems.summed import make_system
from secure_natfl.toml_config import load, parse, read
from tests.secure_natfl.volumes import written


@pytest.mark.parametrize(
    ("preset", "network", "side", "shape"),
    [
        ("pppml-hmi-rad-chestct", "densenet3d-4", 32, (2,)),
        ("pppml-hmi-covid-ct", "unet3d-4", 16, (2, 16, 16, 16)),
    ],
)
def test_owners_of_volumes_need_only_their_files(
    preset: str, network: str, side: int, shape: tuple[int, ...], tmp_path: Path
) -> None:
    for letter in "abc":
        written(tmp_path / f"hospital-{letter}", masks="unet" in network)
    table = read(preset)
    table["data"] |= {"size": side, "root": str(tmp_path)}
    for hospital in table["data"]["hospitals"]:
        hospital |= {"depth": side, "architectures": [network]}
    table["models"] |= {"central": network, "batch": 4}
    table["system"] |= {"local_epochs": 1, "own_steps": 1, "validation_folds": 0}
    config = parse(table, preset)
    federation = build(config, lambda _: b"key of a test site")
    system = make(config, federation, Seeds.of_study(1))
    site = federation.sites[0]
    sent = system.contribute(site, 0, "update", None)
    assert np.isfinite(sent).all()
    assert np.abs(sent).max() > 0
    system.personalise(site, 0)
    assert system.answering(site)(site.test.images).shape[1:] == shape


@pytest.mark.parametrize("preset", ["smoke", "cells", "lungs", "rad-chestct", "covid-ct"])
def test_presets_are_of_this_system_and_go_around_the_ring(preset: str) -> None:
    config = load(f"pppml-hmi-{preset}", [])
    assert config.system.kind == "pppml-hmi"
    assert config.aggregation.kind == "ring"


def test_the_smoke_preset_makes_the_system() -> None:
    config = load("pppml-hmi-smoke", [])
    federation = build(config, lambda _: b"key of a test site")
    system = make_system(config, federation, Seeds.of_study(1))
    assert system.name == "pppml-hmi"
    assert system.cohort(0) == ("county-1", "county-2", "county-3")


def test_a_ring_is_its_own_default_and_any_other_kind_can_be_asked_for() -> None:
    table = read("pppml-hmi-smoke")
    del table["aggregation"]
    assert parse(dict(table), "smoke").mode == "ring/decryptor"
    assert parse(table | {"aggregation": {"kind": "ckks"}}, "smoke").mode == "ckks/threshold"
    assert parse(table | {"system": {"kind": "fedavg"}}, "smoke").mode == "ckks/threshold"
