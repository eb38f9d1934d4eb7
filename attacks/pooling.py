"""What the parties of a coalition have together after a round: messages, memories, equations.

All that the protocols hide lies behind linear equations: sums of integers, points of sharing
polynomials, masks on residues, hops of a ring. What a coalition knows is written down as such
equations over a prime field, with the bytes that it saw as right sides.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations
from typing import Any, Final

from attacks.equations import Equations
from protocols.coalition import Coalition
from protocols.masks import SEED_BYTES, pair_stream, uniform
from protocols.messages import (
    Contribution,
    Group,
    Hop,
    IntVector,
    KeyOpening,
    KeyShare,
    Link,
    MaskSeed,
    Opening,
    RoundPlan,
)
from protocols.multikey import multikey_preset
from protocols.parties import ring_of
from protocols.policy import SERVER, Enrolment
from protocols.residues import Residues, unpack
from protocols.rlwe import preset
from protocols.sealing import SealingKey
from protocols.sharing import expand, unpack_share
from protocols.transcript import NETWORK, Transcript, View

EXACT: Final = (1 << 61) - 1
"""A prime beyond every sum of integers."""


@dataclass(frozen=True)
class Memory:
    """What one party keeps to itself in a round.

    integers: a client's release, int64[size]. sealing: the key that others sealed to. shares: of
    a client's own one-time key, per holder. seeds: peer → the seed of the pair's masks. hop: the
    body that a client of a ring sealed for the next. opens: the attempt's decryption key.
    """

    integers: IntVector | None = None
    sealing: SealingKey | None = None
    shares: Sequence[bytes] = ()
    seeds: dict[str, bytes] = field(default_factory=dict)
    hop: bytes = b""
    opens: Any = None


@dataclass(frozen=True)
class Round:
    """One attempt as it was played, for a group: what was agreed, sent, and kept by each party."""

    enrolment: Enrolment
    plan: RoundPlan
    plan_id: str
    group: Group
    transcript: Transcript
    memories: Mapping[str, Memory]

    def coalition(self, members: Collection[str]) -> Coalition:
        """The coalition of these parties as promises know it."""
        return Coalition(
            group=self.group.participants,
            clients=frozenset(members) & frozenset(self.group.participants),
            holders=frozenset(members) & frozenset(self.enrolment.holders) - {SERVER},
            server=SERVER in members,
            network=NETWORK in members,
            threshold=self.enrolment.threshold,
        )


def coalitions(parties: Sequence[Sequence[str]]) -> Iterator[frozenset[str]]:
    """All sets of parties; each is given with the names of the roles that it brings along."""
    sizes = range(len(parties) + 1)
    for chosen in chain.from_iterable(combinations(parties, size) for size in sizes):
        yield frozenset(chain.from_iterable(chosen))


class Pool:
    """What the members of a coalition have together, and all that follows from it."""

    def __init__(self, played: Round, members: Collection[str]) -> None:
        self.round, self.members = played, frozenset(members)
        self.view: View = played.transcript.view(members)
        self.own = {name: played.memories[name] for name in members if name in played.memories}

    def alpha(self, client: str) -> int:
        """The client's weight in the group."""
        return self.round.group.among([client]).total

    @property
    def width(self) -> int:
        """Integers of the group."""
        return self.round.plan.width_of(self.round.group)

    @property
    def opens(self) -> Any:
        """A decryption key that a member has, None if none has one."""
        return next((mind.opens for mind in self.own.values() if mind.opens is not None), None)

    def uploads(self) -> dict[str, bytes]:
        """Client → the body of its contribution, of all that the coalition saw."""
        group = self.round.group.name
        return {one.sender: one.body for one in self.view.of(Contribution) if one.group == group}

    @cached_property
    def sums(self) -> Equations:
        """Σα·x as it was published, and the members' own x."""
        known, (start, stop) = Equations(EXACT), self.round.plan.span_of(self.round.group)
        for opening in self.view.of(Opening):
            if opening.group == self.round.group.name:
                terms = {name: self.alpha(name) for name in opening.participants}
                known.add(terms, opening.integers)
        for name, mind in self.own.items():
            if mind.integers is not None:
                known.add({name: 1}, mind.integers[start:stop])
        return known

    @cached_property
    def key_shares(self) -> list[Equations]:
        """Per prime: points of the polynomials that share the one-time keys, and of their sum."""
        ring = multikey_preset(self.round.plan.preset)
        known = [Equations(prime) for prime in ring.primes]
        numbers = {name: at for at, name in enumerate(self.round.enrolment.holder_order, 1)}

        def add(weights: Mapping[str, int], holder: int, rows: Residues) -> None:
            degrees = range(self.round.enrolment.threshold)
            for equations, row in zip(known, rows, strict=True):
                terms = {
                    (name, k): alpha * holder**k for name, alpha in weights.items() for k in degrees
                }
                equations.add(terms, row)

        for message in self.view.of(KeyShare):
            mind = self.own.get(message.holder)
            if mind is not None and mind.sealing is not None:
                place = (message.plan, message.group, message.sender, message.holder)
                share = expand(mind.sealing.open(message.body, *place), ring)
                add({message.sender: 1}, numbers[message.holder], share)
        for name, mind in self.own.items():
            for holder, packed in enumerate(mind.shares, 1):
                add({name: 1}, holder, expand(packed, ring))
        for answer in self.view.of(KeyOpening):
            weights = {name: self.alpha(name) for name in self.round.group.participants}
            add(weights, numbers[answer.sender], unpack_share(ring, answer.body))
        return known

    @cached_property
    def masked(self) -> Equations:
        """Residues α·c of each client behind the pairs' masks, as far as members know these."""
        ring, order = preset(self.round.plan.preset), self.round.group.participants
        known, uploads = Equations(ring.prime), self.uploads()
        for name, body in uploads.items():
            others = (other for other in order if other != name)
            signs = {other: 1 if order.index(other) > order.index(name) else -1 for other in others}
            masks = {frozenset((name, other)): sign for other, sign in signs.items()}
            known.add({name: 1} | masks, self._residues(body) * self.alpha(name))
        count = ring.ciphertext_bytes(self.width) * 8 // ring.residue_bits
        for name, mind in self.own.items():
            for other, seed in (mind.seeds | self._unsealed_seeds(name)).items():
                stream = pair_stream(seed, self.round.plan_id, self.round.group.name)
                known.add({frozenset((name, other)): 1}, uniform(ring.prime, count, stream))
        return known

    @cached_property
    def hops(self) -> Equations:
        """Residues α·c of each client in the sums that went round, behind the first one's mask."""
        known = Equations(preset(self.round.plan.preset).prime)
        order = ring_of(self.round.plan, self.round.group)
        for at, name in enumerate(order):
            content = self._hop_of(name)
            if content:
                so_far = dict.fromkeys(order[: at + 1], 1)
                known.add({"mask": 1} | so_far, self._residues(content))
        for link in self.view.of(Link):
            if link.body:
                known.add(dict.fromkeys(order, 1), self._residues(link.body))
        return known

    def _hop_of(self, sender: str) -> bytes:
        """What a client passed on, if it or the one who received it is a member."""
        if sender in self.own:
            return self.own[sender].hop
        for hop in self.view.of(Hop):
            mind = self.own.get(hop.receiver)
            if hop.sender == sender and mind is not None and mind.sealing is not None:
                ends = (self.round.plan_id, hop.sender, hop.receiver)
                return mind.sealing.open(hop.body, "hop", hop.group, *ends)
        return b""

    def _unsealed_seeds(self, name: str) -> dict[str, bytes]:
        """Peer → the seed that it sealed to this member, opened again from the wire."""
        sealing = self.own[name].sealing
        if sealing is None:
            return {}
        return {
            one.sender: sealing.open(one.body, "mask seed", one.plan, one.sender, one.receiver)
            for one in self.view.of(MaskSeed)
            if one.receiver == name and len(one.body) > SEED_BYTES
        }

    def _residues(self, body: bytes) -> Residues:
        ring = preset(self.round.plan.preset)
        row: Residues = unpack(body, ring.residue_bits, (ring.prime,))[0]
        return row
