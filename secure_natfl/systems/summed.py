"""What a system that learns from sums is to the run loop: what it sends, and what it makes of sums.

A round has one or more phases. In each, every site of the cohort gives one vector, the vectors of
a group are weighted and added under whatever protection was configured, and the system sees the
sum alone. A system knows nothing of keys, noise or messages. `secure_natfl.summed.run` plays it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from protocols.errors import ConfigError
from protocols.quantize import Layout
from secure_natfl.config import Config
from secure_natfl.federation import Federation, Site
from secure_natfl.seeds import Seeds
from secure_natfl.systems.private_head import Begin

Vector = NDArray[np.float64]
Rows = NDArray[np.int64]
Trait = str | int | float | bool

SPAN: Final = 4.0
"""Largest absolute value sent where training is under noise; a weight hardly moves so far."""

SITE: Final = "site/"
"""How the names of a site's own tensors begin in `SummedSystem.state`: site/NAME/whatever."""


@dataclass(frozen=True)
class Phase:
    """One opened sum of a round.

    name: unique within the round. layout: named segments of one vector; where a value is not
    finite, the segment's name is what the user reads, so name it after the layer. span: largest
    absolute value that is sent where training is under noise (dp-sgd); it bounds no privacy loss.
    """

    name: str
    layout: Layout
    span: float = SPAN


@dataclass(frozen=True, eq=False)
class Summed:
    """What was opened for one group in one phase.

    values: the weighted sum Σα·v [layout.size], each v on the grid and clipped. weight: Σα of
    the `participants` that are in it. noise: standard deviation of the noise on each number of
    the sum; 0 without noise at release.
    """

    values: Vector
    weight: float
    participants: tuple[str, ...]
    noise: float

    @property
    def mean(self) -> Vector:
        """The weighted mean Σα·v / Σα [layout.size]."""
        return self.values / self.weight


class SummedSystem(Protocol):
    """One federated system; every method says who runs it in a real federation.

    The order of a round: `cohort`, then for each of `phases` `contribute` at every site of the
    cohort and `absorb` at the server, then `personalise` at every site. Every random choice comes
    from `seeds.torch(purpose, site, round)`, so that a resumed run repeats it.
    """

    name: str
    """The `kind` of its configuration table."""
    reconstruction: str
    """One sentence with the citation; it says "reconstruction" where it is one."""

    def phases(self, round_number: int) -> tuple[Phase, ...]:
        """The sums of a round, in order: as many as `config.system.phases`, the same every round.

        Known to all before anything is trained; called before the first round too.
        """

    def asked(self, round_number: int, phase: str) -> Rows:
        """Public images asked (indices into the proxies); empty where none are.

        Key holders refuse to open a second sum over an image: none is asked in two openings.
        """

    def cohort(self, round_number: int) -> tuple[str, ...]:
        """The sites of a round, in the federation's order; public, and fixed before round 0."""

    def group_of(self, site: Site) -> str:
        """The one sum that a site enters."""

    def weights(self) -> dict[str, int]:
        """Site → α ≥ 1, from declared figures alone; lowered where a group's floors ask for it."""

    def trained_parameters(self, site: Site) -> int:
        """How many parameters a site trains under noise, the size that `begin` is called with.

        Asked only under dp-sgd. A system that cannot train so raises ConfigError in its maker.
        """

    def contribute(self, site: Site, round_number: int, phase: str, begin: Begin | None) -> Vector:
        """At a site: its vector [layout.size] of this phase; the first phase trains.

        begin: under dp-sgd in the first phase, what charges and hands out the noisy steps; None
        everywhere else. Everything that is sent under dp-sgd, in later phases too, must be computed
        from what was so trained and from public figures alone. Not called for a site outside the
        cohort, nor again where a resumed run has the site's integers stored already.
        """

    def absorb(self, sums: Mapping[str, Summed], round_number: int, phase: str) -> None:
        """At the server: group → what was opened. A group that no site of the cohort is in, or
        that could not be opened, is missing.
        """

    def personalise(self, site: Site, round_number: int) -> float | None:
        """At every site, of the cohort or not, after the last phase: the loss, None if nothing
        is trained.
        """

    def answering(self, site: Site) -> nn.Module:
        """What a site uses on its patients: images [n, ch, S, S] → logits [n, C] or [n, C, S, S].

        In evaluation mode.
        """

    def central(self, site: Site) -> nn.Module | None:
        """The shared model as it applies to a site's task; None where there is none."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the next phase or round needs, public pieces and sites' own.

        A site's own tensors are named "site/NAME/…" and count as private; all others are known to
        everybody. Asked after `contribute` of all sites, after `absorb` and after `personalise`.
        """

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave, in a system that was just made."""

    def parts(self) -> dict[str, bool]:
        """For the report: what is on and off."""

    def traits(self) -> dict[str, Trait]:
        """For the report: further figures, as "compression ratio" or "parameters"."""


Maker = Callable[[Config, Federation, Seeds], SummedSystem]
"""`make` of a system's module. It refuses with ConfigError what the system cannot do."""

SYSTEMS: Final[Mapping[str, str]] = {
    "fedavg": "secure_natfl.systems.fedavg",
    "unimed": "secure_natfl.systems.unimed",
    "fedmic": "secure_natfl.systems.fedmic",
    "pppml-hmi": "secure_natfl.systems.pppml_hmi",
    "distilled": "secure_natfl.systems.distilled",
}
"""`system.kind` → the module whose `make(config, federation, seeds)` builds it; read on demand."""


def make_system(config: Config, federation: Federation, seeds: Seeds) -> SummedSystem:
    """The system that `config.system.kind` names. ConfigError where it is not one of sums."""
    kind = config.system.kind
    if kind not in SYSTEMS:
        raise ConfigError(
            f"{kind} does not learn from sums of updates",
            where="system.kind",
            fix=f"choose one of {', '.join(SYSTEMS)}",
        )
    maker: Maker = importlib.import_module(SYSTEMS[kind]).make
    return maker(config, federation, seeds)
