"""The evidence of one run: frozen records behind `evidence.json`, in 26 groups of fields.

What the tool can know is filled in from files that were verified; what only people know comes from
`operator.toml` or is None, and then its JSON pointer is in `missing`. Infinite privacy losses are
"inf". Nothing here may hold an image, a patient's figure, or a number that a site keeps private.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from secure_natfl.audit.evidence_parts import Crypto, PrivacyEvidence, RoundEvidence
from secure_natfl.audit.statements import (
    Clock,
    Identifiability,
    Incident,
    Retention,
    Study,
    SupplyChain,
)
from secure_natfl.report.model import Count, Epsilon, Interval, Record, Sha256

SCHEMA_VERSION: Literal["1"] = "1"
Status = Literal["evidence_present", "evidence_partial", "operator_must_supply", "not_applicable"]
Kind = Literal["design", "operating", "operator"]


class Tool(Record):
    """What made the run and the evidence. code: digest over the installed sources."""

    name: str
    version: str
    code: Sha256
    python: str
    platform: str
    libraries: dict[str, str]


class Participant(Record):
    """A site and the key that it signs with. organisation: from the operator."""

    client: str
    public_key: Sha256
    enrolled_utc: str
    organisation: str | None


class DataGovernance(Record):
    """What a site declares of its data.

    Exact counts of training patients or images, outside the guarantee as the report says.
    deidentification, licence: from the operator.
    """

    client: str
    hospital: str
    unit: Literal["patient", "image"]
    units: Count
    training_images: Count
    one_class: bool
    max_images_per_unit: Count | None
    split_seed: int
    unit_disjoint_splits: bool
    deidentification: str | None
    licence: str | None


class ProxySet(Record):
    """The public images that models are asked about. digest: of the whole set."""

    name: str
    digest: Sha256
    images: Count
    asked_per_round: Count
    overlap_check: str


class AttackRow(Record):
    """One verdict of the attack table, as it was written. criterion: fixed beforehand."""

    id: str
    arm: str
    verdict: str
    criterion: str
    promised: bool


class Memorisation(Record):
    """Records per parameter: the fewer, the more a model could keep by heart."""

    training_images: Count
    smallest_images_per_parameter: FiniteFloat


class Score(Record):
    """The central model's AUROC at a hospital, and what the site's data alone gave there."""

    hospital: str
    auroc: Interval | None
    local_only: Interval | None


class Utility(Record):
    """What the protected model is good for, per hospital."""

    metric: Literal["AUROC"] = "AUROC"
    central: tuple[Score, ...]
    simulation_only: bool


class Robustness(Record):
    """What the mode survives, in the words of its promise."""

    dropouts: str
    rule_breakers: str
    fewest_participants: Count
    fewest_effective: FiniteFloat
    poisoning: str


class LogEvidence(Record):
    """Group 20: where the log ended, and who co-signed that."""

    file: Literal["audit.jsonl"] = "audit.jsonl"
    sha256: Sha256
    entries: Count
    head: Sha256
    root: Sha256
    checkpoints: Count
    cosigners: tuple[str, ...]
    torn_lines: Count
    refusals: Count
    clock: Clock


class KeyLife(Record):
    """A signing key's life; encryption keys last one attempt and are named by their plans."""

    owner: str
    public_key: Sha256
    created: str
    destroyed: str


class Consent(Record):
    """What each client enforces itself before it charges or sends anything."""

    max_epsilon: Epsilon
    max_rounds: Count
    budget_epsilon: Epsilon
    min_participants: Count
    min_effective: FiniteFloat
    proxies: Sha256
    terms: Sha256


class Clause(Record):
    """A clause of a law or standard, and what of this evidence speaks to it.

    kind: "design" for what the tool is, "operating" for what an organisation did, "operator" for
    what only people state. text_checked_on: when somebody read the clause itself; None is an
    unverified mapping. pointers: into this document (RFC 6901).
    """

    framework: str
    clause: str
    asks: str
    kind: Kind
    status: Status
    pointers: tuple[str, ...]
    text_checked_on: str | None
    comment: str


class Check(Record):
    """One check of the audit; `unchecked` says why it was not made."""

    check: str
    outcome: Literal["holds", "broken", "unchecked"]
    said: str


class Evidence(Record):
    """The whole document. verdict: "holds" if no check is broken."""

    schema_version: Literal["1"] = SCHEMA_VERSION
    study_id: str | None
    run_id: str
    run_name: str
    created_utc: str
    simulated: bool
    seeded: bool
    verdict: Literal["holds", "broken"]
    summary: tuple[str, ...]
    """Plain sentences: what left, what ε is, what does not hold."""
    checks: tuple[Check, ...]
    tool: Tool
    study: Study
    participants: tuple[Participant, ...]
    data_governance: tuple[DataGovernance, ...]
    proxy_set: ProxySet
    privacy: PrivacyEvidence
    crypto: Crypto
    rounds: tuple[RoundEvidence, ...]
    attacks: tuple[AttackRow, ...]
    attacks_said: str
    memorisation: Memorisation
    identifiability: Identifiability
    utility: Utility
    robustness: Robustness
    incidents: tuple[Incident, ...]
    log: LogEvidence
    retention: Retention
    keys_lifecycle: tuple[KeyLife, ...]
    consent_policy: Consent
    supply_chain: SupplyChain
    limits: tuple[str, ...]
    not_claimed: tuple[str, ...]
    unverifiable: Annotated[tuple[str, ...], Field(min_length=1)]
    """What cannot be verified from outside."""
    missing: tuple[str, ...]
    """JSON pointers of what only people can supply and nobody has."""
    clauses: tuple[Clause, ...]
    files: dict[str, Sha256]
    """Files of the run that were looked at, by digest."""
