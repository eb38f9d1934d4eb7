"""Settings of every method of the privacy-utility study, by the same budget for each.

`python -m benchmarks.privacy_utility_tuning --data PATH` tries 24 random settings per
method and ε on the folds of one seed that is never reported, with float noise of the mechanisms'
deviations, and keeps the one with the best mean AUROC over both hospitals. The Opacus
rival takes the settings of the other FedAvg: it is the same algorithm.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.privacy_utility_data import Fold, Hospital, Public, Settings, load
from benchmarks.privacy_utility_methods import METHODS
from benchmarks.privacy_utility_steps import Fast
from secure_natfl.metrics import auroc

SEED, TRIALS = 101, 24
SETTINGS = Path(__file__).with_name("privacy_utility_settings.json")
Tuned = dict[str, dict[str, dict[str, Any]]]
"""Method → ε → {"auroc": on the tuning seed, "settings": what is used}."""

EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, math.inf)
_TWIN = {"fedavg-opacus": "fedavg-dp"}
_SCHEDULES = ((1.0, 4), (1.0, 16), (1.0, 64), (0.125, 512))


def drawn(method: str, rng: np.random.Generator) -> Settings:
    """One random setting from the method's space."""

    def among(*options: float) -> float:
        return options[int(rng.integers(len(options)))]

    def between(low: float, high: float) -> float:
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")

    if method == "ours-shards":
        return {
            "units_per_shard": among(1, 2, 4, 8),
            "head_steps": among(1, 10, 50),
            "head_rate": between(1, 100),
            "floor": among(0.1, 0.01, 0.003),
            "proxies": among(128, 256, 512),
            "shrinkage": between(0.03, 10),
        }
    if method == "fedaux-dp":
        return {
            "decay": between(1e-4, 1),
            "score_decay": between(1e-3, 10),
            "score_share": among(0.02, 0.1, 0.25, 0.5),
            "student_decay": between(1e-6, 1e-2),
            "proxies": among(512, 2048, 6000),
        }
    rate, steps = _SCHEDULES[int(rng.integers(len(_SCHEDULES)))]
    settings: Settings = {
        "rate": rate,
        "steps": steps,
        "rounds": among(1, 4),
        "clip": among(0.1, 0.3, 1.0),
        "average": bool(rng.integers(2)),
    }
    if method == "ours-dp-sgd":
        return settings | {
            "learning_rate": between(0.1, 30),
            "floor": among(0.1, 0.01, 0.003),
            "proxies": among(128, 256, 512),
        }
    if rng.integers(4) == 0:
        settings["rounds"] = min(steps, 16)
    # Features that are not white ask for larger and more varied rates.
    return settings | {"learning_rate": between(0.3, 300)}


def tuned(
    method: str, epsilon: float, public: Public, hospitals: list[tuple[Hospital, tuple[Fold, ...]]]
) -> tuple[float, Settings]:
    """The best of the method's trials at this ε: mean AUROC and settings."""
    rng = np.random.default_rng([SEED, sum(method.encode())])
    best: tuple[float, Settings] = (-1.0, {})
    for _ in range(TRIALS):
        settings = drawn(method, rng)
        scores = [
            out_of_fold(hospital, folds, public, method, epsilon, settings)
            for hospital, folds in hospitals
        ]
        best = max(best, (float(np.mean(scores)), settings), key=lambda pair: pair[0])
    return best


def settings_of(tuned: Tuned, method: str, epsilon: float) -> Settings:
    """What `method` runs with at `epsilon`."""
    found: Settings = tuned[_TWIN.get(method, method)][str(epsilon)]["settings"]
    return found


def out_of_fold(
    hospital: Hospital,
    folds: tuple[Fold, ...],
    public: Public,
    method: str,
    epsilon: float,
    settings: Settings,
) -> float:
    """Mean over folds of the AUROC on what was held back, with float noise."""
    found = []
    for number, fold in enumerate(folds):
        noise = Fast(epsilon, number)
        weight = METHODS[method](fold, public, epsilon, settings, noise, number)
        truth = hospital.records.labels[fold.test] == 1
        score = hospital.features[fold.test] @ weight
        found.append(float(auroc(score, truth, np.ones((1, len(score))))[0]))
    return float(np.mean(found))


def main() -> None:
    """Tune all methods, write their settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=SETTINGS)
    parser.add_argument("--epsilons", nargs="+", type=float, default=EPSILONS)
    parser.add_argument("--methods", nargs="+", default=[m for m in METHODS if m not in _TWIN])
    given = parser.parse_args()
    public, found = load(given.data)
    hospitals = [(hospital, hospital.folds(SEED)) for hospital in found.values()]
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    for method in given.methods:
        kept.setdefault(method, {})
        for epsilon in given.epsilons:
            score, settings = tuned(method, epsilon, public, hospitals)
            print(method, epsilon, f"{score:.4f}", settings, flush=True)  # noqa: T201
            kept[method][str(epsilon)] = {"auroc": round(score, 4), "settings": settings}
            given.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
