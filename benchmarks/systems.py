"""What benchmarks of whole systems share: rounds summed in the clear, lines of JSON, intervals."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from secure_natfl.federation import Federation
from secure_natfl.systems.summed import Summed, SummedSystem


def open_round(system: SummedSystem, federation: Federation, number: int) -> None:
    """All sums of a round, added in the clear: as a protected run opens them but for its grid."""
    sites, alphas = {site.name: site for site in federation.sites}, system.weights()
    groups: dict[str, list[str]] = {}
    for name in system.cohort(number):
        groups.setdefault(system.group_of(sites[name]), []).append(name)
    for phase in system.phases(number):
        sums = {}
        for group, names in groups.items():
            vectors = [
                alphas[name] * system.contribute(sites[name], number, phase.name, None)
                for name in names
            ]
            weight = float(sum(alphas[name] for name in names))
            sums[group] = Summed(np.sum(vectors, axis=0), weight, tuple(names), 0.0)
        system.absorb(sums, number, phase.name)


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of Student's t around the mean of two or more values."""
    count = len(values)
    return float(student_t.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5


def read(out: Path) -> list[dict[str, Any]]:
    """All lines that were written so far."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def write(out: Path | None, line: dict[str, Any]) -> None:
    """One line to the file, or to standard output."""
    text = json.dumps(line)
    if out is None:
        print(text, flush=True)  # noqa: T201
        return
    with out.open("a") as file:
        file.write(text + "\n")
