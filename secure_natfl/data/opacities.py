"""Pneumonia in phantoms: consolidation, patches and diffuse haze, from subtle to plain."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from secure_natfl.data.anatomy import Anatomy, Frame
from secure_natfl.data.spectra import coloured_noise

Images = NDArray[np.floating[Any]]

PATTERNS: Final = ("lobar", "patchy", "diffuse")
_SPOTS = 6


def pneumonia(
    frame: Frame, body: Anatomy, lungs: Images, difficulty: float, rng: np.random.Generator
) -> tuple[Images, NDArray[np.int64]]:
    """Added attenuation, float32 N×H×W, zero outside the lungs, and each image's pattern, N.

    Each image gets one of `PATTERNS`: one lobar consolidation, several patches on both sides,
    or diffuse haze towards the bases. The strength is log-normal, so that the faintest cannot be
    told from vessels and ribs; `difficulty` (0.5 to 2) divides it.
    """
    n, size = lungs.shape[:2]
    kind = rng.choice((0, 1, 2), (n, 1, 1), p=(0.4, 0.35, 0.25))
    strength = np.exp(rng.normal(-1.05, 0.5, (n, 1, 1))) / difficulty
    texture = coloured_noise(n, size, rng, slope=(0.9, 1.3))
    lobe = _spots(frame, body, rng, used=1, radius=0.27)
    patches = _spots(frame, body, rng, used=_SPOTS, radius=0.13)
    haze = np.clip(0.35 + 0.7 * (frame.down - body.apex), 0, 1.1)
    pattern = np.where(kind == 0, lobe, np.where(kind == 1, patches, haze))
    grain = np.where(kind == 2, 0.55, 0.3)
    added = strength * lungs * pattern * np.clip(1 + grain * texture, 0, 2.5)
    return added.astype(np.float32), kind[:, 0, 0].astype(np.int64)


def atelectasis(frame: Frame, body: Anatomy, rng: np.random.Generator) -> Images:
    """Harmless look-alikes near the bases, in about a third of all images: bands and haze."""
    n = len(frame.down)
    present = rng.random((n, 1, 1)) < 0.35
    height, slant, side = rng.normal((0.12, 0.1, 0), (0.08, 0.15, 0.5), (n, 3)).T[:, :, None, None]
    line = frame.down - body.base + height + slant * frame.across
    band = np.exp(-0.5 * (line / 0.035) ** 2) * np.exp(-0.5 * ((frame.across - side) / 0.25) ** 2)
    cloud = np.exp(-0.5 * (((frame.down - body.base) / 0.3) ** 2)) * (side > 0)
    shadow: Images = present * (0.16 * band + 0.1 * cloud)
    return shadow


def _spots(
    frame: Frame, body: Anatomy, rng: np.random.Generator, used: int, radius: float
) -> Images:
    """Soft-edged round opacities at random places of either lung, together at most 1.2, N×H×W."""
    n = len(frame.down)
    total = np.zeros_like(frame.down)
    for _ in range(used):
        side = rng.choice((-1.0, 1.0), (n, 1, 1))
        lateral = rng.uniform(0.22, 0.6, (n, 1, 1))
        height = body.apex + rng.beta(2.2, 1.5, (n, 1, 1)) * (body.base - body.apex)
        extent = radius * np.exp(rng.normal(0, 0.3, (n, 1, 1)))
        weight = rng.uniform(0.4, 1.0, (n, 1, 1)) if used > 1 else 1.0
        square = (frame.across - side * lateral) ** 2 + (frame.down - height) ** 2
        total += (weight * np.exp(-((square / extent**2) ** 1.15))).astype(np.float32)
    capped: Images = np.minimum(total, np.float32(1.2))
    return capped
