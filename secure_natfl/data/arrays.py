"""From stored images to network input: grey or colour, one size, fixed public scale."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Channels = Literal[1, 3]

MEAN = 0.5
DEVIATION = 0.25
"""Fixed constants, chosen before any data was seen: statistics of private images would leak."""

# ITU-R BT.601, as Pillow's mode "L" uses.
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_BATCH = 256


def to_float(images: NDArray[np.uint8], size: int, channels: Channels = 1) -> NDArray[np.float32]:
    """Images as network input: float32 N×channels×size×size, (value/255 − 0.5)/0.25, −2 to 2.

    `images`: uint8 N×H×W, or N×H×W×3, which one channel shows as luminance; three channels show a
    grey image three times. Volumes N×D×H×W become N×channels×D×size×size. Shrinks by area,
    enlarges bilinearly, without keeping the aspect. Called after the split and before any model.
    """
    if images.ndim == 4 and images.shape[3] != 3:
        slices = to_float(images.reshape(-1, *images.shape[2:]), size, channels)
        return slices.reshape(*images.shape[:2], *slices.shape[1:]).swapaxes(1, 2)
    if channels == 3 and images.ndim == 4:
        shown = np.stack([resize(images[..., c], size) for c in range(3)], axis=1)
    else:
        shown = np.repeat(resize(images, size)[:, None], channels, axis=1)
    return ((shown / 255 - MEAN) / DEVIATION).astype(np.float32)


def resize_masks(masks: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Masks N×H×W or N×D×H×W at `size`: each pixel takes the class that covers most of it.

    −1, unknown, is a class like any other; of equal areas the lower wins.
    """
    if masks.shape[-2:] == (size, size):
        return masks
    flat = masks.reshape(-1, *masks.shape[-2:])
    down, across = (weights_of(length, size) for length in masks.shape[-2:])
    classes = np.unique(flat)
    # One mask at a time: several hundred classes' areas at once would fill the memory.
    areas = ([down @ (mask == c) @ across.T for c in classes] for mask in flat)
    largest = np.stack([np.argmax(np.round(each, 6), axis=0) for each in areas])
    return np.asarray(classes[largest].reshape(*masks.shape[:-2], size, size))


def resize(images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Grey values from 0 to 255 as float32 N×size×size; see `to_float`."""
    down, across = (weights_of(length, size) for length in images.shape[1:3])
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


def weights_of(length: int, size: int) -> NDArray[np.float32]:
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
