"""Public natural images from disk, to serve as the proxy set.

Packs and MedMNIST-like files are read by `npz.PackSource` and `npz.MedmnistSource`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from protocols.errors import DataError
from secure_natfl.data.arrays import Channels
from secure_natfl.data.folder import read_image
from secure_natfl.data.records import Records

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


@dataclass(frozen=True)
class LabelledFolder:
    """A folder with one subfolder per class, as many public sets are handed out."""

    folder: Path
    size: int
    channels: Channels = 1

    def load(self) -> Records:
        """Every image below a class folder, size×size, in the order of path names.

        Raises DataError when the folder is missing, has no class with an image, or an image
        cannot be read.
        """
        if not self.folder.is_dir():
            raise DataError("no such folder", where=str(self.folder), fix="check the path")
        found = [
            (child.name, path)
            for child in sorted(self.folder.iterdir())
            if child.is_dir()
            for path in sorted(child.rglob("*"))
            if path.suffix.lower() in _SUFFIXES
        ]
        if not found:
            raise DataError(
                "no image was found",
                where=str(self.folder),
                why="it needs one subfolder per class",
                fix=f"put images ({', '.join(sorted(_SUFFIXES))}) into subfolders",
            )
        names = tuple(dict.fromkeys(name for name, _ in found))
        return Records(
            np.stack([read_image(path, self.size, "", self.channels) for _, path in found]),
            np.array([names.index(name) for name, _ in found], dtype=np.int64),
            names,
            tuple(str(path.relative_to(self.folder)) for _, path in found),
            "image",
            self.folder.name,
        )


@dataclass(frozen=True)
class TorchvisionSource:
    """CIFAR-10 (50,000 images, 32×32) or STL-10 (5,000, 96×96): the training part, in RGB.

    `root` holds the extracted files. Nothing is fetched unless `download` is true, which then
    creates `root` and reaches out to the data set's own site.
    """

    dataset: Literal["cifar10", "stl10"]
    root: Path
    download: bool = False

    def load(self) -> Records:
        """All training images. Raises DataError when files are missing or the download fails."""
        # Imported here: the other sources need no torch.
        from torchvision import datasets

        try:
            if self.dataset == "cifar10":
                data = datasets.CIFAR10(str(self.root), train=True, download=self.download)
                images, labels = data.data, data.targets
            else:
                data = datasets.STL10(str(self.root), split="train", download=self.download)
                images, labels = data.data.transpose(0, 2, 3, 1), data.labels
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self.dataset} cannot be loaded",
                where=str(self.root),
                why=str(error),
                fix="put the extracted files there, or set download = true",
            ) from error
        return Records(
            np.ascontiguousarray(images),
            np.asarray(labels, dtype=np.int64),
            tuple(str(name) for name in data.classes),
            tuple(f"{self.dataset}:{i}" for i in range(len(images))),
            "image",
            self.dataset,
        )
