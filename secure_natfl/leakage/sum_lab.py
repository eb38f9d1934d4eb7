"""The laboratory of attacks on weighted sums: groups of fresh sites, played by the run's own rules.

Implements the parts of `attacks.sums.laboratory.SumLab` that need no training at the server;
`poisoning_lab` has the rest. Numbers are in the unit of one mean answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
import torch

from attacks.answers.laboratory import Bools, Candidates, Floats, Knowledge
from attacks.sums.laboratory import Admissions, Dialogue, Incident, Published
from protocols.errors import ConfigError, ProtocolError
from protocols.mechanisms import ShardTeachers
from protocols.policy import check_retry
from secure_natfl.leakage.answer_arms import Said
from secure_natfl.leakage.answer_lab import RunAnswers
from secure_natfl.leakage.pool import Rows
from secure_natfl.systems.betas import Answer, entropy

_ALIKE: Final = 1e-6


class RunSums:
    """Groups of sites like the run's, drawn by its laboratory of answers."""

    def __init__(self, answers: RunAnswers) -> None:
        self.answers, self.arms, self.run = answers, answers.arms, answers.run
        self._admitted: dict[object, tuple[list[Said], Rows, Bools]] = {}

    def knowledge(self, arm: str) -> Knowledge:
        """Public figures of an arm, for all rounds."""
        return self.answers.knowledge(arm)

    def incidents(self, arm: str, count: int, random: np.random.Generator) -> Iterator[Incident]:
        """Fresh groups, in each of which the first site is the victim.

        feigned dropout: the group's sum of the clear answers, and that without the victim.
        colluders: one sum of the clear answers, and all others' own parts. protected: the run's
        mechanism, weights and colluders; the second sum is there only if its key holders' rule
        would let it be opened.
        """
        said = self.answers.drawn(count, random, shadow=False).rounds[0]
        shadows = self.answers.drawn(count, random, shadow=True).rounds[0]
        protected = arm == "protected"
        vectors = self.arms.sent(said, random) if protected else said.clear
        answers, prior = (_own(one, protected=protected) for one in (said, shadows))
        weights = self._weights(arm)
        for at in range(count):
            members = (at + np.arange(self.arms.group)) % count
            published = Published(weights, weights @ vectors[members], self._share(arm))
            yield Incident(published, 0, answers[at], prior.mean(0))

    def admissions(self, arm: str, count: int, random: np.random.Generator) -> Admissions:
        """Sites over all rounds; from the middle on half of them hold one more known record."""
        rounds = self.answers.count
        if rounds < 2:
            raise ConfigError(
                "one round has no before and after",
                where="attacks over rounds",
                fix="attack a run of two rounds or more, in the full tier",
            )
        own = np.random.default_rng(int(random.integers(1 << 62)))
        key = (count, str(own.bit_generator.state))
        if key not in self._admitted:
            self._admitted = {key: self._admit(count, own)}
        said, candidate, admitted = self._admitted[key]
        seen = np.stack([self.arms.seen(arm, one, random) for one in said], 1)
        return Admissions(seen, rounds // 2, self._candidates(candidate), admitted)

    def _admit(self, count: int, random: np.random.Generator) -> tuple[list[Said], Rows, Bools]:
        """What fresh sites say in all rounds, their candidates, and which were taken in."""
        rounds = self.answers.count
        sites = self.answers.fresh(count, random, shadow=False)
        half = self.answers.pool.half(shadow=False)
        candidate = np.array([random.choice(np.setdiff1d(half, rows)) for rows in sites])
        admitted = random.random(count) < 0.5
        later = [
            np.append(rows, one) if new else rows
            for rows, one, new in zip(sites, candidate, admitted, strict=True)
        ]
        said = [
            self.answers.round(sites if number < rounds // 2 else later, number, random)
            for number in range(rounds)
        ]
        return said, candidate, admitted

    def dialogues(self, arm: str, count: int, random: np.random.Generator) -> Iterator[Dialogue]:
        """A victim's weights β on each proxy, and a malicious client that may ask once.

        quotient shown: of the two alone, without noise; the weights are the run's, or, where those
        are the same at all sites and hide nothing, the sites' confidence. protected: the run's
        group with its noise; what the malicious client sends is the only thing that it chooses.
        """
        if self.arms.layout.size == self.arms.classes * self._rows:
            raise ConfigError(
                "no weights travel with the answers",
                where="probing",
                fix='attack a run with system.beta other than "uniform"',
            )
        control, classes = arm == "quotient shown", self.arms.classes
        said = self.answers.drawn(count, random, shadow=False).rounds[0]
        usual = self.answers.drawn(count, random, shadow=True).rounds[0]
        clear, known = (self.arms.seen("clear", one, random) for one in (said, usual))
        settled = bool(np.ptp(known[:, :, classes:], axis=0).max() < _ALIKE)
        if control and settled:
            clear, known = (self._by_confidence(one) for one in (clear, known))
        passive = known[:, :, classes:].mean((0, 2))
        shown = clear if control else self.arms.seen("protected", said, random)
        noise = self.arms.knowledge(_as_answers(arm), np.zeros((1, 1, 1)), None).noise
        parts = 1 if control else self.arms.honest
        for at in range(count):
            found = self._dialogue(shown[at] * parts, clear[at], passive, noise)
            yield replace(found, settled=settled and not control)

    def _by_confidence(self, clear: Floats) -> Floats:
        """The same answers [sites, rows, columns], each weighted by how sure the site is of it."""
        classes = self.arms.classes
        logits = clear[:, :, :classes] / np.maximum(clear[:, :, classes:], _ALIKE)
        answer = Answer(
            torch.from_numpy(logits), torch.empty(0), torch.empty(0), self.arms.multi_label
        )
        weights = entropy(answer, torch.empty(0)).numpy()
        return np.concatenate(
            [weights * logits, np.broadcast_to(weights, clear[:, :, classes:].shape)], -1
        )

    @property
    def _rows(self) -> int:
        return self.arms.layout.segments[0].rows

    def _dialogue(self, others: Floats, clear: Floats, passive: Floats, noise: float) -> Dialogue:
        classes = self.arms.classes

        def ask(numerators: Floats, denominators: Floats) -> Floats:
            """N/D over all, as everybody reads it after the round."""
            above = others[:, :classes] + numerators
            below = others[:, classes:] + denominators
            return np.asarray(above / np.where(np.abs(below) < 1e-6, 1e-6, below))

        hidden = clear[:, classes:].mean(1)
        return Dialogue(ask, self._rows, classes, hidden, passive, noise)

    def _weights(self, arm: str) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """Which sums are written down: the group's, one without the victim, colluders' own."""
        group = self.arms.group
        everyone, alone = np.ones((1, group), np.int64), np.eye(group, dtype=np.int64)
        without = everyone.copy()
        without[0, 0] = 0
        if arm == "feigned dropout":
            return np.vstack([everyone, without])
        if arm == "colluders":
            return np.vstack([everyone, alone[1:]])
        second = [without] if self._second_sum_opens() else []
        own = alone if self.arms.exposed else alone[max(self.arms.honest, 2) :]
        return np.vstack([everyone, *second, own])

    def _second_sum_opens(self) -> bool:
        """What the run's own key holders say to a retry without one site, once a sum is open."""
        plan = self.run.plans[0]
        group = plan.groups[0]
        fewer = group.among(group.participants[1:])
        retry = plan.model_copy(
            update={"attempt": plan.attempt + 1, "groups": (fewer, *plan.groups[1:])}
        )
        try:
            check_retry(retry, plan, [group.name])
        except ProtocolError:
            return False
        return True

    def _share(self, arm: str) -> float:
        mechanism = self.arms.mechanism
        if arm != "protected" or not isinstance(mechanism, ShardTeachers):
            return 0.0
        return mechanism.sigma_share * mechanism.step / mechanism.shards

    def _candidates(self, rows: Rows) -> Candidates:
        features, targets = self.answers.pool.features[rows], self.answers.pool.targets[rows]
        return Candidates(features.double().numpy(), targets.double().numpy())


def _own(said: Said, *, protected: bool) -> Floats:
    """What the sites' own models say: of heads trained under noise, if these are what speaks."""
    return said.clear if said.trained is None or not protected else said.trained


def _as_answers(arm: str) -> str:
    return "clear" if arm == "quotient shown" else arm
