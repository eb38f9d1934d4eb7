"""Federations of systems of updates: tasks, masks, colour, partitions, and what cannot be."""

from contextlib import suppress

import numpy as np
import pytest
import torch

from protocols.errors import ConfigError, DataError
from secure_natfl.evaluation import (
    hospital_tests,
    predict,
    probabilities,
    quick_dice,
    scores,
    site_test,
)
from secure_natfl.federation import class_shares
from secure_natfl.holdings import holdings
from tests.secure_natfl.packs import hospital, made, pack, phantom
from tests.secure_natfl.packs import several as several


def test_hospitals_of_one_task_are_aligned_and_others_are_not(several, tmp_path):
    pack(tmp_path / "a.npz", [0, 1] * 10, names=("well", "ill"), seed=1)
    pack(tmp_path / "b.npz", [0, 1] * 10, names=("ill", "well"), seed=2)
    pack(tmp_path / "c.npz", [0, 1, 2] * 10, names=("x", "y", "z"), seed=3)
    tables = [
        hospital("a", "a.npz"),
        hospital("c", "c.npz", task="letters"),
        hospital("b", "b.npz"),
    ]
    federation = made(several(*tables))
    assert list(federation.tasks) == ["main", "letters"]
    a, c, b = federation.sites
    assert a.task is b.task
    assert (a.task.name, a.task.classes, a.task.form) == ("main", ("well", "ill"), "single")
    assert c.task.classes == ("x", "y", "z")
    assert torch.equal(a.train.targets.sum(0), b.train.targets.sum(0))
    assert c.train.targets.shape[1] == 3
    with pytest.raises(DataError, match=r"the hospitals have 2 tasks: main, letters"):
        _ = federation.task
    with pytest.raises(DataError, match=r"c: class list differs.*or a task of its own"):
        made(several(hospital("a", "a.npz"), hospital("c", "c.npz")))


def test_public_images_are_there_only_where_they_are_asked(several):
    alone = made(several(phantom("a")))
    assert alone.task.natural_classes == 0
    assert alone.naturals.images.shape == (0, 1, 32, 32)
    with pytest.raises(DataError, match="no public images were loaded"):
        _ = alone.natural_records
    assert len(alone.proxy_digest) == 64
    asked = made(several(phantom("a"), system={"kind": "natimg-fl", "rounds": 1}))
    assert asked.task.natural_classes == 10
    assert len(asked.natural_records) == 60


def test_masks_from_a_pack_to_a_score(several, tmp_path):
    masks = np.zeros((30, 32, 32), dtype=np.uint8)
    masks[:, 8:24, 4:16] = 1
    images = np.random.default_rng(0).integers(0, 99, (30, 32, 32), dtype=np.uint8) + 150 * masks
    np.savez(tmp_path / "m.npz", images=images, mask=masks)
    names = ["background", "organ"]
    table = hospital("m", "m.npz", target="mask", classes=names, sites=3, partition="quantity")
    config = several(table, split_seed=1)
    federation = made(config)
    assert federation.task.form == "mask"
    assert federation.task.classes == ("background", "organ")
    part = hospital_tests(federation)["m"]
    assert part.truth.targets.shape[1:] == (2, 32, 32)

    class Bright(torch.nn.Module):
        def forward(self, images):
            return torch.cat([-images, images], 1)

    found = probabilities(Bright(), part)
    assert found.shape == part.truth.targets.shape
    np.testing.assert_allclose(found.sum(1), 1)
    assert quick_dice([found], part) == pytest.approx(scores([found], part).dice.value)
    assert scores([found], part).dice.value > 0.95
    assert {held.counted for held in holdings(config, federation)} == {"pixels"}


def test_a_model_of_images_is_scored_alike(world):
    part = site_test(world.sites[0])
    network = world.network("test_resnet", "predict")

    class Plain(torch.nn.Module):
        def forward(self, images):
            return network(images)[0][:, 0]

    np.testing.assert_allclose(probabilities(Plain(), part), predict(network, part), atol=1e-6)
    assert quick_dice([predict(network, part)], part) is None


def test_sites_differ_as_their_table_says(several):
    def shares(**how):
        federation = made(several(phantom("a", images=200, sites=4, **how)))
        assert {len(site.test) > 0 for site in federation.sites} == {True}
        trained = [float(class_shares(site.train)[1]) for site in federation.sites]
        tested = [float(class_shares(site.test)[1]) for site in federation.sites]
        return trained, tested

    trained, _ = shares()
    assert max(trained) - min(trained) < 0.2
    trained, tested = shares(partition="dirichlet", concentration=0.2)
    assert max(trained) - min(trained) > 0.4
    # Each site's test part is cut from the same images, so it has the same classes.
    assert tested == pytest.approx(trained, abs=0.25)
    trained, tested = shares(partition="pathological", classes_per_site=1)
    assert sorted(trained) == sorted(tested) == [0, 0, 1, 1]


def test_class_counts_are_shown_of_simulated_sites_alone(several, tmp_path):
    pack(tmp_path / "real.npz", [0, 1] * 20, seed=1)
    pack(tmp_path / "cut.npz", [0, 1] * 20, seed=2)
    config = several(
        phantom("p"), hospital("real", "real.npz"), hospital("cut", "cut.npz", sites=2)
    )
    federation = made(config)
    shown = holdings(config, federation)
    assert [held.site for held in shown] == ["p", "cut-1", "cut-2"]
    assert sum(sum(held.counts.values()) for held in shown[1:]) == sum(
        len(site.train) for site in federation.sites[2:]
    )


def test_colour_is_kept_or_said_to_be_lost(several, tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    pack(tmp_path / "skin.npz", [0, 1] * 10, images=colour)
    grey = made(several(hospital("skin", "skin.npz")))
    assert grey.sites[0].train.images.shape[1] == 1
    assert grey.notes == (
        "skin: colour images are shown to networks in grey; data.channels = 3 keeps colour.",
    )
    kept = made(several(hospital("skin", "skin.npz"), channels=3))
    assert kept.sites[0].train.images.shape[1] == 3
    assert kept.notes == ()


NATIMG = {"kind": "natimg-fl", "rounds": 1}


@pytest.mark.parametrize(
    ("table", "changes", "said"),
    [
        ({"target": "mask"}, {}, "natimg-fl tells images apart, not pixels"),
        ({}, {"channels": 3}, "data.channels: natimg-fl's networks take grey images"),
        ({"images": 1}, {}, "a: 1 patient.s. cannot fill 2 parts"),
        (
            {"images": 12, "sites": 5, "partition": "dirichlet"},
            {},
            "a: no dirichlet cut.*lower sites to 4",
        ),
    ],
)
def test_what_cannot_be_is_one_line(several, table, changes, said):
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        made(several(phantom("a", **table), system=NATIMG, **changes))
    assert "\n" not in str(caught.value)


def test_a_partition_needs_sites(several):
    with pytest.raises(ConfigError, match=r'a: partition = "dirichlet" says how simulated sites'):
        several(phantom("a", partition="dirichlet"))


def test_a_site_whose_training_masks_are_empty(several, tmp_path):
    masks = np.zeros((6, 32, 32), dtype=np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32), dtype=np.uint8)
    table = hospital("m", "m.npz", target="mask", classes=["background", "organ"])
    np.savez(tmp_path / "m.npz", images=images, mask=masks)
    with pytest.raises(DataError, match="m: no mask marks anything but background"):
        made(several(table))
    masks[2, :9] = 1
    np.savez(tmp_path / "m.npz", images=images, mask=masks)
    assert made(several(table)).sites[0].records.counts()["organ"] == 1
    # Of three folds one holds the marked image back, and nothing is left to learn from.
    kept = 0
    for fold in range(3):
        with suppress(DataError):
            made(several(table, folds=3, fold=fold))
            kept += 1
            continue
        with pytest.raises(DataError, match="m: no training mask marks anything but background"):
            made(several(table, folds=3, fold=fold))
    assert kept == 2
