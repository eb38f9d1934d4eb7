"""What a mechanism guarantees, in one record and one paragraph that people can check.

The figures come from the mechanism's own events and from the accountant, nowhere else. Contents as
asked for by NIST SP 800-226 and by Ponomareva et al. 2023, section 5.3.3.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from protocols.accounting import ADD_OR_REMOVE_ONE, Event, Spent, compose, gaussian_epsilon
from protocols.chain import RandomBytes
from protocols.errors import PrivacyError

NOT_COVERED = (
    "the choice of hyper-parameters, architecture and stopping time on private data",
    "numbers of units and their label counts where the plan states them",
    "timing, sizes, aborts and the fact that a site takes part",
    "runs outside this ledger, and patients who are also at another site",
)
"""What no figure here speaks of, unless it was charged apart."""

_MOVES = {
    ADD_OR_REMOVE_ONE: "adding or removing all records of one {unit}",
    "replace_one": "replacing all records of one {unit}",
}


class Charged(Protocol):
    """Any mechanism: a frozen dataclass with a name and a cost."""

    @property
    def name(self) -> str:
        """The name in configurations and ledger lines."""

    def event(self) -> Event:
        """The cost of one charge."""


class PrivacyStatement(BaseModel):
    """One site's guarantee over all charges of one plan; survives its JSON form.

    epsilon is at `delta`, which includes the price of everything not ideal (target_delta is
    without). epsilon_isolated: if only this site's own noise remains. colluders (t), dropouts (d):
    None where no other party's noise counts. cross_check: ε by a second method, for comparison.
    parameters: all scalar fields of the mechanism, under their own names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    mechanism: str
    unit: str
    relation: str
    charges: int
    epsilon: float
    epsilon_isolated: float
    target_delta: float
    delta: float
    adversary: str
    colluders: int | None
    dropouts: int | None
    parameters: dict[str, int | float | str]
    accountant: str
    cross_check: float | None
    cross_check_method: str
    sampling: str
    randomness: str
    not_covered: tuple[str, ...]

    @classmethod
    def of(
        cls,
        mechanism: Charged,
        charges: int,
        delta: float,
        *,
        unit: str,
        adversary: str,
        random: RandomBytes,
        colluders: int | None = None,
        dropouts: int | None = None,
    ) -> PrivacyStatement:
        """State what `charges` releases of `mechanism` guarantee at the target `delta`.

        unit: "patient" or "image", as the site's ledger has it; a mechanism with a unit of its own
        (a client) goes before. adversary: against whom, as a noun phrase. random: what the noise
        was or will be drawn from. Reports and the command line call it.
        """
        if charges < 1:
            raise PrivacyError(f"a statement on {charges} releases", fix="state at least 1")
        event = mechanism.event()
        spent = compose([event] * charges, delta)
        check, method = _cross_check(spent)
        return cls(
            mechanism=mechanism.name,
            unit=event.unit or unit,
            relation=event.relation,
            charges=charges,
            epsilon=spent.epsilon,
            epsilon_isolated=spent.epsilon_isolated,
            target_delta=delta,
            delta=spent.delta_total,
            adversary=adversary,
            colluders=colluders,
            dropouts=dropouts,
            parameters=_scalars(mechanism),
            accountant=f"{spent.accountant} (dp-accounting)",
            cross_check=check,
            cross_check_method=method,
            sampling=_sampling(event),
            randomness=_randomness(random),
            not_covered=NOT_COVERED,
        )

    @classmethod
    def of_plan(
        cls, plan: Planned, site: str, *, unit: str, random: RandomBytes
    ) -> PrivacyStatement:
        """State what all rounds of a noise plan guarantee to one unit of `site`."""
        return cls.of(
            plan.mechanisms[site],
            plan.rounds,
            plan.delta,
            unit=unit,
            adversary=plan.adversary,
            random=random,
            colluders=plan.colluders,
            dropouts=plan.dropouts,
        )

    def paragraph(self) -> str:
        """Plain sentences for people."""
        move = _MOVES[self.relation].format(unit=self.unit)
        said = [self._guarantee(move)]
        if self.epsilon_isolated > self.epsilon:
            said.append(f"If only this site's own noise remains, ε is {self.epsilon_isolated:.4g}.")
        if self.colluders is not None:
            said.append(
                f"Counted on: at most {self.colluders} colluding and {self.dropouts} absent "
                f"client(s) in a group."
            )
        listed = ", ".join(f"{name} {_short(value)}" for name, value in self.parameters.items())
        said += [f"Parameters: {listed}.", f"Accountant: {self.accountant}."]
        if self.cross_check is not None:
            said.append(f"Cross-check: ε = {self.cross_check:.4g} by {self.cross_check_method}.")
        said += [f"Sampling: {self.sampling}.", f"Randomness: {self.randomness}."]
        said.append(f"Not covered: {'; '.join(self.not_covered)}.")
        return " ".join(said)

    def _guarantee(self, move: str) -> str:
        if self.epsilon == math.inf:
            return f"{self.charges} release(s) of {self.mechanism} guarantee nothing: ε = inf."
        return (
            f"{self.charges} release(s) of {self.mechanism} together satisfy "
            f"(ε = {self.epsilon:.4g}, δ = {self.delta:.3g})-differential privacy with respect to "
            f"{move}, against {self.adversary}."
        )


class Planned(Protocol):
    """A noise plan of many sites."""

    @property
    def mechanisms(self) -> Mapping[str, Charged]:
        """Site → its mechanism."""

    @property
    def rounds(self) -> int:
        """Charges per site."""

    @property
    def delta(self) -> float:
        """The target δ."""

    @property
    def colluders(self) -> int:
        """Clients per group that may pool what they know."""

    @property
    def dropouts(self) -> int:
        """Clients per group and round that may fail."""

    @property
    def adversary(self) -> str:
        """Against whom the figures hold."""


def _scalars(mechanism: Charged) -> dict[str, int | float | str]:
    """The mechanism's own parameters, those that are numbers or texts."""
    return {
        name: value
        for name, value in vars(mechanism).items()
        if isinstance(value, int | float | str)
    }


def _cross_check(spent: Spent) -> tuple[float | None, str]:
    """A second figure: Rényi for subsampled steps, a continuous Gaussian for discrete noise."""
    if spent.cross_check is not None:
        return spent.cross_check, "Rényi accounting"
    if spent.rho == math.inf:
        return None, ""
    return gaussian_epsilon(spent.rho, spent.delta), "a continuous Gaussian of the same ρ"


def _sampling(event: Event) -> str:
    if event.steps and event.rate < 1:
        return f"Poisson, each unit apart with probability {event.rate:g} at each step"
    return "none, every unit takes part in every release"


def _randomness(random: RandomBytes) -> str:
    if random is os.urandom:
        return "the operating system's"
    return "seeded or given by the caller: not private against whoever knows the seed"


def _short(value: int | float | str) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
