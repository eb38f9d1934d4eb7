"""Settings of every method of the privacy-utility study, by the same budget for each.

`python -m benchmarks.privacy_utility_tuning --data PATH --out FILE` tries 32 random settings per
method and ε on the folds of one seed that is never reported, with float noise of the mechanisms'
deviations (two draws), and keeps the one with the best mean AUROC over both hospitals. The Opacus
rival takes the settings of the other FedAvg: it is the same algorithm.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from benchmarks.privacy_utility_data import Fold, Hospital, Public, load
from benchmarks.privacy_utility_methods import METHODS, Settings
from benchmarks.privacy_utility_steps import Fast
from secure_natfl.metrics import auroc

SEED, TRIALS, DRAWS = 101, 32, 2
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, math.inf)
_SCHEDULES = ((1.0, 4), (1.0, 16), (1.0, 64), (0.25, 128))


def drawn(method: str, rng: np.random.Generator) -> Settings:
    """One random setting from the method's space."""

    def among(*options: float) -> float:
        return options[int(rng.integers(len(options)))]

    def between(low: float, high: float) -> float:
        return float(f"{math.exp(rng.uniform(math.log(low), math.log(high))):.3g}")

    if method == "ours-shards":
        return {
            "units_per_shard": among(2, 4, 8, 16),
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
            out_of_fold(hospital, folds, public, method, epsilon, settings, draw)
            for hospital, folds in hospitals
            for draw in range(DRAWS if epsilon < math.inf else 1)
        ]
        best = max(best, (float(np.mean(scores)), settings), key=lambda pair: pair[0])
    return best


def out_of_fold(
    hospital: Hospital,
    folds: tuple[Fold, ...],
    public: Public,
    method: str,
    epsilon: float,
    settings: Settings,
    draw: int,
) -> float:
    """Mean over folds of the AUROC on what was held back, with float noise."""
    found = []
    for number, fold in enumerate(folds):
        seed = 1000 * draw + number
        noise = Fast(epsilon, seed)
        weight = METHODS[method](fold, public, epsilon, settings, noise, seed)
        truth = hospital.records.labels[fold.test] == 1
        score = hospital.features[fold.test] @ weight
        found.append(float(auroc(score, truth, np.ones((1, len(score))))[0]))
    return float(np.mean(found))


def main() -> None:
    """Tune all methods, write their settings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=[m for m in METHODS if m != "fedavg-opacus"])
    given = parser.parse_args()
    public, found = load(given.data)
    hospitals = [(hospital, hospital.folds(SEED)) for hospital in found.values()]
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    for method in given.methods:
        kept[method] = {}
        for epsilon in EPSILONS:
            score, settings = tuned(method, epsilon, public, hospitals)
            kept[method][str(epsilon)] = settings
            print(method, epsilon, f"{score:.4f}", settings, flush=True)  # noqa: T201
            given.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
