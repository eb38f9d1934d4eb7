"""What a site is about to send, looked at before anything of the sum is charged or sent."""

from __future__ import annotations

import numpy as np

from protocols.errors import ModelError
from protocols.mechanisms import FurtherOutput, TrainedOutput
from protocols.quantize import Layout
from secure_natfl.schedule import Agreed
from secure_natfl.summed.weight_vectors import not_finite, segment_at
from secure_natfl.systems.summed import Vector

_LARGEST = 2.0**53
"""Steps of the grid: beyond it doubles skip integers, and nothing could be clipped exactly."""


def check_contribution(vector: Vector, agreed: Agreed, site: str, round_number: int) -> None:
    """ModelError for a vector of another shape or, if it is to be clipped, off every grid.

    What was trained under noise is sent whatever it is: to stop would tell of the training.
    """
    if vector.shape != (agreed.layout.size,):
        raise ModelError(
            f"a contribution of shape {vector.shape} where {agreed.layout.size} numbers were "
            "agreed on",
            where=f"{site}, round {round_number + 1}, {agreed.name}",
            fix="give every site the same network, and start a new run for a changed one",
        )
    mechanism = agreed.mechanism(site)
    if isinstance(mechanism, TrainedOutput | FurtherOutput):
        return
    layer = not_finite(vector, agreed.layout)
    if layer is not None:
        raise _diverged("the update contains NaN or infinity", site, layer, round_number)
    layer = _off_the_grid(vector, agreed.layout, mechanism.grid.step)
    if layer is not None:
        raise _diverged("the update is too large for any grid", site, layer, round_number)


def beyond_clip(vector: Vector, agreed: Agreed, site: str) -> str:
    """What is to be said of a vector that the clip shortens; "" of any other."""
    mechanism = agreed.mechanism(site)
    if isinstance(mechanism, TrainedOutput | FurtherOutput):
        return ""
    norm = float(np.linalg.norm(vector))
    if norm <= mechanism.clip_norm:
        return ""
    clip = f"privacy.clip = {mechanism.clip_norm:g}"
    return f"{site}: an update of norm {norm:.3g} is clipped to {clip}"


def _off_the_grid(vector: Vector, layout: Layout, step: float) -> str | None:
    """The layer of a value that is 2^53 steps or more; None where there is none."""
    at = int(np.argmax(np.abs(vector)))
    return segment_at(at, layout) if abs(float(vector[at])) >= _LARGEST * step else None


def _diverged(what: str, site: str, layer: str, round_number: int) -> ModelError:
    return ModelError(
        what,
        where=f"{site}, layer {layer}, round {round_number + 1}",
        why="the local training diverged, or an image is damaged",
        fix="lower system.learning_rate, or look for damaged images at this site",
    )
