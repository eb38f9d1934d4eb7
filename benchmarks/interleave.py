"""Timings of several tasks in one process, interleaved, so that only their ratios need trust."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Quartiles:
    """The three quartiles of a sample, in the sample's unit."""

    low: float
    median: float
    high: float


def interleaved(tasks: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of every task in every repeat: {name: [repeats]}, in order of repeats.

    Each task first runs once untimed. Repeat r starts at the task in place r, so that a slow spell
    of the machine does not always meet the same task. ValueError unless `repeats` is at least 1.
    """
    if repeats < 1:
        raise ValueError("a measurement needs at least one repeat")
    order = list(tasks)
    for name in order:
        tasks[name]()
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for repeat in range(repeats):
        first = repeat % max(len(order), 1)
        for name in order[first:] + order[:first]:
            start = time.perf_counter()
            tasks[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def quartiles(values: Sequence[float]) -> Quartiles:
    """Quartiles by linear interpolation; ValueError for an empty sample."""
    if not values:
        raise ValueError("no quartiles of nothing")
    low, median, high = np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75))
    return Quartiles(float(low), float(median), float(high))
