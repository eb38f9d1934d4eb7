import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protocols.errors import DataError
from secure_natfl.data.natural import LabelledFolder, TorchvisionSource


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "cat/deep/3.PNG"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 5), 90, dtype=np.uint8)).save(path)
    (tmp_path / "cat/readme.txt").write_text("not an image")
    records = LabelledFolder(tmp_path, 8).load()
    assert records.class_names == ("cat", "dog")
    assert records.counts() == {"cat": 2, "dog": 1}
    assert records.images.shape == (3, 8, 8)
    assert records.unit == "image"


def test_empty_missing_and_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        LabelledFolder(tmp_path / "absent", 8).load()
    with pytest.raises(DataError, match="one subfolder per class"):
        LabelledFolder(tmp_path, 8).load()
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(DataError, match=r"1\.jpg"):
        LabelledFolder(tmp_path, 8).load()


@pytest.mark.parametrize("dataset", ["cifar10", "stl10"])
def test_nothing_is_fetched_without_being_asked(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(DataError, match="set download = true"):
        TorchvisionSource(dataset, tmp_path / "root").load()  # type: ignore[arg-type]
    assert not (tmp_path / "root").exists()


def test_cifar10_from_extracted_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def store(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()  # noqa: S324 - torchvision's own check

    pixels = np.arange(2 * 3072, dtype=np.int64).astype(np.uint8).reshape(2, 3072)
    batch = store("data_batch_1", {"data": pixels, "labels": [1, 0]})
    meta = store("batches.meta", {"label_names": ["airplane", "automobile"]})
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", batch]])
    monkeypatch.setattr(CIFAR10, "test_list", [])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    records = TorchvisionSource("cifar10", tmp_path).load()
    assert records.images.shape == (2, 32, 32, 3)
    assert records.images[0, 0, 1].tolist() == [pixels[0, 1], pixels[0, 1025], pixels[0, 2049]]
    assert records.counts() == {"airplane": 1, "automobile": 1}


def test_stl10_from_extracted_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import STL10

    folder = tmp_path / STL10.base_folder
    folder.mkdir()
    pixels = np.arange(2 * 3 * 96 * 96, dtype=np.int64).astype(np.uint8)
    contents = {
        "train_X.bin": pixels.tobytes(),
        "train_y.bin": bytes([1, 3]),
        "class_names.txt": b"airplane\nbird\ncar\n",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    sums = [[name, hashlib.md5(data).hexdigest()] for name, data in contents.items()]  # noqa: S324
    monkeypatch.setattr(STL10, "train_list", sums)
    monkeypatch.setattr(STL10, "test_list", [])
    records = TorchvisionSource("stl10", tmp_path).load()
    assert records.images.shape == (2, 96, 96, 3)
    assert records.counts() == {"airplane": 1, "bird": 0, "car": 1}
