"""Hospitals of small volumes, as NIfTI under a manifest."""

from pathlib import Path

import nibabel
import numpy as np

SIDE = 20


def written(folder: Path, masks: bool) -> None:
    """Six volumes of six patients, with labels or masks, as NIfTI under a manifest."""
    folder.mkdir()
    random = np.random.default_rng(len(folder.name) + ord(folder.name[-1]))
    lines = ["file,label,mask,patient"]
    for i in range(6):
        voxels = random.normal(-600, 300, (SIDE, SIDE, SIDE)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"{i}.nii")
        marked = np.zeros((SIDE, SIDE, SIDE), np.uint8)
        marked[4:12, 4:12, 4:12] = 1
        nibabel.save(nibabel.Nifti1Image(marked, np.eye(4)), folder / f"{i}-mask.nii")
        lines.append(f"{i}.nii,{('absent', 'present')[i % 2]},{i}-mask.nii,{folder.name}-p{i}")
    columns = [0, 2, 3] if masks else [0, 1, 3]
    rows = [",".join(line.split(",")[c] for c in columns) for line in lines]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
