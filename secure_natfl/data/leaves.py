"""Scenes of objects: dead leaves, cells, and one object before a background."""

import numpy as np
from numpy.typing import NDArray

from secure_natfl.data.spectra import coloured_noise, grid, rescale

Images = NDArray[np.float32]
Column = NDArray[np.float32]

# Radii in image widths, painted in random order: about r^-3, as in a scene without a
# preferred scale; few large leaves, many small.
_RADII = (0.45, 0.36, 0.3, 0.25, *(0.2,) * 5, *(0.13,) * 9, *(0.09,) * 14, *(0.06,) * 18)


def dead_leaves(
    n: int, size: int, rng: np.random.Generator, aspect: tuple[float, float], square: bool
) -> Images:
    """`n` scenes, float32 n×size×size, of leaves that cover one another; mean 0, deviation 1.

    Leaves are ellipses, or rectangles where `square`, with length ÷ width drawn from `aspect`,
    random direction, grey value, shading and texture.
    """
    margin = size // 2
    texture = coloured_noise(n, size, rng, slope=(0.6, 1.2))
    canvas = np.zeros((n, size + 2 * margin, size + 2 * margin), dtype=np.float32)
    inner = slice(margin, margin + size)
    canvas[:, inner, inner] = coloured_noise(n, size, rng, slope=(0.9, 1.4))
    for radius in rng.permutation(_RADII):
        stretch = rng.uniform(*aspect, n).astype(np.float32)
        _paint(canvas, texture, radius * size, stretch, square, rng)
    return rescale(canvas[:, inner, inner])


def _paint(
    canvas: Images,
    texture: Images,
    radius: float,
    stretch: Column,
    square: bool,
    rng: np.random.Generator,
) -> None:
    """Paints one leaf of `radius` pixels into each image, touching only the patch it covers."""
    n, size = texture.shape[:2]
    spread = float(np.sqrt(stretch.max())) * (1.42 if square else 1.0)
    radius = min(radius, (size / 2 - 1) / spread)
    side = 2 * int(np.ceil(radius * spread)) + 2
    corner = rng.integers(0, size, (n, 2)) + (canvas.shape[1] - size) // 2 - side // 2
    steps = np.arange(side)
    rows = (corner[:, :1] + steps)[:, :, None]
    columns = (corner[:, 1:] + steps)[:, None, :]
    images = np.arange(n)[:, None, None]
    along, over = _turned(n, side, rng)
    root = np.sqrt(stretch)[:, None, None] * np.float32(radius)
    along, over = along / root, over * root / np.float32(radius**2)
    distance = np.maximum(abs(along), abs(over)) if square else np.sqrt(along**2 + over**2)
    cover = np.clip((1 - distance) * np.float32(radius / stretch.max() ** 0.5) + 0.5, 0, 1)
    grey, shade, rough = rng.normal(0, (1.0, 0.35, 0.25), (n, 3)).astype(np.float32).T
    leaf = grey[:, None, None] + shade[:, None, None] * along
    leaf = leaf + rough[:, None, None] * texture[images, rows % size, columns % size]
    below = canvas[images, rows, columns]
    canvas[images, rows, columns] = below + cover * (leaf - below)


def _turned(n: int, side: int, rng: np.random.Generator) -> tuple[Images, Images]:
    """Pixel coordinates of an n×side×side patch about its centre, each image turned at random."""
    across, down = (axis * np.float32(side / 2) for axis in grid(side))
    turn = rng.uniform(0, np.pi, (n, 1, 1)).astype(np.float32)
    cos, sin = np.cos(turn), np.sin(turn)
    return across * cos + down * sin, down * cos - across * sin


def cells(n: int, size: int, rng: np.random.Generator) -> Images:
    """`n` Voronoi mosaics (skin, cobbles, cracked ground), float32 n×size×size."""
    across, down = grid(size)
    first = np.full((n, size, size), 9, dtype=np.float32)
    second = first.copy()
    tone = np.zeros_like(first)
    for row, column in np.ndindex(5, 5):
        jitter = rng.uniform(-0.18, 0.18, (2, n, 1, 1)).astype(np.float32)
        distance = np.hypot(across - (column - 2) * 0.45 - jitter[0],
                            down - (row - 2) * 0.45 - jitter[1])  # fmt: skip
        grey = rng.normal(0, 0.35, (n, 1, 1)).astype(np.float32)
        tone = np.where(distance < first, grey, tone)
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    rim = np.clip((second - first) / 0.12, 0, 1)
    return rescale(rim + tone + 0.25 * coloured_noise(n, size, rng, slope=(0.8, 1.3)))


def one_object(n: int, size: int, rng: np.random.Generator) -> Images:
    """`n` scenes of one shaded, lobed object before a textured ground, float32 n×size×size."""
    across, down = grid(size)
    place = rng.uniform(-0.25, 0.25, (2, n, 1, 1)).astype(np.float32)
    right, below = across - place[0], down - place[1]
    angle = np.arctan2(below, right)
    outline = rng.uniform(0.4, 0.65, (n, 1, 1)).astype(np.float32)
    for lobes in (2, 3, 5):
        swing, phase = (
            rng.normal(0, (0.22 / lobes, 3), (n, 2)).astype(np.float32).T[:, :, None, None]
        )
        outline = outline * (1 + swing * np.cos(lobes * angle + phase))
    distance = np.hypot(right, below) / outline
    light = rng.uniform(-1, 1, (2, n, 1, 1)).astype(np.float32)
    surface = np.sqrt(np.clip(1 - distance**2, 0, 1)) + light[0] * right + light[1] * below
    surface = surface + 0.25 * coloured_noise(n, size, rng, slope=(0.8, 1.3))
    ground = 0.6 * coloured_noise(n, size, rng, slope=(0.9, 1.5))
    ground = ground + rng.normal(0, 0.8, (n, 1, 1)).astype(np.float32)
    cover = np.clip((1 - distance) * (size / 4) + 0.5, 0, 1)
    return rescale((ground + cover * (surface - ground)).astype(np.float32))
