"""Named defects of DP-SGD: a plan or a descent with one fault."""

import dataclasses

import numpy as np

from protocols import dp_sgd
from protocols.accounting import REPLACE_ONE
from protocols.dp_sgd import Descent, DpSgd
from protocols.mechanisms import Released, TrainedOutput
from protocols.sampler import discrete_gaussian


class Bent(DpSgd):
    """Hands out a descent of another class."""

    descent = Descent

    def begin(self, ledger, key, random):
        made = super().begin(ledger, key, random)
        made.__class__ = self.descent
        return made


class Noise707(DpSgd):
    """The variance of a difference taken for that of one draw."""

    @property
    def sigma_int(self):
        return 0.7071 * super().sigma_int


class ReplaceCharged(DpSgd):
    """A replaced unit moves the sum by two clips; the charge is that of one."""

    def event(self):
        return dataclasses.replace(super().event(), relation=REPLACE_ONE)


class ChargedLast(DpSgd):
    """Hands out its steps, and leaves the charge for the end."""

    def begin(self, ledger, key, random):
        return Descent(self, ledger, random, dp_sgd._SEAL)


class Unclipped(Descent):
    """Gradients meet the grid, and are added up."""

    def step(self, gradients):
        scale = self.plan.clip_int / self.plan.clip_norm
        total = sum((np.rint(g * scale) for g in gradients), np.zeros(self.plan.size))
        self._left, self._sampled = self._left - 1, -1
        noise = discrete_gaussian(self.plan.size, self.plan.sigma_int, self.random)
        return (total + noise) / (scale * self.plan.expected)


class ClippedBatch(Unclipped):
    """The norm of the whole batch is clipped, to as many norms as it has units."""

    def step(self, gradients):
        listed = list(gradients)
        total = sum(listed, np.zeros(self.plan.size))
        allowed = len(listed) * self.plan.clip_norm
        shrunk = total * min(1.0, allowed / max(float(np.linalg.norm(total)), 1e-300))
        return super().step([shrunk])


class SkipsEmpty(Descent):
    """No unit, no noise: an empty sample is seen."""

    def step(self, gradients):
        empty = self._sampled == 0
        made = super().step(gradients)
        return np.zeros(self.plan.size) if empty else made


class Shuffled(Descent):
    """Batches of one size, from a permutation, under the accountant of Poisson samples."""

    def sample(self, units):
        super().sample(units)
        order = np.argsort(np.frombuffer(self.random(8 * units), "<u8"))
        chosen = np.sort(order[: round(self.plan.rate * units)])
        self._sampled = chosen.size
        return chosen


class TwiceTheRate(Descent):
    """Units are in twice as many samples as is charged."""

    def sample(self, units):
        first = super().sample(units)
        second = dp_sgd.poisson_sample(units, self.plan.rate, self.random)
        chosen = np.union1d(first, second)
        self._sampled = chosen.size
        return chosen


class Endless(Descent):
    """Never counts a step."""

    def step(self, gradients):
        made = super().step(gradients)
        self._left += 1
        return made


class OneSeed(Descent):
    """The same noise in every step."""

    def step(self, gradients):
        held = self.random
        self.random = _repeating(held, self)
        made = super().step(gradients)
        self.random = held
        return made


def _repeating(random, owner):
    if not hasattr(owner, "_kept"):
        owner._kept = []
    kept, place = owner._kept, iter(range(10**9))

    def read(count):
        at = next(place)
        if at == len(kept):
            kept.append(random(count))
        return kept[at]

    return read


class TakesNan(Descent):
    """A gradient that is not finite is let into the sum."""

    def step(self, gradients):
        listed = list(gradients)
        made = super().step(listed)
        bad = any(not np.isfinite(gradient).all() for gradient in listed)
        return np.full(self.plan.size, np.nan) if bad else made


class Hasty(TrainedOutput):
    """Speaks for a training of which steps are left."""

    def release(self, outputs, layout, paid):
        paid.descent._left = 0
        return super().release(outputs, layout, paid)


class Repeating(TrainedOutput):
    """Speaks as often as it is asked for one training."""

    def release(self, outputs, layout, paid):
        if paid.descent.ledger.stored(paid.key) is None:
            return super().release(outputs, layout, paid)
        made = super().again(paid.descent.ledger, paid.key, layout)
        fresh = object.__new__(Released)
        for name in ("layout", "key"):
            object.__setattr__(fresh, name, getattr(made, name))
        object.__setattr__(fresh, "values", self.total(outputs))
        return fresh


class Forgetful(TrainedOutput):
    """Knows nothing of what it released, so that a retry trains anew."""

    def again(self, ledger, key, layout):
        return None


def bent(kind):
    """A class of plans whose descents have this defect."""
    return type(f"Bent{kind.__name__}", (Bent,), {"descent": kind})
