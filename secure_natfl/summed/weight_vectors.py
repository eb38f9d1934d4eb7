"""Named tensors as one vector of a layout, and back: how updates of weights are sent."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocols.errors import ModelError
from protocols.quantize import Layout, Segment

Vector = NDArray[np.float64]


def layout_of(tensors: Mapping[str, Tensor]) -> Layout:
    """One segment per tensor, under its name and in their order."""
    return Layout(tuple(Segment(name, tensor.numel(), 1) for name, tensor in tensors.items()))


def vector_of(tensors: Mapping[str, Tensor]) -> Vector:
    """All values of all tensors, in order: [layout size], float64."""
    flat = [tensor.detach().double().reshape(-1) for tensor in tensors.values()]
    return np.asarray(torch.cat(flat).numpy(), dtype=np.float64)


def tensors_of(vector: Vector, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `vector_of`: tensors with the names, shapes and types of `like`."""
    sizes = [tensor.numel() for tensor in like.values()]
    if vector.shape != (sum(sizes),):
        raise ModelError(
            f"{vector.size} values for tensors of {sum(sizes)}",
            fix="read a sum with the layout that it was sent with",
        )
    parts = torch.split(torch.from_numpy(np.ascontiguousarray(vector)), sizes)
    return {
        name: part.reshape(tensor.shape).to(tensor.dtype)
        for (name, tensor), part in zip(like.items(), parts, strict=True)
    }


def not_finite(vector: Vector, layout: Layout) -> str | None:
    """The name of the first segment with NaN or infinity in it; None where all is finite."""
    bad = np.flatnonzero(~np.isfinite(vector))
    return segment_at(int(bad[0]), layout) if len(bad) else None


def segment_at(position: int, layout: Layout) -> str:
    """The name of the segment that a position of a vector lies in."""
    ends = np.cumsum([segment.size for segment in layout.segments])
    return layout.segments[int(np.searchsorted(ends, position, side="right"))].name
