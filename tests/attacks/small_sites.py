"""A laboratory of small real sites: softmax heads on random features of synthetic images.

Private images are a class's pattern under a patient's own distortion; proxies are smooth textures
that have nothing to do with them. Clip and noise are those of the real mechanism.
"""

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from attacks.answers.laboratory import Candidates, Knowledge, Portraits, Seen, Sites, Victims
from protocols.ledger import Ledger
from protocols.mechanisms import NoNoise, ReleaseKey
from protocols.noise_plan import NoisePlan
from protocols.quantize import Layout, Segment
from protocols.sampler import seeded_random

SIDE, FEATURES, HIDDEN, RECORDS, OTHERS = 12, 40, 16, 60, 40
PER_LEDGER = 50  # a ledger searches its lines one by one
CLEAR = ("clear", "in-domain")


def textures(random, count, smooth):
    """Images [count, SIDE, SIDE] in [0, 1]."""
    rough = gaussian_filter(random.normal(size=(count, SIDE, SIDE)), (0, smooth, smooth))
    return np.clip(0.5 + 0.2 * rough / rough.std((1, 2), keepdims=True), 0, 1)


class SmallSites:
    """Sites under the arms of `attacks.answers.laboratory`; `epsilon` of the noised arms."""

    def __init__(self, seed=0, classes=4, rounds=2, rows=100, epsilon=8.0, group=4, steps=80):
        draw = np.random.default_rng(seed)
        self.classes, self.rounds, self.rows = classes, rounds, rows
        self.group, self.steps = group, steps
        self.patterns = textures(draw, classes, 2.0)
        weights = draw.normal(size=(SIDE * SIDE, FEATURES)) / SIDE
        self._project = torch.from_numpy(weights)
        self._trunk = torch.from_numpy(draw.normal(size=(FEATURES + 1, HIDDEN))).float() / 7
        self._beside = {}
        self.pictures = textures(draw, rounds * rows, 1.2).reshape(rounds, rows, SIDE, SIDE)
        raw = self._raw(self._flat(self.pictures))
        self._mean, self._deviation = raw.mean(0), raw.std(0)
        self.public = self.features(self._flat(self.pictures)).reshape(rounds, rows, FEATURES)
        self.pool = self.records(draw, np.arange(60) % classes)
        self.layout = Layout((Segment("numerators", rows, classes),))
        self._bits = seeded_random(bytes([seed]) * 32)
        sizes = {"clip_norm": 0.7 * rows**0.5, "size": rows * classes, "bits": 24}
        names = [f"s{at}" for at in range(group)]
        self._clipping = NoNoise.for_sites(shards={"s0": 1}, **sizes)["s0"]
        self._noising = NoisePlan.calibrate(
            epsilon=epsilon,
            delta=1e-5,
            rounds=rounds,
            alphas=dict.fromkeys(names, 1),
            groups=dict.fromkeys(names, "g"),
            colluders=1,
            dropouts=0,
            shards=dict.fromkeys(names, 1),
            **sizes,
        ).mechanisms["s0"]

    # Public parts.

    def knowledge(self, arm):
        in_domain = arm == "in-domain"
        noise = self._noising.sigma_share * self._noising.step
        shown = {"noised": noise, "protected": noise / self.group**0.5}
        shown["aggregate"] = shown["protected"]
        pictures = self._own_pictures() if in_domain else self.pictures
        proxies = self.features(self._flat(pictures)).reshape(*pictures.shape[:2], FEATURES)
        clip = np.inf if arm in CLEAR else self._clipping.clip_norm
        return Knowledge(proxies, self.classes, shown.get(arm, 0.0), clip, pictures)

    def backbone(self, images):
        hidden = functional.gelu((images.double().flatten(1) - 0.5) @ self._project)
        return (hidden - torch.from_numpy(self._mean)) / torch.from_numpy(self._deviation)

    def features(self, images):
        return (self._raw(images) - self._mean) / self._deviation

    def candidates(self):
        images, labels = self.pool
        return Candidates(self.features(images), np.eye(self.classes)[labels])

    # Private parts.

    def records(self, random, labels):
        """Images and labels of fresh patients."""
        own = textures(random, len(labels), 1.5)
        return np.clip(0.5 * self.patterns[labels] + 0.5 * own, 0, 1), labels

    def sites(self, arm, count, random, *, shadow):
        shares = random.dirichlet(np.full(self.classes, 0.5), count)
        sizes = np.where(random.random(count) < 0.5, RECORDS // 4, RECORDS)
        darker = random.integers(0, 2, count)
        drawn = []
        for share, size, dark in zip(shares, sizes, darker, strict=True):
            images, labels = self.records(random, random.choice(self.classes, size, p=share))
            drawn.append((images * (1 - 0.4 * dark), labels))
        truth = np.stack([np.bincount(y, minlength=self.classes) / len(y) for _, y in drawn])
        answers = self._shown(arm, drawn, random)
        return Seen(answers, self._metadata(arm, sizes, random)), Sites(
            truth, sizes, {"darker": darker}
        )

    def halves(self, arm, count, random, *, shadow, proxies=None):
        images, labels = self.pool
        inside = random.random((count, len(labels))) < 0.5
        drawn = [(images[row], labels[row]) for row in inside]
        return self._shown(arm, drawn, random, proxies), inside

    def victims(self, arm, count, random, *, shadow):
        def labels():
            share = random.dirichlet(np.full(self.classes, 0.5))
            return random.choice(self.classes, RECORDS, p=share)

        drawn = [self.records(random, labels()) for _ in range(count)]
        heads = self.train(drawn, random)
        tests = [
            self.features(self.records(random, random.integers(0, self.classes, 40))[0])
            for _ in range(count)
        ]
        asked = np.stack(tests)
        said = np.stack([_say(head, x) for head, x in zip(heads, asked, strict=True)])
        return self.through(arm, heads, self.knowledge(arm).proxies, random), Victims(asked, said)

    def portraits(self, arm, count, random):
        labels = np.arange(RECORDS) % self.classes
        drawn = [self.records(random, labels) for _ in range(count)]
        further = textures(random, 4, 2.0)
        gallery = np.concatenate([0.5 * self.patterns + 0.25, 0.5 * further + 0.25])
        place = np.tile(np.arange(self.classes), (count, 1))
        return self._shown(arm, drawn, random), Portraits(gallery, place)

    def train(self, drawn, random):
        """A head per site, a hidden layer from the public start and a softmax, on its own records.

        Returns trunks [sites, FEATURES + 1, HIDDEN] and outputs [sites, HIDDEN + 1, classes].
        """
        count, room = len(drawn), max(len(labels) for _, labels in drawn)
        x, y = np.zeros((count, room, FEATURES)), np.zeros((count, room, self.classes))
        for at, (images, labels) in enumerate(drawn):
            x[at, : len(labels)] = self.features(images)
            y[at, : len(labels)] = np.eye(self.classes)[labels]
        inputs, targets = torch.from_numpy(_with_one(x)).float(), torch.from_numpy(y).float()
        trunks = self._trunk.repeat(count, 1, 1).requires_grad_()
        outputs = torch.from_numpy(0.01 * random.normal(size=(count, HIDDEN + 1, self.classes)))
        outputs = outputs.float().requires_grad_()
        optimiser = torch.optim.Adam([trunks, outputs], lr=0.02)
        for _ in range(self.steps):
            optimiser.zero_grad()
            hidden = functional.gelu(inputs @ trunks)
            logits = hidden @ outputs[:, :-1] + outputs[:, -1:]
            each = -(targets * torch.log_softmax(logits, -1)).sum((1, 2))
            (each / targets.sum((1, 2))).sum().backward()
            optimiser.step()
        return list(zip(trunks.detach(), outputs.detach(), strict=True))

    def _shown(self, arm, drawn, random, proxies=None):
        proxies = self.knowledge(arm).proxies if proxies is None else proxies
        return self.through(arm, self.train(drawn, random), proxies, random)

    def through(self, arm, heads, proxies, random):
        """What is seen of each head's answers: [sites, rounds, rows, classes]."""
        made = np.stack([_say(head, proxies) for head in heads])
        made -= made.mean(-1, keepdims=True)
        if arm in CLEAR:
            return made
        if arm in ("clipped", "noised"):
            return self.bounded(arm, made)
        chosen = random.integers(0, OTHERS, (len(made), self.group - 1))
        sent = self._others(proxies, random)[chosen]
        return self.bounded("noised", np.concatenate([made[:, None], sent], 1)).mean(1)

    def _others(self, proxies, random):
        """Answers of a standing set of further sites, of which each group has some."""
        heads = self._beside.get("heads")
        if heads is None:
            labels = [random.choice(self.classes, RECORDS) for _ in range(OTHERS)]
            heads = self.train([self.records(random, one) for one in labels], random)
            self._beside["heads"] = heads
        sent = np.stack([_say(head, proxies) for head in heads])
        return sent - sent.mean(-1, keepdims=True)

    def bounded(self, arm, made):
        """Each round's answers [..., rows, classes] through the real mechanism."""
        mechanism = self._clipping if arm == "clipped" else self._noising
        matrices = made.reshape(-1, self.rows, self.classes)
        starts = range(0, len(matrices), PER_LEDGER)
        released = [self._sent(mechanism, matrices[at : at + PER_LEDGER]) for at in starts]
        return np.concatenate(released).reshape(made.shape)

    def _sent(self, mechanism, matrices):
        with Ledger(Path(":memory:"), "s0", "small", budget_epsilon=None, delta=1e-5) as ledger:
            sent = []
            for at, matrix in enumerate(matrices):
                teachers = self.layout.pack({"numerators": matrix})[None]
                bounded = mechanism.bound(teachers, self.layout)
                key = ReleaseKey(f"release-{at}", 0)
                values = mechanism.release(bounded, ledger, key, self._bits).values
                sent.append(self.layout.unpack(mechanism.grid.dequantise(values))["numerators"])
        return np.stack(sent)

    def _metadata(self, arm, sizes, random):
        """Clear weights follow the sizes; otherwise only the time shows, and says nothing."""
        seconds = random.gamma(5, 0.1, len(sizes))
        return {"seconds": seconds} | ({"weight": sizes / 15.0} if arm == "clear" else {})

    def _own_pictures(self):
        draw = np.random.default_rng(7)
        count = self.rounds * self.rows
        blend = draw.dirichlet(np.full(self.classes, 0.3), count)
        mixed = np.einsum("nk,kij->nij", blend, self.patterns)
        images = np.clip(0.7 * mixed + 0.3 * textures(draw, count, 1.5), 0, 1)
        return images.reshape(self.pictures.shape)

    def _raw(self, images):
        flat = torch.from_numpy(images.reshape(len(images), -1)) - 0.5
        return functional.gelu(flat @ self._project).numpy()

    @staticmethod
    def _flat(images):
        return images.reshape(-1, SIDE, SIDE)


def _say(head, features):
    trunk, output = head
    with torch.no_grad():
        hidden = functional.gelu(torch.from_numpy(_with_one(features)).float() @ trunk)
        return (hidden @ output[:-1] + output[-1]).double().numpy()


def _with_one(features):
    return np.concatenate([features, np.ones((*features.shape[:-1], 1))], -1)
