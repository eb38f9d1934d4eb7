"""What a run reports: the frozen records behind `report.json` and `report.html`.

The run fills a `Report` once, after its last round, and hands it to `render.write_report`. Numbers
that do not exist are `None` (an AUROC on one class) and never NaN; a missing guarantee is the
string "inf". Nothing here may hold an image, a patient identifier or a per-patient figure, except
`proxy_samples`, which shows public natural images.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from protocols.statement import PrivacyStatement


def _spell_infinity(value: Any) -> Any:
    return "inf" if isinstance(value, float) and value == float("inf") else value


Epsilon = Annotated[
    Annotated[FiniteFloat, Field(ge=0)] | Literal["inf"], BeforeValidator(_spell_infinity)
]
"""A privacy loss ≥ 0, or "inf" where nothing bounds it; `float("inf")` is taken and respelled."""

Unit = Literal["patient", "image"]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PngUri = Annotated[str, Field(pattern=r"^data:image/png;base64,[A-Za-z0-9+/]+={0,2}$")]


class Record(BaseModel):
    """A frozen record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(Record):
    """A figure with its bootstrap interval over patients, in the figure's own units."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class Scores(Record):
    """Figures on `n` test units; `None` where undefined, shown as "n/a" (one class only).

    `accuracy`: share of images whose most probable class is right, where an image has one class.
    `dice`: of masks, mean over images and the classes in front of the background, leaving out those
    that neither the truth nor the prediction shows; a mask has no other figure.
    """

    auroc: Interval | None
    auprc: Interval | None
    balanced_accuracy: Interval | None
    ece: Interval | None
    accuracy: Interval | None = None
    dice: Interval | None = None
    n: Count
    unit: Unit


class Holding(Record):
    """What one simulated site trains on: class → images, or pixels of its masks.

    A real site's counts are its own affair and are in no report but its own.
    """

    site: str
    task: str
    counted: Literal["images", "pixels"]
    counts: dict[str, Count]


class Aggregation(Record):
    """How contributions were added; the fields of the cryptosystem are `None` for `plain`."""

    kind: str
    custody: str
    alpha: dict[str, int]
    """Integer weight of each site."""
    n_eff: dict[str, FiniteFloat]
    """Effective contributors, (Σα)² / Σα², of each group."""
    groups: dict[str, tuple[str, ...]]
    holders: tuple[str, ...]
    """Who opens, `threshold` of them together; without encryption the server."""
    threshold: Count
    preset: str | None = None
    poly_modulus_degree: int | None = None
    coeff_mod_bits: tuple[int, ...] | None = None
    scale: int | None = None
    security_bits_table: str | None = None
    """Plain words, such as "128-bit table: limit 109, used 88"."""
    implementation: str | None = None


class SiteLedger(Record):
    """One site's ledger as the consortium may see it; `spans` says in words what it covers."""

    site: str
    lines: Count
    spent_epsilon: Epsilon
    spans: str
    head_sha256: Sha256


class Budget(Record):
    """What one patient set has spent in one session, or over all of them (`session` None).

    patients: the set's keyed digest. cross_check: ε by Rényi accounting where steps were charged.
    """

    patients: str
    session: str | None
    charges: Count
    epsilon: Epsilon
    cross_check: Epsilon | None = None


class Privacy(Record):
    """The guarantee: of whom, against whom, over how many rounds, and what it leaves open."""

    mechanism: str
    epsilon: Epsilon
    """Worst client over all rounds at its actual α, with `t` others colluding.

    `t` and `d` are None where no other site's noise is counted on: any number may collude."""
    epsilon_isolated: Epsilon
    """Worst client when only its own share of the noise remains."""
    delta: FiniteFloat
    unit: Unit | Literal["client"]
    relation: str
    t: Count | None
    d: Count | None
    rounds: Count
    adversary: str
    statement: str
    """The guarantee of the worst site in plain sentences, made from `guarantee`."""
    guarantee: PrivacyStatement | None = None
    accountant: str
    crosscheck_epsilon: Epsilon | None
    parameters: dict[str, int | FiniteFloat | str]
    signal_to_noise: FiniteFloat | None
    randomness: str
    not_covered: tuple[str, ...]
    ledger: tuple[SiteLedger, ...]


class Client(Record):
    """One site: its data, its personalised model, its weight and its own privacy loss.

    `scores` are those of the personalised model: of NatIMG-FL on the hospital's test part, which
    simulated sites of one hospital share, of other systems on the site's own.
    """

    name: str
    hospital: str
    group: str
    architecture: str
    parameters: Count
    unit: Unit
    patients: Count
    train_images: Count
    test_images: Count
    one_class: bool
    alpha: int
    epsilon: Epsilon
    epsilon_isolated: Epsilon
    scores: Scores


class Central(Record):
    """The server's model: one head per group, scored on each hospital's test part."""

    architecture: str
    heads: tuple[str, ...]
    scores: dict[str, Scores]


class Baseline(Record):
    """A comparison; `simulation_only` where no real federation could have computed it."""

    label: str
    simulation_only: bool
    note: str
    scores: dict[str, Scores]


class CurvePoint(Record):
    """AUROC, or Dice of masks, of one arm ("central", "personalised", …) after a round."""

    arm: str
    hospital: str
    round: Count
    auroc: FiniteFloat | None
    dice: FiniteFloat | None = None


class LossPoint(Record):
    """Training loss of one model at one step."""

    model: str
    step: Count
    loss: FiniteFloat


class Absence(Record):
    """A client or key holder that was left out of a round, which went on without it."""

    round: Count
    party: str
    why: str


class MessageTotal(Record):
    """All messages of one kind over the whole run."""

    count: Count
    bytes: Count


class Wire(Record):
    """Bytes per client and round, except `by_message`, which totals the whole run.

    `upload_bytes` and `download_bytes` are all that a client sends and receives in a round, key
    shares and its part in opening included. `fp32_bytes` is 4 × the released logits of one client
    and round; `model_fp32_bytes` what one client would send in the same round if it sent its
    model as fp32 instead. `slots_model_bytes`: the same with every weight in a CKKS slot, degree
    8192 and moduli of 60, 40 and 60 bits, at 57 B a number as serialised; keys come on top.
    """

    upload_bytes: Count
    fp32_bytes: Count
    download_bytes: Count
    opening_bytes: Count
    model_fp32_bytes: dict[str, Count]
    slots_model_bytes: dict[str, Count] = {}
    by_message: dict[str, MessageTotal]


class Timing(Record):
    """Wall-clock seconds; `protection` is clipping, noise, ledger, encryption and opening."""

    total: Seconds
    protection: Seconds
    protection_per_client_round: Seconds
    by_stage: dict[str, Seconds]


class Exposure(Record):
    """What one kind of party can learn, what stands in its way, and what remains."""

    party: str
    learns: str
    protection: str
    remains: str


class UncoveredRelease(Record):
    """Something that leaves a site and that no noise covers."""

    what: str
    seen_by: str
    why: str


class Proxy(Record):
    """The public natural images on which every model is asked."""

    name: str
    images: Count
    asked_per_round: Count
    classes: Count
    overlap_check: str


class Headline(Record):
    """What every report says first, the consortium's and a site's alike."""

    schema_version: Literal["1"] = "1"
    product_version: str
    created_utc: datetime
    name: str
    """Preset or run name."""
    command: str
    """The command line that reproduces the run."""
    config_sha256: Sha256
    simulated: bool
    """Parties simulated in one process, or one hospital split into several sites."""
    seeded: bool
    not_private_because: tuple[str, ...]
    system: str
    reconstruction: str
    """Label sentence with the citation of the published system."""


class Report(Headline):
    """The consortium's report of one run: only what may be shared among all parties."""

    parts: dict[str, bool]
    traits: dict[str, int | FiniteFloat | str] = {}
    """Further figures of the system, such as sizes and ratios, under their names."""
    leaves: str = ""
    """What leaves a site in a round, where that is no answers on public images."""
    aggregation: Aggregation
    aggregate_sha256: tuple[Sha256, ...]
    absent: tuple[Absence, ...]
    privacy: Privacy
    clients: tuple[Client, ...]
    central: Central | None = None
    """None where a system has no shared model."""
    baselines: dict[str, Baseline]
    curves: tuple[CurvePoint, ...]
    losses: tuple[LossPoint, ...]
    wire: Wire
    seconds: Timing
    peak_memory_mib: FiniteFloat
    exposure: tuple[Exposure, ...]
    uncovered_releases: tuple[UncoveredRelease, ...]
    environment: dict[str, str]
    proxy: Proxy | None = None
    """None where no public image is asked."""
    proxy_samples: tuple[PngUri, ...] = ()
    holdings: tuple[Holding, ...] = ()
    """Of simulated sites alone."""
