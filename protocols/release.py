"""The only way from private numbers to something that may be encrypted and sent.

`bound` turns the teachers' outputs into a `Bounded`, `release` turns that into a `Released`, and
`encrypt` takes nothing else. Both types refuse to be made anywhere but here. The order is fixed:
quantise every teacher → clip it in integers by one joint L2 norm → sum → noise share → clamp.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import InitVar, dataclass
from typing import Final, Protocol

from protocols.accounting import Event
from protocols.chain import RandomBytes
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import Ledger, ReleaseKey
from protocols.quantize import Floats, Grid, Integers, Layout, clip_rows

RELEASED_BITS: Final = 18
"""Width of a released integer, sign included; every preset proves its sums for it."""

_SEAL = object()


def _check_seal(seal: object, kind: str, maker: str) -> None:
    if seal is not _SEAL:
        raise PrivacyError(
            f"a {kind} cannot be made by hand", fix=f"obtain it from a mechanism's {maker}()"
        )


@dataclass(frozen=True, eq=False)
class Bounded:
    """Integers [size] of known reach, still private. Only a mechanism's `bound` makes one.

    sensitivity: L2 distance that one patient can cause; signal_bound: largest L2 norm.
    """

    values: Integers
    layout: Layout
    sensitivity: int
    signal_bound: int
    seal: InitVar[object] = None

    def __post_init__(self, seal: object) -> None:
        _check_seal(seal, "Bounded", "bound")
        self.values.flags.writeable = False


@dataclass(frozen=True, eq=False)
class Released:
    """Integers [size] that may be encrypted and sent. Only a mechanism's `release` makes one.

    The site's ledger holds a line for `key`, written before the noise was drawn.
    """

    values: Integers
    layout: Layout
    key: ReleaseKey
    seal: InitVar[object] = None

    def __post_init__(self, seal: object) -> None:
        _check_seal(seal, "Released", "release")
        self.values.flags.writeable = False


class Mechanism(Protocol):
    """What a site runs between its models and the encryption, once per round."""

    @property
    def name(self) -> str:
        """The name in configurations and ledger lines."""

    @property
    def grid(self) -> Grid:
        """The fixed-point grid, common to all sites of a plan so that their integers add up."""

    @property
    def limit(self) -> int:
        """Largest absolute value of a released integer."""

    def bound(self, teachers: Floats, layout: Layout) -> Bounded:
        """First step, at the site: teachers [M, size] in real units to one clipped sum."""

    def release(
        self, bounded: Bounded, ledger: Ledger, key: ReleaseKey, random: RandomBytes
    ) -> Released:
        """Second step, at the site: charge, draw noise from `random`, store, hand out."""

    def event(self) -> Event:
        """The cost of one release."""

    def statement(self) -> str:
        """One sentence for people: what is guaranteed, to whom, by what."""


@dataclass(frozen=True, kw_only=True)
class ClippedSum(ABC):
    """The sum of teachers, each quantised and clipped to one joint norm; noise is a subclass's.

    shards: number of teachers M of this site. clip_norm: joint L2 clip, in real units. clip_int:
    the same in grid steps (S), equal at all sites. size: released integers. bits: width of a
    released integer, sign included.
    """

    shards: int
    clip_norm: float
    clip_int: int
    size: int
    bits: int = RELEASED_BITS

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < math.inf:
            raise PrivacyError(f"clip norm {self.clip_norm}", fix="use a finite norm above 0")
        if min(self.shards, self.size) < 1 or not 2 <= self.bits <= 53:
            raise PrivacyError(
                f"{self.shards} teachers, {self.size} values, {self.bits} bits",
                fix="at least one teacher and one value, and 2 to 53 bits",
            )
        if self.clip_int < 1 or self.reach > self.limit:
            raise PrivacyError(
                f"{self.shards} teachers of {self.clip_int} grid steps and their noise reach "
                f"{self.reach:.0f}, but {self.bits} bits hold {self.limit}",
                fix="take the grid from NoisePlan.calibrate or NoNoise.for_sites, or raise bits",
            )

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in configurations and ledger lines."""

    @property
    def step(self) -> float:
        """Real units per grid step."""
        return self.clip_norm / self.clip_int

    @property
    def grid(self) -> Grid:
        """The common fixed-point grid."""
        return Grid(self.step)

    @property
    def limit(self) -> int:
        """Largest absolute value of a released integer: 2^(bits-1) - 1."""
        return largest_integer(self.bits)

    @property
    def signal_bound(self) -> int:
        """Largest L2 norm of the sum before noise, in grid steps: M·S."""
        return self.shards * self.clip_int

    @property
    def sensitivity(self) -> int:
        """L2 distance of two sums that differ in one patient, in grid steps: 2·S."""
        return 2 * self.clip_int

    @property
    def reach(self) -> float:
        """The absolute value, in grid steps, that the planned headroom covers."""
        return float(self.signal_bound)

    def bound(self, teachers: Floats, layout: Layout) -> Bounded:
        """Quantise and clip each teacher's whole output, then add them up.

        teachers: [M, size] in real units, in the order of `layout`; row i is the output of the
        teacher on shard i. Raises PrivacyError on NaN, infinity, or another shape.
        """
        expected = (self.shards, self.size)
        if teachers.shape != expected or layout.size != self.size:
            raise PrivacyError(
                f"teachers of shape {teachers.shape} on a layout of {layout.size} values",
                why=f"the mechanism was planned for {expected}",
                fix="pass one row per shard, laid out as in the signed plan",
            )
        clipped = clip_rows(self.grid.quantise(teachers), self.clip_int)
        total: Integers = clipped.sum(axis=0)
        return Bounded(total, layout, self.sensitivity, self.signal_bound, _SEAL)

    def release(
        self, bounded: Bounded, ledger: Ledger, key: ReleaseKey, random: RandomBytes
    ) -> Released:
        """Charge the site's ledger, draw the noise, store the result, hand it out: in this order.

        On a retry the stored integers come back, nothing is charged and no noise is drawn. Raises
        LedgerError, with nothing drawn or written, when the budget does not suffice.
        """
        if (bounded.sensitivity, bounded.signal_bound) != (self.sensitivity, self.signal_bound):
            raise PrivacyError(
                f"a sum of sensitivity {bounded.sensitivity} for noise that covers "
                f"{self.sensitivity}",
                fix="release with the mechanism that bounded the sum",
            )
        values = ledger.stored(key)
        if values is None:
            ledger.charge(key, self.event())
            values = self._noised(bounded.values, random)
            ledger.store(key, values)
        if values.size != bounded.layout.size:
            raise LedgerError(
                f"{values.size} integers are stored, the layout has {bounded.layout.size}",
                where=f"session {key.session}, round {key.round}",
                fix="start a new session for a changed plan",
            )
        return Released(values, bounded.layout, key, _SEAL)

    @abstractmethod
    def _noised(self, values: Integers, random: RandomBytes) -> Integers:
        """The integers [size] that leave the site."""

    @abstractmethod
    def event(self) -> Event:
        """The cost of one release."""

    @abstractmethod
    def statement(self) -> str:
        """One sentence for people: what is guaranteed, to whom, by what."""


def largest_integer(bits: int) -> int:
    """Largest integer of `bits` bits, sign included: 2^(bits-1) - 1."""
    return (1 << (bits - 1)) - 1
