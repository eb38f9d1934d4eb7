"""What systems have in common whose sites learn in groups, a shared network to each group."""

from __future__ import annotations

import numpy as np

from protocols.errors import ConfigError
from secure_natfl.config import Config
from secure_natfl.federation import Federation, Site
from secure_natfl.seeds import Seeds
from secure_natfl.system_tables import Summing
from secure_natfl.systems.cohorts import declared_weights, drawn_cohort
from secure_natfl.systems.summed import Rows


class Grouped:
    """The part of `SummedSystem` that follows from declared figures.

    A system that is one sets the four attributes when it is made; options: its own table.
    """

    config: Config
    options: Summing
    federation: Federation
    seeds: Seeds

    def asked(self, round_number: int, phase: str) -> Rows:
        """No public image is asked."""
        del round_number, phase
        return np.zeros(0, dtype=np.int64)

    def cohort(self, round_number: int) -> tuple[str, ...]:
        """The configured share of each group, drawn anew each round."""
        fewest = self.config.aggregation.min_participants
        return drawn_cohort(
            self.options, self.federation, self.group_of, round_number, self.seeds, fewest
        )

    def group_of(self, site: Site) -> str:
        """Sites of a group share one sum, and what is made of it."""
        return site.group

    def weights(self) -> dict[str, int]:
        """α of every site: 1, or its declared size against the smallest of its group, capped."""
        return declared_weights(self.options, self.federation, self.group_of)


def one_architecture(federation: Federation) -> str:
    """The architecture of all sites; ConfigError where there are several."""
    names = sorted({site.architecture for site in federation.sites})
    if len(names) > 1:
        raise ConfigError(
            f"the sites have {len(names)} architectures: {', '.join(names)}",
            where="data.hospitals.architectures",
            why="weights of different networks cannot be averaged",
            fix=f'give all hospitals architectures = ["{names[0]}"], or take natimg-fl',
        )
    return names[0]
