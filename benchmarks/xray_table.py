"""The table of docs/results/natimg-fl.md from finished runs of `xray-hospitals`.

`python -m benchmarks.xray_table --noised DIR… --exact DIR… [--csv FILE]` prints Markdown: the mean
over seeds of each arm's AUROC, and in brackets the range over seeds. The CSV keeps every figure
with its bootstrap interval, so that the table can be drawn again without the runs.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

ORDER = (
    ("local only", "local_only"),
    ("all data pooled (upper bound)", "pooled"),
    ("plain mean of logits, no protection", "plain_mean"),
    ("ours, central, exact (ε = ∞)", "central, exact"),
    ("ours, personalised, exact (ε = ∞)", "personalised, exact"),
    ("ours, central, ε = 8", "central, noised"),
    ("ours, personalised, ε = 8", "personalised, noised"),
    ("control: noise images as proxies, ε = 8", "noise_proxies"),
)
Row = dict[str, Any]


def rows_of(folder: Path, kind: str) -> list[Row]:
    """Every AUROC of one run: arm, hospital, seed, value, low, high."""
    report = json.loads((folder / "report.json").read_text())
    seed = report["command"].partition("run.seed=")[2].split()[0]
    found = [(f"central, {kind}", h, s) for h, s in report["central"]["scores"].items()]
    found += [(f"personalised, {kind}", c["hospital"], c["scores"]) for c in report["clients"]]
    for arm, baseline in report["baselines"].items():
        found += [(arm, hospital, scores) for hospital, scores in baseline["scores"].items()]
    return [
        {"arm": arm, "hospital": hospital, "seed": int(seed), **scores["auroc"]}
        for arm, hospital, scores in found
        if scores["auroc"] is not None
    ]


def markdown(rows: list[Row]) -> str:
    """Mean over seeds (and over a hospital's sites), with the range of the seeds' means."""
    hospitals = sorted({row["hospital"] for row in rows})
    lines = ["| arm | " + " | ".join(hospitals) + " |", "|---|" + "---|" * len(hospitals)]
    for label, arm in ORDER:
        cells = [
            _cell([r for r in rows if (r["arm"], r["hospital"]) == (arm, h)]) for h in hospitals
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(rows: list[Row]) -> str:
    by_seed: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        by_seed[row["seed"]].append(row["value"])
    seeds = [mean(values) for values in by_seed.values()]
    if not seeds:
        return "n/a"
    return f"{mean(seeds):.3f} ({min(seeds):.3f}–{max(seeds):.3f})"


def main() -> None:
    """Print the table; write the CSV where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noised", nargs="+", type=Path, required=True)
    parser.add_argument("--exact", nargs="+", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    rows = [row for folder in given.noised for row in rows_of(folder, "noised")]
    rows += [row for folder in given.exact for row in rows_of(folder, "exact")]
    if given.csv:
        with given.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(markdown(rows))  # noqa: T201


if __name__ == "__main__":
    main()
