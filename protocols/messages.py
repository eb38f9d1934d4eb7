"""The closed set of messages: frozen types with a JSON header and a binary body.

What they look like on the wire, signed, is `envelope`'s concern.
"""

from typing import Annotated, ClassVar, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from protocols.errors import ProtocolError

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\z")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}\z")]
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Positive = Annotated[int, Field(ge=1, lt=1 << 31)]
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
    """Clients that are summed together, each with the server's integer weight α ≥ 1."""

    name: Name
    participants: Annotated[tuple[Name, ...], Field(min_length=1)]
    alphas: Annotated[tuple[Positive, ...], Field(min_length=1)]

    @property
    def total(self) -> int:
        """A = Σα: the factor by which the sum may exceed one contribution."""
        return sum(self.alphas)


class Floors(StrictModel):
    """The least that a group must have: participants, and effective contributors (Σα)²/Σα²."""

    participants: Annotated[int, Field(ge=2, lt=1 << 31)] = 3
    effective: Annotated[float, Field(ge=1.0)] = 2.0


class RoundPlan(Message):
    """Server to all, first message of an attempt; its identity binds everything that follows.

    `size` counts the integers of one contribution, `layout`, `terms` (grid, clip and noise plan)
    and `proxies` (the whole proxy set) are digests, `holder` is the digest of the verify key of
    the party that opens, and the body lists this round's proxy indices as little-endian uint32.
    """

    code: ClassVar[int] = 1
    kind: ClassVar[str] = "round-plan"
    body_limit: ClassVar[int] = 1 << 24

    version: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+-]{1,32}\z")]
    attempt: Positive
    proxies: Digest
    groups: Annotated[tuple[Group, ...], Field(min_length=1)]
    preset: Name
    layout: Digest
    size: Positive
    terms: Digest
    floors: Floors
    holder: Digest

    @property
    def subset(self) -> NDArray[np.uint32]:
        """The proxy indices asked in this round, in the order of the logits' rows."""
        return np.frombuffer(self.body, "<u4").astype(np.uint32)

    @property
    def participants(self) -> tuple[str, ...]:
        """Every client of the round, group by group: the order in which all parties work."""
        return tuple(name for group in self.groups for name in group.participants)

    def group_of(self, client: str) -> Group:
        """The one group in which the client is summed; ProtocolError where there is none."""
        for group in self.groups:
            if client in group.participants:
                return group
        raise ProtocolError("client is not in this plan", where=client)


class Opened(StrictModel):
    """A group of this round that an earlier attempt opened, under the plan it was opened by."""

    group: Name
    attempt: Positive
    plan: Digest


class RoundKey(Message):
    """Decryptor to all: the attempt's public key (body), made for this plan alone.

    It also says that every earlier attempt of the round is closed for ever. The stored
    `Opening`s of the groups in `opened` follow this message, one each and in that order.
    """

    code: ClassVar[int] = 2
    kind: ClassVar[str] = "round-key"
    body_limit: ClassVar[int] = 1 << 22

    plan: Digest
    opened: tuple[Opened, ...]


class Contribution(Message):
    """Client to server, who hands it on to the decryptor: one encrypted `Released` (body)."""

    code: ClassVar[int] = 3
    kind: ClassVar[str] = "contribution"
    body_limit: ClassVar[int] = 1 << 26

    plan: Digest
    group: Name


class OpeningRequest(Message):
    """Server to decryptor: open this weighted sum (body) of exactly these contributions.

    `contributions` are the identities of the uploads in the plan's order.
    """

    code: ClassVar[int] = 4
    kind: ClassVar[str] = "opening-request"
    body_limit: ClassVar[int] = 1 << 26

    plan: Digest
    group: Name
    contributions: Annotated[tuple[Digest, ...], Field(min_length=1)]


class Opening(Message):
    """From the party that opens, to server and group: the exact integers Σα·x (body, int64).

    `request` is the identity of the request it answers, `sha256` that of the body.
    """

    code: ClassVar[int] = 5
    kind: ClassVar[str] = "opening"
    body_limit: ClassVar[int] = 1 << 26

    plan: Digest
    group: Name
    request: Digest
    sha256: Digest

    @property
    def integers(self) -> IntVector:
        """Σα·x of the group, int64[size], exact."""
        return np.frombuffer(self.body, "<i8").astype(np.int64)


class Refusal(Message):
    """From the decryptor: no. It has the same shape whatever the reason."""

    code: ClassVar[int] = 6
    kind: ClassVar[str] = "refusal"


KINDS: Final[tuple[type[Message], ...]] = (
    RoundPlan,
    RoundKey,
    Contribution,
    OpeningRequest,
    Opening,
    Refusal,
)
M = TypeVar("M", bound=Message)
