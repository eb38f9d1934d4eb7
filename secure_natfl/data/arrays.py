"""From stored images to network input: grey, one size, fixed public scale."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MEAN = 0.5
DEVIATION = 0.25
"""Fixed constants, chosen before any data was seen: statistics of private images would leak."""

# ITU-R BT.601, as Pillow's mode "L" uses.
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_BATCH = 256


def to_float(images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Images as network input: float32 N×1×size×size, (grey/255 − 0.5)/0.25, from −2 to 2.

    `images`: uint8 N×H×W or N×H×W×3 (turned to luminance). Shrinks by area, enlarges
    bilinearly, without keeping the aspect. Called after the split and before any model.
    """
    return ((resize(images, size) / 255 - MEAN) / DEVIATION)[:, None].astype(np.float32)


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Grey values from 0 to 255 as float32 N×size×size; see `to_float`."""
    down, across = (_weights(length, size) for length in images.shape[1:3])
    result = np.empty((len(images), size, size), dtype=np.float32)
    for start in range(0, len(images), _BATCH):
        grey = luminance(images[start : start + _BATCH])
        same = grey.shape[1:] == (size, size)
        result[start : start + _BATCH] = grey if same else down @ grey @ across.T
    return result


def luminance(images: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """Grey values in the range of the input, float32 N×H×W, of N×H×W or N×H×W×3 images."""
    grey = images.astype(np.float32)
    return grey if images.ndim == 3 else grey @ _LUMINANCE


def _weights(length: int, size: int) -> NDArray[np.float32]:
    """The size×length matrix that averages by area when shrinking and interpolates otherwise."""
    scale = max(length / size, 1.0)
    centres = (np.arange(size) + 0.5) * (length / size) - 0.5
    distance = np.abs(np.arange(length)[None, :] - np.clip(centres, 0, length - 1)[:, None])
    if length > size:
        # Overlap of a unit pixel with a window of width `scale`.
        weights = np.clip((scale + 1) / 2 - distance, 0, 1)
    else:
        weights = np.clip(1 - distance, 0, 1)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)
