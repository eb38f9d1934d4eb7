from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.config import IGNORE
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    UID,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from protocols.errors import DataError
from secure_natfl.data.dicom import DicomSource
from secure_natfl.data.dicom_pixels import Frames, Window, read_frames, read_header
from secure_natfl.data.manifest import Manifest

KEY = bytes(range(32))
SAMPLES = Path(__file__).resolve().parents[3] / "shared/data/dicom"
RAMP = np.linspace(0, 4000, 64).astype(np.int16).reshape(8, 8)


def write(path: Path, pixels: np.ndarray[Any, Any], **elements: object) -> Path:
    """A real DICOM file; `elements` overrides any element by keyword."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientID, dataset.PatientName = "MRN-4711", "Doe^Jane"
    dataset.BodyPartExamined = "CHEST"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def read(
    path: Path, frames: Frames = "middle", window: Window | None = None, size: int = 8
) -> np.ndarray[Any, Any]:
    return read_frames(read_header(path), path, size, frames, window)


def test_sixteen_bits_are_stretched_between_percentiles(tmp_path: Path) -> None:
    grey = read(write(tmp_path / "a.dcm", RAMP))
    assert grey.shape == (1, 8, 8)
    assert grey[0, 0, 0] == 0
    assert grey[0, 7, 7] == 255
    assert np.all(np.diff(grey.ravel().astype(int)) >= 0)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    plain = read(write(tmp_path / "a.dcm", RAMP))
    turned = read(write(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(turned.astype(int) - (255 - plain.astype(int))).max() <= 1


def test_rescale_comes_before_the_window(tmp_path: Path) -> None:
    """Slope 0.5 and intercept −1000 make 0…1000 HU of stored 2000…4000: width 1001 spans it."""
    elements = {"RescaleSlope": "0.5", "RescaleIntercept": "-1000"}
    path = write(tmp_path / "a.dcm", RAMP, WindowCenter="500.5", WindowWidth="1001", **elements)
    expected = np.clip(RAMP * 0.5 - 1000, 0, 1000) / 1000 * 255
    assert np.abs(read(path)[0] - expected).max() <= 1


def test_first_of_several_windows_counts_and_an_argument_overrides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, WindowCenter=[100, 2000], WindowWidth=[2, 4000])
    assert set(np.unique(read(path))) == {0, 255}
    wide = read(path, window=(2000.5, 4001))
    assert np.abs(wide[0] - RAMP / 4000 * 255).max() <= 1


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("LINEAR_EXACT", np.clip((RAMP - 2000) / 2000 + 0.5, 0, 1)),
        ("SIGMOID", 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 2000))),
    ],
)
def test_other_window_functions(
    tmp_path: Path, function: str, expected: np.ndarray[Any, Any]
) -> None:
    path = write(
        tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=2000, VOILUTFunction=function
    )
    assert np.abs(read(path)[0] - 255 * expected).max() <= 1


def test_an_impossible_window_falls_back_to_percentiles(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP, WindowCenter=0, WindowWidth=0)
    assert np.array_equal(read(path), read(write(tmp_path / "b.dcm", RAMP)))


def test_padding_does_not_flatten_the_image(tmp_path: Path) -> None:
    padded = RAMP.copy()
    padded[:2] = -30000
    grey = read(write(tmp_path / "a.dcm", padded, PixelPaddingValue=-30000))
    assert grey[0, :2].max() == 0
    assert grey[0, 4, 0] == pytest.approx((RAMP[4, 0] - 1015) / 2985 * 255, abs=6)


def test_frames(tmp_path: Path) -> None:
    pixels = np.stack([np.full((8, 8), 10 * i, dtype=np.uint8) for i in range(5)])
    path = write(tmp_path / "a.dcm", pixels)
    window = (128.0, 256.0)
    assert read(path, "middle", window)[:, 0, 0].tolist() == [20]
    assert read(path, "all", window)[:, 0, 0].tolist() == [0, 10, 20, 30, 40]


def test_colour_and_deep_colour_become_luminance(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert read(write(tmp_path / "a.dcm", red))[0, 0, 0] == 76
    deep = np.full((8, 8, 3), 4095, dtype=np.uint16)
    path = write(tmp_path / "b.dcm", deep, BitsStored=12, HighBit=11)
    assert read(path)[0].min() == 255


def test_run_length_compression_and_constant_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "b.dcm")
    assert np.array_equal(read(tmp_path / "b.dcm"), read(path))
    flat = np.full((8, 8), 7, dtype=np.uint8)
    assert read(write(tmp_path / "c.dcm", flat)).max() == 0


def test_a_file_without_meta_header_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    del dataset.file_meta
    bare = tmp_path / "bare.dcm"
    dataset.save_as(bare, implicit_vr=True, little_endian=True)
    assert np.array_equal(read(bare), read(path))


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        (JPEGLSLossless, "package pyjpegls is not installed.*pip install pylibjpeg pyjpegls"),
        (MPEG2MPML, "no still image"),
    ],
)
def test_compression_that_cannot_be_decoded(tmp_path: Path, syntax: str, message: str) -> None:
    path = write(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate([b"\x00" * 16])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    try:
        import jpeg_ls  # type: ignore[import-not-found]  # noqa: F401

        if syntax == JPEGLSLossless:
            message = "corrupt DICOM"
    except ImportError:
        pass
    with pytest.raises(DataError, match=message):
        read(path)


def test_corrupt_files_give_one_line_without_identity(tmp_path: Path) -> None:
    path = write(tmp_path / "whole.dcm", RAMP)
    whole = path.read_bytes()
    damaged = {
        "cut.dcm": whole[:-40],
        "head.dcm": whole[:300],
        "noise.dcm": bytes(range(256)) * 4,
        "empty.dcm": b"",
        "text.dcm": b"not DICOM at all, Doe^Jane",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: corrupt DICOM file") as caught:
            read(tmp_path / name)
        message = str(caught.value)
        assert "\n" not in message
        assert "Doe" not in message
        assert "4711" not in message
    with pytest.raises(DataError, match="no such DICOM file"):
        read(tmp_path / "absent.dcm")
    with pytest.raises(DataError, match="corrupt"):
        read(write(tmp_path / "frames.dcm", RAMP, NumberOfFrames=-3))


def test_any_damaged_byte_is_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.dcm", np.stack([RAMP, RAMP])).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        # Behind the preamble, in meta header, elements and pixels.
        damaged[rng.integers(128, len(whole))] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged.dcm").write_bytes(damaged)
        with suppress(DataError):
            DicomSource(tmp_path, 8, KEY, label_tag="BodyPartExamined").load()


def test_pydicom_writes_no_identifying_element(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """pydicom quotes an identifier that breaks the standard's rules, in log and warning."""
    path = write(tmp_path / "a.dcm", RAMP)
    dataset = pydicom.dcmread(path)
    dataset.add(pydicom.DataElement("StudyInstanceUID", "UI", "Doe^Jane", validation_mode=IGNORE))
    dataset.save_as(path)
    with pytest.warns(UserWarning, match="Doe"):
        str(pydicom.dcmread(path).StudyInstanceUID)
    assert "Doe" in caplog.text
    caplog.clear()
    DicomSource(tmp_path, 8, KEY, label_tag="StudyInstanceUID").load()
    assert caplog.text == ""


def test_folder_labelled_by_manifest(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", RAMP)
    write(tmp_path / "b.dcm", RAMP, PatientID="MRN-1")
    write(tmp_path / "c.dcm", np.stack([RAMP, RAMP]))
    listing = tmp_path / "labels.csv"
    listing.write_text("file,label\na.dcm,sick\nb.dcm,well\nc.dcm,well\n")
    source = DicomSource(tmp_path, 8, KEY, Manifest(listing), frames="all", name="clinic")
    records = source.load()
    assert records.labels.tolist() == [0, 1, 1, 1]
    assert records.images.shape == (4, 8, 8)
    assert records.unit == "patient"
    assert records.patient_count == 2
    assert records.patients[0] == records.patients[2] == records.patients[3]
    assert "bytes" not in repr(source)
    assert KEY.hex() not in repr(source)


def test_patient_ids_leave_as_keyed_hashes_only(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", RAMP)
    one, other = (
        DicomSource(tmp_path, 8, key, label_tag="BodyPartExamined").load()
        for key in (KEY, KEY[::-1])
    )
    assert len(one.patients[0]) == 64
    assert one.patients != other.patients
    assert "4711" not in str(vars(one))
    with pytest.raises(DataError, match="key is too short"):
        DicomSource(tmp_path, 8, b"short", label_tag="BodyPartExamined").load()


def test_folder_labelled_by_an_element(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "a.dcm", RAMP)
    write(tmp_path / "deep/b.dcm", RAMP, BodyPartExamined="HEAD")
    records = DicomSource(tmp_path, 8, KEY, label_tag="BodyPartExamined").load()
    assert records.class_names == ("CHEST", "HEAD")
    assert records.labels.tolist() == [0, 1]
    source = DicomSource(tmp_path, 8, KEY, label_tag="BodyPartExamined", class_names=("CHEST",))
    with pytest.raises(DataError, match=r"b\.dcm: BodyPartExamined holds no known class"):
        source.load()
    with pytest.raises(DataError, match=r"a\.dcm: no StudyDescription"):
        DicomSource(tmp_path, 8, KEY, label_tag="StudyDescription").load()


def test_missing_patient_ids_need_another_unit(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", RAMP, PatientID="")
    write(tmp_path / "b.dcm", np.stack([RAMP, RAMP]), PatientID="")
    with pytest.raises(DataError, match="PatientID is empty"):
        DicomSource(tmp_path, 8, KEY, label_tag="BodyPartExamined").load()
    records = DicomSource(
        tmp_path, 8, KEY, label_tag="BodyPartExamined", frames="all", unit="image"
    ).load()
    assert (len(records), records.patient_count) == (3, 2)


def test_a_source_needs_files_and_exactly_one_kind_of_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exactly one"):
        DicomSource(tmp_path, 8, KEY).load()
    with pytest.raises(DataError, match=r"no \*\.dcm file"):
        DicomSource(tmp_path, 8, KEY, label_tag="Modality").load()
    listing = tmp_path / "labels.csv"
    listing.write_text("file,label\nabsent.dcm,sick\n")
    with pytest.raises(DataError, match=r"no such DICOM file .*line 2"):
        DicomSource(tmp_path, 8, KEY, Manifest(listing)).load()


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the evaluation packs are not on this machine")
@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.dcm")), ids=lambda path: path.stem)
def test_sample_files_are_read_or_refused_in_one_line(path: Path) -> None:
    damaged = {"MR_truncated", "badVR", "no_meta"}
    if path.stem in damaged:
        with pytest.raises(DataError, match="corrupt DICOM file"):
            read(path, size=64)
        return
    grey = read(path, size=64)
    assert grey.shape == (1, 64, 64)
    assert grey.std() > 2


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the evaluation packs are not on this machine")
def test_one_scan_in_five_encodings_is_one_image() -> None:
    names = ("MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit",
             "MR_small_jp2klossless")  # fmt: skip
    images = [read(SAMPLES / f"{name}.dcm", size=64) for name in names]
    assert all(np.array_equal(images[0], image) for image in images)
