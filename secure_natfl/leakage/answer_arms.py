"""What is seen of sites under each arm: the run's own mechanism, weights and coalition.

Answers of many teachers in, observations out, in the unit of one mean answer. Every release is
charged to a ledger that is thrown away; its noise is drawn from a seed, for a study repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from attacks.answers.laboratory import Knowledge
from protocols.errors import ConfigError
from protocols.ledger import Ledger, ReleaseKey
from protocols.mechanisms import Bounded, NoNoise, ShardTeachers, TrainedOutput
from protocols.promises import PROMISES
from protocols.quantize import Layout
from protocols.sampler import seeded_random
from secure_natfl.config import Config, DpSgd
from secure_natfl.exposure import hides_from_server
from secure_natfl.leakage.attacked import AnswersRun

Floats = NDArray[np.float64]
ARMS: Final = ("clear", "clipped", "noised", "protected", "aggregate")
_PER_LEDGER: Final = 50  # a ledger searches its lines one by one


@dataclass(frozen=True, eq=False)
class Said:
    """What sites said in one round, still theirs: clear means [sites, size], and clipped sums."""

    clear: Floats
    bounded: tuple[Bounded, ...]
    trained: Floats | None = None
    """What leaves sites whose heads were trained under noise: [sites, size]."""

    def first(self, count: int) -> Said:
        """Of the first so many sites."""
        trained = None if self.trained is None else self.trained[:count]
        return Said(self.clear[:count], self.bounded[:count], trained)


@dataclass(frozen=True)
class Arms:
    """The arms of a run.

    honest: sites whose parts remain in the sum that its coalition sees. exposed: whether the mode
    shows the server single contributions, as modes without encryption do.
    """

    mechanism: ShardTeachers | NoNoise | TrainedOutput
    layout: Layout
    classes: int
    group: int
    honest: int
    exposed: bool
    multi_label: bool

    @classmethod
    def of(cls, run: AnswersRun) -> Arms:
        """As of the first site's group. ConfigError where no shard heads speak."""
        site = run.federation.sites[0]
        mechanism = run.terms.mechanisms[site.name]
        trained = isinstance(mechanism, TrainedOutput) and _heads_alone(run.config)
        if not trained and mechanism.shards < 2:
            raise ConfigError(
                f"answers of {run.config.privacy.mechanism} are not drawn for many sites",
                where="attacks on answers",
                why="a laboratory trains heads, many sites at once, and no deeper layers",
                fix="attack a run in which heads on the public backbone speak, or the other rows",
            )
        group = len(run.terms.groups[run.system.group_of(site)])
        honest = mechanism.honest if isinstance(mechanism, ShardTeachers) else group - 1
        exposed = not hides_from_server(PROMISES[run.config.mode])
        if trained or exposed:
            # Whoever colludes: all others may have taken off their own parts.
            honest = 1
        return cls(
            mechanism,
            run.system.layout(run.config.proxies.per_round),
            len(run.federation.task.classes),
            group,
            honest,
            exposed,
            run.federation.task.multi_label,
        )

    def said(self, teachers: Floats) -> Said:
        """Teachers' answers [sites, M, size] within the clip, beside their means.

        Of heads trained under noise: the clear and the noised one's [sites, 2, size].
        """
        mechanism = self.mechanism
        if isinstance(mechanism, TrainedOutput):
            sent = np.stack([mechanism.total(one[1:]) for one in teachers])
            return Said(teachers[:, 0], (), mechanism.grid.dequantise(sent))
        return Said(
            teachers.mean(1),
            tuple(mechanism.bound(one, self.layout) for one in teachers),
        )

    def seen(self, arm: str, said: Said, random: np.random.Generator) -> Floats:
        """What one round shows of each site: [sites, rows, columns]."""
        if arm == "clear" or (arm == "clipped" and said.trained is not None):
            return self._matrices(said.clear)
        if said.trained is not None:
            return self._matrices(self._summed(said.trained, self._parts(arm)) / self._parts(arm))
        if arm == "clipped":
            sums = np.stack([one.values for one in said.bounded])
        else:
            sums = self._summed(self.released(said.bounded, random), self._parts(arm))
        unit = self.mechanism.shards * (1 if arm == "clipped" else self._parts(arm))
        return self._matrices(self.mechanism.grid.dequantise(sums) / unit)

    def knowledge(self, arm: str, proxies: Floats, pictures: Floats | None) -> Knowledge:
        """The public figures of an arm."""
        mechanism, noise = self.mechanism, 0.0
        if isinstance(mechanism, ShardTeachers) and arm not in ("clear", "clipped", "in-domain"):
            share = mechanism.sigma_share * mechanism.step / mechanism.shards
            noise = share / math.sqrt(self._parts(arm))
        return Knowledge(
            proxies=proxies,
            classes=self.classes,
            noise=noise,
            clip=self._clip(arm),
            pictures=pictures,
            multi_label=self.multi_label,
        )

    def sent(self, said: Said, random: np.random.Generator) -> Floats:
        """What each site really sends, its noise in it, in the unit of its mean answer."""
        if said.trained is not None:
            return said.trained
        return self.mechanism.grid.dequantise(self.released(said.bounded, random)) / (
            self.mechanism.shards
        )

    def within(self, vector: Floats) -> Floats:
        """One vector [size] of mean answers, brought within the bounds of an honest site."""
        mechanism = self.mechanism
        if isinstance(mechanism, TrainedOutput):
            return mechanism.grid.dequantise(mechanism.total(vector[None]))
        values = mechanism.bound(np.tile(vector, (mechanism.shards, 1)), self.layout).values
        return mechanism.grid.dequantise(values) / mechanism.shards

    def _clip(self, arm: str) -> float:
        if arm in ("clear", "in-domain") or isinstance(self.mechanism, TrainedOutput):
            return math.inf
        return self.mechanism.clip_norm

    def _parts(self, arm: str) -> int:
        """How many sites' equal parts are in the sum that is seen."""
        return {"noised": 1, "protected": self.honest, "aggregate": self.group}[arm]

    def _summed(self, released: NDArray[Any], parts: int) -> NDArray[Any]:
        """Each site's release with those of its neighbours, who are other drawn sites."""
        total: NDArray[Any] = np.sum([np.roll(released, at, 0) for at in range(parts)], axis=0)
        return total

    def released(
        self, bounded: Sequence[Bounded], random: np.random.Generator
    ) -> NDArray[np.int64]:
        """Each site's release, its own noise in it: int64[sites, size]."""
        noise, mechanism, made = seeded_random(random.bytes(32)), self.mechanism, []
        if isinstance(mechanism, TrainedOutput):
            raise TypeError("what was trained under noise is released as it was said")
        for start in range(0, len(bounded), _PER_LEDGER):
            with Ledger(Path(":memory:"), "a", "study", budget_epsilon=None, delta=1e-5) as ledger:
                for at, one in enumerate(bounded[start : start + _PER_LEDGER]):
                    key = ReleaseKey(f"trial-{at}", 0)
                    made.append(mechanism.release(one, ledger, key, noise).values)
        return np.stack(made)

    def _matrices(self, vectors: Floats) -> Floats:
        """Vectors [sites, size] as [sites, rows, columns]: classes, then denominators."""
        return np.stack([np.hstack([*self.layout.unpack(one).values()]) for one in vectors])


def _heads_alone(config: Config) -> bool:
    return isinstance(config.privacy, DpSgd) and config.privacy.layers == "head"
