"""Volumes in systems that learn from sums: what trains on them, and what is refused."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from protocols.errors import ModelError
from secure_natfl.config import Config
from secure_natfl.federation import build
from secure_natfl.run_folder import RunFolder
from secure_natfl.seeds import Seeds
from secure_natfl.summed.run import SummedRun
from secure_natfl.systems.summed import make_system
from secure_natfl.toml_config import parse, read
from tests.secure_natfl.volumes import written

SMALL = "secure_natfl.methods.small_network:small"
VIT = "secure_natfl.methods.masked_images:vit_smallest"


def configured(folder: Path, network: str, *, masks: bool = False, **system: Any) -> Config:
    """Three hospitals of six volumes of 32 voxels a side, of a class each, or with masks."""
    for letter in "abc":
        written(folder / f"hospital-{letter}", masks)
    table = read("pppml-hmi-covid-ct" if masks else "pppml-hmi-rad-chestct")
    table["run"] |= {"seed": 0, "baselines": not masks and network != VIT}
    table["data"] |= {"size": 32, "root": str(folder)}
    for hospital in table["data"]["hospitals"]:
        hospital |= {"depth": 32, "architectures": [network]}
    table["models"] |= {"central": network, "batch": 4}
    table["system"] |= {"rounds": 1, "local_epochs": 1}
    table["system"] = system or table["system"] | {"own_steps": 1}
    table["proxies"] = {"images": 40, "per_round": 20}
    table["aggregation"] = {"kind": "plain"}
    return parse(table, "volumes")


def test_a_run_on_classes_of_volumes_ends_with_its_baselines(tmp_path: Path) -> None:
    config = configured(tmp_path, "densenet3d-4")
    folder = RunFolder.open(tmp_path / "run", config, "", resume=False)
    results = SummedRun(config, folder, Console(file=StringIO())).play()
    assert set(results.arms) == {"local_only", "pooled"}
    for networks in results.arms.values():
        for site in results.federation.sites:
            answers = networks[site.name](site.test.images)
            assert answers.shape == (len(site.test), 2)
            assert np.isfinite(answers.detach().numpy()).all()


@pytest.mark.parametrize(
    ("kind", "network", "masks", "said"),
    [
        ("fedavg", SMALL, False, "small: is for flat images, and here are volumes"),
        ("fedmic", SMALL, False, "small: is for flat images, and here are volumes"),
        ("unimed", VIT, False, "vit_smallest: is for flat images, and here are volumes"),
        ("fedavg", "unet-4", True, "unet-4: is for flat images, and here are volumes"),
        ("fedavg", "densenet3d-4", True, "densenet3d-4: is for classes of images, and here are"),
        ("fedavg", "unet3d-4", False, "unet3d-4: is for masks, and here are classes of images"),
    ],
)
def test_a_network_that_cannot_take_them_is_refused_before_it_trains(
    kind: str, network: str, masks: bool, said: str, tmp_path: Path
) -> None:
    config = configured(tmp_path, network, masks=masks, kind=kind, rounds=1)
    federation = build(config, lambda _: b"key of a test site")
    with pytest.raises(ModelError, match=said) as caught:
        make_system(config, federation, Seeds.of_study(0))
    assert "\n" not in str(caught.value)
