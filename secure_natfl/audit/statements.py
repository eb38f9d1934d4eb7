"""What only people know about a study: the tables of `operator.toml`, every key optional.

The audit copies them into the evidence as they are and says which are missing; it never guesses.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from protocols.errors import ConfigError

Text = Annotated[str, Field(min_length=1, max_length=2000)]
Texts = tuple[Text, ...]


class Stated(BaseModel):
    """Base of all that an operator states; unknown keys are refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Study(Stated):
    """Why the study is run, on what grounds, and who answers for it. `*_ref` name documents."""

    id: Text | None = None
    purpose: Text | None = None
    lawful_basis_ref: Text | None = None
    dpia_ref: Text | None = None
    dpo_advice_ref: Text | None = None
    irb_ref: Text | None = None
    controllers: Texts = ()
    processors: Texts = ()
    intended_use: Text | None = None
    not_for: Texts = ()


class SiteFacts(Stated):
    """A site's organisation and where its data comes from."""

    organisation: Text | None = None
    deidentification: Text | None = None
    licence: Text | None = None


class Transport(Stated):
    """How messages travel between organisations; a simulation has no transport."""

    tls_version: Text | None = None
    mutual_tls: bool | None = None
    certificates: Texts = ()


class Clock(Stated):
    """What the writer's clock is set by, and its largest offset in milliseconds."""

    source: Text | None = None
    ntp_offset_ms: FiniteFloat | None = None


class Identifiability(Stated):
    """Risks in [0, 1] that an expert determined, how, and for whom."""

    max_risk: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    average_risk: Annotated[FiniteFloat, Field(ge=0, le=1)] | None = None
    method: Text | None = None
    anticipated_recipient: Text | None = None
    population: Text | None = None
    expert_determination: Text | None = None


class Incident(Stated):
    """Something that went wrong, and what was done. detected_utc: ISO 8601."""

    kind: Text
    detected_utc: Text
    action: Text
    sites_affected: Annotated[int, Field(ge=0)]


class Retention(Stated):
    """Until when logs and documents are kept, and on what basis. Dates as ISO 8601."""

    logs_until: Text | None = None
    documents_until: Text | None = None
    basis: Text | None = None


class SupplyChain(Stated):
    """Where the installed software came from, and which scan found nothing open in it."""

    provenance_ref: Text | None = None
    signed_by: Text | None = None
    vulnerability_scan: Text | None = None
    open_vulnerabilities: Texts = ()


class Operator(Stated):
    """The whole of `operator.toml`."""

    study: Study = Study()
    sites: dict[str, SiteFacts] = {}
    transport: Transport = Transport()
    clock: Clock = Clock()
    identifiability: Identifiability = Identifiability()
    incidents: tuple[Incident, ...] = ()
    retention: Retention = Retention()
    supply_chain: SupplyChain = SupplyChain()


def read_operator(path: Path | None) -> Operator:
    """The operator's statements, none where `path` is None.

    ConfigError naming every unknown or malformed key.
    """
    if path is None:
        return Operator()
    try:
        stated = tomllib.loads(path.read_text(encoding="utf-8"))
        # Arrays of TOML are lists; in JSON they may stand for tuples.
        return Operator.model_validate(stated, strict=False)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, one['loc']))} ({one['msg'].lower()})" for one in error.errors()
        ]
        raise ConfigError(
            f"unknown or malformed keys: {'; '.join(wrong)}",
            where=str(path),
            fix="see the guide to the audit for the keys that there are",
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError("cannot be read", where=str(path), why=str(error)) from None
