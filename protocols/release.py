"""The only way from private numbers to something that may be encrypted and sent.

`encrypt` takes a `Released` and nothing else, and two families of mechanisms make one. Noise at
release (`ClippedSum`): `bound` turns the teachers' outputs into a `Bounded`, `release` turns that
into a `Released`; the order is fixed: quantise every teacher → clip it in integers by one joint L2
norm → sum → noise share → clamp. Noise in training (`TrainedOutput`): `begin` charges and hands out
a `Paid`, whose descent trains a model; only when all its steps are done does `release` take what
the model says. `Bounded`, `Paid` and `Released` refuse to be made anywhere but here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import InitVar, dataclass
from typing import Final, Protocol

import numpy as np

from protocols.accounting import Event
from protocols.chain import RandomBytes
from protocols.dp_sgd import Descent, DpSgd
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


@dataclass(frozen=True, eq=False)
class Paid:
    """A training that `key` was charged for. Only a mechanism's `begin` makes one.

    Its `descent` gives the noisy gradients, for as many steps as were paid for.
    """

    descent: Descent
    key: ReleaseKey
    seal: InitVar[object] = None

    def __post_init__(self, seal: object) -> None:
        _check_seal(seal, "Paid", "begin")


class Mechanism(Protocol):
    """What a site runs between its models and the encryption, once per round; of two families."""

    @property
    def name(self) -> str:
        """The name in configurations and ledger lines."""

    @property
    def grid(self) -> Grid:
        """The fixed-point grid, common to all sites of a plan so that their integers add up."""

    @property
    def limit(self) -> int:
        """Largest absolute value of a released integer."""

    def again(self, ledger: Ledger, key: ReleaseKey, layout: Layout) -> Released | None:
        """On a retry: what was released for `key` before, at no cost; None if nothing was."""

    def event(self) -> Event:
        """The cost of one release."""

    def statement(self) -> str:
        """One sentence for people: what is guaranteed, to whom, by what."""


@dataclass(frozen=True, kw_only=True)
class _Outputs(ABC):
    """What both families share: integers of one width, stored once, and sent again on a retry.

    size: released integers. bits: width of a released integer, sign included.
    """

    size: int
    bits: int = RELEASED_BITS

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in configurations and ledger lines."""

    @property
    @abstractmethod
    def step(self) -> float:
        """Real units per grid step."""

    @property
    def grid(self) -> Grid:
        """The common fixed-point grid."""
        return Grid(self.step)

    @property
    def limit(self) -> int:
        """Largest absolute value of a released integer: 2^(bits-1) - 1."""
        return largest_integer(self.bits)

    def again(self, ledger: Ledger, key: ReleaseKey, layout: Layout) -> Released | None:
        """What was released for `key` before; None if nothing was.

        Nothing is charged, trained or drawn. LedgerError where another layout was stored.
        """
        values = ledger.stored(key)
        if values is None:
            return None
        if values.size != layout.size:
            raise LedgerError(
                f"{values.size} integers are stored, the layout has {layout.size}",
                where=f"session {key.session}, round {key.round}",
                fix="start a new session for a changed plan",
            )
        return Released(values, layout, key, _SEAL)

    @abstractmethod
    def total(self, outputs: Floats) -> Integers:
        """Outputs [M, size] in real units to the integers [size] of their sum, without noise."""

    @abstractmethod
    def event(self) -> Event:
        """The cost of one release."""

    @abstractmethod
    def statement(self) -> str:
        """One sentence for people: what is guaranteed, to whom, by what."""

    def _check_planned(self, outputs: Floats, count: int, layout: Layout) -> None:
        expected = (count, self.size)
        if outputs.shape != expected or layout.size != self.size:
            raise PrivacyError(
                f"outputs of shape {outputs.shape} on a layout of {layout.size} values",
                why=f"the mechanism was planned for {expected}",
                fix="pass one row per teacher, laid out as in the signed plan",
            )


@dataclass(frozen=True, kw_only=True)
class ClippedSum(_Outputs):
    """The sum of teachers, each quantised and clipped to one joint norm; noise is a subclass's.

    shards: number of teachers M of this site. clip_norm: joint L2 clip, in real units. clip_int:
    the same in grid steps (S), equal at all sites. size: released integers. bits: width of a
    released integer, sign included.
    """

    shards: int
    clip_norm: float
    clip_int: int

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
    def step(self) -> float:
        """Real units per grid step."""
        return self.clip_norm / self.clip_int

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

    def total(self, outputs: Floats) -> Integers:
        """Quantise and clip each teacher's whole output [M, size], then add them up: [size]."""
        total: Integers = clip_rows(self.grid.quantise(outputs), self.clip_int).sum(axis=0)
        return total

    def bound(self, teachers: Floats, layout: Layout) -> Bounded:
        """First step, at the site: the teachers' outputs to one clipped sum.

        teachers: [M, size] in real units, in the order of `layout`; row i is the output of the
        teacher on shard i. Raises PrivacyError on NaN, infinity, or another shape.
        """
        self._check_planned(teachers, self.shards, layout)
        return Bounded(self.total(teachers), layout, self.sensitivity, self.signal_bound, _SEAL)

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
        before = self.again(ledger, key, bounded.layout)
        if before is not None:
            return before
        ledger.charge(key, self.event())
        values = self._noised(bounded.values, random)
        ledger.store(key, values)
        return Released(values, bounded.layout, key, _SEAL)

    @abstractmethod
    def _noised(self, values: Integers, random: RandomBytes) -> Integers:
        """The integers [size] that leave the site."""


@dataclass(frozen=True, kw_only=True)
class TrainedOutput(_Outputs):
    """What one model says that was trained under noise: the output itself needs none.

    training: the mechanism that is charged, once per round. span: largest absolute value that is
    sent, in real units; it keeps integers in range, and protects nobody. size, bits: as of all.
    The guarantee holds against everybody but the site, for no other site's noise is counted on.
    """

    training: DpSgd
    span: float

    def __post_init__(self) -> None:
        if not 0 < self.span < math.inf or self.size < 1 or not 2 <= self.bits <= 53:
            raise PrivacyError(
                f"{self.size} values up to {self.span:g} in {self.bits} bits",
                fix="at least one value, a finite span above 0, and 2 to 53 bits",
            )

    @property
    def name(self) -> str:
        """That of the training."""
        return self.training.name

    @property
    def shards(self) -> int:
        """One model speaks."""
        return 1

    @property
    def step(self) -> float:
        """Real units per grid step."""
        return self.span / self.limit

    def total(self, outputs: Floats) -> Integers:
        """The model's output [1, size], quantised, each value brought within the span: [size].

        What is not a number counts as 0: to stop here instead would tell of what was learned.
        """
        return _within(outputs, self.span, self.grid)

    def begin(self, ledger: Ledger, key: ReleaseKey, random: RandomBytes) -> Paid:
        """First step, at the site: charge `key` durably, then hand out the noisy steps.

        After a crash a training begins anew under the same charge (see `DpSgd.begin`, and what it
        raises); once integers are stored for `key`, `again` hands them out and none begins.
        """
        return Paid(self.training.begin(ledger, key, random), key, _SEAL)

    def release(self, outputs: Floats, layout: Layout, paid: Paid) -> Released:
        """Second step, at the site: store what the trained model says, and hand it out.

        outputs: [1, size] in real units, computed from the model that `paid` trained and from
        public figures alone. PrivacyError while steps are left, for another mechanism's training,
        for another shape; LedgerError for a second release.
        """
        self._check_planned(outputs, 1, layout)
        descent = paid.descent
        if descent.plan != self.training or descent.left:
            raise PrivacyError(
                f"a release of a training with {descent.left} of {descent.plan.steps} steps to go"
                if descent.left
                else "a release of another mechanism's training",
                where=str(paid.key),
                why="what was charged is the whole training that this mechanism began",
                fix="run the descent to its end, and release with what began it",
            )
        values = self.total(outputs)
        descent.ledger.store(paid.key, values)
        return Released(values, layout, paid.key, _SEAL)

    def event(self) -> Event:
        """The cost of one training."""
        return self.training.event()

    def statement(self) -> str:
        """What one training guarantees."""
        return self.training.statement()


@dataclass(frozen=True, kw_only=True)
class FurtherOutput(_Outputs):
    """A further vector from a training that was charged, and has sent its first one: it is free.

    What is computed from a model that was trained under noise, and from public figures, costs
    nothing more (post-processing); the ledger still has a line for it, at no cost, and keeps the
    integers. training, span, size, bits: as of TrainedOutput.
    """

    training: DpSgd
    span: float

    def __post_init__(self) -> None:
        TrainedOutput(training=self.training, span=self.span, size=self.size, bits=self.bits)

    @property
    def name(self) -> str:
        """`post-processing`."""
        return "post-processing"

    @property
    def shards(self) -> int:
        """One model speaks."""
        return 1

    @property
    def step(self) -> float:
        """Real units per grid step."""
        return self.span / self.limit

    def total(self, outputs: Floats) -> Integers:
        """As of TrainedOutput."""
        return _within(outputs, self.span, self.grid)

    def release(
        self, outputs: Floats, layout: Layout, ledger: Ledger, key: ReleaseKey, after: ReleaseKey
    ) -> Released:
        """At the site: store what the model trained under `after` says further, and hand it out.

        outputs: [1, size] in real units. LedgerError unless integers are stored for `after`: then
        its training was run to its end and has been paid for.
        """
        self._check_planned(outputs, 1, layout)
        if ledger.stored(after) is None or key.session != after.session or key.round <= after.round:
            raise LedgerError(
                f"{key} is to follow a training that has sent nothing",
                where=str(after),
                why="only what a finished training has sent first makes more of it free",
                fix="play the phases of a round in their order",
            )
        ledger.charge(key, self.event())
        values = self.total(outputs)
        ledger.store(key, values)
        return Released(values, layout, key, _SEAL)

    def event(self) -> Event:
        """No cost, under the relation of the training."""
        return Event(self.name, self.training.event().relation, 0.0, 0.0, 0.0, 0.0, 0.0)

    def statement(self) -> str:
        """That it is covered by the training."""
        return "Computed from a model trained under noise: covered by what that training cost."


def _within(outputs: Floats, span: float, grid: Grid) -> Integers:
    """One output [1, size] on the grid, each value brought within the span; no number counts 0."""
    whole = np.nan_to_num(outputs[0], nan=0.0, posinf=span, neginf=-span)
    values: Integers = grid.quantise(np.clip(whole, -span, span))
    return values


def largest_integer(bits: int) -> int:
    """Largest integer of `bits` bits, sign included: 2^(bits-1) - 1."""
    return (1 << (bits - 1)) - 1
