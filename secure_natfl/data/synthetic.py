"""Public images made on the spot: natural statistics with labelled content, and pure noise.

Natural images have amplitude spectra near 1/f (Field, JOSA A 4:2379, 1987) and consist of objects
that occlude one another at all scales; dead leaves with power-law sizes reproduce both (Lee,
Mumford and Huang, IJCV 41:35, 2001) and teach networks useful features (Baradad et al., NeurIPS
2021). The families below are made of these two ingredients, so that a label says what is seen.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.data.leaves import cells, dead_leaves, one_object
from secure_natfl.data.records import Records
from secure_natfl.data.spectra import coloured_noise, grid, rescale

Images = NDArray[np.float32]
Family = Callable[[int, int, np.random.Generator], Images]


def _clouds(n: int, size: int, rng: np.random.Generator) -> Images:
    return coloured_noise(n, size, rng, slope=(1.5, 2.2))


def _grain(n: int, size: int, rng: np.random.Generator) -> Images:
    return coloured_noise(n, size, rng, slope=(0.2, 0.9))


def _waves(n: int, size: int, rng: np.random.Generator) -> Images:
    return coloured_noise(n, size, rng, slope=(0.8, 1.3), angle=np.pi / 2)


def _grass(n: int, size: int, rng: np.random.Generator) -> Images:
    return coloured_noise(n, size, rng, slope=(0.8, 1.3), angle=0.0)


def _pebbles(n: int, size: int, rng: np.random.Generator) -> Images:
    return dead_leaves(n, size, rng, aspect=(1.0, 1.3), square=False)


def _blocks(n: int, size: int, rng: np.random.Generator) -> Images:
    return dead_leaves(n, size, rng, aspect=(1.0, 1.8), square=True)


def _blades(n: int, size: int, rng: np.random.Generator) -> Images:
    return dead_leaves(n, size, rng, aspect=(4.0, 7.0), square=False)


def _horizon(n: int, size: int, rng: np.random.Generator) -> Images:
    """Sky that brightens downward and two ridges of ground, each with its own texture."""
    across, down = grid(size)
    scene = 0.3 * coloured_noise(n, size, rng, slope=(1.5, 2.0)) + 0.8 * down
    for level in (-0.1, 0.35):
        ridge = coloured_noise(n, size, rng, slope=(1.2, 1.8))[:, :1, :]
        edge = level + rng.uniform(-0.2, 0.2, (n, 1, 1)) + 0.12 * ridge
        ground = rng.normal(-0.6, 0.5, (n, 1, 1)) + 0.4 * coloured_noise(
            n, size, rng, slope=(0.6, 1.2)
        )
        cover = np.clip((down + 0.0 * across - edge) * size / 2 + 0.5, 0, 1)
        scene = scene + cover * (ground - scene)
    return scene.astype(np.float32)


FAMILIES: dict[str, Family] = {
    "clouds": _clouds,
    "grain": _grain,
    "waves": _waves,
    "grass": _grass,
    "pebbles": _pebbles,
    "blocks": _blocks,
    "blades": _blades,
    "cells": cells,
    "horizon": _horizon,
    "object": one_object,
}


def natural_images(n: int, size: int, rng: np.random.Generator) -> Records:
    """`n` grey images, uint8 n×size×size, in ten balanced content families (`FAMILIES`).

    The default public proxy set, and its labels the auxiliary task of pre-training. Deterministic
    in `rng`; `size` ≥ 16 pixels. Unit: the image. Raises DataError for n < 1 or a smaller size.
    """
    _check(n, size)
    labels = rng.permutation(np.arange(n, dtype=np.int64) % len(FAMILIES))
    images = np.empty((n, size, size), dtype=np.uint8)
    for index, family in enumerate(FAMILIES.values()):
        rows = np.flatnonzero(labels == index)
        # Batches of this many images stay within the processor's cache.
        for batch in np.array_split(rows, max(1, len(rows) // 64)) if len(rows) else []:
            images[batch] = _photograph(family(len(batch), size, rng), rng)
    return _pool(images, labels, tuple(FAMILIES), "natural images made on the spot")


def noise_images(n: int, size: int, rng: np.random.Generator) -> Records:
    """`n` images of independent uniform grey values, uint8 n×size×size: the control proxies.

    They carry no visual content, so whatever a federation gains over them is owed to natural
    images. One class; deterministic in `rng`. Raises DataError for n < 1 or size < 16.
    """
    _check(n, size)
    images = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
    return _pool(images, np.zeros(n, dtype=np.int64), ("noise",), "uniform noise")


def _photograph(scenes: Images, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Adds haze of 1/f noise and a light gradient, then exposes with random contrast."""
    n, size = scenes.shape[:2]
    across, down = grid(size)
    haze = coloured_noise(n, size, rng, slope=(0.8, 1.4))
    strength, east, south = rng.normal(0, (0.15, 0.3, 0.3), (n, 3)).T[:, :, None, None]
    light = np.abs(strength) * haze + east * across + south * down
    scenes = rescale(rescale(scenes) + light.astype(np.float32))
    contrast = rng.uniform(30, 65, (n, 1, 1)).astype(np.float32)
    mean = rng.uniform(90, 160, (n, 1, 1)).astype(np.float32)
    return np.clip(mean + contrast * scenes, 0, 255).astype(np.uint8)


def _check(n: int, size: int) -> None:
    if n < 1 or size < 16:
        raise DataError(f"cannot make {n} images of {size} pixels", fix="ask for ≥ 1 of size ≥ 16")


def _pool(
    images: NDArray[np.uint8], labels: NDArray[np.int64], names: tuple[str, ...], name: str
) -> Records:
    ids = tuple(f"image-{i}" for i in range(len(images)))
    return Records(images, labels, names, ids, "image", name)
