"""What the privacy-utility study concludes: intervals, differences, and the ε a rival needs.

Every AUROC is the mean over seeds and folds of the AUROC within a fold, so that scores of
different models are never ranked against each other. Bootstrap: whole patients (or groups of
near-duplicates), the same resamples for all methods and seeds, 1,000 of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.privacy_utility_data import Floats, Hospital, Integers
from benchmarks.privacy_utility_methods import OURS, RIVALS
from benchmarks.privacy_utility_tuning import EPSILONS, Tuned
from secure_natfl.metrics import auroc

RESAMPLES = 1000
Summary = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Scores:
    """Out-of-fold scores [n] of one run, and the fold [n] whose model gave each."""

    scores: Floats
    fold: Integers

    def aurocs(self, truth: NDArray[np.bool_], weights: Floats) -> Floats:
        """Mean over folds, for each row of image weights [B, n]: [B]."""
        parts = [np.flatnonzero(self.fold == f) for f in np.unique(self.fold)]
        each = [auroc(self.scores[p], truth[p], weights[:, p]) for p in parts]
        return np.asarray(np.mean(each, axis=0))

    def auroc(self, truth: NDArray[np.bool_]) -> float:
        """On the images as they are."""
        return float(self.aurocs(truth, np.ones((1, len(truth))))[0])


def summary(
    found: Mapping[tuple[str, float, int, str], Scores],
    hospitals: Mapping[str, Hospital],
    seeds: Sequence[int],
    tuned: Tuned,
) -> Summary:
    """All figures of the study as JSON; `ours` at each ε is the one that tuning preferred."""
    result: Summary = {"seeds": list(seeds), "hospitals": {}, "preferred": {}}
    for epsilon in EPSILONS:
        scores = {method: tuned[method][str(epsilon)]["auroc"] for method in OURS}
        result["preferred"][str(epsilon)] = max(scores, key=lambda m: scores[m])
    for name, hospital in hospitals.items():
        weights = _resamples(hospital)
        curves = {
            (method, epsilon): np.mean(
                [found[method, epsilon, s, name].aurocs(hospital.truth, weights) for s in seeds],
                axis=0,
            )
            for method in (*OURS, *RIVALS)
            for epsilon in EPSILONS
        }
        result["hospitals"][name] = _of_hospital(curves, result["preferred"]) | {
            "seed_range": {
                method: {
                    str(epsilon): _range(
                        [found[method, epsilon, s, name].auroc(hospital.truth) for s in seeds]
                    )
                    for epsilon in EPSILONS
                }
                for method in (*OURS, *RIVALS)
            }
        }
    return result


def _of_hospital(curves: Mapping[tuple[str, float], Floats], preferred: Summary) -> Summary:
    points = {key: float(values[0]) for key, values in curves.items()}
    methods: Summary = {}
    for method in (*OURS, *RIVALS):
        methods[method] = {}
        for epsilon in EPSILONS:
            low, high = np.percentile(curves[method, epsilon][1:], [2.5, 97.5])
            methods[method][str(epsilon)] = _rounded(points[method, epsilon], low, high)
    against: Summary = {}
    for epsilon in EPSILONS:
        ours = preferred[str(epsilon)]
        best = max(RIVALS, key=lambda r: points[r, epsilon])
        # The best rival is picked anew in every resample: to the rivals' advantage.
        rivals = np.max([curves[r, epsilon] for r in RIVALS], axis=0)
        difference = curves[ours, epsilon] - rivals
        bound = np.percentile(difference[1:], 5)
        against[str(epsilon)] = {
            "ours": ours,
            "rival": best,
            "difference": round(float(difference[0]), 4),
            "lower_bound": round(float(bound), 4),
        }
    between = {
        str(e): round(points["ours-dp-sgd", e] - points["ours-shards", e], 4) for e in EPSILONS
    }
    target = points[preferred["1.0"], 1.0]
    needed = {r: _needed([points[r, e] for e in EPSILONS[:-1]], target) for r in RIVALS}
    return {
        "auroc": methods,
        "ours_minus_best_rival": against,
        "dp_sgd_minus_shards": between,
        "epsilon_needed_for_ours_at_1": needed,
    }


def _needed(curve: Sequence[float], target: float) -> float | str:
    """The ε at which a curve first reaches `target`, between levels on the scale of log ε."""
    for i, value in enumerate(curve):
        if value < target:
            continue
        if i == 0:
            return f"<= {EPSILONS[0]:g}"
        part = (target - curve[i - 1]) / (value - curve[i - 1])
        low, high = math.log(EPSILONS[i - 1]), math.log(EPSILONS[i])
        return round(math.exp(low + part * (high - low)), 2)
    return f"> {EPSILONS[-2]:g}"


def markdown(result: Summary) -> str:
    """Tables per hospital, and which of ours the frontier prefers at which ε."""
    columns = [f"ε = {e:g}" if e < math.inf else "ε = ∞" for e in EPSILONS]
    head = "| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns)
    lines = []
    for name, hospital in result["hospitals"].items():
        lines += [f"\n{name}\n", head]
        for method, curve in hospital["auroc"].items():
            cells = [f"{v[0]:.3f} ({v[1]:.3f}–{v[2]:.3f})" for v in curve.values()]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        against = hospital["ours_minus_best_rival"].values()
        cells = [f"{a['difference']:+.3f} (≥ {a['lower_bound']:+.3f})" for a in against]
        lines.append("| ours − best rival | " + " | ".join(cells) + " |")
        needed = hospital["epsilon_needed_for_ours_at_1"]
        lines.append("\nε for ours at ε = 1: " + ", ".join(f"{r} {e}" for r, e in needed.items()))
        for epsilon, by in hospital["dp_sgd_minus_shards"].items():
            better = "ours-dp-sgd" if by > 0 else "ours-shards"
            lines.append(f"ε = {epsilon}: the frontier prefers {better} by {abs(by):.3f}")
    return "\n".join(lines)


def _resamples(hospital: Hospital) -> Floats:
    """[1 + B, n]: each image once, then how often its patient was drawn."""
    _, unit = np.unique(np.array(hospital.records.patients), return_inverse=True)
    count = int(unit.max()) + 1
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.vstack([np.ones(len(unit)), draws[:, unit].astype(np.float64)])


def _range(values: Sequence[float]) -> list[float]:
    return _rounded(min(values), max(values))


def _rounded(*values: float) -> list[float]:
    return [round(float(value), 4) for value in values]
