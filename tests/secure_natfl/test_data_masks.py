from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protocols.errors import DataError
from secure_natfl.data.arrays import resize_masks, to_float
from secure_natfl.data.folder import FolderSource
from secure_natfl.data.manifest import Manifest
from secure_natfl.data.masks import Coding, check_marked
from secure_natfl.data.npz import PackSource
from secure_natfl.data.records import Records, align
from secure_natfl.federation import class_shares, examples
from secure_natfl.sources import load_hospital
from secure_natfl.toml_config import parse

NAMES = ("background", "cytoplasm", "nucleus")


def masked(masks: np.ndarray, names: tuple[str, ...] = NAMES, name: str = "north") -> Records:
    images = np.zeros(masks.shape, dtype=np.uint8)
    ids = tuple(map(str, range(len(masks))))
    return Records(images, masks.astype(np.int64), names, ids, "image", name)


def test_a_mask_has_as_many_labels_as_pixels():
    records = masked(np.array([[[0, 1], [2, -1]], [[0, 0], [0, 1]]]))
    assert records.form == "mask"
    assert not records.multi_label
    assert records.areas().tolist() == [[1, 1, 1], [3, 1, 0]]
    assert records.counts() == {"background": 2, "cytoplasm": 2, "nucleus": 1}
    assert not records.one_class()
    assert masked(np.zeros((2, 3, 3))).one_class()
    assert records.take([1]).labels.tolist() == [[[0, 0], [0, 1]]]


@pytest.mark.parametrize(
    ("masks", "names", "said"),
    [
        (np.full((1, 2, 2), 3), NAMES, "lies outside -1…2"),
        (np.zeros((1, 2, 2)), ("lung",), "a background and at least one further"),
    ],
)
def test_masks_that_do_not_fit_their_classes(masks, names, said):
    with pytest.raises(DataError, match=f"^north: records cannot be used .*{said}"):
        masked(masks, names)


def test_masks_of_another_size_are_refused():
    with pytest.raises(DataError, match="labels have shape"):
        replace(masked(np.zeros((2, 4, 4))), labels=np.zeros((2, 4, 5), dtype=np.int64))


def test_classes_of_masks_are_matched_by_name():
    north = masked(np.array([[[0, 1], [2, -1]]]))
    south = masked(np.array([[[0, 1], [2, -1]]]), ("background", "nucleus", "cytoplasm"), "south")
    assert align([north, south])[1].labels.tolist() == [[[0, 2], [1, -1]]]
    turned = masked(north.labels, ("nucleus", "cytoplasm", "background"), "south")
    with pytest.raises(DataError, match="south: the background is not that of north"):
        align([north, turned])
    single = Records(north.images, np.zeros(1, dtype=np.int64), NAMES, ("a",), "image", "south")
    with pytest.raises(DataError, match=r"south: label form.*single-label, the other masks"):
        align([north, single])


def test_a_pixel_takes_the_class_that_covers_most_of_it():
    mask = np.zeros((1, 6, 6), dtype=np.int64)
    mask[0, :3, :3] = [[1, 1, 1], [1, 1, 2], [2, 2, 2]]
    mask[0, 3:, 3:] = -1
    assert resize_masks(mask, 2).tolist() == [[[1, 0], [0, -1]]]
    assert resize_masks(mask, 6) is mask
    volume = np.stack([mask, mask[:, ::-1]], axis=1)
    assert resize_masks(volume, 2).shape == (1, 2, 2, 2)
    rng = np.random.default_rng(0)
    blocks = rng.integers(-1, 4, (3, 8, 8))
    np.testing.assert_array_equal(resize_masks(blocks.repeat(4, 1).repeat(4, 2), 8), blocks)
    np.testing.assert_array_equal(resize_masks(blocks, 16), blocks.repeat(2, 1).repeat(2, 2))


def test_targets_of_masks_have_their_classes_before_height_and_width():
    records = masked(np.array([[[0, 1], [2, -1]]]).repeat(8, 1).repeat(8, 2))
    found = examples(records, 16)
    assert found.form == "mask"
    assert found.targets.shape == found.known.shape == (1, 3, 16, 16)
    assert found.targets[0, :, 0, 15].tolist() == [0, 1, 0]
    assert found.targets[0, :, 15, 15].tolist() == [0, 0, 0]
    assert found.known[0, :, 15, 15].tolist() == [0, 0, 0]
    assert torch.equal(found.targets.sum(1), found.known[:, 0])
    assert class_shares(found).tolist() == pytest.approx([1 / 3] * 3)
    assert found.at(torch.tensor([0])).form == "mask"


def test_colour_and_volumes():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    shown = to_float(colour, 16, 3)
    np.testing.assert_allclose(shown[1, 2], (colour[1, ..., 2] / 255 - 0.5) / 0.25, rtol=1e-5)
    assert to_float(colour, 16).shape == (2, 1, 16, 16)
    grey = to_float(colour[..., 0], 16, 3)
    assert (grey[:, 0] == grey[:, 2]).all()
    volume = rng.integers(0, 256, (2, 5, 16, 16), dtype=np.uint8)
    found = to_float(volume, 16)
    assert found.shape == (2, 1, 5, 16, 16)
    np.testing.assert_array_equal(found[1, 0, 3], to_float(volume[1, 3][None], 16)[0, 0])


def test_bits_are_drawn_one_over_the_other():
    stored = np.array([[0, 1, 2, 3, 4, 8, 9]], dtype=np.uint8)
    coding = Coding(("background", "lung", "lesion"), bits=(1, 2 + 4))
    assert coding.decode(stored, "here").tolist() == [[0, 1, 2, 2, 2, 0, 1]]


def test_values_are_translated_and_255_is_unknown():
    stored = np.array([[0, 128, 255]], dtype=np.uint8)
    assert Coding(("none", "cell"), (0, 128)).decode(stored, "here").tolist() == [[0, 1, -1]]
    assert Coding(("none", "dim", "cell"), (0, 128, 255)).decode(stored, "x").tolist() == [
        [0, 1, 2]
    ]


def test_masks_that_mark_nothing():
    with pytest.raises(DataError, match=r"^here: no mask marks .*Next: check the masks$"):
        check_marked(np.zeros((2, 3, 3), dtype=np.int64), "here")
    stored = Coding(("none", "cell")).decode(np.array([[[0, 255]]]), "here")
    with pytest.raises(DataError, match=r"255 was read as unknown.*set values = \[0, 255\]"):
        check_marked(stored, "here")


@pytest.mark.parametrize(
    ("coding", "said"),
    [
        (Coding(NAMES), r"the mask holds 7 \(its classes are background 0, cytoplasm 1, nucleus 2"),
        (Coding(NAMES, (0, 7)), "values has 2 entries for 3 classes"),
        (Coding(NAMES, bits=(1, 1)), "give 2 different ones"),
        (Coding(("lung",)), "a background and at least one further class"),
    ],
)
def test_codings_that_do_not_fit(coding, said):
    with pytest.raises(DataError, match=f"^here: .*{said}"):
        coding.decode(np.array([[0, 7]]), "here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        colour = np.zeros((8, 6, 3), dtype=np.uint8)
        colour[..., 0] = 200
        Image.fromarray(colour).save(tmp_path / f"{name}.png")
    left = np.zeros((8, 6), dtype=np.uint8)
    left[:, :3] = 255
    Image.fromarray(left).save(tmp_path / "a-mask.png")
    palette = Image.fromarray(left // 255, mode=None).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "b-mask.png")
    (tmp_path / "list.csv").write_text(
        "file,outline,patient\na.png,a-mask.png,1\nb.png,b-mask.png,2\n"
    )
    return tmp_path


def listed(folder: Path, coding: Coding, channels: int = 1) -> FolderSource:
    manifest = Manifest(folder / "list.csv", mask_column="outline")
    return FolderSource(folder, manifest, 4, "patient", "clinic", channels, coding)


def test_a_manifest_of_masks(folder):
    left = Image.open(folder / "a-mask.png").point(lambda v: v // 255)
    left.save(folder / "a-mask.png")
    records = listed(folder, Coding(("rest", "lung")), channels=3).load()
    assert records.form == "mask"
    assert records.colour
    assert records.images[0, 0, 0].tolist() == [200, 0, 0]
    assert records.labels.tolist() == [[[1, 1, 0, 0]] * 4] * 2
    assert records.patients == ("1", "2")
    assert records.class_names == ("rest", "lung")
    assert not listed(folder, Coding(("rest", "lung"))).load().colour


def test_masks_at_fault_are_named_with_their_line(folder):
    def refused() -> str:
        with pytest.raises(DataError) as caught:
            listed(folder, Coding(("rest", "lung"), (0, 255))).load()
        assert "\n" not in str(caught.value)
        assert "list.csv line" in str(caught.value)
        return str(caught.value)

    assert "b-mask.png" in refused()
    assert "the mask holds 1 " in refused()
    Image.fromarray(np.zeros((8, 7), dtype=np.uint8)).save(folder / "a-mask.png")
    assert "the mask is 8×7, the image 8×6" in refused()
    Image.fromarray(np.zeros((8, 6, 3), dtype=np.uint8)).save(folder / "a-mask.png")
    assert "the mask is in colour" in refused()
    (folder / "a-mask.png").write_bytes(b"")
    assert "the mask cannot be read" in refused()
    (folder / "a-mask.png").unlink()
    assert "no such mask" in refused()


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "cells.npz"
    masks = np.zeros((4, 4, 4), dtype=np.uint8)
    masks[:, 0], masks[:, 1] = 1, 2
    np.savez(
        path,
        images=np.zeros((4, 4, 4), dtype=np.uint8),
        mask=masks,
        finding=np.array(["flu", "none", "flu", "none"]),
        grade=np.array([0, 1, 2, 2]),
        source=np.array([0, 0, 1, 1]),
        source_names=np.array(["east", "west"]),
    )
    return path


def test_any_array_of_a_pack_may_be_learnt(pack):
    masks = PackSource(pack, target="mask", class_names=NAMES).load()
    assert masks.form == "mask"
    assert masks.labels[3, :3, 0].tolist() == [1, 2, 0]
    words = PackSource(pack, "west", target="finding").load()
    assert words.class_names == ("flu", "none")
    assert words.labels.tolist() == [0, 1]
    grades = PackSource(pack, target="grade", class_names=("low", "mid", "high")).load()
    assert grades.labels.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "colour"}, "lacks colour"),
        ({"target": "grade"}, "its numbers have no names"),
        ({"target": "finding", "class_names": ("flu",)}, "no class for 'none'"),
        ({"target": "mask", "class_names": ("a", "b")}, "the mask holds 2"),
    ],
)
def test_targets_that_do_not_fit(pack, options, said):
    with pytest.raises(DataError, match=said):
        PackSource(pack, **options).load()


def test_a_configured_folder_of_masks(folder):
    Image.open(folder / "a-mask.png").convert("P").save(folder / "b-mask.png")
    table = {
        "name": "clinic",
        "kind": "folder",
        "path": ".",
        "manifest": "list.csv",
        "patient_column": "patient",
        "mask_column": "outline",
        "classes": ["rest", "lung"],
        "values": [0, 255],
        "architectures": ["test_resnet"],
    }
    config = parse(
        {
            "data": {"root": str(folder), "size": 16, "hospitals": [table]},
            "models": {"central": "test_resnet"},
        },
        "test",
    )
    records = load_hospital(config.data.hospitals[0], config.data, lambda _: b"k" * 32)
    assert records.name == "clinic"
    assert records.unit == "patient"
    assert records.labels[0, :, :8].all()
    assert not records.labels[0, :, 8:].any()
