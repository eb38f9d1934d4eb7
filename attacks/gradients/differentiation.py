"""How the objectives of many points are differentiated: at once, a few at a time, or in turn.

Which of it is fastest depends on the network: a small one is bound by launching operations, and
batching pays; a large one keeps the machine busy with one point. So they are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor

_CHUNK: Final = 8


class Objective(Protocol):
    """One point's objective; lower is better, and `key` names the observation behind it."""

    key: str

    def __call__(self, point: Tensor, *, functional: bool) -> Tensor:
        """A scalar for a point [n]; `functional` says to differentiate by torch.func inside."""


Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Rows [R, n] → their objectives [R] and gradients [R, n]."""


def looped(objective: Objective, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Autograd on one row after the other: least overhead where a row keeps the machine busy."""
    values, gradients = [], []
    for row in rows:
        point = row.detach().requires_grad_()
        value = objective(point, functional=False)
        gradients.append(torch.autograd.grad(value, point)[0])
        values.append(value.detach())
    return torch.stack(values), torch.stack(gradients)


def batched(objective: Objective, chunk: int | None, rows: Tensor) -> tuple[Tensor, Tensor]:
    """All rows at once, or `chunk` at a time, by torch.func."""
    one = torch.func.grad_and_value(partial(objective, functional=True))
    found = torch.func.vmap(one, randomness="different", chunk_size=chunk)(rows)
    return found[1].detach(), found[0].detach()


def fastest(objective: Objective, rows: Tensor) -> tuple[str, Evaluate, float]:
    """The quickest way for these very rows: its name, the way, and its seconds per evaluation.

    A way that takes some rows at a time is timed on as many only.
    """
    ways: dict[str, tuple[Evaluate, int]] = {"loop": (partial(looped, objective), 1)}
    if len(rows) > 1:
        ways["vmap"] = partial(batched, objective, None), len(rows)
    if len(rows) > _CHUNK:
        ways[f"vmap by {_CHUNK}"] = partial(batched, objective, _CHUNK), _CHUNK
    seconds = {
        name: _timed(way, rows[:count]) * len(rows) / count for name, (way, count) in ways.items()
    }
    best = min(seconds, key=seconds.__getitem__)
    return best, ways[best][0], seconds[best]


def _timed(evaluate: Evaluate, rows: Tensor) -> float:
    """Seconds of one evaluation: the better of two, after one that warms up."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        evaluate(rows)
        if rows.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
