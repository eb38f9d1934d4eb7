"""The optimisation attacks, each a choice of objective, labels, starts and search.

Every one of them is played from many starts, keeps the point whose own objective is lowest, and
returns images in [0, 1]; none is given a true label or chooses by a truth.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.gradients.analytic import features_of, linear_layers
from attacks.gradients.engine import Found, Plan, Progress, search
from attacks.gradients.labels import bias_corrected, idlg
from attacks.gradients.laboratory import Observation
from attacks.gradients.matching import Distance, Matching, Penalties, total_variation

Start = Literal["noise", "prior"]


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """One published attack. `known_labels`: guessed from the gradient first, not searched.

    start: Gaussian inputs, or images of the prior. warm: for one image and a last layer with a
    bias, first match the features that its gradient gives away, for as many steps, each several
    times cheaper; `warm` is the share of the seconds that this may take.
    """

    name: str
    distance: Distance
    penalties: Penalties
    plan: Plan
    known_labels: bool = True
    start: Start = "noise"
    warm: float = 0.0


DLG = Inversion(
    name="DLG (Zhu et al. 2019)",
    distance="euclidean",
    penalties=Penalties(),
    plan=Plan(optimiser="lbfgs"),
    known_labels=False,
)
IDLG = replace(DLG, name="iDLG (Zhao et al. 2020)", known_labels=True)
INVERTING = Inversion(
    name="Inverting Gradients (Geiping et al. 2020)",
    distance="cosine",
    penalties=Penalties(variation=0.1),
    plan=Plan(optimiser="adam", rate=0.1, signed=True),
)
SEE_THROUGH = Inversion(
    name="See through Gradients (Yin et al. 2021)",
    distance="euclidean",
    penalties=Penalties(variation=1e-3, energy=1e-6, statistics=0.1),
    plan=Plan(optimiser="adam", rate=0.1, consensus=1e-3, cull=False),
)
WARM = replace(
    IDLG,
    name="iDLG after feature matching",
    penalties=Penalties(variation=1e-4),
    warm=0.25,
)
SMOOTH = replace(
    WARM,
    name="iDLG after feature matching, smooth",
    penalties=Penalties(variation=1e-2),
)


@dataclass(frozen=True, eq=False)
class Guess:
    """Images [images, *shape] in [0, 1], their labels int64[images], and how they were found."""

    images: Tensor
    labels: Tensor
    found: Found


def invert(
    attack: Inversion,
    observation: Observation,
    prior: Tensor,
    *,
    restarts: int,
    generator: torch.Generator,
    steps: int = 400,
    seconds: float = 60.0,
    images: int | None = None,
    labels: Tensor | None = None,
    skip: frozenset[str] = frozenset(),
    state: Path | None = None,
    progress: Progress | None = None,
) -> Guess:
    """The attack on one observation.

    prior: the attacker's own images [P, *shape]. restarts: starts. steps, seconds: most per
    search. images: how many to guess if not all of the client's. labels: what the attacker knows
    anyway (in fishing, the class fished for); truths given here make the result an upper bound.
    state: a .safetensors file, to continue from where a search was cut off.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if labels is None and attack.known_labels:
        single = observation.knowledge.images == 1
        labels = idlg(observation) if single else bias_corrected(observation, prior)
    objective = Matching(
        observation, labels, attack.distance, attack.penalties, skip, images, device
    )
    starts = _starts(attack, objective, prior, restarts, generator).to(device)
    known = observation.knowledge
    box = ((0 - known.mean) / known.deviation, (1 - known.mean) / known.deviation)
    plan = replace(attack.plan, steps=steps, seconds=seconds)
    if plan.optimiser == "adam" and attack.known_labels:
        plan = replace(plan, box=box)
    if attack.warm and objective.count == 1 and linear_layers(observation)[-1].bias is not None:
        near = Features(observation, attack.penalties.variation, device)
        early = replace(plan, seconds=attack.warm * seconds, cull=False)
        begun = None if state is None else state.with_suffix(".warm")
        starts = search(near, starts, early, state=begun).points
        plan = replace(plan, seconds=(1 - attack.warm) * seconds)
    found = search(objective, starts, plan, state=state, progress=progress)
    inputs = objective.inputs(found.point).detach().cpu()
    return Guess(known.shown(inputs), objective.label_of(found.point).cpu(), found)


class Features:
    """‖h(x) − h‖²/‖h‖² for the last layer's input h that the observation gives away, one image."""

    def __init__(self, observation: Observation, variation: float, device: str) -> None:
        known = observation.knowledge
        self._shape, self._variation = (1, *known.shape), variation
        self._network = copy.deepcopy(known.network).to(device).requires_grad_(False)
        self._last = [m for m in self._network.modules() if isinstance(m, nn.Linear)][-1]
        self._target = features_of(observation).to(device)
        self._energy = self._target.square().sum().clamp_min(1e-30)
        self.key = hashlib.sha256(self._target.cpu().numpy().tobytes()).hexdigest()

    def __call__(self, point: Tensor, *, functional: bool) -> Tensor:
        """The objective of one point [n]; `functional` makes no difference here."""
        del functional
        inputs, seen = point.view(self._shape), []
        hook = self._last.register_forward_pre_hook(lambda _, found: seen.append(found[0]))
        self._network(inputs)
        hook.remove()
        away = (seen[0].flatten() - self._target).square().sum() / self._energy
        value: Tensor = away + self._variation * total_variation(inputs)
        return value


def _starts(
    attack: Inversion,
    objective: Matching,
    prior: Tensor,
    restarts: int,
    generator: torch.Generator,
) -> Tensor:
    """Points [R, n]; label logits, where they are searched, always start from noise."""
    starts = torch.randn(restarts, objective.size, generator=generator)
    if attack.start == "prior":
        known = objective.observation.knowledge
        chosen = torch.randint(len(prior), (restarts, objective.count), generator=generator)
        pixels = known.inputs(prior[chosen]).flatten(1)
        starts[:, : pixels.shape[1]] = pixels
    return starts
