"""How many times as long one thing takes as another: medians, and intervals from resampling."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Stated = tuple[float, float, float]
"""A figure, and the lower and upper end of its interval."""

_DRAWS = 4000


def spread(seconds: Sequence[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(one) for one in statistics.quantiles(seconds, n=4)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Stated:
    """Median over median, with a 95 % percentile bootstrap over both samples (seeded)."""
    draw = np.random.default_rng(0)
    above, below = (
        np.median(draw.choice(np.asarray(one), (_DRAWS, len(one))), axis=1)
        for one in (ours, theirs)
    )
    return _stated(statistics.median(ours) / statistics.median(theirs), above / below)


def share(more: Sequence[float], of: Sequence[float]) -> Stated:
    """The median of what a round took more than its partner, over the median partner.

    The 95 % percentile bootstrap draws pairs (seeded).
    """
    rows = np.random.default_rng(0).integers(0, len(of), (_DRAWS, len(of)))
    above, below = (np.median(np.asarray(one)[rows], axis=1) for one in (more, of))
    return _stated(statistics.median(more) / statistics.median(of), above / below)


def named(name: str, stated: Stated | None) -> dict[str, float | list[float] | None]:
    """A figure under its name, and its interval beside it; both None where it was not measured."""
    if stated is None:
        return {name: None, f"{name}_interval": None}
    return {name: stated[0], f"{name}_interval": list(stated[1:])}


def _stated(found: float, draws: NDArray[np.floating]) -> Stated:
    low, high = np.quantile(draws, [0.025, 0.975])
    return found, float(low), float(high)
