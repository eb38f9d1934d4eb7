"""L1 at other promises: the same sites under the run's mechanism, calibrated for other ε."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np

from attacks.answers.laboratory import Knowledge, Seen, Sites
from attacks.answers.table import label_row
from attacks.rows import Row
from secure_natfl.config import DpSgd, ShardTeachers
from secure_natfl.federation import Federation
from secure_natfl.leakage.answer_lab import RunAnswers
from secure_natfl.leakage.attacked import AnswersRun
from secure_natfl.leakage.record import OVER_EPSILON
from secure_natfl.models import Network
from secure_natfl.systems.natimg_fl import NatImgFL
from secure_natfl.terms import Terms

LEVELS: Final = {"ε = 8": 8.0, "ε = 4": 4.0, "ε = 2": 2.0, "ε = 1": 1.0}
"""Arm → ε of every site over all rounds, from the least noise to the most."""


@dataclass(frozen=True, eq=False)
class Supposed(AnswersRun):
    """A run as it would have been under another ε; images, networks and plans are the actual's."""

    actual: AnswersRun

    @classmethod
    def of(cls, run: AnswersRun, epsilon: float) -> Supposed:
        """The run with another `privacy.epsilon`; PrivacyError where no noise can promise it."""
        privacy = run.config.privacy.model_copy(update={"epsilon": epsilon})
        config = run.config.model_copy(update={"privacy": privacy})
        return cls(run.folder, config, run.transcript, run.report, run.stages, run)

    @cached_property
    def federation(self) -> Federation:
        """The actual run's."""
        return self.actual.federation

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The actual run's."""
        return self.actual.networks

    @cached_property
    def system(self) -> NatImgFL:
        """The actual run's."""
        return self.actual.system

    @cached_property
    def terms(self) -> Terms:
        """What the parties would have agreed on."""
        return self.actual.agreed_under(self.config)


@dataclass(frozen=True, eq=False)
class _OverEpsilon:
    """A `PopulationLab` whose arms are the mechanism at several ε, one made at a time."""

    run: AnswersRun
    clear: RunAnswers
    _made: dict[str, RunAnswers] = field(default_factory=dict)

    def knowledge(self, arm: str) -> Knowledge:
        return self._lab(arm).knowledge(_shown(arm))

    def sites(
        self, arm: str, count: int, random: np.random.Generator, *, shadow: bool
    ) -> tuple[Seen, Sites]:
        return self._lab(arm).sites(_shown(arm), count, random, shadow=shadow)

    def _lab(self, arm: str) -> RunAnswers:
        if arm not in LEVELS:
            return self.clear
        if arm not in self._made:
            self._made.clear()
            supposed = Supposed.of(self.run, LEVELS[arm])
            self._made[arm] = RunAnswers(supposed, self.clear.count, clear=False)
        return self._made[arm]


def _shown(arm: str) -> str:
    return "protected" if arm in LEVELS else arm


def over_epsilon_rows(run: AnswersRun, lab: RunAnswers, shadows: int) -> Sequence[Row]:
    """L1e, where the run's mechanism has an ε; `lab` is the run's own and gives the clear arm."""
    if not isinstance(run.config.privacy, DpSgd | ShardTeachers):
        return ()
    row = label_row(_OverEpsilon(run, lab), shadows)
    return (
        replace(
            row,
            id=OVER_EPSILON,
            title="Label distribution of a site, at other ε",
            view="clear: one client's answers; ε = …: what the run's coalition would have seen",
            arms=("clear", *LEVELS),
            tier="full",
        ),
    )
