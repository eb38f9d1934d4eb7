"""Refuses a public proxy set that contains a private image: its logits would be about a patient."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.data.arrays import resize
from secure_natfl.data.records import Records

THRESHOLD = 0.98
"""Correlation of thumbnails from which two images count as one; a re-encoded, slightly brightened
copy stays above 0.99."""

_COARSE, _FINE = 16, 32
_DETAIL = 0.9
_BATCH = 4096


def check_overlap(proxy_images: NDArray[np.uint8], private: Records) -> None:
    """Called at each site before the first round, with the site's own records only.

    `proxy_images`: uint8 P×H×W or P×H×W×3. Compares exact bytes, then 16×16 thumbnails by
    normalised correlation (indifferent to brightness and contrast), and confirms candidates at
    32×32 in the image and in its fine detail. Finds re-encoded, resized and re-exposed copies;
    crops, mirrored or turned copies are not found. Raises DataError naming the proxies to remove;
    the private images are not named. Of volumes every slice is compared.
    """
    images = private.images
    if images.ndim == 4 and not private.colour:
        images = images.reshape(-1, *images.shape[2:])
    pairs = overlapping_pairs(proxy_images, images)
    if len(pairs):
        proxies = np.unique(pairs[:, 0])
        listed = ", ".join(str(i) for i in proxies[:10]) + (", …" if len(proxies) > 10 else "")
        raise DataError(
            f"the proxy set overlaps private images in {len(pairs)} pair(s)",
            where=private.name,
            why=f"proxy images {listed} are (nearly) private ones",
            fix="remove these from the proxy set, or use a public set of another origin",
        )


def overlapping_pairs(
    proxy_images: NDArray[np.uint8], private_images: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Pairs (proxy, private) that show the same image, int64 K×2, sorted; empty when none does."""
    found = set(_equal(proxy_images, private_images))
    private_thumbs = _normalised(resize(private_images, _COARSE))
    for start in range(0, len(proxy_images), _BATCH):
        thumbs = _normalised(resize(proxy_images[start : start + _BATCH], _COARSE))
        proxies, privates = np.nonzero(thumbs @ private_thumbs.T >= THRESHOLD)
        proxies += start
        if len(proxies):
            same = _confirmed(proxy_images[proxies], private_images[privates])
            found |= set(zip(proxies[same].tolist(), privates[same].tolist(), strict=True))
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def _equal(
    proxy_images: NDArray[np.uint8], private_images: NDArray[np.uint8]
) -> list[tuple[int, int]]:
    where: dict[bytes, list[int]] = {}
    for index, image in enumerate(proxy_images):
        where.setdefault(_digest(image), []).append(index)
    return [(p, i) for i, image in enumerate(private_images) for p in where.get(_digest(image), [])]


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()


def _confirmed(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether image i of both shows the same, also in what a smooth shape does not explain."""
    fine = [resize(images, _FINE) for images in (first, second)]
    alike = _correlation(fine[0], fine[1]) >= THRESHOLD
    detail = [images - _smooth(images) for images in fine]
    return alike & (_correlation(detail[0], detail[1]) >= _DETAIL)


def _smooth(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over 5×5 pixels, borders repeated."""
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    return np.asarray(windows.mean(axis=(3, 4)), dtype=np.float32)


def _normalised(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each image as a row of mean 0 and length 1; an image without contrast becomes 0."""
    rows = images.reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.where(length > 1e-3, rows / np.maximum(length, 1e-3), 0), np.float32)


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((_normalised(first) * _normalised(second)).sum(axis=1), dtype=np.float32)
