"""What an adversary can see in a run's messages, by name.

A row of the attack table says which of it the row needs; `secure_natfl.leakage.table.admit` holds
that against the run's messages, and a row that lacks something is refused or left out. Knowledge
beside the messages is what a row's laboratory hands to its attack; nothing checks that again.
"""

from enum import StrEnum
from typing import Final

from protocols.errors import NatflError
from protocols.messages import Contribution, Message, Opening, OpeningRequest, RoundKey, RoundPlan
from protocols.transcript import View


class ThreatError(NatflError):
    """An attack lacks something that it needs."""


class Capability(StrEnum):
    """What an adversary may be able to see or know."""

    PLANS = "round plans: proxies asked, groups, weights"
    ROUND_KEYS = "the decryptor's public keys"
    CONTRIBUTIONS = "contributions as they travel"
    CLEAR_CONTRIBUTIONS = "contributions in the clear"
    WEIGHTED_SUMS = "weighted sums before they are opened"
    AGGREGATES = "opened aggregates"


_MESSAGES: Final[dict[Capability, type[Message]]] = {
    Capability.PLANS: RoundPlan,
    Capability.ROUND_KEYS: RoundKey,
    Capability.CONTRIBUTIONS: Contribution,
    Capability.WEIGHTED_SUMS: OpeningRequest,
    Capability.AGGREGATES: Opening,
}
_INT32_BYTES: Final = 4


def capabilities(view: View) -> frozenset[Capability]:
    """What the messages of a view give to those who saw them."""
    kinds = {entry.kind for entry in view.entries}
    found = {capability for capability, kind in _MESSAGES.items() if kind.kind in kinds}
    sizes = {plan.stage: plan.size for plan in view.of(RoundPlan)}
    clear = (
        len(sent.body) == _INT32_BYTES * sizes.get(sent.stage, -1) for sent in view.of(Contribution)
    )
    return frozenset(found | {Capability.CLEAR_CONTRIBUTIONS} if any(clear) else found)
