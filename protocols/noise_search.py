"""How much noise a target ε takes: the search behind `DpSgd.calibrate`.

A privacy loss distribution on the finest grid takes about a second, so the search looks at wide
grids, where rounding upwards makes the same steps look a little dearer; it then corrects what it
found and certifies it on the finest grid, most often in a single look.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from scipy import optimize

from protocols.accounting import ADD_OR_REMOVE_ONE, subsampled_epsilon
from protocols.errors import PrivacyError

LEAST: Final = 0.05
MOST: Final = 2.0**18
"""Range of noise multipliers that plans may have."""

_LOWEST, _HIGHEST = math.log(LEAST), math.log(MOST)
_CLOSE = 1e-4


@lru_cache(maxsize=64)
def least_noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier, to 1e-4, at which `steps` cost at most `epsilon` at `delta`.

    `rate` (above 0, at most 1) is the probability of a unit to be in a step; all in range, as
    `DpSgd.calibrate` has checked. PrivacyError, naming an ε that would work, where the most noise
    in range is too little.
    """

    def excess(log_noise: float, coarser: int) -> float:
        kind = ((rate, math.exp(log_noise), steps),)
        spent = subsampled_epsilon(kind, delta, ADD_OR_REMOVE_ONE, coarser)[0]
        # On this scale the curve is nearly straight, and the search short.
        return math.log(max(spent, 1e-9) / epsilon)

    widest, wide = (max(1, int(times * epsilon)) for times in (10, 1))
    found = _root(lambda x: excess(x, widest), _guess(epsilon, delta, rate, steps))
    if found is None:
        enough = 1.01 * epsilon * math.exp(excess(_HIGHEST, 1))
        raise PrivacyError(
            f"ε = {epsilon:g} for {steps} steps at rate {rate:g}",
            why=f"it takes a noise multiplier above {MOST:g}",
            fix=f"ε = {enough:.3g} would work, or fewer steps",
        )
    log_noise, slope = found
    for coarser in (wide, 1):
        for _ in range(4):
            over = excess(log_noise, coarser)
            if -_CLOSE <= over <= 0:
                break
            log_noise = max(log_noise - (over + _CLOSE / 2) / slope, _LOWEST)
    while excess(log_noise, 1) > 0:
        log_noise += _CLOSE
    return math.exp(log_noise)


def _guess(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Logarithm of about the noise: many steps are near one Gaussian (Bu et al. 2020)."""
    tail = math.sqrt(2 * math.log(1 / delta))
    mu = 2 * epsilon / (tail + math.sqrt(tail**2 + 2 * epsilon))
    return -math.log(math.log1p(mu**2 / (rate**2 * steps))) / 2


def _root(excess: Callable[[float], float], start: float) -> tuple[float, float] | None:
    """Where the falling `excess` of a noise's logarithm is 0, near `start`, and its slope there.

    The least noise in range if that is enough, None where the most is too little.
    """
    low = high = min(max(start, _LOWEST), _HIGHEST)
    stride = 0.1
    while excess(low) <= 0:
        if low == _LOWEST:
            return low, -1.0
        low, high, stride = max(low - stride, _LOWEST), low, 2 * stride
    while excess(high) > 0:
        if high == _HIGHEST:
            return None
        low, high, stride = high, min(high + stride, _HIGHEST), 2 * stride
    root = optimize.brentq(excess, low, high, xtol=1e-3)
    return root, (excess(root) - excess(root - 0.01)) / 0.01
