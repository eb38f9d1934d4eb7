"""L6: what kind of site it is, from its answers or from what travels beside them in the clear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from attacks.answers.laboratory import Floats, Whole
from attacks.answers.regression import learn


class Guessed(NamedTuple):
    """The value [sites] of a property that was guessed for each site.

    usual: the commonest value among shadows, which is guessed without looking; chance: how common
    it is there. gain: the share of the prior's squared error that shadows left out save; the
    property with the largest is the most exposed.
    """

    values: Whole
    usual: int
    chance: float
    gain: float


def guess_property(
    observed: Mapping[str, Floats], shadows: Mapping[str, Floats], truth: Whole
) -> Guessed:
    """Guess one property of sites from views of them, taught by views of shadows.

    Views are those of `attacks.answers.regression.views` or `figures`; truth [shadows] in 0, 1, ….
    Where nothing was learnt it is the commonest value.
    """
    known = np.eye(int(truth.max()) + 1)[truth]
    learned = learn(shadows, known, lambda one, guess: ((one - guess) ** 2).sum(-1))
    lost = float(((known - learned.prior) ** 2).sum(-1).mean())
    values: Whole = learned.guess(observed).argmax(-1)
    common = known.mean(0)
    gain = learned.gain / lost if lost else 0.0
    return Guessed(values, int(common.argmax()), float(common.max()), gain)


def figures(metadata: Mapping[str, Floats], sites: int) -> dict[str, Floats]:
    """The logarithms of all figures that are shown of so many sites, as one view."""
    shown = [np.log1p(np.abs(metadata[name])) for name in sorted(metadata)]
    return {"figures": np.stack([np.zeros(sites), *shown], -1)}
