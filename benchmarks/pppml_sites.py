"""Sites that image alike at strength 0 and unlike at strength 1: an analogue of slice thickness.

The CT of PPPML-HMI's sites differs by slice thickness (1, 5 and 10 slices averaged). Here one axis
of a flat image stands for the axis of the slices: a site averages a window of rows, as thick slices
do, and scales its grey values, as another exposure does. One number from 0 to 1 sets both; at 1 the
windows are 1, 5 and 10 rows. Masks stay as they are: what is there does not change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from secure_natfl.data.arrays import DEVIATION, MEAN
from secure_natfl.federation import Federation, Site
from secure_natfl.training import Examples

STRENGTHS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The strengths of every study; fixed before any was run."""

THICKNESS: Final = (1.0, 5.0, 10.0)
GAIN: Final = (1.0, 1.5, 0.5)
"""Rows averaged, and factor of the grey values, of the first, second and third site at strength 1;
the fourth is as the first again."""


def unlike(federation: Federation, strength: float) -> Federation:
    """The same federation, whose sites image differently: training and test parts alike."""
    sites = tuple(_imaged(site, i, strength) for i, site in enumerate(federation.sites))
    return replace(federation, sites=sites)


def imaged(images: Tensor, number: int, strength: float) -> Tensor:
    """Network inputs [N, ch, H, W] as site `number`, from 0, shows them."""
    look = number % len(THICKNESS)
    rows = 1 + strength * (THICKNESS[look] - 1)
    grey = (images * DEVIATION + MEAN) * GAIN[look] ** strength
    return (_averaged(grey.clamp(0, 1), rows) - MEAN) / DEVIATION


def _averaged(images: Tensor, rows: float) -> Tensor:
    """Each row in place of the mean over a window of `rows` around it, cut at the border."""
    side = images.shape[-2]
    places = torch.arange(side, dtype=images.dtype)
    apart = (places[:, None] - places[None, :]).abs()
    window = ((rows + 1) / 2 - apart).clamp(0, 1)
    return (window / window.sum(1, keepdim=True)) @ images


def _imaged(site: Site, number: int, strength: float) -> Site:
    def part(one: Examples) -> Examples:
        return replace(one, images=imaged(one.images, number, strength))

    return replace(site, train=part(site.train), test=part(site.test))
