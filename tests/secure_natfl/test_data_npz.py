from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.errors import DataError
from secure_natfl.data.npz import MedmnistSource, PackSource

PACK = Path(__file__).resolve().parents[3] / "shared/data/xray6/xray6.dev.npz"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    path = tmp_path / "chest.dev.npz"
    np.savez(
        path,
        images=np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2),
        labels=np.array([0, 1, 1, 0, 1], dtype=np.int16),
        class_names=np.array(["normal", "pneumonia"]),
        source=np.array([0, 1, 1, 1, 0], dtype=np.int16),
        source_names=np.array(["east", "west"]),
        group=np.array(["p1", "p2", "p3", "p4", "p5"]),
        cluster=np.array([7, 8, 8, 9, 7]),
        view=np.array(["PA", "PA", "AP", "PA", "AP"]),
    )
    return path


def test_one_hospital_with_clusters_as_ids(pack: Path) -> None:
    records = PackSource(pack, "west", unit="patient").load()
    assert records.name == "west"
    assert records.unit == "patient"
    assert records.labels.tolist() == [1, 1, 0]
    assert records.images[0].tolist() == [[4, 5], [6, 7]]
    assert records.patients == ("chest.dev.npz:8", "chest.dev.npz:8", "chest.dev.npz:9")


def test_filter_and_default_unit(pack: Path) -> None:
    records = PackSource(pack, where={"view": "AP"}).load()
    assert records.unit == "image"
    assert records.name == "chest"
    assert records.labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hospital": "south"}, "no hospital 'south' .it holds east, west"),
        ({"where": {"age": "3"}}, "no column 'age'"),
        ({"where": {"view": "LL"}}, "no image is left"),
    ],
)
def test_wrong_choices_are_named(pack: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PackSource(pack, **options).load()


def test_missing_damaged_and_incomplete_files(tmp_path: Path, pack: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        PackSource(tmp_path / "absent.npz").load()
    (tmp_path / "cut.npz").write_bytes(pack.read_bytes()[:200])
    with pytest.raises(DataError, match="not a readable npz"):
        PackSource(tmp_path / "cut.npz").load()
    np.savez(tmp_path / "bare.npz", images=np.zeros((1, 2, 2), dtype=np.uint8))
    with pytest.raises(DataError, match="lacks class_names, labels"):
        PackSource(tmp_path / "bare.npz").load()
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="not a readable npz"):
        PackSource(tmp_path / "single.npy").load()


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    np.savez(tmp_path / "trap.npz", images=np.array([Trap()], dtype=object))
    with pytest.raises(DataError, match="not a readable npz"):
        PackSource(tmp_path / "trap.npz").load()
    assert not (tmp_path / "executed").exists()


def _medmnist(path: Path, labels: np.ndarray[Any, Any]) -> Path:
    images = np.zeros((2, 3, 3), dtype=np.uint8)
    parts = {
        f"{part}_{key}": value
        for part in ("train", "val", "test")
        for key, value in (("images", images), ("labels", labels))
    }
    np.savez(path, **parts)  # type: ignore[arg-type]
    return path


def test_medmnist_single_and_multi_label(tmp_path: Path) -> None:
    single = MedmnistSource(_medmnist(tmp_path / "a.npz", np.array([[0], [2]], np.uint8))).load()
    assert single.labels.tolist() == [0, 2] * 3
    assert single.class_names == ("0", "1", "2")
    assert single.unit == "image"
    assert single.patient_count == 6
    path = _medmnist(tmp_path / "b.npz", np.array([[0, 1], [1, 1]], np.uint8))
    multi = MedmnistSource(path, ("fluid", "mass"), "clinic").load()
    assert multi.multi_label
    assert multi.counts() == {"fluid": 3, "mass": 6}
    with pytest.raises(DataError, match="clinic"):
        MedmnistSource(path, ("fluid",), "clinic").load()


def test_arrays_that_do_not_fit_together(tmp_path: Path, pack: Path) -> None:
    with np.load(pack) as stored:
        arrays = dict(stored)
    np.savez(tmp_path / "short.npz", **{**arrays, "labels": arrays["labels"][:3]})
    with pytest.raises(DataError, match=r"differ in length .images 5, labels 3"):
        PackSource(tmp_path / "short.npz").load()
    path = _medmnist(tmp_path / "a.npz", np.array([[0], [2]], np.uint8))
    with np.load(path) as stored:
        parts = dict(stored)
    np.savez(path, **{**parts, "val_images": parts["val_images"][:, :2]})
    with pytest.raises(DataError, match="parts differ in the shape of images"):
        MedmnistSource(path).load()


def test_any_damaged_byte_is_an_error_of_ours_or_harmless(tmp_path: Path, pack: Path) -> None:
    whole = pack.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with suppress(DataError):
            PackSource(tmp_path / "damaged.npz").load()


@pytest.mark.skipif(not PACK.is_file(), reason="the evaluation packs are not on this machine")
def test_real_pack_loads_by_hospital() -> None:
    records = PackSource(PACK, "nih", unit="patient").load()
    assert records.counts() == {"normal": 346, "pneumonia": 353}
    assert records.patient_count == 469
    assert PackSource(PACK, "hannover", unit="patient").load().one_class()
