"""Adam and L-BFGS on many points at once: rows [R, n] that never see each other.

Both take one evaluation per step and read no value back from the device. `memory` holds tensors
whose first axis is the rows, so that rows can be given up and a search be continued.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_HISTORY, _ARMIJO, _SHORTEST = 10, 1e-4, 1e-10
_DECAYS: Final = (3 / 8, 5 / 8, 7 / 8)


class Optimiser(Protocol):
    """What a search needs of one."""

    memory: dict[str, Tensor]

    def step(self, rows: Tensor, values: Tensor, gradients: Tensor, done: float) -> Tensor:
        """The rows to evaluate next; `done` is the share of the search behind it."""

    def keep(self, rows: Tensor) -> None:
        """Forget all but these rows."""


@dataclass(eq=False)
class Adam:
    """Adam (Kingma and Ba 2015), with a rate that falls in steps; `signed`: of gradients' signs."""

    rate: float = 0.1
    signed: bool = False
    memory: dict[str, Tensor] = field(default_factory=dict)

    def step(self, rows: Tensor, values: Tensor, gradients: Tensor, done: float) -> Tensor:
        """One step of every row; a row whose gradient is not finite stays where it is."""
        del values
        found = gradients.nan_to_num(0.0, 0.0, 0.0)
        found = found.sign() if self.signed else found
        zero = torch.zeros_like(rows)
        count = self.memory.get("count", torch.zeros(len(rows), 1, device=rows.device)) + 1
        mean = torch.lerp(self.memory.get("mean", zero), found, 1 - _BETAS[0])
        square = torch.lerp(self.memory.get("square", zero), found.square(), 1 - _BETAS[1])
        self.memory = {"count": count, "mean": mean, "square": square}
        rate = self.rate * 0.1 ** sum(done >= place for place in _DECAYS)
        scale = (square / (1 - _BETAS[1] ** count)).sqrt() + _EPSILON
        return rows - rate * mean / (1 - _BETAS[0] ** count) / scale

    def keep(self, rows: Tensor) -> None:
        """Forget all but these rows."""
        self.memory = {name: value[rows] for name, value in self.memory.items()}


@dataclass(eq=False)
class Lbfgs:
    """L-BFGS (Liu and Nocedal 1989), each row at its own place of its own line search.

    A trial point is accepted if the objective falls enough (Armijo); else the row goes back and
    tries a shorter step, found by a parabola, while other rows move on.
    """

    memory: dict[str, Tensor] = field(default_factory=dict)

    def step(self, rows: Tensor, values: Tensor, gradients: Tensor, done: float) -> Tensor:
        """The next trial points, from what was found at `rows`, the last ones."""
        del done
        at = self.memory or _nothing(rows)
        slope = (at["gradient"] * at["direction"]).sum(1)
        fine = values.isfinite() & gradients.isfinite().all(1)
        taken = fine & (values <= at["value"] + _ARMIJO * at["length"] * slope)
        at = _accepted(at, rows, values, gradients, taken)
        ahead = _two_loops(at)
        # Back to steepest descent where the history has led astray or the step has shrunk away.
        lost = ((ahead * at["gradient"]).sum(1) >= 0) | (~taken & (at["length"] < _SHORTEST))
        keep = (~lost).to(rows.dtype)
        at["weight"] = at["weight"] * keep[:, None]
        ahead = torch.where(lost[:, None], -at["gradient"], ahead)
        first = 1 / at["gradient"].abs().sum(1).clamp_min(1e-30)
        whole = torch.where((at["weight"] > 0).any(1), 1.0, first.clamp_max(1.0))
        fall = at["length"] * slope
        parabola = -0.5 * at["length"] * fall / (values - at["value"] - fall).clamp_min(1e-30)
        shorter = torch.where(
            fine, parabola.clamp(0.1 * at["length"], 0.5 * at["length"]), 0.1 * at["length"]
        )
        again = taken | lost
        at["length"] = torch.where(again, whole, shorter)
        at["direction"] = torch.where(again[:, None], ahead, at["direction"])
        self.memory = at
        return at["point"] + at["length"][:, None] * at["direction"]

    def keep(self, rows: Tensor) -> None:
        """Forget all but these rows."""
        self.memory = {name: value[rows] for name, value in self.memory.items()}


def _nothing(rows: Tensor) -> dict[str, Tensor]:
    """The memory before the first evaluation: any finite value is accepted."""
    count, size = rows.shape
    flat = rows.new_zeros(count, size)
    return {
        "point": rows,
        "value": rows.new_full((count,), torch.inf),
        "gradient": flat,
        "direction": flat,
        "length": rows.new_ones(count),
        "moves": rows.new_zeros(count, _HISTORY, size),
        "turns": rows.new_zeros(count, _HISTORY, size),
        "weight": rows.new_zeros(count, _HISTORY),  # 1/(move·turn), 0 for an empty place
    }


def _accepted(
    at: dict[str, Tensor], rows: Tensor, values: Tensor, gradients: Tensor, taken: Tensor
) -> dict[str, Tensor]:
    """The memory after the accepted rows have moved; only convex moves enter the history."""
    move, turn = rows - at["point"], gradients - at["gradient"]
    bend = (move * turn).sum(1)
    convex = taken & at["value"].isfinite() & (bend > 1e-10 * turn.square().sum(1))
    weight = torch.where(convex, 1 / bend, 0.0)

    def pushed(name: str, new: Tensor) -> Tensor:
        old = at[name]
        mask = convex.view(-1, *[1] * (old.ndim - 1))
        return torch.where(mask, torch.cat([old[:, 1:], new[:, None]], 1), old)

    return {
        "point": torch.where(taken[:, None], rows, at["point"]),
        "value": torch.where(taken, values, at["value"]),
        "gradient": torch.where(taken[:, None], gradients, at["gradient"]),
        "direction": at["direction"],
        "length": at["length"],
        "moves": pushed("moves", move),
        "turns": pushed("turns", turn),
        "weight": pushed("weight", weight),
    }


def _two_loops(at: dict[str, Tensor]) -> Tensor:
    """The quasi-Newton direction of every row."""
    found, shares = at["gradient"], []
    for place in reversed(range(_HISTORY)):
        share = at["weight"][:, place] * (at["moves"][:, place] * found).sum(1)
        found = found - share[:, None] * at["turns"][:, place]
        shares.append(share)
    turn, weight = at["turns"][:, -1], at["weight"][:, -1]
    scale = 1 / (weight * turn.square().sum(1))
    found = found * torch.where(weight > 0, scale, 1.0)[:, None]
    for place, share in enumerate(reversed(shares)):
        back = at["weight"][:, place] * (at["turns"][:, place] * found).sum(1)
        found = found + (share - back)[:, None] * at["moves"][:, place]
    return -found
