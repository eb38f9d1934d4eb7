from pathlib import Path

import numpy as np
import pytest

from protocols.errors import ConfigError, DataError
from secure_natfl.data.manifest import Manifest
from secure_natfl.data.masks import Coding
from secure_natfl.data.nifti import NiftiSource, read_volume
from secure_natfl.federation import Federation, build
from secure_natfl.toml_config import parse

nibabel = pytest.importorskip("nibabel")

# A volume whose voxel says where it lies: x to the patient's right, y to the front, z upwards.
X, Y, Z = np.meshgrid(np.arange(6), np.arange(8), np.arange(10), indexing="ij")
PLACE = (X + 10 * Y + 100 * Z).astype(np.int16)


def write(path: Path, voxels: np.ndarray, axes: str = "RAS", slope: float | None = None) -> None:
    """`voxels` as given in right-anterior-superior order, stored along other axes."""
    image = nibabel.Nifti1Image(voxels, np.eye(4))
    start = nibabel.orientations.io_orientation(image.affine)
    wanted = nibabel.orientations.axcodes2ornt(tuple(axes))
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(start, wanted))
    if slope is not None:
        turned.header.set_slope_inter(slope, 0)
    path.write_bytes(turned.to_bytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a.nii", PLACE)
    write(tmp_path / "b.nii", PLACE, "LPS")
    for name in ("a", "b"):
        write(
            tmp_path / f"{name}-mask.nii",
            (X >= 3).astype(np.uint8),
            "RAS" if name == "a" else "LPS",
        )
    (tmp_path / "list.csv").write_text(
        "file,label,patient,outline\na.nii,well,1,a-mask.nii\nb.nii,sick,2,b-mask.nii\n"
    )
    return tmp_path


def source(folder: Path, **options) -> NiftiSource:
    manifest = Manifest(folder / "list.csv")
    return NiftiSource(folder, manifest, 16, "patient", "clinic", **options)


def test_slices_lie_as_a_reader_sees_them_whatever_the_axes(folder):
    for name in ("a.nii", "b.nii"):
        voxels = read_volume(folder / name, "here")
        assert voxels.shape == (10, 8, 6)
        # Feet first; the front above; the patient's right on the left.
        assert voxels[0, 0, 0] == PLACE[5, 7, 0]
        assert voxels[9, 7, 5] == PLACE[0, 0, 9]


def test_the_scale_of_the_header_counts(tmp_path):
    write(tmp_path / "a.nii", PLACE, slope=2.0)
    assert read_volume(tmp_path / "a.nii", "here").max() == 2 * PLACE.max()


def test_middle_slice_all_slices_and_the_whole_volume(folder):
    window = (500.0, 1000.0)
    middle = source(folder, window=window).load()
    assert middle.images.shape == (2, 16, 16)
    assert middle.labels.tolist() == [1, 0]
    assert middle.class_names == ("sick", "well")
    np.testing.assert_array_equal(middle.images[0], middle.images[1])
    every = source(folder, slices="all", window=window).load()
    assert every.images.shape == (20, 16, 16)
    assert every.patients == ("1",) * 10 + ("2",) * 10
    np.testing.assert_array_equal(every.images[5], middle.images[0])
    volume = source(folder, slices="volume", depth=5, window=window).load()
    assert volume.images.shape == (2, 5, 16, 16)
    assert volume.space == (2, 5, 16, 16)
    assert not volume.colour
    # Five slices of ten: each the mean of two, 100 apart in a window of 1,000.
    brightness = volume.images[0].mean((1, 2))
    np.testing.assert_allclose(np.diff(brightness[:4]), 2 * 25.5, atol=1)
    assert source(folder, slices="volume", depth=20).load().images.shape == (2, 20, 16, 16)


@pytest.mark.parametrize(("slices", "depth"), [("middle", 4), ("all", 4), ("volume", 4)])
def test_masks_are_cut_like_their_volumes(folder, slices, depth):
    manifest = Manifest(folder / "list.csv", mask_column="outline")
    coding = Coding(("rest", "right lung"))
    records = NiftiSource(
        folder, manifest, 16, slices=slices, depth=depth, window=(2.5, 5), masks=coding
    ).load()
    assert records.form == "mask"
    assert records.labels.shape == records.images.shape
    # The right side of the patient is on the left of the image.
    assert (records.labels[..., :8] == 1).all()
    assert (records.labels[..., 8:] == 0).all()
    assert records.unit == "image"


def test_volumes_at_fault_are_named_with_their_line(folder):
    def refused(**options) -> str:
        with pytest.raises(DataError) as caught:
            source(folder, **options).load()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    write(folder / "b.nii", np.where(X == 2, np.nan, PLACE))
    assert "holds NaN" in refused()
    write(folder / "b.nii", PLACE[:, :, :1])
    assert "no volume: it has the shape (6, 8)" in refused()
    (folder / "b.nii").write_bytes((folder / "a.nii").read_bytes()[:400])
    assert "not a readable NIfTI file" in refused()
    (folder / "b.nii").unlink()
    assert "no such volume" in refused()
    assert "list.csv line 3" in refused()


def test_a_mask_of_another_size(folder):
    write(folder / "b-mask.nii", np.zeros((6, 8, 9), dtype=np.uint8))
    manifest = Manifest(folder / "list.csv", mask_column="outline")
    with pytest.raises(DataError, match=r"b-mask.nii.*line 3: the mask is 9×8×6, the image 10×8×6"):
        NiftiSource(folder, manifest, 16, masks=Coding(("rest", "lung"))).load()


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Eight patients' volumes, bright in one half, with that half as the mask."""
    lines = ["file,outline,patient"]
    rng = np.random.default_rng(0)
    for i in range(8):
        voxels = rng.integers(0, 100, X.shape) + 100 * (X >= 3)
        write(tmp_path / f"{i}.nii", voxels.astype(np.int16))
        write(tmp_path / f"{i}-mask.nii", (X >= 3).astype(np.uint8))
        lines.append(f"{i}.nii,{i}-mask.nii,p{i}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    return tmp_path


def federate(scans: Path, *tables: dict, system: str = "fedavg") -> Federation:
    common = {"kind": "nifti", "path": ".", "manifest": "list.csv", "mask_column": "outline"}
    common |= {"classes": ["rest", "right"], "window": [100, 200], "architectures": ["test_resnet"]}
    hospitals = [{"name": f"h{i}", **common, **table} for i, table in enumerate(tables)]
    config = parse(
        {
            "data": {"root": str(scans), "size": 16, "hospitals": hospitals},
            "proxies": {"images": 20, "per_round": 10},
            "models": {"central": "test_resnet", "pretrain_epochs": 0},
            "system": {"kind": system, "rounds": 1},
            "privacy": {"mechanism": "none"},
        },
        "test",
    )
    return build(config, lambda name: name.encode().ljust(32, b"."))


def test_volumes_reach_networks_whole(scans):
    federation = federate(scans, {"slices": "volume", "depth": 4, "patient_column": "patient"})
    site = federation.sites[0]
    assert site.train.images.shape[1:] == (1, 4, 16, 16)
    assert site.train.targets.shape[1:] == (2, 4, 16, 16)
    assert site.train.form == "mask"
    assert site.unit == "patient"
    bright = site.train.images[:, 0] > 0
    assert (bright == (site.train.targets[:, 1] > 0)).float().mean() > 0.95


def test_slices_of_a_patient_stay_together(scans):
    site = federate(scans, {"slices": "all", "patient_column": "patient"}).sites[0]
    assert not set(site.train_patients) & set(site.test_patients)
    assert len(site.train) + len(site.test) == 80


@pytest.mark.parametrize(
    ("tables", "system", "said"),
    [
        ([{"slices": "volume"}], "natimg-fl", "natimg-fl's networks take images, not volumes"),
        ([{"window": [100]}], "fedavg", r"data.hospitals.h0.window: a window has a centre and"),
        ([{"classes": ["rest"]}], "fedavg", "a background and at least one further class"),
        ([{"values": [0, 3]}], "fedavg", "the mask holds 1 "),
        ([{"manifest": "other.csv"}], "fedavg", "other.csv: not a readable CSV file"),
        ([{"mask_column": "mask"}], "fedavg", "list.csv: no column 'mask'"),
    ],
)
def test_tables_at_fault(scans, tables, system, said):
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        federate(scans, *tables, system=system)
    assert "\n" not in str(caught.value)


def test_volumes_of_one_task_have_one_depth(tmp_path, scans):
    other = tmp_path / "other"
    other.mkdir()
    for file in [*scans.glob("*.nii"), scans / "list.csv"]:
        (other / file.name).write_bytes(file.read_bytes())
    tables = [
        {"slices": "volume", "depth": 4},
        {"slices": "volume", "depth": 6, "path": "other", "manifest": "other/list.csv"},
    ]
    with pytest.raises(DataError, match=r"h1: the shape of an input.*1×6×16×16, not 1×4×16×16"):
        federate(scans, *tables)
