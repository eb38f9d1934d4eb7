"""Evidence, groups 6 to 13: privacy, encryption, rounds."""

from __future__ import annotations

from typing import Literal

from pydantic import FiniteFloat

from secure_natfl.audit.statements import Transport
from secure_natfl.report.model import Count, Epsilon, Record, Sha256


class Unit(Record):
    """Who is protected, and what neighbouring means."""

    kind: Literal["patient", "image", "client"]
    contribution_bound: Count | None
    neighbouring: str


class MechanismFacts(Record):
    """A mechanism and its own parameters, under their own names."""

    id: str
    parameters: dict[str, int | FiniteFloat | str]
    noise_location: str
    sampling: str
    randomness: str


class SiteSpending(Record):
    """What one site's ledger shows for this session, recomputed from its events.

    head, lines: of its whole ledger, over all sessions.
    """

    client: str
    charges: Count
    rho: Epsilon
    epsilon: Epsilon
    epsilon_isolated: Epsilon
    lines: Count
    head: Sha256


class Accounting(Record):
    """ε of the worst site over all rounds, recomputed, beside what the report stated."""

    native: str
    accountant: str
    accountant_version: str
    delta: FiniteFloat
    delta_total: FiniteFloat
    epsilon: Epsilon
    epsilon_reported: Epsilon
    epsilon_isolated: Epsilon
    cross_check: Epsilon | None
    by_client: tuple[SiteSpending, ...]
    colluders: Count | None
    dropouts: Count | None
    hyperparameter_search: str


class NonPrivateRelease(Record):
    """A release that no noise covers."""

    what: str
    why: str
    recipient: str


class Assumption(Record):
    """Something that the guarantee rests on, and what follows where it fails."""

    id: str
    text: str
    if_it_fails: str


class TrustModel(Record):
    """Against whom the figures hold."""

    model: str
    adversary: str
    assumptions: tuple[Assumption, ...]


class PrivacyEvidence(Record):
    """Groups 6 to 10."""

    unit: Unit
    mechanisms: tuple[MechanismFacts, ...]
    accounting: Accounting
    non_dp_releases: tuple[NonPrivateRelease, ...]
    trust_model: TrustModel
    not_covered: tuple[str, ...]


class Encryption(Record):
    """The cryptosystem; figures are None without one. iso is never claimed for CKKS."""

    scheme: str
    mode: str
    library: str
    preset: str
    degree: Count | None
    modulus_bits: Count | None
    limit_128: Count | None
    scale: Count | None
    secret: str
    exact: str
    key_lifetime: str
    holders: tuple[str, ...]
    threshold: Count
    malicious: Count
    sums_opened: Count
    iso: Literal["none_claimed"] = "none_claimed"


class Signatures(Record):
    """How messages, heads, checkpoints and this evidence are signed."""

    algorithm: str
    hash: str
    library: str


class Crypto(Record):
    """Groups 11 and 12."""

    he: Encryption
    transport: Transport
    signatures: Signatures


class SumEvidence(Record):
    """One group's sum in one round. effective: (Σα)²/Σα² of those included."""

    group: str
    invited: tuple[str, ...]
    included: tuple[str, ...]
    alphas: tuple[int, ...]
    effective: FiniteFloat
    attempt: Count
    aggregate: Sha256


class RoundEvidence(Record):
    """One round, as the log has it. costs: site → the charged event's canonical JSON."""

    round: Count
    planned_utc: str
    opened_utc: str
    proxies: Count
    sums: tuple[SumEvidence, ...]
    absent: tuple[str, ...]
    costs: dict[str, str]
    model: Sha256
    transcript_entries: Count
    transcript_head: Sha256
