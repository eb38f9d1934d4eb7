"""Privacy against utility on real chest X-rays: ours and its rivals at the same ε.

`python -m benchmarks.privacy_utility --data PATH [--seeds 0 1 2] [--out CSV] [--json]`. PATH holds
the packs `xray6` and `natural_cifar10`. Each line of the CSV is one method, ε, seed and hospital:
AUROC of out-of-fold scores, the mean over five folds. What was computed is kept below the cache
folder, so a run that was stopped goes on where it was. Settings come from
`benchmarks.privacy_utility_tuning`. A seeded study is not private.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.privacy_utility_data import Hospital, Public, load
from benchmarks.privacy_utility_methods import METHODS, OURS, RIVALS
from benchmarks.privacy_utility_report import Scores, markdown, summary
from benchmarks.privacy_utility_steps import Real
from benchmarks.privacy_utility_tuning import EPSILONS, SETTINGS, Tuned, settings_of
from protocols.chain import canonical
from secure_natfl.pretraining import cache_folder

_FIELDS = ("method", "epsilon", "seed", "hospital", "auroc", "seconds")


def scores_of(
    method: str, epsilon: float, seed: int, hospital: Hospital, public: Public, tuned: Tuned
) -> tuple[Scores, float]:
    """Out-of-fold scores of all images of a hospital, with each image's fold; seconds it took."""
    settings = settings_of(tuned, method, epsilon)
    stated = [method, str(epsilon), seed, hospital.name, hospital.digest, settings]
    name = hashlib.sha256(canonical(stated)).hexdigest()
    file = cache_folder().parent / "privacy-utility" / f"{name}.npz"
    if file.exists():
        with np.load(file, allow_pickle=False) as kept:
            return Scores(kept["scores"], kept["fold"]), float(kept["seconds"])
    start = time.process_time()
    scores, fold = np.zeros(len(hospital.records)), np.zeros(len(hospital.records), np.int64)
    for number, one in enumerate(hospital.folds(seed)):
        # No noise is shared between methods, levels, seeds, folds or hospitals.
        drawn = int(hashlib.sha256(canonical([*stated, number])).hexdigest()[:12], 16)
        with Real(epsilon, drawn) as noise:
            weight = METHODS[method](one, public, epsilon, settings, noise, drawn)
        scores[one.test], fold[one.test] = hospital.features[one.test] @ weight, number
    seconds = time.process_time() - start
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, scores=scores, fold=fold, seconds=seconds)
    return Scores(scores, fold), seconds


def main() -> None:
    """Run what is missing; write the CSV; print the table or the JSON summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    public, hospitals = load(given.data)
    tuned: Tuned = json.loads(SETTINGS.read_text())
    found: dict[tuple[str, float, int, str], Scores] = {}
    rows = []
    for hospital in hospitals.values():
        for method in (*OURS, *RIVALS):
            for epsilon in EPSILONS:
                for seed in given.seeds:
                    scores, seconds = scores_of(method, epsilon, seed, hospital, public, tuned)
                    found[method, epsilon, seed, hospital.name] = scores
                    figure = f"{scores.auroc(hospital.truth):.4f}"
                    row = (method, epsilon, seed, hospital.name, figure, f"{seconds:.2f}")
                    rows.append(dict(zip(_FIELDS, row, strict=True)))
                    if given.out:
                        _write(given.out, rows)
    result = summary(found, hospitals, given.seeds, tuned)
    print(json.dumps(result, indent=1) if given.json else markdown(result))  # noqa: T201


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _FIELDS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
