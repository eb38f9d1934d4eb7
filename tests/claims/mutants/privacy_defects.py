"""Named defects of mechanisms, plans and ledgers, each a subclass or a copy with one fault."""

import dataclasses
from types import SimpleNamespace

import numpy as np

from protocols.mechanisms import Bounded, ShardTeachers
from protocols.noise_plan import NoisePlan
from protocols.quantize import clip_rows
from protocols.release import Released
from protocols.sampler import discrete_gaussian, seeded_random
from secure_natfl.systems.speaking import assign_shards


def become(kind, mechanism, **changes):
    """The same figures in a mechanism of another class; `changes` need not be consistent."""
    made = object.__new__(kind)
    for field in dataclasses.fields(mechanism):
        value = changes.get(field.name, getattr(mechanism, field.name))
        object.__setattr__(made, field.name, value)
    return made


def _sealed(kind, **fields):
    made = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


class Noise(ShardTeachers):
    """Less noise than the event says."""

    factor = 0.5

    def _noised(self, values, random):
        noise = discrete_gaussian(values.size, self.factor * self.sigma_share, random)
        return np.clip(values + noise, -self.limit, self.limit)


class Noise707(Noise):
    """The variance of a difference taken for that of one draw."""

    factor = 0.7071


class Noise95(Noise):
    """Five percent: no audit sees it, the law of the noise does."""

    factor = 0.95


class NoNoiseOnDenominators(ShardTeachers):
    """The appended segment goes out as it is."""

    def _noised(self, values, random):
        noise = discrete_gaussian(values.size, self.sigma_share, random)
        noise[-(values.size // 4) :] = 0
        return np.clip(values + noise, -self.limit, self.limit)


class TruncatedNoise(ShardTeachers):
    """Noise cut at two standard deviations, where it leaves the mass."""

    def _noised(self, values, random):
        noise = discrete_gaussian(values.size, self.sigma_share, random)
        edge = int(2 * self.sigma_share)
        return np.clip(values + np.clip(noise, -edge, edge), -self.limit, self.limit)


class ContinuousNoise(ShardTeachers):
    """Rounded floats of a global generator."""

    def _noised(self, values, random):
        noise = np.rint(np.random.normal(0, self.sigma_share, values.size)).astype(np.int64)
        return np.clip(values + noise, -self.limit, self.limit)


class UnchargedClamp(ShardTeachers):
    """Clamps, and does not say so in δ."""

    def event(self):
        return dataclasses.replace(super().event(), clamp=0.0)


class OthersCount(ShardTeachers):
    """Takes everybody's noise for this site's own."""

    def event(self):
        event = super().event()
        return dataclasses.replace(event, rho_isolated=event.rho)


class AddOrRemove(ShardTeachers):
    """Charges S, as if removal left nothing behind; a removed patient's teacher turns round."""

    def event(self):
        event = super().event()
        return dataclasses.replace(event, rho=event.rho / 4, rho_isolated=event.rho_isolated / 4)


class Sum(ShardTeachers):
    """Base of mechanisms that make the sum in another way."""

    def bound(self, teachers, layout):
        total = self._total(teachers, layout).astype(np.int64)
        return _sealed(
            Bounded,
            values=total,
            layout=layout,
            sensitivity=self.sensitivity,
            signal_bound=self.signal_bound,
        )

    def _shrunk(self, rows):
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows * np.minimum(1, self.clip_norm / np.maximum(norms, 1e-300))


class NoClip(Sum):
    """Quantised and added up."""

    def _total(self, teachers, layout):
        return self.grid.quantise(teachers).sum(axis=0)


class ClipEachRow(Sum):
    """One norm per proxy image, as if its answers were a release of their own."""

    def _total(self, teachers, layout):
        rows = self.grid.quantise(teachers).reshape(len(teachers), -1, 2)
        parts = [clip_rows(rows[:, at], self.clip_int) for at in range(rows.shape[1])]
        return np.stack(parts, axis=1).reshape(len(teachers), -1).sum(axis=0)


class ClipBeforeGrid(Sum):
    """The norm is right in floats; rounding to the grid then goes beyond it."""

    def _total(self, teachers, layout):
        return self.grid.quantise(self._shrunk(teachers)).sum(axis=0)


class GridOfTheMean(Sum):
    """Heads are averaged in floats, and the mean alone meets the grid."""

    def _total(self, teachers, layout):
        mean = self._shrunk(teachers).mean(axis=0)
        return self.grid.quantise(mean) * len(teachers)


class ClipOfTheSum(Sum):
    """The sum is clipped to M·S, the teachers are not."""

    def _total(self, teachers, layout):
        total = self.grid.quantise(teachers).sum(axis=0)
        return clip_rows(total[None], self.signal_bound)[0]


class FreeDenominators(Sum):
    """Denominators of a private β, clipped on their own beside the logits' whole clip."""

    def _total(self, teachers, layout):
        rows, edge = self.grid.quantise(teachers), layout.segments[0].size
        parts = clip_rows(rows[:, :edge], self.clip_int), clip_rows(rows[:, edge:], self.clip_int)
        return np.concatenate(parts, axis=1).sum(axis=0)


class ClipAtHalf(Sum):
    """Half the norm that the noise was planned for."""

    def _total(self, teachers, layout):
        return clip_rows(self.grid.quantise(teachers), self.clip_int // 2).sum(axis=0)


class TakesNan(Sum):
    """Damage becomes zero on the way to the grid, and the release shows that there was some."""

    def _total(self, teachers, layout):
        rows = self.grid.quantise(np.nan_to_num(teachers, posinf=0.0, neginf=0.0))
        return clip_rows(rows, self.clip_int).sum(axis=0)


class FreshOnRetry(ShardTeachers):
    """Noise is drawn again for what was sent before."""

    def release(self, bounded, ledger, key, random):
        ledger.charge(key, self.event())
        values = self._noised(bounded.values, random)
        if ledger.stored(key) is None:
            ledger.store(key, values)
        return _sealed(Released, values=values, layout=bounded.layout, key=key)


class DrawsFirst(ShardTeachers):
    """Noise, then the ledger."""

    def release(self, bounded, ledger, key, random):
        values = self._noised(bounded.values, random)
        ledger.charge(key, self.event())
        ledger.store(key, values)
        return _sealed(Released, values=values, layout=bounded.layout, key=key)


class FollowsModels(ShardTeachers):
    """On a retry the same noise is put on what the models say by then."""

    def release(self, bounded, ledger, key, random):
        kept = seeded_random(str(key).encode())
        if ledger.stored(key) is None:
            return super().release(bounded, ledger, key, kept)
        values = self._noised(bounded.values, kept)
        return _sealed(Released, values=values, layout=bounded.layout, key=key)


class ChargesAgain(ShardTeachers):
    """Takes a retry for a release of its own."""

    def release(self, bounded, ledger, key, random):
        if ledger.stored(key) is not None:
            ledger.charge(dataclasses.replace(key, session=f"{key.session}, again"), self.event())
        return super().release(bounded, ledger, key, random)


class KeepsNothing(ShardTeachers):
    """Hands out integers that no retry will find."""

    def release(self, bounded, ledger, key, random):
        ledger.charge(key, self.event())
        values = self._noised(bounded.values, random)
        return _sealed(Released, values=values, layout=bounded.layout, key=key)


class Shortened(ShardTeachers):
    """Leaves out what a sum without signal would not need."""

    def release(self, bounded, ledger, key, random):
        made = super().release(bounded, ledger, key, random)
        last = int(np.flatnonzero(bounded.values).max(initial=0)) + 1
        return _sealed(Released, values=made.values[:last], layout=made.layout, key=key)


class ForgottenRound(NoisePlan):
    """Composes one round less than it plays."""

    def spending(self, site):
        return dataclasses.replace(self, rounds=self.rounds - 1)._all(site)

    def _all(self, site):
        return super().spending(site)


def forgotten_round(plan):
    return become(ForgottenRound, plan)


def counts_all_shares(plan):
    """Noise for h = n, though t colluders know theirs and d send none."""
    members = len(plan.mechanisms)
    return {
        site: become(
            ShardTeachers,
            m,
            honest=members,
            sigma_share=m.sigma_share * (m.honest / members) ** 0.5,
        )
        for site, m in plan.mechanisms.items()
    }


def forgets_the_weights(plan):
    """The same σ at every site, whatever α; each event still counts on equal weighted shares."""
    least = min(m.sigma_share for m in plan.mechanisms.values())
    return {
        site: become(ShardTeachers, m, sigma_share=least) for site, m in plan.mechanisms.items()
    }


def by_patient(rows, shards):
    """The site's own assignment: a keyed hash of the patient."""
    names = SimpleNamespace(train_patients=rows, patients=len(set(rows)), unit="patient")
    return assign_shards(names, shards, len(rows), b"k" * 32)


def by_image(rows, shards):
    """The same with every image as its own patient: a patient's images reach several teachers."""
    return by_patient([f"{patient}/{row}" for row, patient in enumerate(rows)], shards)
