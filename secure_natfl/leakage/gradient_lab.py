"""The laboratory of attacks on gradients: the run's private images in clients that send updates.

Where answers to public images are all that leaves a site, the last arm is "nothing shown". Where
updates of weights are added up it is "protected": what the run's coalition sees of them. The other
arms are what others would have shown of the same images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch

from attacks.gradients.laboratory import Shared
from attacks.gradients.simulated import SimulatedLab
from attacks.rows import Tier
from protocols.chain import RandomBytes
from protocols.errors import ConfigError
from protocols.mechanisms import NoNoise, ShardTeachers, TrainedOutput
from protocols.promises import PROMISES
from protocols.sampler import seeded_random
from secure_natfl.data.arrays import DEVIATION, MEAN
from secure_natfl.exposure import hides_from_server
from secure_natfl.federation import Site, joined
from secure_natfl.leakage.attacked import AttackedRun, SumsRun
from secure_natfl.leakage.pool import Rows

Mechanism = NoNoise | ShardTeachers | TrainedOutput
_MOST_PRIVATE, _MOST_PUBLIC = 1000, 256
_MOST_OF_SITE = 64
STAGES: Final[Mapping[Tier, tuple[int, ...]]] = {"fast": (0, 1), "full": (0, 1, 10)}
"""Epochs of training before an attack: none, early and late; one trial after another."""


def gradient_lab(run: AttackedRun, tier: Tier = "full") -> SimulatedLab:
    """Training images, a thousand at most, are attacked; test images are the attacker's own.

    So the attacker is given images of the same hospitals but of other patients, the best prior
    that there could be. The networks under attack are trained on the images that are attacked. A
    run under dp-sgd lends its noise multiplier to the arm of that name, which is 1 otherwise. Of
    several tasks the first site's is played. ConfigError where that is not to classify.
    """
    sites = _alike(run)
    private = joined([site.train for site in sites])
    public = joined([site.test for site in sites])
    names = [f"{site.hospital}/{patient}" for site in sites for patient in site.train_patients]
    _, clusters = np.unique(names, return_inverse=True)
    attacked, chosen = (
        _some(len(private.images), _MOST_PRIVATE),
        _some(len(public.images), _MOST_PUBLIC),
    )
    return SimulatedLab(
        images=_shown(private.images[attacked]),
        labels=private.targets.argmax(1)[attacked],
        clusters=clusters.reshape(-1).astype(np.int64)[attacked],
        public=_shown(public.images[chosen]),
        public_labels=public.targets.argmax(1)[chosen],
        mean=MEAN,
        deviation=DEVIATION,
        classes=len(sites[0].task.classes),
        noise_multiplier=_multiplier(run),
        random=_study(run),
        epochs=STAGES[tier],
        shared=shared_by(run, sites) if isinstance(run, SumsRun) and run.sends_updates else None,
    )


def shared_by(run: SumsRun, sites: Sequence[Site]) -> Shared:
    """What the coalition sees of updates in the first site's group, with the least in their way.

    The server and every listener, and all clients but those whose honesty the run counts on: with
    noise at release as many as its plan says, without it the others less one, under dp-sgd none
    but the victim. A mode that shows single updates leaves one, too. A site is taken to have no
    more than 64 images, which are the fewer to look among.
    """
    terms, first = run.terms, sites[0]
    group, mechanism = run.system.group_of(first), run.terms.mechanisms[first.name]
    members = terms.groups[group]
    asked = [len(set(members) & set(cohort)) for cohort in run.schedule.cohorts]
    together = max(min(count for count in asked if count) - 1, 1)
    if isinstance(mechanism, ShardTeachers):
        together = mechanism.honest
    if isinstance(mechanism, TrainedOutput) or not hides_from_server(PROMISES[run.config.mode]):
        together = 1
    smallest = min(len(site.train.images) for site in sites if site.name in members)
    played = min(sum(len(site.train.images) for site in sites), _MOST_PRIVATE)
    images = min(_MOST_OF_SITE, smallest, played // together)
    batch = max(2, run.config.models.batch // 2)
    return Shared(
        sites=together,
        images=images,
        steps=max(1, images // batch),
        passes=getattr(run.config.system, "local_epochs", 1),
        site_noise=_site_noise(mechanism) * math.sqrt(together),
        record_noise=_record_noise(mechanism),
    )


def _site_noise(mechanism: Mechanism) -> float:
    """A site's own noise at release, in its clip."""
    if not isinstance(mechanism, ShardTeachers):
        return 0.0
    return mechanism.sigma_share * mechanism.step / mechanism.clip_norm


def _record_noise(mechanism: Mechanism) -> float:
    """A site's noise on the sum of its gradients, in their clip, averaged over all steps."""
    if not isinstance(mechanism, TrainedOutput):
        return 0.0
    plan = mechanism.training
    return plan.noise_multiplier / (plan.rate * math.sqrt(plan.steps))


def _some(count: int, most: int) -> Rows:
    """So many rows at most, drawn alike in every call."""
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def _alike(run: AttackedRun) -> list[Site]:
    """The sites with the first one's task."""
    sites = run.federation.sites
    if sites[0].task.form == "mask":
        raise ConfigError(
            "images are not drawn from gradients of segmentation",
            where="G1 to G5: images and labels from gradients",
            fix="attack a run that classifies",
        )
    return [site for site in sites if site.task == sites[0].task]


def _shown(inputs: torch.Tensor) -> torch.Tensor:
    """Inputs of a network as images in [0, 1]."""
    return (inputs * DEVIATION + MEAN).clamp(0, 1)


def _multiplier(run: AttackedRun) -> float:
    mechanism = next(iter(run.terms.mechanisms.values()))
    return mechanism.training.noise_multiplier if isinstance(mechanism, TrainedOutput) else 1.0


def _study(run: AttackedRun) -> RandomBytes:
    """Noise that a study repeats; no attack is handed the seed."""
    return seeded_random(f"{run.folder.nonce} gradients".encode().ljust(32)[:32])
