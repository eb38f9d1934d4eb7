from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protocols.errors import DataError
from secure_natfl.data.folder import FolderSource, read_grey
from secure_natfl.data.manifest import Manifest, Policy


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def paint(tmp_path: Path, *names: str) -> None:
    for number, name in enumerate(names):
        grey = np.full((6, 8), 40 * number, dtype=np.uint8)
        Image.fromarray(grey).save(tmp_path / name)


def test_single_label_folder(tmp_path: Path) -> None:
    paint(tmp_path, "a.png", "b.png", "c.jpg")
    path = write(tmp_path, "file,patient,label\na.png,7,sick\nb.png,7,well\nc.jpg,9,sick\n")
    records = FolderSource(tmp_path, Manifest(path), 4, name="clinic").load()
    assert records.images.shape == (3, 4, 4)
    assert records.images[:, 0, 0].tolist() == [0, 40, 80]
    assert records.class_names == ("sick", "well")
    assert records.labels.tolist() == [0, 1, 0]
    assert records.patients == ("7", "7", "9")
    assert records.unit == "patient"


def test_without_patients_the_unit_is_the_image(tmp_path: Path) -> None:
    paint(tmp_path, "a.png", "b.png")
    path = write(tmp_path, "file,label\na.png,x\nb.png,y\n")
    records = FolderSource(tmp_path, Manifest(path), 4, patient_column="").load()
    assert records.unit == "image"
    assert records.patient_count == 2
    with pytest.raises(DataError, match="no column 'patient'"):
        FolderSource(tmp_path, Manifest(path), 4).load()


@pytest.mark.parametrize(
    ("uncertain", "missing", "expected"),
    [
        ("mask", "mask", [[1, -1], [-1, 0], [0, 1]]),
        ("negative", "positive", [[1, 0], [1, 0], [0, 1]]),
        ("positive", "negative", [[1, 1], [0, 0], [0, 1]]),
        ("drop", "mask", [[-1, 0], [0, 1]]),
        ("drop", "drop", [[0, 1]]),
    ],
)
def test_uncertain_and_missing_labels(
    tmp_path: Path, uncertain: Policy, missing: Policy, expected: list[list[int]]
) -> None:
    path = write(tmp_path, "file,patient,fluid,mass\na,1,1,-1\nb,2,,0\nc,3,0,1.0\n")
    rows = Manifest(path, uncertain=uncertain, missing=missing).read()
    assert rows.class_names == ("fluid", "mass")
    assert rows.labels.tolist() == expected
    assert rows.lines[-1] == 4


def test_single_labels_take_the_policies_that_make_sense(tmp_path: Path) -> None:
    path = write(tmp_path, "file,label\na,sick\nb,\nc,-1\nd,well\n")
    dropped = Manifest(path, missing="drop", uncertain="drop").read()
    assert [row["file"] for row in dropped.cells] == ["a", "d"]
    names = ("well", "sick")
    filled = Manifest(path, names, missing="negative", uncertain="positive").read()
    assert filled.labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match=r"line 3: the label is missing .*'mask'"):
        Manifest(path).read()
    with pytest.raises(DataError, match="line 4: the label is uncertain"):
        Manifest(path, (*names, "unsure"), missing="drop", uncertain="positive").read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,fluid\na,yes\n", "line 2: column 'fluid' holds 'yes'"),
        ("file,label\na,sick\na,well\n", "a is listed twice"),
        ("file,label\na,sick,extra\n", "line 2: wrong number of cells"),
        ("file,label\na\n", "line 2: wrong number of cells"),
        ("file,label\n,sick\n", "line 2: no file is named"),
        ("image,label\na,sick\n", "no column `file`"),
        ("file,label,label\na,x,y\n", "repeats a column"),
        ("file,label\n", "no rows"),
        ("", "no column `file`"),
        ("file,patient\na,1\n", "no label column"),
        ('file,label\n"a,sick\n', "not a readable CSV"),
    ],
)
def test_a_faulty_manifest_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Manifest(write(tmp_path, text)).read()
    assert "list.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_asked_for_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path, "file,fluid\na,1\n")
    with pytest.raises(DataError, match="no column for class mass"):
        Manifest(path, ("fluid", "mass")).read()
    path = write(tmp_path, "file,label\na,odd\n")
    with pytest.raises(DataError, match="line 2: unknown class 'odd'"):
        Manifest(path, ("sick", "well")).read()


def test_missing_and_foreign_manifests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a readable CSV file .No such file"):
        Manifest(tmp_path / "absent.csv").read()
    (tmp_path / "latin.csv").write_bytes(b"file,label\nM\xfcller.png,x\n")
    with pytest.raises(DataError, match="not a readable CSV"):
        Manifest(tmp_path / "latin.csv").read()


def test_missing_and_unreadable_images_name_file_and_line(tmp_path: Path) -> None:
    paint(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    (tmp_path / "c.png").write_text("no image")
    for name, message in (("b.png", "cannot be read"), ("c.png", "not an image"), ("d.png", "no")):
        path = write(tmp_path, f"file,patient,label\na.png,1,x\n{name},2,y\n")
        with pytest.raises(DataError, match=message) as caught:
            FolderSource(tmp_path, Manifest(path), 4).load()
        assert name in str(caught.value)
        assert "list.csv line 3" in str(caught.value)


def test_an_empty_patient_is_refused(tmp_path: Path) -> None:
    paint(tmp_path, "a.png")
    path = write(tmp_path, "file,patient,label\na.png,,x\n")
    with pytest.raises(DataError, match=r"line 2: column 'patient' is empty"):
        FolderSource(tmp_path, Manifest(path), 4).load()


def test_sixteen_bit_and_colour_images(tmp_path: Path) -> None:
    ramp = np.linspace(1000, 5000, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    deep = read_grey(tmp_path / "deep.png", 8)
    assert deep.min() == 0
    assert deep.max() == 255
    red = np.zeros((8, 8, 3), dtype=np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "red.png")
    assert read_grey(tmp_path / "red.png", 8)[0, 0] == 76
