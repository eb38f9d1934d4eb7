"""Packs of noise images, and federations of them."""

import numpy as np
import pytest

from secure_natfl.federation import build
from secure_natfl.toml_config import parse

NAMES = ("normal", "pneumonia")


def pack(path, labels, *, names=NAMES, seed=0, clusters=None, images=None):
    """An npz pack of noise images; the seed makes them, so two seeds share none."""
    rng = np.random.default_rng(seed)
    made = rng.integers(0, 256, (len(labels), 32, 32), dtype=np.uint8)
    np.savez(
        path,
        images=made if images is None else images,
        labels=np.asarray(labels),
        class_names=np.array(list(names)),
        cluster=np.arange(len(labels)) if clusters is None else np.asarray(clusters),
    )


def hospital(name, file, **changes):
    table = {"name": name, "kind": "npz", "path": file, "architectures": ["test_resnet"]}
    return table | changes


@pytest.fixture
def federate(tmp_path):
    """A federation of packs in a folder, with few natural images made on the spot."""

    def make(*hospitals, rounds=1, per_round=20, **proxies):
        config = parse(
            {
                "data": {"root": str(tmp_path), "size": 32, "hospitals": list(hospitals)},
                "proxies": {"images": 60, "per_round": per_round} | proxies,
                "models": {"central": "test_resnet"},
                "system": {"rounds": rounds},
            },
            "test",
        )
        return build(config, lambda name: name.encode().ljust(32, b"."))

    return make


FEDAVG = {"kind": "fedavg", "rounds": 1}


@pytest.fixture
def several(tmp_path):
    """A federation for a system of updates, which asks no public images unless told."""

    def configured(*hospitals, system=FEDAVG, epochs=0, **data):
        table = {"root": str(tmp_path), "size": 32, "hospitals": list(hospitals)} | data
        return parse(
            {
                "data": table,
                "proxies": {"images": 60, "per_round": 20},
                "models": {"central": "test_resnet", "pretrain_epochs": epochs},
                "system": system,
                "aggregation": {"kind": "plain"},
                "privacy": {"mechanism": "none"},
            },
            "test",
        )

    return configured


def made(config):
    return build(config, lambda name: name.encode().ljust(32, b"."))


def phantom(name, **changes):
    table = {"name": name, "kind": "phantom", "hospital": "clinic", "images": 40}
    return table | {"architectures": ["test_resnet"]} | changes
