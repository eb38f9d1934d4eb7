"""The configuration: frozen models, each key documented where it is defined.

Three discriminators pick a kind: `system.kind`, `aggregation.kind` (with `custody`) and
`privacy.mechanism`. What affects privacy stands in `privacy` and `system`; what affects only
speed stands in `speed` and never enters the identity of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from protocols.chain import canonical, digest
from protocols.errors import ConfigError
from protocols.messages import Mode
from protocols.policy import RESERVED, holder_name
from secure_natfl.system_tables import NatImg, System

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[FiniteFloat, Field(gt=0, lt=1)]
Weight = Annotated[FiniteFloat, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]


class Section(BaseModel):
    """A frozen table of the configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Hospital(Section):
    """What every hospital states: its group, how many sites it is split into, its networks."""

    name: Name
    group: Name = "all"
    """Hospitals that agree share a group: one aggregate and one head of the central model each."""
    task: Name = "main"
    """Hospitals of one task have the same classes; others may tell other things apart."""
    sites: Positive = 1
    """More than 1 splits the hospital into patient-disjoint *simulated* sites."""
    partition: Literal["random", "dirichlet", "pathological", "quantity"] = "random"
    """How: alike; classes unevenly; a few classes each; or sizes unevenly."""
    concentration: Annotated[FiniteFloat, Field(gt=0)] = 0.5
    """Of "dirichlet" and "quantity": the smaller, the less sites are like one another."""
    classes_per_site: Positive = 2
    """Of "pathological": how many classes a site has."""
    architectures: Annotated[list[str], Field(min_length=1)]
    """timm names, or "package.module:factory"; site i takes entry i modulo the list's length."""

    @model_validator(mode="after")
    def _is_cut(self) -> Self:
        if self.partition != "random" and self.sites == 1:
            raise ValueError(
                f'{self.name}: partition = "{self.partition}" says how simulated sites are cut; '
                "set sites to 2 or more, or leave it out"
            )
        return self


class PhantomHospital(_Hospital):
    """Chest-X-ray-like phantoms, made on the spot; `hospital` names the look.

    `target`: normal or pneumonia ("labels"), its pattern (four classes), the view (two), or the
    lungs ("mask").
    """

    kind: Literal["phantom"]
    hospital: str
    target: Literal["labels", "pattern", "view", "mask"] = "labels"
    images: Positive = 300
    positive_rate: Share = 0.5


class PackHospital(_Hospital):
    """An npz pack with `images`, `labels`, `class_names`, `source`, `group` and `cluster`."""

    kind: Literal["npz"]
    path: str
    target: str = "labels"
    """The array that is learnt: `labels`, or another one, of numbers, of words, or of masks."""
    classes: list[str] = []
    """The classes of a target of numbers, from 0; of masks the background first."""
    bits: list[Positive] = []
    """Of masks that are bit fields: what each class but the background has in its pixels."""
    source: str = ""
    unit: Literal["patient", "image"] = "image"


class MedmnistHospital(_Hospital):
    """A MedMNIST npz file; its classes by name, since the file does not name them."""

    kind: Literal["medmnist"]
    path: str
    classes: list[str] = []


class _Listed(_Hospital):
    """Files listed in a CSV manifest, labelled by it or by masks that it names."""

    path: str
    manifest: str
    patient_column: str = ""
    classes: list[str] = []
    """Classes in order; empty: those found. Masks need them, the background first."""
    mask_column: str = ""
    """The column that names each image's mask; empty: labels stand in the manifest."""
    values: list[int] = []
    """What each class has in the masks; empty: 0, 1, 2, …; 255 is unknown if no class has it."""


class FolderHospital(_Listed):
    """Image files listed in a CSV manifest."""

    kind: Literal["folder"]
    uncertain: Literal["mask", "negative", "positive", "drop"] = "mask"
    missing: Literal["mask", "negative", "positive", "drop"] = "mask"


class DicomHospital(_Hospital):
    """A folder of DICOM files, labelled by a CSV manifest or by an element of each file."""

    kind: Literal["dicom"]
    path: str
    manifest: str = ""
    label_tag: str = ""
    classes: list[str] = []
    frames: Literal["middle", "all"] = "middle"


class NiftiHospital(_Listed):
    """NIfTI volumes listed in a CSV manifest; needs `pip install secure_natfl[medical]`."""

    kind: Literal["nifti"]
    slices: Literal["middle", "all", "volume"] = "middle"
    """The central slice, every slice as an image of the same patient, or the volume whole."""
    depth: Annotated[int, Field(ge=2, le=512)] = 32
    """Slices of a whole volume, after resampling."""
    window: Annotated[list[FiniteFloat], Field(max_length=2)] = []
    """Centre and width of what is shown, as [-600, 1500] for lungs; empty: its own percentiles."""


class RemoteHospital(_Hospital):
    """A hospital of a deployed federation, whose images stay there: what it declares in public."""

    kind: Literal["remote"]
    sites: Literal[1] = 1
    patients: Positive
    """Training patients; images, where the site knows no patients."""
    unit: Literal["patient", "image"]
    classes: Annotated[list[str], Field(min_length=2)]
    """The same at every hospital, in one order."""
    multi_label: bool = False


Hospital = Annotated[
    PhantomHospital
    | PackHospital
    | MedmnistHospital
    | FolderHospital
    | DicomHospital
    | NiftiHospital
    | RemoteHospital,
    Field(discriminator="kind"),
]


class Data(Section):
    """Private images: where they lie and how they are split."""

    root: str = "."
    """Folder that relative paths of hospitals and proxies start from."""
    size: Annotated[int, Field(ge=16, le=512)] = 64
    """Side of the square image that every network sees, in pixels."""
    channels: Literal[1, 3] = 1
    """1: grey; colour files turn to luminance. 3: colour; grey files are shown three times."""
    test_fraction: Share = 0.3
    split_seed: int = 0
    folds: Literal[0] | Annotated[int, Field(ge=2)] = 0
    """Cuts every site into so many patient-disjoint folds, in place of one split; 0: one split."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that is held back as the test part, counted from 0; the others train."""
    hospitals: Annotated[list[Hospital], Field(min_length=1)]


class Proxies(Section):
    """The public set of natural images that logits are given on."""

    kind: Literal["made", "npz", "medmnist", "folder", "cifar10", "stl10"] = "made"
    path: str = ""
    images: Positive = 2000
    """How many images are made, or kept of a larger set."""
    per_round: Positive = 800
    """Images asked in one round; no image is asked twice."""
    download: bool = False


class Models(Section):
    """Networks that are not a site's own choice, and the public start of all of them."""

    central: str
    """A timm name, "package.module:factory", or several joined by "+", side by side."""
    weights: str = "none"
    """Start of the backbones: "none", "hub", a .safetensors file, or a folder with one for each."""
    pretrain_epochs: Annotated[int, Field(ge=0)] = 4
    """Epochs on the labelled natural images, public, before anything private is touched."""
    batch: Annotated[int, Field(ge=4)] = 64
    """Images of a step when the central model is distilled; half as many at the sites."""


class _Aggregation(Section):
    """What every kind has: the least that a group must have before its sum may be opened."""

    min_participants: Annotated[int, Field(ge=3)] = 3
    min_effective: Annotated[FiniteFloat, Field(ge=2)] = 2.0


class Ckks(_Aggregation):
    """Ciphertexts are added; more than half of the sites together, or a decryptor, open the sum."""

    kind: Literal["ckks"] = "ckks"
    custody: Literal["threshold", "decryptor"] = "threshold"
    """"threshold": every site keeps a share of each one-time key; no party can open alone."""


class Ring(_Aggregation):
    """Ciphertexts are added from site to site under a mask; a decryptor opens the sum."""

    kind: Literal["ring"]
    custody: Literal["decryptor"] = "decryptor"


class Plain(_Aggregation):
    """No encryption: a baseline, and the positive control of attacks."""

    kind: Literal["plain"]
    custody: Literal["none"] = "none"


class Slots(_Aggregation):
    """CKKS as it is commonly used: numbers in slots, one key for all sites. For studies only."""

    kind: Literal["slots"]
    custody: Literal["shared"] = "shared"
    unsafe: bool = False
    """Must be true: whoever asks for this kind says that nothing is protected."""


Aggregation = Annotated[Ckks | Ring | Plain | Slots, Field(discriminator="kind")]


class ShardTeachers(Section):
    """Teachers on disjoint shards of patients; their clipped integer sum is noised."""

    mechanism: Literal["shard-teachers"]
    epsilon: Annotated[FiniteFloat, Field(gt=0)] = 8.0
    """Of the worst client over all rounds, with `colluders` clients pooling what they know."""
    delta: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 1e-5
    shards: Annotated[int, Field(ge=2)] = 20
    """Teachers of a site; fewer where it has under three patients for each."""
    clip: Annotated[FiniteFloat, Field(gt=0)] = 60.0
    """Joint L2 norm of one teacher's whole answer (rows × (classes + denominators))."""
    colluders: Annotated[int, Field(ge=1)] = 1
    dropouts: Annotated[int, Field(ge=0)] = 0
    max_images_per_patient: Positive = 4


class DpSgd(Section):
    """A linear head per site on the central model's public backbone, trained under noise.

    ε holds against everybody but the site. Personal models keep architectures of their own.
    """

    mechanism: Literal["dp-sgd"] = "dp-sgd"
    layers: Literal["head", "last", "network"] = "head"
    """What a site trains: the head alone, with the backbone's last block, or all of the network."""
    epsilon: Annotated[FiniteFloat, Field(gt=0)] = 8.0
    """Of every site over all rounds; no other site's noise is counted on."""
    delta: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 1e-5
    gradient_clip: Annotated[FiniteFloat, Field(gt=0)] = 0.15
    """L2 norm to which a patient's gradient is clipped; features have a mean square of 1."""
    rate: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0
    """Probability with which each patient is in a step."""
    steps: Positive = 32
    """Steps of a round; each goes on from what the server returned in the round before."""
    learning_rate: Annotated[FiniteFloat, Field(gt=0)] = 7.0
    """In clips: how far one step takes the head at most; less where the noise would take it far."""
    max_images_per_patient: Positive = 4


class ClientGaussian(Section):
    """The whole answer of a site, clipped and noised: hides a site, if there are many."""

    mechanism: Literal["client-gaussian"]
    epsilon: Annotated[FiniteFloat, Field(gt=0)] = 8.0
    """Of the worst client over all rounds, with `colluders` clients pooling what they know."""
    delta: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 1e-5
    clip: Annotated[FiniteFloat, Field(gt=0)] = 60.0
    """Joint L2 norm of a site's whole answer (rows × (classes + denominators))."""
    colluders: Annotated[int, Field(ge=1)] = 1
    dropouts: Annotated[int, Field(ge=0)] = 0
    override: bool = False
    """Must be true where the plan predicts that next to nothing of the consensus is left."""


class NoNoise(Section):
    """No noise, ε = ∞: what the plain published protocol gives."""

    mechanism: Literal["none"]
    speaking: Literal["network", "shards", "head"] = "network"
    """A fine-tuned network answers; or, without their noise, shard teachers or one linear head."""
    shards: Annotated[int, Field(ge=2)] = 20
    clip: Annotated[FiniteFloat, Field(gt=0)] = 60.0
    max_images_per_patient: Positive = 4


Privacy = Annotated[
    ShardTeachers | DpSgd | ClientGaussian | NoNoise, Field(discriminator="mechanism")
]


def speaks_by_head(table: Privacy) -> bool:
    """Whether a site speaks by a linear head on the central model's public backbone."""
    if isinstance(table, DpSgd):
        return table.layers == "head"
    return isinstance(table, NoNoise) and table.speaking == "head"


class Ledger(Section):
    """Where the sites keep their ledgers, and what they may spend there."""

    folder: str = "auto"
    """"auto": phantoms in the run folder, real images in the user's state folder, over all runs."""
    budget_epsilon: Annotated[FiniteFloat, Field(gt=0)] | Literal["none"] = "none"


class Run(Section):
    """Name and randomness of a run."""

    name: Name = "run"
    seed: Annotated[int, Field(ge=0)] | Literal["system"] = "system"
    """A number makes the run reproducible and *not private*: its noise is predictable."""
    baselines: bool = True


class Speed(Section):
    """What changes only how fast a run is."""

    threads: Annotated[int, Field(ge=0)] = 0
    """0: all cores."""


class Config(Section):
    """One run, whole."""

    run: Run = Run()
    data: Data
    proxies: Proxies = Proxies()
    models: Models
    system: System = NatImg()
    aggregation: Aggregation = Ckks()
    privacy: Privacy = DpSgd()
    ledger: Ledger = Ledger()
    speed: Speed = Speed()

    @model_validator(mode="before")
    @classmethod
    def _round_a_ring(cls, table: Any) -> Any:
        """PPPML-HMI's sums go around a ring, as its authors' do, where nothing else is said."""
        system = table.get("system") if isinstance(table, dict) else None
        ours = isinstance(system, dict) and system.get("kind") == "pppml-hmi"
        return {"aggregation": {"kind": "ring"}, **table} if ours else table

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_names(self.data.hospitals)
        if self.data.fold >= max(self.data.folds, 1):
            raise ValueError(
                f"data.fold: there is no fold {self.data.fold} of {self.data.folds}, "
                "folds are counted from 0"
            )
        sites = [site for hospital in self.data.hospitals for site in sites_of(hospital)]
        if len(set(sites)) != len(sites):
            raise ValueError("data.hospitals: a hospital has the name of another's site")
        if RESERVED & set(sites):
            raise ValueError(f"data.hospitals: {', '.join(sorted(RESERVED))} are no names for one")
        if {holder_name(site) for site in sites} & set(sites):
            raise ValueError("data.hospitals: a site has the name of another as a key holder")
        if not self.system.asks_proxies:
            return self
        if self.system.rounds * self.proxies.per_round > self.proxies.images:
            room = self.proxies.images // self.system.rounds
            raise ValueError(
                f"proxies.per_round: {self.system.rounds} rounds × {self.proxies.per_round} images "
                f"are more than the {self.proxies.images} of the proxy set, and no image is asked "
                f"twice; lower {f'per_round to {room}' if room else 'rounds, or make more images'}"
            )
        return self

    @model_validator(mode="after")
    def _is_meant(self) -> Self:
        if isinstance(self.aggregation, Slots) and not self.aggregation.unsafe:
            raise ValueError(
                'aggregation: kind = "slots" protects nobody: every site has the one key, and the '
                "sums that are read give it away to the server and to listeners; take kind = "
                '"ckks", or set aggregation.unsafe = true in a study of this'
            )
        return self

    @model_validator(mode="after")
    def _is_covered(self) -> Self:
        system = self.system
        if not isinstance(system, NatImg):
            return self._is_summed()
        if isinstance(self.privacy, DpSgd) and system.beta == "class":
            raise ValueError(
                'system.beta: "class" sends shares of private labels, which privacy.mechanism = '
                '"dp-sgd" puts no noise on; take "natural", "entropy" or "uniform"'
            )
        return self

    def _is_summed(self) -> Self:
        """Updates are no answers of shard teachers, and one vector leaves a site."""
        kind, table = self.system.kind, self.privacy
        if isinstance(table, ShardTeachers) or (
            isinstance(table, NoNoise) and table.speaking == "shards"
        ):
            raise ValueError(
                f"privacy: {kind} sends one vector of a site, and shards of its patients have none "
                'of their own; take mechanism = "client-gaussian", "dp-sgd", or "none" with '
                'speaking = "network"'
            )
        return self

    @property
    def natimg(self) -> NatImg:
        """The table of NatIMG-FL; ConfigError where another system is configured."""
        if not isinstance(self.system, NatImg):
            raise ConfigError(
                f"this is for NatIMG-FL, and the configuration is of {self.system.kind}",
                where="system.kind",
                fix='choose a configuration with system.kind = "natimg-fl"',
            )
        return self.system

    @property
    def openings(self) -> int:
        """How many sums are opened in all: rounds × phases; openings are numbered from 0."""
        return self.system.rounds * self.system.phases

    @property
    def uses_proxies(self) -> bool:
        """Whether public natural images are needed: to be asked, or for a public start."""
        started = self.system.starts_public and self.models.pretrain_epochs > 0
        return self.system.asks_proxies or started or isinstance(self.privacy, DpSgd)

    @property
    def identity(self) -> str:
        """SHA-256 of everything that can change a result; `speed` is left out."""
        return digest(canonical(self.model_dump(mode="json", exclude={"speed"})))

    @property
    def mode(self) -> Mode:
        """Kind of aggregation and custody of its keys, as plans name them."""
        return cast(Mode, f"{self.aggregation.kind}/{self.aggregation.custody}")

    @property
    def seeded(self) -> bool:
        """Whether the noise can be predicted."""
        return self.run.seed != "system"

    def site_names(self) -> dict[str, Any]:
        """Site → its hospital's table, in the order of the file."""
        return {name: hospital for hospital in self.data.hospitals for name in sites_of(hospital)}


def _check_names(hospitals: Sequence[_Hospital]) -> None:
    """A hospital is named once, and so is in one group."""
    groups: dict[str, str] = {}
    for hospital in hospitals:
        if hospital.name in groups:
            first, second = groups[hospital.name], hospital.group
            raise ValueError(
                f"data.hospitals: {hospital.name} is in two groups, {first} and {second}"
                if first != second
                else "data.hospitals: two hospitals have the same name"
            )
        groups[hospital.name] = hospital.group


def sites_of(hospital: _Hospital) -> list[str]:
    """The names of a hospital's sites: its own, or numbered from 1 where it is split."""
    if hospital.sites == 1:
        return [hospital.name]
    return [f"{hospital.name}-{i + 1}" for i in range(hospital.sites)]
