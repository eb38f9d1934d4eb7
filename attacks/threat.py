"""Threat models: who plays together, what their attack needs, and whether they have it.

An attack gets a `View` and public knowledge, nothing else. Before it runs, its threat model is
held against both; what is missing refuses the attack, so that no figure rests on knowledge that
the stated adversary does not have.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from protocols.errors import NatflError
from protocols.messages import Contribution, Message, Opening, OpeningRequest, RoundKey, RoundPlan
from protocols.transcript import Transcript, View


class ThreatError(NatflError):
    """An attack lacks something that its threat model says it has."""


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


@dataclass(frozen=True)
class Coalition:
    """Parties that pool what they see: `network`, `server`, `decryptor`, client names.

    `active` says that they may also deviate from the protocol; else they are honest but curious.
    """

    members: frozenset[str]
    active: bool = False

    def view(self, transcript: Transcript) -> View:
        """All that its members saw."""
        return transcript.view(self.members)

    def __str__(self) -> str:
        conduct = "active" if self.active else "honest but curious"
        return f"{' + '.join(sorted(self.members))} ({conduct})"


@dataclass(frozen=True)
class ThreatModel:
    """The declaration that stands beside an attack's figures.

    `needs` are capabilities that the view must give; `knows` names the public knowledge that the
    attack is handed, such as proxies, architectures, or the noise plan.
    """

    name: str
    coalition: Coalition
    needs: frozenset[Capability]
    knows: frozenset[str] = frozenset()

    def admit(self, view: View, knowledge: Collection[str] = ()) -> None:
        """Return if this coalition's view and the knowledge given are what was declared.

        The runner calls it before the attack. Raises ThreatError naming what is missing, or
        what is given beyond the declaration.
        """
        if view.coalition != self.coalition.members:
            raise self._refusal(f"the view is that of {' + '.join(sorted(view.coalition))}")
        missing = self.needs - capabilities(view)
        if missing:
            raise self._refusal("it does not see " + ", ".join(sorted(missing)))
        given = frozenset(knowledge)
        if given != self.knows:
            absent, extra = sorted(self.knows - given), sorted(given - self.knows)
            raise self._refusal(f"knowledge missing: {absent}, undeclared: {extra}")

    def _refusal(self, why: str) -> ThreatError:
        return ThreatError(
            "attack refused",
            where=f"{self.name}, {self.coalition}",
            why=why,
            fix="declare the adversary that has this, or attack another run",
        )
