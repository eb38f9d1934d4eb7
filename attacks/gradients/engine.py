"""Minimising one objective from many starts at once, under a budget of wall-clock time.

An objective maps one point [n] to a scalar. Restarts are rows of a tensor [R, n] that share every
step; half of them are given up at 1/8, 1/4 and 1/2 of the steps by their own objective
(successive halving, Jamieson and Talwalkar 2016), never by a truth.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attacks.gradients.differentiation import Objective, fastest
from attacks.gradients.optimisers import Adam, Lbfgs, Optimiser
from protocols.errors import ConfigError

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, seconds left) now and then."""

_CUTS: Final = (8, 4, 2)
_TICK, _SAVE_EVERY = 10, 30.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to search. steps: most evaluations of a row. seconds: wall clock for everything.

    rate and signed are Adam's: its rate falls tenfold at 3/8, 5/8 and 7/8 of the steps, and
    `signed` keeps only the gradient's sign (Geiping et al. 2020). box: bounds of every value. cull:
    whether rows are given up. consensus: weight of the pull of all rows to their mean.
    """

    optimiser: Literal["adam", "lbfgs"] = "lbfgs"
    steps: int = 400
    seconds: float = 60.0
    rate: float = 0.1
    signed: bool = False
    box: tuple[float, float] | None = None
    cull: bool = True
    consensus: float = 0.0


@dataclass(frozen=True, eq=False)
class Found:
    """The best point [n] and its objective; `values` [R] of all rows, infinite where given up.

    points: the best of every row that was not given up, in order of the starts, unless rows were.
    steps, restarts and seconds are what was spent; `way` is how rows were differentiated first.
    """

    point: Tensor
    value: float
    values: Tensor
    points: Tensor
    steps: int
    restarts: int
    seconds: float
    way: str


def search(
    objective: Objective,
    starts: Tensor,
    plan: Plan,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """The best point that `plan` finds from `starts` [R, n].

    Fewer steps are planned where the timing says that `plan.steps` would not end in time. With
    `state` (a .safetensors file) it continues what the same search left there, and leaves its own.
    """
    if starts.ndim != 2 or not len(starts) or plan.steps < 1:
        raise ConfigError(f"starts of shape {tuple(starts.shape)}", where="search", fix="give rows")
    run = _Run(objective, starts, plan)
    if state is not None:
        run.restore(state)
    saved = time.monotonic()
    while not run.done:
        run.step()
        if run.at % _TICK:
            continue
        if progress is not None:
            progress(run.at, run.steps, run.seconds_left())
        if state is not None and time.monotonic() - saved > _SAVE_EVERY:
            run.save(state)
            saved = time.monotonic()
    if state is not None:
        run.save(state)
    return run.found()


@dataclass(eq=False)
class _Run:
    """A search under way: rows alive, the best point of each, and what the optimiser remembers."""

    objective: Objective
    starts: Tensor
    plan: Plan
    at: int = 0
    spent: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.rows = self.starts.detach().clone()
        self.alive = torch.arange(len(self.rows))
        self.best = self.rows.clone()
        self.values = torch.full((len(self.rows),), torch.inf, device=self.rows.device)
        self.optimiser: Optimiser = Lbfgs() if self.plan.optimiser == "lbfgs" else self._adam()
        self.way, self.evaluate, each = fastest(self.objective, self.rows)
        fits = self.plan.seconds / max(each * _work(self.plan, len(self.rows)), 1e-9)
        self.steps = max(1, int(self.plan.steps * min(1.0, fits)))

    def _adam(self) -> Adam:
        return Adam(rate=self.plan.rate, signed=self.plan.signed)

    @property
    def done(self) -> bool:
        return self.at >= self.steps or (self.at > 0 and self.elapsed() > self.plan.seconds)

    def elapsed(self) -> float:
        return self.spent + time.monotonic() - self.began

    def seconds_left(self) -> float:
        """At most, since rows will still be given up."""
        pace = self.elapsed() / max(self.at, 1) * (self.steps - self.at)
        return max(0.0, min(pace, self.plan.seconds - self.elapsed()))

    def step(self) -> None:
        if self.plan.cull and self.at and self.at in {self.steps // cut for cut in _CUTS}:
            self._halve()
        values, gradients = self.evaluate(self.rows)
        better = values < self.values  # never true of a NaN
        self.best = torch.where(better[:, None], self.rows, self.best)
        self.values = torch.where(better, values, self.values)
        if self.plan.consensus:
            gradients = gradients + self.plan.consensus * (self.rows - self.rows.mean(0))
        self.rows = self.optimiser.step(self.rows, values, gradients, self.at / self.steps)
        if self.plan.box is not None:
            self.rows = self.rows.clamp(*self.plan.box)
        self.at += 1

    def _halve(self) -> None:
        count = (len(self.rows) + 1) // 2
        if count == len(self.rows):
            return
        keep = self.values.argsort()[:count]
        self.alive = self.alive[keep.cpu()]
        self.rows, self.best, self.values = self.rows[keep], self.best[keep], self.values[keep]
        self.optimiser.keep(keep)
        _, self.evaluate, _ = fastest(self.objective, self.rows)

    def found(self) -> Found:
        values = torch.full((len(self.starts),), torch.inf)
        values[self.alive] = self.values.cpu()
        at = int(self.values.argmin())
        return Found(
            point=self.best[at],
            value=float(self.values[at]),
            values=values,
            points=self.best,
            steps=self.at,
            restarts=len(self.starts),
            seconds=self.elapsed(),
            way=self.way,
        )

    def _key(self) -> str:
        content = self.starts.cpu().contiguous().numpy().tobytes()
        said = repr((self.objective.key, self.plan)).encode()
        return hashlib.sha256(said + content).hexdigest()

    def save(self, file: Path) -> None:
        """All of it in one file, replaced as a whole."""
        tensors = {"rows": self.rows, "best": self.best, "values": self.values}
        tensors |= {"alive": self.alive} | {
            f"optimiser.{name}": value for name, value in self.optimiser.memory.items()
        }
        about = {"key": self._key(), "at": self.at, "steps": self.steps, "spent": self.elapsed()}
        draft = file.with_suffix(".part")
        save_file(
            {name: value.contiguous() for name, value in tensors.items()},
            draft,
            {name: str(value) for name, value in about.items()},
        )
        draft.replace(file)

    def restore(self, file: Path) -> None:
        """Continue from a file of the same search; another search's file is left unread."""
        if not file.exists():
            return
        try:
            with safe_open(file, "pt", device=str(self.rows.device)) as held:
                about = held.metadata() or {}
                if about.get("key") != self._key():
                    return
                tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ConfigError(
                "not the state of a search", where=str(file), why=str(error), fix="remove it"
            ) from None
        self.rows, self.best, self.values = (tensors.pop(n) for n in ("rows", "best", "values"))
        self.alive = tensors.pop("alive").cpu()
        self.optimiser.memory = {n.removeprefix("optimiser."): v for n, v in tensors.items()}
        self.at, self.steps, self.spent = (
            int(about["at"]),
            int(about["steps"]),
            float(about["spent"]),
        )
        _, self.evaluate, _ = fastest(self.objective, self.rows)


def _work(plan: Plan, rows: int) -> float:
    """Evaluations of all rows at once that a search amounts to, with the rows it gives up."""
    if not plan.cull:
        return float(plan.steps)
    total, alive, at = 0.0, rows, 0
    for cut in (*_CUTS, 1):
        until = plan.steps // cut
        total += (until - at) * alive / rows
        alive, at = (alive + 1) // 2, until
    return total
