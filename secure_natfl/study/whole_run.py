"""A cell that is one whole run of a system that learns from sums: as it is, or in the clear.

Figures are of each site's own test part: a site of unlike patients is not asked for others'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from protocols.chain import canonical, digest
from protocols.outcome import Outcome
from secure_natfl.federation import Site
from secure_natfl.report.model import Scores
from secure_natfl.results import SummedResults
from secure_natfl.schedule import Agreed
from secure_natfl.study.file import Model
from secure_natfl.study.folder import Record
from secure_natfl.summed.evaluation import site_scores
from secure_natfl.summed.run import SummedRun
from secure_natfl.summed.state import last_sent, sent_of
from secure_natfl.systems.summed import Summed, Vector

METRICS = ("accuracy", "auroc", "dice")


class ClearRun(SummedRun):
    """What every system does where nothing protects its sums: neither clip, nor grid, nor keys.

    The rounds of `plain` are played, and the ledgers charged, as in any run without noise; but what
    the server takes up is the weighted sum of the vectors as the sites computed them, in double
    precision. Bytes are those of `plain`.
    """

    def _contributions(
        self, opening: int, number: int, agreed: Agreed
    ) -> tuple[dict[str, Vector], int]:
        due, _ = super()._contributions(opening, number, agreed)
        # All of the cohort, also those whose integers a killed run had stored.
        step = last_sent(self.folder, opening)
        self._as_computed = due if step is None else sent_of(self.folder.intact(step))
        return due, 0

    def _read(self, agreed: Agreed, outcome: Outcome, sums: dict[str, Vector]) -> dict[str, Summed]:
        alphas, sent = agreed.terms.alphas, self._as_computed
        return {
            group: replace(
                one, values=np.sum([alphas[site] * sent[site] for site in one.participants], axis=0)
            )
            for group, one in super()._read(agreed, outcome, sums).items()
        }


def record_of(results: SummedResults, models: Sequence[Model]) -> Record:
    """What is kept of a run: every figure at every site, and what tells its sums from another's."""
    opened = [sha for one in results.rounds for sha in one["aggregate_sha256"]]
    return {
        "system": results.system.name,
        "figures": [
            figure | {"hospital": site.hospital, "site": site.name, "images": len(site.test)}
            for site in results.federation.sites
            for figure in _figures(results, site, models)
        ],
        "sums_sha256": digest(canonical(opened)),
        "clipped": sum(one["clipped"] for one in results.rounds),
        "sent": sum(len(one["cohort"]) for one in results.rounds) * len(results.schedule.agreed),
    }


def _figures(results: SummedResults, site: Site, models: Sequence[Model]) -> Iterator[Record]:
    for model in models:
        network = _network(results, site, model)
        if network is not None:
            for metric, value in _values(site_scores(network, site)):
                yield {"model": model, "metric": metric, "value": value}


def _network(results: SummedResults, site: Site, model: Model) -> nn.Module | None:
    """What answers at a site; None where the system has no such model."""
    if model == "personalised":
        return results.system.answering(site)
    if model == "central":
        return results.system.central(site)
    return results.arms[model][site.name]


def _values(scores: Scores) -> Iterator[tuple[str, float]]:
    """The figures that are defined on a test part; masks have a Dice score alone."""
    for metric in METRICS:
        found = getattr(scores, metric)
        if found is not None:
            yield metric, found.value
