"""How loud the noise will be against the signal, from agreed figures alone: nothing is spent."""

from __future__ import annotations

import math
from dataclasses import dataclass

from protocols.client_gaussian import ClientPlan, prospect
from protocols.dp_sgd import DpSgd
from protocols.noise_plan import NoisePlan
from protocols.training_plan import TrainingPlan
from secure_natfl.config import Config
from secure_natfl.federation import Federation
from secure_natfl.system_tables import NatImg
from secure_natfl.terms import Terms


@dataclass(frozen=True)
class Prediction:
    """Of one group. `at_most`: L2 norm of all signal that the clip lets through over that of the
    noise, None without noise; `says`: the same for people.
    """

    at_most: float | None
    says: str


def predictions(config: Config, federation: Federation, terms: Terms) -> dict[str, Prediction]:
    """Group → what is to be expected, for whatever mechanism is configured."""
    plan = terms.noise_plan
    if plan is None:
        return dict.fromkeys(terms.groups, Prediction(None, "no noise"))
    if isinstance(plan, TrainingPlan):
        return {group: _training(plan, sites) for group, sites in terms.groups.items()}
    found = {}
    for group in terms.groups:
        ratio = plan.signal_bound[group] / plan.noise_norm[group]
        says = f"{ratio:.2f} : 1"
        if isinstance(plan, ClientPlan):
            rows, classes = config.proxies.per_round, len(federation.task.classes)
            if not isinstance(config.system, NatImg):
                # Of an update no consensus by rows can be predicted: its size alone is known.
                rows, classes = next(iter(plan.mechanisms.values())).size, 2
            says += _consensus(plan, group, rows, classes)
        found[group] = Prediction(ratio, says)
    return found


def gradient_noise(training: DpSgd) -> float:
    """Deviation of the noise on each parameter of a step's mean gradient, in clip norms."""
    return training.noise_multiplier / training.expected


def _training(plan: TrainingPlan, sites: list[str]) -> Prediction:
    """The worst site's: its mean gradient has at most the clip norm, the noise √size deviations."""
    trainings = [plan.mechanisms[site].training for site in sites]
    ratios = {1 / (gradient_noise(t) * math.sqrt(t.size)): t for t in trainings}
    ratio = min(ratios)
    deviation = gradient_noise(ratios[ratio])
    return Prediction(ratio, f"{ratio:.2f} : 1 in a step, σ = {deviation:.2g} clips")


def _consensus(plan: NoisePlan, group: str, rows: int, classes: int) -> str:
    members = [m for site, m in plan.mechanisms.items() if plan.groups[site] == group]
    one = members[0]
    ahead = prospect(
        weights=sum(m.alpha for m in members),
        noise=plan.noise_norm[group] / math.sqrt(one.size) / one.clip_int,
        rows=rows,
        classes=classes,
    )
    return f", right in {ahead.consensus:.1%} of rows (chance {ahead.chance:.1%})"
