"""Plain networks: where they start, and how they are trained at a site."""

from typing import Any

import numpy as np
import pytest

from secure_natfl.config import Config
from secure_natfl.federation import build
from secure_natfl.methods.plain_models import taught
from secure_natfl.seeds import Seeds
from secure_natfl.systems.summed import make_system

SMALL = "secure_natfl.methods.small_network:small"
NOISY = {"mechanism": "dp-sgd", "layers": "network", "steps": 2}


def configured(system: dict[str, Any], privacy: dict[str, Any], epochs: int) -> Config:
    hospital = {
        "name": "county",
        "kind": "phantom",
        "hospital": "county",
        "images": 30,
        "sites": 3,
        "architectures": [SMALL],
    }
    return Config.model_validate(
        {
            "data": {"size": 16, "hospitals": [hospital]},
            "proxies": {"images": 64, "per_round": 10},
            "models": {"central": SMALL, "pretrain_epochs": epochs},
            "system": {"rounds": 1, **system},
            "aggregation": {"kind": "plain"},
            "privacy": privacy,
        }
    )


def start_of(kind: str, privacy: dict[str, Any], epochs: int) -> dict[str, Any]:
    config = configured({"kind": kind}, privacy, epochs)
    system = make_system(config, build(config, lambda _: bytes(32)), Seeds.of_study(0))
    network = system.central(system.federation.sites[0])
    assert network is not None
    return {name: tensor.numpy() for name, tensor in taught(network).items()}


@pytest.mark.parametrize("kind", ["fedavg", "fedmic", "pppml-hmi"])
def test_networks_start_alike_whatever_the_mechanism_and_where_they_are_told_to(kind):
    random = start_of(kind, {"mechanism": "none"}, 0)
    public = start_of(kind, {"mechanism": "none"}, 1)
    for epochs, found in ((0, random), (1, public)):
        noisy = start_of(kind, NOISY, epochs)
        assert set(noisy) == set(found)
        for name, tensor in found.items():
            np.testing.assert_array_equal(tensor, noisy[name], err_msg=name)
    kernel = "network.backbone.0.0.weight"
    assert not np.array_equal(random[kernel], public[kernel])
