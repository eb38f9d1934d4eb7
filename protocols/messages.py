"""The closed set of messages: frozen types with a JSON header and a binary body.

What they look like on the wire, signed, is `envelope`'s concern.
"""

from collections.abc import Collection
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from protocols.errors import ProtocolError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\z")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Positive = Annotated[int, Field(ge=1, lt=1 << 31)]
Mode = Literal["ckks/threshold", "ckks/decryptor", "ring/decryptor", "plain/none", "slots/shared"]
"""Kind of aggregation and custody of its keys: how a session's sums are made and opened."""
IntVector = NDArray[np.int64]


class Stage(NamedTuple):
    """Where in a session a message belongs; every message names all three."""

    session: str
    round: int
    attempt: int


class StrictModel(BaseModel):
    """Base of all that is read from bytes: frozen, no unknown keys, no type coercion."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Message(StrictModel):
    """What every message carries; `body` is the binary part, outside the JSON header."""

    code: ClassVar[int]
    kind: ClassVar[str]
    body_limit: ClassVar[int] = 0

    session: Name
    round: Count
    attempt: Count
    sender: Name
    body: bytes = Field(default=b"", exclude=True, repr=False)

    @property
    def stage(self) -> Stage:
        """Session, round and attempt, as the receiver compares them."""
        return Stage(self.session, self.round, self.attempt)


class Group(StrictModel):
    """Clients that are summed together, each with the server's integer weight α ≥ 1.

    `least` is the number of contributions below which nothing of it may be opened. `span` is the
    part [start, stop) of the vector that this group sums, None the whole of it: groups with the
    same clients and spans that follow the classes give a weight per client and class.
    """

    name: Name
    participants: Annotated[tuple[Name, ...], Field(min_length=1)]
    alphas: Annotated[tuple[Positive, ...], Field(min_length=1)]
    least: Positive = 1
    span: tuple[Count, Positive] | None = None

    @property
    def total(self) -> int:
        """A = Σα: the factor by which the sum may exceed one contribution."""
        return sum(self.alphas)

    def among(self, names: Collection[str]) -> "Group":
        """This group without the participants that are not in `names`; at least one must be."""
        kept = [
            pair for pair in zip(self.participants, self.alphas, strict=True) if pair[0] in names
        ]
        participants, alphas = zip(*kept, strict=True)
        return self.model_copy(update={"participants": participants, "alphas": alphas})


class Floors(StrictModel):
    """The least that a group must have: participants, and effective contributors (Σα)²/Σα²."""

    participants: Annotated[int, Field(ge=2, lt=1 << 31)] = 3
    effective: Annotated[float, Field(ge=1.0)] = 2.0


class RoundPlan(Message):
    """Server to all, first message of an attempt; its identity binds everything that follows.

    `size` counts the integers of one release, `layout`, `terms` (grid, clip and noise plan),
    `proxies` (the whole proxy set) and `holders` (who opens, and how many of them it takes) are
    digests, and the body lists this round's proxy indices as little-endian uint32.
    """

    code: ClassVar[int] = 1
    kind: ClassVar[str] = "round-plan"
    body_limit: ClassVar[int] = 1 << 24

    version: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+-]{1,32}\z")]
    attempt: Positive
    mode: Mode
    proxies: Digest
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]
    preset: Name
    layout: Digest
    size: Positive
    terms: Digest
    floors: Floors
    holders: Digest

    @property
    def subset(self) -> NDArray[np.uint32]:
        """The proxy indices asked in this round, in the order of the logits' rows."""
        return np.frombuffer(self.body, "<u4").astype(np.uint32)

    @property
    def participants(self) -> tuple[str, ...]:
        """Every client of the round, each once, in the order in which all parties work."""
        names = (name for group in self.groups for name in group.participants)
        return tuple(dict.fromkeys(names))

    def groups_of(self, client: str) -> tuple[Group, ...]:
        """The groups in which the client is summed; ProtocolError where there is none."""
        groups = tuple(group for group in self.groups if client in group.participants)
        if not groups:
            raise ProtocolError("client is not in this plan", where=client)
        return groups

    def group(self, name: str) -> Group:
        """The group of that name; ProtocolError where there is none."""
        for group in self.groups:
            if group.name == name:
                return group
        raise ProtocolError("group is not in this plan", where=name)

    def span_of(self, group: Group) -> tuple[int, int]:
        """The part [start, stop) of the vector that the group sums."""
        return group.span or (0, self.size)

    def width_of(self, group: Group) -> int:
        """The number of integers that the group sums."""
        start, stop = self.span_of(group)
        return stop - start


class Opened(StrictModel):
    """A group of this round that an earlier attempt opened, under the plan it was opened by."""

    group: Name
    attempt: Positive
    plan: Digest


class RoundKey(Message):
    """Key holder to all: public keys (body), made for this plan alone; a decryptor's per group.

    It also says that for this holder every earlier attempt of the round is closed for ever, and
    which groups it helped to open before (`opened`). A decryptor sends the stored `Opening`s of
    these groups after it, one each and in that order.
    """

    code: ClassVar[int] = 2
    kind: ClassVar[str] = "round-key"
    body_limit: ClassVar[int] = 1 << 22

    plan: Digest
    opened: tuple[Opened, ...]


class Contribution(Message):
    """Client to server: its part of a group's sum, encrypted (body). A decryptor sees it too."""

    code: ClassVar[int] = 3
    kind: ClassVar[str] = "contribution"
    body_limit: ClassVar[int] = 1 << 26

    plan: Digest
    group: Name


class OpeningRequest(Message):
    """Server to key holder: open the weighted sum of exactly these contributions.

    `participants` are those of the group whose contributions are in it, in the plan's order, and
    `contributions` the identities of these, of a ring those of its links. For a decryptor the body
    is the sum, but for a ring, whose first link has it.
    """

    code: ClassVar[int] = 4
    kind: ClassVar[str] = "opening-request"
    body_limit: ClassVar[int] = 1 << 26

    plan: Digest
    group: Name
    participants: Annotated[tuple[Name, ...], Field(min_length=1)]
    contributions: Annotated[tuple[Digest, ...], Field(min_length=1)]


class Opening(Message):
    """To the group: the exact integers Σα·x (body, int64) over `participants`.

    `request` is the identity of the request it answers, `sha256` that of the body. A decryptor
    signs it, elsewhere the server.
    """

    code: ClassVar[int] = 5
    kind: ClassVar[str] = "opening"
    body_limit: ClassVar[int] = 1 << 26

    plan: Digest
    group: Name
    participants: Annotated[tuple[Name, ...], Field(min_length=1)]
    request: Digest
    sha256: Digest

    @property
    def integers(self) -> IntVector:
        """Σα·x of the group, int64[size], exact."""
        return np.frombuffer(self.body, "<i8").astype(np.int64)


class Refusal(Message):
    """From a key holder: no. It has the same shape whatever the reason."""

    code: ClassVar[int] = 6
    kind: ClassVar[str] = "refusal"


class KeyShare(Message):
    """Client to server, who hands it on to one holder: a share of the client's key, sealed (body).

    `contribution` is the identity of the contribution that the key encrypts.
    """

    code: ClassVar[int] = 7
    kind: ClassVar[str] = "key-share"
    body_limit: ClassVar[int] = 1 << 18

    plan: Digest
    group: Name
    holder: Name
    contribution: Digest


class KeyOpening(Message):
    """Key holder to server: its share of Σα·s (body), the weighted sum of the requested keys."""

    code: ClassVar[int] = 8
    kind: ClassVar[str] = "key-opening"
    body_limit: ClassVar[int] = 1 << 18

    plan: Digest
    group: Name
    request: Digest


class Reading(Message):
    """Client to server in `slots` mode: a sum as approximate real numbers (body, float64).

    Nothing else on the wire is a float, and this one gives the key away.
    """

    code: ClassVar[int] = 15
    kind: ClassVar[str] = "reading"
    body_limit: ClassVar[int] = 1 << 26

    plan: Digest
    group: Name
    request: Digest

    @property
    def floats(self) -> NDArray[np.float64]:
        """The sum as it was read, float64[size]."""
        return np.frombuffer(self.body, "<f8").astype(np.float64)


class MaskKey(Message):
    """Client to server, who hands it on to its peers: a sealing key for this attempt (body)."""

    code: ClassVar[int] = 9
    kind: ClassVar[str] = "mask-key"
    body_limit: ClassVar[int] = 1 << 11

    plan: Digest


class MaskSeed(Message):
    """Client to server, who hands it on: the seed of a pair's masks, sealed to `receiver` (body).

    Of each pair the client that is earlier in the plan draws it.
    """

    code: ClassVar[int] = 10
    kind: ClassVar[str] = "mask-seed"
    body_limit: ClassVar[int] = 1 << 11

    plan: Digest
    receiver: Name


class Hop(Message):
    """Client to the next one of the ring: the masked sum so far, sealed to `receiver` (body)."""

    code: ClassVar[int] = 11
    kind: ClassVar[str] = "hop"
    body_limit: ClassVar[int] = 1 << 26

    plan: Digest
    group: Name
    receiver: Name


class Link(Message):
    """Client of a ring to server and decryptor: it took part, with these hops (identities).

    The body is empty, but for the client that began the ring: there it is the sum, unmasked.
    """

    code: ClassVar[int] = 12
    kind: ClassVar[str] = "link"
    body_limit: ClassVar[int] = 1 << 26

    plan: Digest
    group: Name
    received: Digest
    sent: Digest


KINDS: Final[tuple[type[Message], ...]] = (
    RoundPlan,
    RoundKey,
    Contribution,
    OpeningRequest,
    Opening,
    Refusal,
    KeyShare,
    KeyOpening,
    MaskKey,
    MaskSeed,
    Hop,
    Link,
    Reading,
)
M = TypeVar("M", bound=Message)
