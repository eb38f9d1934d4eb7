import numpy as np
import pytest
from PIL import Image

from secure_natfl.data.arrays import luminance, resize, to_float

RNG = np.random.default_rng(5)


def test_range_shape_and_scale_are_fixed() -> None:
    images = np.stack([np.zeros((9, 9)), np.full((9, 9), 255)]).astype(np.uint8)
    ready = to_float(images, 6)
    assert ready.shape == (2, 1, 6, 6)
    assert ready.dtype == np.float32
    assert ready[0] == pytest.approx(-2.0)
    assert ready[1] == pytest.approx(2.0)


def test_scale_of_one_image_does_not_depend_on_the_others() -> None:
    images = RNG.integers(0, 256, (300, 12, 12), dtype=np.uint8)
    alone = to_float(images[290:291], 8)
    assert np.array_equal(alone[0], to_float(images, 8)[290])


def test_shrinking_by_a_whole_factor_is_the_mean_of_blocks() -> None:
    images = RNG.integers(0, 256, (2, 12, 20), dtype=np.uint8)
    blocks = images.reshape(2, 4, 3, 4, 5).mean(axis=(2, 4))
    assert resize(images, 4) == pytest.approx(blocks, abs=1e-3)


@pytest.mark.parametrize("size", [4, 8, 13])
def test_agrees_with_pillow(size: int) -> None:
    image = RNG.integers(0, 256, (8, 8), dtype=np.uint8)
    method = Image.Resampling.BOX if size < 8 else Image.Resampling.BILINEAR
    expected = np.asarray(Image.fromarray(image).resize((size, size), method), dtype=np.float32)
    assert np.abs(resize(image[None], size)[0] - expected).max() <= 1.0


def test_colour_becomes_luminance_as_in_pillow() -> None:
    colour = RNG.integers(0, 256, (1, 7, 7, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colour[0]).convert("L"), dtype=np.float32)
    assert np.abs(luminance(colour)[0] - expected).max() <= 1.0
    assert to_float(colour, 7).shape == (1, 1, 7, 7)
