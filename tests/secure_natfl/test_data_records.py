from dataclasses import replace

import numpy as np
import pytest

from protocols.errors import DataError
from secure_natfl.data.records import Records, align

KEY = bytes(range(32))


def single(labels: list[int], names: tuple[str, ...] = ("a", "b"), name: str = "north") -> Records:
    images = np.arange(len(labels) * 4, dtype=np.uint8).reshape(-1, 2, 2)
    patients = tuple(f"secret-{i}" for i in range(len(labels)))
    return Records(images, np.array(labels, dtype=np.int64), names, patients, "patient", name)


def multi(labels: list[list[int]], names: tuple[str, ...], name: str = "north") -> Records:
    base = single([0] * len(labels))
    table = np.array(labels, dtype=np.int64)
    return Records(base.images, table, names, base.patients, "image", name)


def test_repr_hides_patients_and_images() -> None:
    shown = repr(single([0, 1]))
    assert "secret" not in shown
    assert "array" not in shown
    assert "north" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 2, 2), dtype=np.float32)}, "float32, not uint8"),
        ({"images": np.zeros((2, 2, 2, 4), dtype=np.uint8)}, "shape"),
        ({"images": np.zeros((0, 2, 2), dtype=np.uint8)}, "no image"),
        ({"patients": ("one",)}, "2 images but 1 patient"),
        ({"patients": ("one", "")}, "empty"),
        ({"labels": np.zeros(2, dtype=np.int32)}, "int32, not int64"),
        ({"labels": np.zeros(3, dtype=np.int64)}, "labels have shape"),
        ({"labels": np.array([0, 2])}, "outside 0…1"),
        ({"labels": np.array([0, -1])}, "outside 0…1"),
        ({"labels": np.array([[0, -2], [1, 1]])}, "outside -1…1"),
        ({"class_names": ("a", "a")}, "repeated"),
        ({"class_names": ()}, "missing"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_names_the_hospital(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        replace(single([0, 1]), **change)  # type: ignore[arg-type]
    assert str(caught.value).startswith("north: ")
    assert "\n" not in str(caught.value)


def test_take_keeps_images_labels_and_patients_together() -> None:
    records = single([0, 1, 1, 0]).take([3, 1], name="part")
    assert records.patients == ("secret-3", "secret-1")
    assert records.labels.tolist() == [0, 1]
    assert records.images[0, 0, 0] == 12
    assert records.name == "part"
    with pytest.raises(DataError, match="no image"):
        records.take([])


def test_counts_skip_unknown_labels() -> None:
    records = multi([[1, -1], [1, 0], [0, -1]], ("fluid", "mass"))
    assert records.counts() == {"fluid": 2, "mass": 0}
    assert single([1, 1, 0]).counts() == {"a": 1, "b": 2}


def test_one_class_is_allowed_and_known() -> None:
    assert single([1, 1]).one_class()
    assert not single([0, 1]).one_class()
    assert multi([[1, -1], [1, 0]], ("fluid", "mass")).one_class()
    assert not multi([[1, 0], [0, 0]], ("fluid", "mass")).one_class()


def test_patients_digest_depends_on_the_set_and_the_key_only() -> None:
    records = single([0, 1, 0])
    digest = records.patients_digest(KEY)
    assert records.take([2, 0, 1, 0]).patients_digest(KEY) == digest
    assert records.take([0, 1]).patients_digest(KEY) != digest
    assert records.patients_digest(KEY[::-1]) != digest
    # Lengths are bound: {"ab", "c"} is not {"a", "bc"}.
    first, second = (replace(records.take([0, 1]), patients=p) for p in (("ab", "c"), ("a", "bc")))
    assert first.patients_digest(KEY) != second.patients_digest(KEY)
    with pytest.raises(DataError, match="key is too short"):
        records.patients_digest(b"short")


def test_align_matches_classes_by_name() -> None:
    north = single([0, 1, 2], ("x", "y", "z"), "north")
    south = single([0, 1, 2], ("z", "x", "y"), "south")
    aligned = align([north, south])
    assert aligned[0] is north
    assert aligned[1].class_names == ("x", "y", "z")
    assert aligned[1].labels.tolist() == [2, 0, 1]
    assert aligned[1].counts() == south.counts()


def test_align_moves_columns_of_multi_label() -> None:
    north = multi([[1, 0]], ("x", "y"))
    south = multi([[1, -1]], ("y", "x"))
    assert align([north, south])[1].labels.tolist() == [[-1, 1]]


def test_align_names_hospital_and_classes_that_differ() -> None:
    north = single([0], ("normal", "pneumonia"), "north")
    south = single([0], ("normal", "effusion"), "south")
    with pytest.raises(DataError, match=r"south: .*north.*lacks pneumonia and adds effusion"):
        align([north, south])
    with pytest.raises(DataError, match="single-label"):
        align([north, multi([[1, 0]], ("normal", "pneumonia"), "south")])
    with pytest.raises(DataError, match="no hospital"):
        align([])
