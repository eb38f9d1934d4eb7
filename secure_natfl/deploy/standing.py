"""What a site says of itself after a round: figures for the consortium's report, and charges."""

from __future__ import annotations

import math

from pydantic import Field, TypeAdapter, ValidationError

from protocols.accounting import Event
from protocols.audit_events import Charged
from protocols.chain import SigningKey, canonical
from protocols.errors import PrivacyError, ProtocolError
from protocols.ledger import Ledger
from protocols.ledger_heads import sign_head
from secure_natfl.evaluation import predict, quick_auroc, scores, site_test
from secure_natfl.federation import Site
from secure_natfl.models import Network
from secure_natfl.report.model import Record, Scores

_MOST = 1 << 20
_EVENT = TypeAdapter(Event)


class Standing(Record):
    """Counts and scores; without the site's leave all are zero or undefined.

    auroc: arm ("central", "personalised") → quick figure. scores: the same arms, whole, after the
    last round.
    """

    parameters: int
    loss: float | None = None
    train_images: int = 0
    test_images: int = 0
    one_class: bool = False
    auroc: dict[str, float | None] = Field(default_factory=dict)
    scores: dict[str, Scores] = Field(default_factory=dict)


def standing(
    site: Site,
    own: Network,
    answering: Network,
    central: Network,
    head: int,
    loss: float,
    *,
    last: bool,
) -> Standing:
    """All figures of a site that shares them; whole scores after the `last` round alone."""
    part = site_test(site)
    arms = {"central": predict(central, part, head), "personalised": predict(answering, part)}
    return Standing(
        parameters=own.parameter_count,
        loss=loss,
        train_images=len(site.train),
        test_images=len(site.test),
        one_class=site.one_class,
        auroc={arm: quick_auroc([found], part) for arm, found in arms.items()},
        scores={arm: scores([found], part) for arm, found in arms.items()} if last else {},
    )


def read_standing(blob: bytes) -> Standing:
    """What a site sent; ProtocolError for anything else."""
    try:
        if len(blob) <= _MOST:
            return Standing.model_validate_json(blob)
    except ValidationError:
        pass
    raise ProtocolError("a site's figures cannot be read", where="learn")


def charges(ledger: Ledger, session: str, key: SigningKey) -> bytes:
    """Every charge of a session under the ledger's signed head, as JSON lines."""
    head, found = sign_head(ledger, key), []
    for line in ledger.lines():
        if (line["patients"], line["session"]) == (ledger.patients, session):
            said = Charged(
                round=line["round"],
                cost=canonical(line["event"]).decode(),
                patients=head.patients,
                seq=head.seq,
                head=head.hash,
                signature=head.signature,
            )
            found.append(canonical(said.model_dump(mode="json")))
    return b"\n".join(found)


def read_charges(blob: bytes, agreed: Event) -> list[Charged]:
    """The charges that a site sent, no round twice, each of what the terms cost it per round.

    ProtocolError for anything else: what is logged is read again by every report and audit.
    """
    try:
        lines = blob.splitlines() if len(blob) <= _MOST else [b""]
        found = [Charged.model_validate_json(line) for line in lines]
        costs = [(one.cost, _EVENT.validate_json(one.cost)) for one in found]
    except (ValidationError, PrivacyError) as error:
        raise ProtocolError("a site's charges cannot be read", where="ledger") from error
    if len({one.round for one in found}) < len(found):
        raise ProtocolError("a round is charged twice in one answer", where="ledger")
    for text, event in costs:
        if canonical(event.line()).decode() != text or not _same(event, agreed):
            raise ProtocolError(
                "a charge is not what the terms cost",
                where="ledger",
                why=f"{text} was said, {canonical(agreed.line()).decode()} was agreed on",
                fix="compare the versions of site and server",
            )
    return found


def _same(one: Event, other: Event) -> bool:
    """Figures to nine digits: the last ones differ between machines."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in Event.__dataclass_fields__]
    return all(
        math.isclose(a, b, rel_tol=1e-9) if isinstance(a, float) else a == b for a, b in pairs
    )
