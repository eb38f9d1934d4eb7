"""The methods of the privacy-utility study: from sites' units to one head per hospital.

Every method gets the same frozen features, sites and ε, and gives weights [d]; an image's score is
⟨features, weights⟩. δ = 1e-5. Unit: patient (guangzhou: image).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from benchmarks.privacy_utility_data import Cohort, Floats, Fold, Integers, Public, Settings
from benchmarks.privacy_utility_opacus import fedavg_opacus
from benchmarks.privacy_utility_steps import Noise, descent_noise

Method = Callable[[Fold, Public, float, Settings, Noise, int], Floats]
"""(fold, public, ε, settings, noise, seed) → weights [d]."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A change of coordinates of the features, and back for weights: x ↦ x·`turn`."""

    turn: Floats

    @classmethod
    def of_proxies(cls, public: Public, floor: float) -> Coordinates:
        """Those in which natural images are white, so that weights are answers to proxies.

        `floor`: variance, relative to the mean one, below which a direction is not enlarged.
        """
        values, vectors = np.linalg.eigh(public.features.T @ public.features / len(public.features))
        turn = vectors / np.sqrt(values.clip(0) + floor * values.mean())
        scale = np.sqrt(np.square(public.features @ turn).sum(1).mean())
        return cls(np.asarray(turn / scale))


def ours_dp_sgd(
    fold: Fold, public: Public, epsilon: float, settings: Settings, noise: Noise, seed: int
) -> Floats:
    """Heads by DP-SGD in the proxies' coordinates; their answers to proxies teach a student.

    Where there are several rounds (each one charge) a site starts from the student before.
    """
    del seed
    space = Coordinates.of_proxies(public, settings["floor"])
    proxies = public.features[public.rows(settings["proxies"])] @ space.turn
    weight = np.zeros(proxies.shape[1])
    shares = [cohort.units for cohort in fold.sites]
    for _ in range(settings["rounds"]):
        answers = np.zeros(len(proxies))
        for site, cohort in enumerate(fold.sites):
            head = _descend(site, cohort, space.turn, weight, settings, noise)
            answers += shares[site] / sum(shares) * (proxies @ head)
        weight = _student(proxies, answers, 1e-6)
    del epsilon
    return np.asarray(space.turn @ weight)


def fedavg_dp(
    fold: Fold, public: Public, epsilon: float, settings: Settings, noise: Noise, seed: int
) -> Floats:
    """Rival: linear-probe FedAvg, local DP-SGD; as many rounds as steps make it DP-FedSGD."""
    del epsilon, seed
    size = public.features.shape[1]
    weight, turn = np.zeros(size), np.eye(size)
    shares = [cohort.units for cohort in fold.sites]
    for _ in range(settings["rounds"]):
        heads = [
            _descend(site, cohort, turn, weight, settings, noise)
            for site, cohort in enumerate(fold.sites)
        ]
        weight = np.average(heads, axis=0, weights=shares)
    return weight


def ours_shards(
    fold: Fold, public: Public, epsilon: float, settings: Settings, noise: Noise, seed: int
) -> Floats:
    """Heads on disjoint shards answer proxies; noisy sum; ridge student shrunk to the noise."""
    space = Coordinates.of_proxies(public, settings["floor"])
    proxies = public.features[public.rows(settings["proxies"])] @ space.turn
    rng = np.random.default_rng(seed)
    teachers = []
    for cohort in fold.sites:
        shards = max(1, round(cohort.units / settings["units_per_shard"]))
        heads = _shard_heads(cohort, space.turn, shards, settings, rng)
        answers = heads @ proxies.T
        norms = np.linalg.norm(answers, axis=1, keepdims=True)
        # Directions alone: each teacher uses up its clip. The margin covers the grid.
        teachers.append(answers / np.maximum(norms, 1e-12) * (1 - 1e-9))
    total, deviation = noise.released(teachers)
    del epsilon
    energy = max(float(np.square(total).mean()) - deviation**2, 1e-12)
    # λ = d/SNR² of standardised inputs, as `secure_natfl.fine_tuning` has it.
    ratio = deviation**2 / energy
    inputs = np.square(proxies).mean()
    shrinkage = settings["shrinkage"] * proxies.shape[1] * inputs * max(ratio, 1e-2)
    return np.asarray(space.turn @ _student(proxies, total, shrinkage / len(proxies)))


def fedaux_dp(
    fold: Fold, public: Public, epsilon: float, settings: Settings, noise: Noise, seed: int
) -> Floats:
    """Rival, reconstructed from FedAUXfdp (Hoech et al. 2022, arXiv 2205.14960): one shot.

    Each site releases two logistic regressions by output perturbation: a head (normal/pneumonia)
    and a certainty score (own images against public ones). Sites' answers to public images are
    averaged by certainty, and a student learns the mean. Sensitivity of a minimiser of
    (1/n)·Σ losses + λ/2·‖w‖², n public and fixed, inputs of norm ≤ 1, one unit added or counted
    as zero: 1/(n·λ). Two Gaussian releases share the budget.
    """
    del noise
    rng = np.random.default_rng(seed)
    z = descent_noise(epsilon, 1.0, 1)
    share = settings["score_share"]
    aux = _unit_norm(public.features)
    asked = aux[public.rows(settings["proxies"])]
    others = aux[np.random.default_rng(1).choice(len(aux), 500, replace=False)]
    answers, certainty = np.zeros(len(asked)), np.zeros(len(asked))
    for cohort in fold.sites:
        own, means = _unit_norm(cohort.features), cohort.means
        weights = means.sum(0) / cohort.units
        head = _logistic(own, cohort.labels.astype(float), weights, settings["decay"])
        head += (
            rng.standard_normal(len(head))
            * z
            / math.sqrt(1 - share)
            / (cohort.units * settings["decay"])
        )
        score = _logistic(
            np.vstack([own, others]),
            np.r_[np.ones(len(own)), np.zeros(len(others))],
            np.r_[weights, np.full(len(others), 1 / len(others))],
            settings["score_decay"],
        )
        score += (
            rng.standard_normal(len(score))
            * z
            / math.sqrt(share)
            / (cohort.units * settings["score_decay"])
        )
        sure = expit(asked @ score) + 1e-6
        answers += sure * expit(asked @ head)
        certainty += sure
    soft = answers / certainty
    each = np.full(len(asked), 1 / len(asked))
    return _logistic(asked, soft, each, settings["student_decay"])


METHODS: dict[str, Method] = {
    "ours-shards": ours_shards,
    "ours-dp-sgd": ours_dp_sgd,
    "fedavg-dp": fedavg_dp,
    "fedavg-opacus": fedavg_opacus,
    "fedaux-dp": fedaux_dp,
}
OURS = ("ours-shards", "ours-dp-sgd")
RIVALS = ("fedavg-dp", "fedavg-opacus", "fedaux-dp")


def _descend(
    site: int, cohort: Cohort, turn: Floats, start: Floats, settings: Settings, noise: Noise
) -> Floats:
    """One charge of DP-SGD of logistic loss from `start`; the mean of the last half if asked."""
    steps = settings["steps"] // settings["rounds"]
    step = noise.descent(
        site, cohort, settings["rate"], steps, settings["rounds"], settings["clip"]
    )
    inputs, means = cohort.features @ turn, cohort.means
    alone = cohort.units == len(inputs)
    weight, kept = start.copy(), []

    def gradients(units: Integers) -> Floats:
        rows = units if alone else slice(None)
        each = (expit(inputs[rows] @ weight) - cohort.labels[rows])[:, None] * inputs[rows]
        return np.asarray(each if alone else means[units] @ each)

    for _ in range(steps):
        weight = weight - settings["learning_rate"] / settings["clip"] * step(gradients)
        kept.append(weight)
    return np.asarray(np.mean(kept[len(kept) // 2 :], axis=0) if settings["average"] else weight)


def _shard_heads(
    cohort: Cohort, turn: Floats, shards: int, settings: Settings, rng: np.random.Generator
) -> Floats:
    """One head per shard of whole units, [M, d], by full-batch gradient descent from zero."""
    shard = rng.integers(shards, size=cohort.units)[cohort.unit]
    inputs = cohort.features @ turn
    heads = np.zeros((shards, inputs.shape[1]))
    counts = np.maximum(np.bincount(shard, minlength=shards), 1)[:, None]
    for _ in range(settings["head_steps"]):
        off = expit((inputs * heads[shard]).sum(1)) - cohort.labels
        gradient = np.zeros_like(heads)
        np.add.at(gradient, shard, off[:, None] * inputs)
        heads -= settings["head_rate"] * gradient / counts
    return heads


def _student(inputs: Floats, answers: Floats, shrinkage: float) -> Floats:
    """Ridge regression without an intercept: λ = `shrinkage`·n."""
    gram = inputs.T @ inputs + shrinkage * len(inputs) * np.eye(inputs.shape[1])
    return np.asarray(np.linalg.solve(gram, inputs.T @ answers))


def _unit_norm(features: Floats) -> Floats:
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True))


def _logistic(inputs: Floats, targets: Floats, weights: Floats, decay: float) -> Floats:
    """The minimiser of Σ weights·loss + decay/2·‖w‖² by Newton's method, to 1e-10."""
    found = np.zeros(inputs.shape[1])
    for _ in range(50):
        p = expit(inputs @ found)
        slope = inputs.T @ (weights * (p - targets)) + decay * found
        if np.linalg.norm(slope) < 1e-10:
            break
        curve = inputs.T @ ((weights * p * (1 - p))[:, None] * inputs)
        found -= np.linalg.solve(curve + decay * np.eye(len(found)), slope)
    return found
