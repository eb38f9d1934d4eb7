"""Images: sources, splits by patient, and the check that the proxy set overlaps nobody's data."""

from secure_natfl.data.arrays import resize, to_float
from secure_natfl.data.dicom import DicomSource
from secure_natfl.data.folder import FolderSource
from secure_natfl.data.manifest import Manifest
from secure_natfl.data.masks import Coding
from secure_natfl.data.natural import LabelledFolder, TorchvisionSource
from secure_natfl.data.nifti import NiftiSource
from secure_natfl.data.npz import MedmnistSource, PackSource
from secure_natfl.data.overlap import check_overlap
from secure_natfl.data.partitions import Uneven, uneven_sites
from secure_natfl.data.phantoms import HOSPITALS, Hospital, PhantomSource, chest_phantoms
from secure_natfl.data.records import Form, Records, Source, Unit, align
from secure_natfl.data.splits import assign, check_disjoint, folds, simulate_sites, split
from secure_natfl.data.synthetic import natural_images, noise_images

__all__ = [
    "HOSPITALS",
    "Coding",
    "DicomSource",
    "FolderSource",
    "Form",
    "Hospital",
    "LabelledFolder",
    "Manifest",
    "MedmnistSource",
    "NiftiSource",
    "PackSource",
    "PhantomSource",
    "Records",
    "Source",
    "TorchvisionSource",
    "Uneven",
    "Unit",
    "align",
    "assign",
    "check_disjoint",
    "check_overlap",
    "chest_phantoms",
    "folds",
    "natural_images",
    "noise_images",
    "resize",
    "simulate_sites",
    "split",
    "to_float",
    "uneven_sites",
]
