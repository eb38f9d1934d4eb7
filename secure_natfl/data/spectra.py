"""Random fields with a chosen spectrum: the texture of every image made on the spot."""

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]


def grid(size: int) -> tuple[Images, Images]:
    """Pixel centres across (1×1×size) and down (1×size×1), both from −1 to 1."""
    centres = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
    return centres[None, None, :], centres[None, :, None]


def coloured_noise(
    n: int,
    size: int,
    rng: np.random.Generator,
    slope: tuple[float, float],
    angle: float | None = None,
) -> Images:
    """`n` Gaussian fields, float32 n×size×size, with amplitude f^−slope, mean 0, deviation 1.

    Each field draws its slope from the given range (natural scenes: about 1). With `angle`
    (radians; the direction of fastest change, ± 0.2) the field is streaked, else isotropic.
    """
    down = np.fft.fftfreq(size).astype(np.float32)[:, None]
    across = np.fft.rfftfreq(size).astype(np.float32)[None, :]
    frequency = np.hypot(down, across)
    frequency[0, 0] = 1.0
    exponent = rng.uniform(*slope, (n, 1, 1)).astype(np.float32)
    amplitude = np.exp(-exponent * np.log(frequency))
    if angle is not None:
        turn = (angle + rng.normal(0, 0.2, (n, 1, 1))).astype(np.float32)
        along = (across * np.cos(turn) + down * np.sin(turn)) / frequency
        amplitude = amplitude * np.exp(8 * (along * along - 1))
    amplitude[:, 0, 0] = 0.0
    white = rng.standard_normal((n, size, size), dtype=np.float32)
    field = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(size, size))
    return rescale(field.astype(np.float32))


def rescale(fields: Images) -> Images:
    """Each n×H×W field with mean 0 and deviation 1; a constant field becomes 0."""
    centred: Images = fields - fields.mean(axis=(1, 2), keepdims=True)
    deviation: Images = np.maximum(centred.std(axis=(1, 2), keepdims=True), 1e-6)
    return centred / deviation
