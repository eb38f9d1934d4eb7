"""Pixels of one DICOM file: from stored values to 8-bit grey, as a radiologist would see them.

Order of the standard's grey-scale pipeline (PS3.4 N.2, PS3.3 C.11): rescale or modality table,
window, then inversion for MONOCHROME1.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import pixel_array

from protocols.errors import DataError
from secure_natfl.data.arrays import luminance, resize

Frames = Literal["middle", "all"]
Window = tuple[float, float]

_HTJ2K = (uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL)
_DECODERS = (
    (uid.JPEGLSTransferSyntaxes, "pyjpegls"),
    ((*uid.JPEG2000TransferSyntaxes, *_HTJ2K), "pylibjpeg-openjpeg"),
    (uid.JPEGTransferSyntaxes, "pylibjpeg-libjpeg"),
)


def read_header(path: Path, listed_at: str = "") -> pydicom.Dataset:
    """The data set of `path`, pixels undecoded. Files without a meta header are read, too.

    Raises DataError when the file is missing, no DICOM file or without an image. The message
    repeats no element of the file, since these identify patients.
    """
    listed = f"listed at {listed_at}" if listed_at else ""
    if not path.is_file():
        raise DataError("no such DICOM file", where=str(path), why=listed)
    try:
        with _quiet():
            dataset = _parse(path)
            complete = "PixelData" in dataset and "Rows" in dataset and "Columns" in dataset
    # A damaged header can make the parser fail in any way.
    except Exception as error:
        raise _corrupt(path, f"the header cannot be parsed ({type(error).__name__})") from error
    if not complete:
        raise _corrupt(path, "it is no DICOM file or holds no image")
    return dataset


def read_text(dataset: pydicom.Dataset, keyword: str, path: Path) -> str:
    """The element `keyword` as stripped text, empty where absent. DataError where damaged."""
    try:
        with _quiet():
            return str(dataset.get(keyword) or "").strip()
    except Exception as error:
        raise _corrupt(path, f"{keyword} cannot be parsed ({type(error).__name__})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences pydicom, which quotes elements it finds odd: they may identify a patient."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _parse(path: Path) -> pydicom.Dataset:
    try:
        dataset = pydicom.dcmread(path)
    except InvalidDicomError:
        dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def read_frames(
    dataset: pydicom.Dataset, path: Path, size: int, frames: Frames, window: Window | None
) -> NDArray[np.uint8]:
    """Grey frames of a data set from `read_header`, uint8 K×size×size.

    Of several frames, "middle" takes number K ÷ 2 (rounded down, from 0), the centre of a volume
    or loop; "all" takes each. `window` is (centre, width) in rescaled units; without it the file's
    first window counts, and without that the 0.5th to 99.5th percentile of the frame, padding
    excluded. Colour turns to luminance. Raises DataError for pixels that are damaged, or
    compressed in a way that needs a further package.
    """
    try:
        with _quiet():
            _check_decoder(dataset, path)
            count = int(dataset.get("NumberOfFrames") or 1)
            chosen = [count // 2] if frames == "middle" else range(count)
            grey = [_grey(dataset, pixel_array(dataset, index=i), window) for i in chosen]
    except DataError:
        raise
    # Damaged pixel data or descriptions can make the decoders fail in any way.
    except Exception as error:
        raise _corrupt(path, (str(error).splitlines() or [repr(error)])[0]) from error
    return np.rint(resize(np.stack(grey), size)).clip(0, 255).astype(np.uint8)


def _grey(
    dataset: pydicom.Dataset, stored: NDArray[Any], window: Window | None
) -> NDArray[np.uint8]:
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        bits = 8 * stored.dtype.itemsize
    if stored.ndim == 3:
        scaled = luminance(stored[None])[0] * (255 / (2**bits - 1))
        return np.asarray(np.rint(scaled), dtype=np.uint8)
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float32)
    window = window or _own_window(dataset)
    padding = dataset.get("PixelPaddingValue")
    inside = values if padding is None else values[stored != padding]
    shown = _windowed(values, window, dataset) if window else _stretched(values, inside)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    return np.rint(255 * shown).astype(np.uint8)


def _own_window(dataset: pydicom.Dataset) -> Window | None:
    """The file's first window; None where there is none or its width is below 1."""
    centre, width = (
        np.atleast_1d(np.asarray(dataset.get(key, ()), dtype=np.float64))[:1]
        for key in ("WindowCenter", "WindowWidth")
    )
    if len(centre) == 0 or len(width) == 0 or width[0] < 1:
        return None
    return float(centre[0]), float(width[0])


def _windowed(
    values: NDArray[np.float32], window: Window, dataset: pydicom.Dataset
) -> NDArray[np.float32]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, scaled to 0…1."""
    centre, width = window
    function = dataset.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        exponent = np.clip(-4 * (values - centre) / width, -80, 80)
        return np.asarray(1 / (1 + np.exp(exponent)), dtype=np.float32)
    if function == "LINEAR_EXACT" or width <= 1:
        ramp = (values - centre) / width
    else:
        ramp = (values - (centre - 0.5)) / (width - 1)
    return np.asarray(np.clip(ramp + 0.5, 0, 1), dtype=np.float32)


def _stretched(values: NDArray[np.float32], inside: NDArray[np.float32]) -> NDArray[np.float32]:
    if inside.size == 0:
        return np.zeros_like(values)
    low, high = np.percentile(inside, (0.5, 99.5))
    if high <= low:
        low, high = inside.min(), inside.max()
    return np.asarray(np.clip((values - low) / max(high - low, 1e-6), 0, 1), dtype=np.float32)


def _check_decoder(dataset: pydicom.Dataset, path: Path) -> None:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_encapsulated:
        return
    try:
        if get_decoder(syntax).is_available:
            return
    except NotImplementedError:
        pass
    package = next((name for syntaxes, name in _DECODERS if syntax in syntaxes), "")
    raise DataError(
        f"its compression ({syntax.name}) cannot be decoded",
        where=str(path),
        why=f"the package {package} is not installed" if package else "it is no still image",
        fix=f"pip install pylibjpeg {package}" if package else "export single uncompressed frames",
    )


def _corrupt(path: Path, why: str) -> DataError:
    return DataError("corrupt DICOM file", where=str(path), why=why, fix="export the file again")
