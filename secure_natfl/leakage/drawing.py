"""Draws fresh sites of a run's records, trains what speaks at them, and keeps it for other arms.

What is drawn depends on the random generator's state and not on the arm, so that all arms of a row
show the same sites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor

from attacks.answers.laboratory import Floats
from protocols.mechanisms import TrainedOutput
from secure_natfl.leakage.answer_arms import Arms, Said
from secure_natfl.leakage.attacked import AnswersRun
from secure_natfl.leakage.head_speakers import HeadSpeakers
from secure_natfl.leakage.pool import Pool, Rows
from secure_natfl.leakage.speakers import Speakers
from secure_natfl.systems.betas import Answer

_KEPT: Final = 4  # draws that are kept for the next arm


@dataclass(frozen=True, eq=False)
class Drawn:
    """Sites (rows of the pool), what they said in each round, and what they say of other images."""

    sites: list[Rows]
    rounds: list[Said]
    words: Floats

    def first(self, count: int) -> Drawn:
        """The first so many sites."""
        rounds = [one.first(count) for one in self.rounds]
        return Drawn(self.sites[:count], rounds, self.words[:count])


class Drawing:
    """Sites like those of a run. rounds: so many of its rounds are seen, from the first.

    clear: whether the arms "clear" and "clipped" will be asked for; without them it takes half the
    time where heads are trained under noise.
    """

    def __init__(self, run: AnswersRun, rounds: int, *, clear: bool = True) -> None:
        self.run, self.arms, self._clear = run, Arms.of(run), clear
        self.count = min(rounds, len(run.plans))
        self._cache: dict[object, Drawn] = {}
        self._population: dict[str, Drawn] = {}

    @cached_property
    def speakers(self) -> Speakers | HeadSpeakers:
        """What speaks, with the first site's architecture where each has its own."""
        mechanism = self.arms.mechanism
        if isinstance(mechanism, TrainedOutput):
            return HeadSpeakers(self.run, mechanism.training, self.count, clear=self._clear)
        architecture = self.run.federation.sites[0].architecture
        return Speakers(self.run, architecture, mechanism.shards, self.count)

    @cached_property
    def pool(self) -> Pool:
        """All private records."""
        return Pool.of(self.run.federation, self.speakers.backbone)

    @cached_property
    def most(self) -> int:
        """Records of a drawn site at most: those of the run's first site, if the pool has them."""
        return self.pool.largest(len(self.run.federation.sites[0].train))

    def drawn(self, count: int, random: np.random.Generator, *, shadow: bool) -> Drawn:
        """Sites with what they said in every round: the same for all rows that ask for so many.

        `random` is the attacker's, and does not move them.
        """
        del random
        kind = "shadows" if shadow else "sites"
        drawn = self._population.get(kind)
        if drawn is None or len(drawn.sites) < count:
            own = np.random.default_rng(self.run.folder.seeds.integer("leakage", kind))
            rows = self.fresh(count, own, shadow=shadow)
            drawn = self._population[kind] = self._play(rows, own, None, None)
        return drawn.first(count)

    def fresh(self, count: int, random: np.random.Generator, *, shadow: bool) -> list[Rows]:
        """Fresh sites, not trained yet."""
        return [self.pool.site(self.most, random, shadow=shadow) for _ in range(count)]

    def round(self, sites: list[Rows], number: int, random: np.random.Generator) -> Said:
        """What these sites say in round `number`."""
        return _joined([said for said, _ in self._spoken(sites, number, random, None, None)])

    def any_site(
        self, *, shadow: bool, without: Rows | None = None
    ) -> Callable[[int, np.random.Generator], Rows]:
        """A rule that draws any site of a half, but for some rows."""

        def site(_: int, random: np.random.Generator) -> Rows:
            rows = self.pool.site(self.most, random, shadow=shadow)
            return rows if without is None else np.setdiff1d(rows, without)

        return site

    def draw(
        self,
        kind: object,
        count: int,
        random: np.random.Generator,
        site: Callable[[int, np.random.Generator], Rows],
        proxies: Floats | None = None,
        words: Tensor | None = None,
    ) -> Drawn:
        """Draw and train sites, or take those of an earlier arm that began in the same state."""
        own = np.random.default_rng(int(random.integers(1 << 62)))
        key = (kind, count, str(own.bit_generator.state))
        if key not in self._cache:
            rows = [site(at, own) for at in range(count)]
            while len(self._cache) >= _KEPT:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = self._play(rows, own, proxies, words)
        return self._cache[key]

    def _play(
        self,
        sites: list[Rows],
        random: np.random.Generator,
        proxies: Floats | None,
        words: Tensor | None,
    ) -> Drawn:
        rounds, spoken = [], np.zeros((len(sites), 0, self.arms.classes))
        for number in range(self.count):
            asked = None if proxies is None else torch.from_numpy(proxies[number]).float()
            both = list(self._spoken(sites, number, random, asked, words))
            parts, said = [one for one, _ in both], [one for _, one in both if one is not None]
            rounds.append(_joined(parts))
            spoken = np.concatenate(said) if said else spoken
        return Drawn(sites, rounds, spoken)

    def _spoken(
        self,
        sites: list[Rows],
        number: int,
        random: np.random.Generator,
        asked: Tensor | None,
        words: Tensor | None,
    ) -> Iterator[tuple[Said, Floats | None]]:
        """Train and ask, some sites at a time; and their own words on further features."""
        speakers = self.speakers
        if isinstance(speakers, HeadSpeakers):
            for head in speakers.trained(self.pool, sites, number, random):
                said = self.arms.said(speakers.answers(head, number, asked))
                yield said, None if words is None else _words(speakers.ask(head, words), 1)
            return
        for heads in speakers.trained(self.pool, sites, number, random):
            said = self.arms.said(speakers.answers(heads, number, asked))
            yield said, None if words is None else _words(speakers.ask(heads, words), heads.sites)

    def seen(self, arm: str, drawn: Drawn, random: np.random.Generator) -> Floats:
        """What an arm shows of all rounds: [sites, rounds, rows, columns]."""
        return np.stack([self.arms.seen(arm, said, random) for said in drawn.rounds], 1)


def _joined(parts: Sequence[Said]) -> Said:
    trained = [one.trained for one in parts if one.trained is not None]
    return Said(
        np.concatenate([one.clear for one in parts]),
        tuple(bounded for one in parts for bounded in one.bounded),
        np.concatenate(trained) if trained else None,
    )


def _words(answer: Answer, sites: int) -> Floats:
    """What the mean of a site's teachers says: [sites, m, classes]."""
    logits = answer.xray.view(sites, -1, *answer.xray.shape[1:])
    words: Floats = logits.mean(1).double().numpy()
    return words
