import io
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from protocols.errors import DataError
from secure_natfl.data.npz import PackSource
from secure_natfl.data.overlap import check_overlap, overlapping_pairs
from secure_natfl.data.phantoms import HOSPITALS, chest_phantoms
from secure_natfl.data.records import Records
from secure_natfl.data.synthetic import natural_images, noise_images

PACKS = Path(__file__).resolve().parents[3] / "shared/data"
NATURAL = natural_images(200, 64, np.random.default_rng(1))


@pytest.fixture(scope="module")
def private() -> Records:
    return chest_phantoms(120, 64, HOSPITALS["children"], 0.5, np.random.default_rng(2))


def disguised(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Brightened, resized and saved as JPEG."""
    brighter = np.clip(image * 1.06 + 6, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(brighter).resize((size, size)).save(stream, "JPEG", quality=50)
    return np.asarray(Image.open(stream), dtype=np.uint8)


def test_phantoms_and_natural_images_do_not_overlap(private: Records) -> None:
    check_overlap(NATURAL.images, private)
    check_overlap(noise_images(200, 64, np.random.default_rng(3)).images, private)


def test_an_exact_copy_is_found_even_without_contrast() -> None:
    flat = np.full((1, 64, 64), 9, dtype=np.uint8)
    assert overlapping_pairs(np.concatenate([NATURAL.images, flat]), flat).tolist() == [[200, 0]]
    assert len(overlapping_pairs(flat + 1, flat)) == 0


@pytest.mark.parametrize("size", [64, 48, 32])
def test_planted_copies_are_found_and_named(private: Records, size: int) -> None:
    proxies = np.stack([disguised(image, size) for image in NATURAL.images])
    proxies[[17, 90]] = [disguised(private.images[i], size) for i in (5, 80)]
    pairs = overlapping_pairs(proxies, private.images)
    assert {(17, 5), (90, 80)} <= set(map(tuple, pairs.tolist()))
    assert set(pairs[:, 0].tolist()) == {17, 90}
    with pytest.raises(DataError, match=r"proxy images 17, 90 are \(nearly\) private") as caught:
        check_overlap(proxies, private)
    assert "remove these" in str(caught.value)


def test_a_colour_copy_of_a_grey_image_is_found(private: Records) -> None:
    colour = np.repeat(private.images[:1, :, :, None], 3, axis=3)
    assert [0, 0] in overlapping_pairs(colour, private.images).tolist()


def test_a_shared_smooth_shape_is_no_copy() -> None:
    """Two images with one vignette and different content agree at 16×16 but not in detail."""
    rng = np.random.default_rng(4)
    across = np.linspace(-1, 1, 64)
    vignette = 200 * np.exp(-(across[:, None] ** 2 + across[None, :] ** 2))
    noisy = vignette + rng.normal(0, 8, (2, 64, 64))
    first, second = np.clip(noisy + 20, 0, 255).astype(np.uint8)[:, None]
    assert len(overlapping_pairs(first, second)) == 0


def test_a_slice_of_a_volume_is_found() -> None:
    rng = np.random.default_rng(8)
    volumes = rng.integers(0, 256, (3, 5, 32, 32), dtype=np.uint8)
    labels = np.zeros(3, dtype=np.int64)
    records = Records(volumes, labels, ("finding",), ("a", "b", "c"), "patient", "scanner")
    check_overlap(rng.integers(0, 256, (20, 32, 32), dtype=np.uint8), records)
    planted = np.stack([volumes[0, 0, ::-1], volumes[2, 3]])
    with pytest.raises(DataError, match=r"^scanner: .*1 pair.*proxy images 1 are"):
        check_overlap(planted, records)


def test_full_size_is_quick() -> None:
    rng = np.random.default_rng(6)
    proxies = rng.integers(0, 256, (6000, 32, 32, 3), dtype=np.uint8)
    private = rng.integers(0, 256, (2500, 64, 64), dtype=np.uint8)
    start = perf_counter()
    assert len(overlapping_pairs(proxies, private)) == 0
    # Measured at 0.5 s; the bound leaves room for a busy machine.
    assert perf_counter() - start < 10


@pytest.mark.skipif(
    not (PACKS / "xray6/xray6.dev.npz").is_file(),
    reason="the evaluation packs are not on this machine",
)
def test_no_false_alarm_on_real_packs() -> None:
    xray = PackSource(PACKS / "xray6/xray6.dev.npz").load()
    cifar = PackSource(PACKS / "natural_cifar10/natural_cifar10.dev.npz").load()
    check_overlap(cifar.images, xray)
    check_overlap(NATURAL.images, xray)
    planted = cifar.images.copy()
    planted[7] = np.repeat(disguised(xray.images[3], 32)[:, :, None], 3, axis=2)
    assert [7, 3] in overlapping_pairs(planted, xray.images).tolist()
