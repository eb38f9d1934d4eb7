"""Groups of the small sites of `small_sites`, for attacks on sums."""

import numpy as np

from attacks.answers.laboratory import Candidates
from attacks.answers.students import students
from attacks.sums.laboratory import Admissions, Dialogue, Incident, Published
from tests.attacks.small_sites import RECORDS, SmallSites


class SmallSums:
    """Groups of `group` small sites with equal weights."""

    def __init__(self, **options):
        self.small = SmallSites(**options)
        self.group, self.classes = self.small.group, self.small.classes
        self._last = None, None

    def knowledge(self, arm):
        return self.small.knowledge(arm)

    def drawn(self, count, random):
        shares = random.dirichlet(np.full(self.classes, 0.5), count)
        labels = [random.choice(self.classes, RECORDS, p=share) for share in shares]
        return [self.small.records(random, one) for one in labels]

    def spoken(self, heads, arm="clear"):
        return self.small.through(arm, heads, self.knowledge(arm).proxies, None)

    def incidents(self, arm, count, random):
        """Undefended: all, and all but the victim. Protected: one sum, and one colluder's part."""
        everyone, eye = np.ones((1, self.group), np.int64), np.eye(self.group, dtype=np.int64)
        second = everyone - eye[:1] if arm == "feigned dropout" else eye[-1:]
        weights = np.vstack([everyone, second])
        heads = self.small.train(self.drawn(count * self.group, random), random)
        within = "clear" if arm == "feigned dropout" else "clipped"
        clear = self.spoken(heads, within)
        sent = clear if arm == "feigned dropout" else self.spoken(heads, "noised")
        noise = 0.0 if arm == "feigned dropout" else self.knowledge("noised").noise
        shadows = self.small.train(self.drawn(30, random), random)
        prior = self.spoken(shadows, within).mean(0).ravel()
        for at in range(count):
            members = slice(at * self.group, (at + 1) * self.group)
            vectors = sent[members].reshape(self.group, -1)
            published = Published(weights, weights @ vectors, noise)
            yield Incident(published, 0, clear[members][0].ravel(), prior)

    def admissions(self, arm, count, random):
        drawn = self.drawn(count, random)
        images, labels = self.small.records(random, random.integers(0, self.classes, count))
        admitted = random.random(count) < 0.5
        later = [
            (np.concatenate([x, images[[at]]]), np.append(y, labels[at]))
            if admitted[at]
            else (x, y)
            for at, (x, y) in enumerate(drawn)
        ]
        half = self.small.rounds // 2
        first, second = (
            self.small.through(
                arm, self.small.train(one, np.random.default_rng(3)), proxies, random
            )
            for one, proxies in zip(
                (drawn, later), np.split(self.knowledge(arm).proxies, [half]), strict=True
            )
        )
        candidates = Candidates(self.small.features(images), np.eye(self.classes)[labels])
        answers = np.concatenate([first, second], 1)
        return Admissions(answers, half, candidates, admitted)

    def dialogues(self, arm, count, random):
        """A victim whose weight is its sureness; protected: noised, and never the same rows."""
        heads = self.small.train(self.drawn(count, random), random)
        answers = self.spoken(heads)[:, 0]
        noise = 0.0 if arm == "quotient shown" else self.knowledge("noised").noise
        sure = 1 - _entropy(answers) / np.log(self.classes)
        for at in range(count):
            yield self._dialogue(answers[at], sure[at], sure.mean(0), noise, random)

    def _dialogue(self, answers, sure, passive, noise, random):
        def ask(numerators, denominators):
            rows = np.arange(len(answers)) if noise == 0 else random.permutation(len(answers))
            above = (sure[:, None] * answers)[rows] + numerators
            below = sure[rows, None] + denominators
            above = above + noise * random.normal(size=above.shape)
            below = below + noise * random.normal(size=below.shape)
            return above / np.where(np.abs(below) < 1e-6, 1e-6, below)

        return Dialogue(ask, len(answers), self.classes, sure, passive, noise)

    def central_accuracy(self, arm, poison, seed, *, shadow):
        if self._last[0] != seed:
            self._last = seed, self._federation(np.random.default_rng(seed))
        answers, test, truth = self._last[1]
        if poison is None:
            answers = answers[1:]
        else:
            answers = np.concatenate([poison(answers[0])[None], answers[1:]])
        if arm != "unbounded":
            answers = self.small.bounded("clipped" if arm == "clipped" else "noised", answers)
        mean = answers.mean(0, keepdims=True)
        said = students(mean, self.knowledge("clear"), self.small.features(test))[0]
        return float((said.argmax(-1) == truth).mean())

    def _federation(self, random):
        """Answers of a group that has all classes, and private test images."""
        labels = [random.integers(0, self.classes, RECORDS) for _ in range(self.group)]
        heads = self.small.train([self.small.records(random, one) for one in labels], random)
        return self.spoken(heads), *self.small.records(
            random, random.integers(0, self.classes, 200)
        )


def _entropy(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
    return -(p * np.log(np.maximum(p, 1e-12))).sum(-1)
