"""What one round gives and what it cost."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from protocols.messages import IntVector, Opening
from protocols.transport import Wire


@dataclass(frozen=True)
class Aggregate:
    """One group's exact Σα·x, int64[width], and the SHA-256 of its little-endian bytes.

    `participants` are those in the sum. `attempt` is the attempt that opened it; below the
    plan's, nothing was sent anew.
    """

    integers: IntVector
    sha256: str
    attempt: int
    participants: tuple[str, ...]


@dataclass(frozen=True)
class Cost:
    """Seconds of protection alone (no release, no training) and bytes as they travelled.

    `protect`: per client, key set-up, encryption and signature. `aggregate`: the server's
    checking, weighting and adding. `open`: from the request to its answer. `upload_bytes`: all
    that a client sent. `sent_bytes`: by kind of message, once per receiver, relays included.
    """

    protect: Mapping[str, float]
    aggregate: float
    open: float
    upload_bytes: Mapping[str, int]
    sent_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Outcome:
    """What one round gives: an aggregate per group name, what it cost, and who was left out.

    `absent`: party → why its message did not count, for clients and key holders alike.
    """

    aggregates: Mapping[str, Aggregate]
    cost: Cost
    absent: Mapping[str, str]


class Costs:
    """Seconds by step and bytes by kind since it was made."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._before = wire, Counter(wire.sent)
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds of a block to `aggregate`, `open` or `protect <client>`."""
        start = time.perf_counter()
        yield
        self._seconds[step] += time.perf_counter() - start

    def outcome(
        self, openings: Iterable[Opening], absent: Mapping[str, str] | None = None
    ) -> Outcome:
        """The round's result, from openings that were checked."""
        aggregates = {
            opening.group: Aggregate(
                opening.integers, opening.sha256, opening.attempt, opening.participants
            )
            for opening in openings
        }
        by_kind, by_sender = Counter[str](), Counter[str]()
        for (sender, kind), count in (self._wire.sent - self._before).items():
            by_kind[kind] += count
            by_sender[sender] += count
        protect = {
            step.removeprefix("protect "): seconds
            for step, seconds in self._seconds.items()
            if step.startswith("protect ")
        }
        cost = Cost(
            protect=protect,
            aggregate=self._seconds["aggregate"],
            open=self._seconds["open"],
            upload_bytes={name: by_sender[name] for name in protect},
            sent_bytes=dict(by_kind),
        )
        return Outcome(aggregates, cost, dict(absent or {}))
