"""What every plan of a federation's releases promises, whatever its mechanism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocols.accounting import Spent, compose
from protocols.release import Mechanism


@dataclass(frozen=True)
class Plan:
    """Mechanisms and guarantees of all sites over all rounds; part of the signed round plan.

    mechanisms: site → its mechanism. groups: site → the group whose aggregate it enters. rounds:
    releases per site. delta: the target δ.
    """

    mechanisms: Mapping[str, Mechanism]
    groups: dict[str, str]
    rounds: int
    delta: float

    def spending(self, site: str) -> Spent:
        """What all rounds cost one unit of `site`, at this site's actual weight."""
        return compose([self.mechanisms[site].event()] * self.rounds, self.delta)

    @property
    def relation(self) -> str:
        """The neighbouring relation of every figure."""
        return next(iter(self.mechanisms.values())).event().relation

    @property
    def client_epsilons(self) -> dict[str, float]:
        """ε per site over all rounds, each at its own weight."""
        return {site: self.spending(site).epsilon for site in self.mechanisms}

    @property
    def worst(self) -> str:
        """The site with the largest ε."""
        epsilons = self.client_epsilons
        return max(epsilons, key=lambda site: epsilons[site])

    @property
    def epsilon(self) -> float:
        """ε of the worst client over all rounds."""
        return max(self.client_epsilons.values())

    @property
    def epsilon_isolated(self) -> float:
        """ε of the worst client if nobody else's noise remains: all others collude."""
        return max(self.spending(site).epsilon_isolated for site in self.mechanisms)

    @property
    def delta_total(self) -> float:
        """δ with the price of everything not ideal, worst client, all rounds."""
        return max(self.spending(site).delta_total for site in self.mechanisms)
