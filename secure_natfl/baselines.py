"""What a federation is compared with. All of it needs raw data or unprotected logits: simulation.

Every baseline has the epochs, rates, augmentation and public start of the run beside it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from protocols.ledger import Ledger, ReleaseKey
from protocols.mechanisms import ShardTeachers, TrainedOutput
from protocols.sampler import discrete_gaussian
from secure_natfl.config import Config
from secure_natfl.data.arrays import to_float
from secure_natfl.data.synthetic import noise_images
from secure_natfl.federation import Federation, Site, joined
from secure_natfl.fine_tuning import LocalLoss, Target, distil, fine_tune, fresh
from secure_natfl.models import Network
from secure_natfl.seeds import Seeds
from secure_natfl.systems.betas import Answer
from secure_natfl.systems.natimg_fl import (
    CENTRAL_RATE,
    PERSONAL_RATE,
    Matrix,
    NatImgFL,
    Released,
    Rows,
)
from secure_natfl.systems.private_head import Begin
from secure_natfl.systems.speaking import Speaking
from secure_natfl.terms import Terms
from secure_natfl.training import Progress, Schedule, logits_of

LABELS = {
    "local_only": ("Local only", "Each site trains alone on its own images."),
    "pooled": ("All data pooled", "One network on all images of all sites: the upper bound."),
    "plain_mean": (
        "Plain mean of logits",
        "Like FedMD: the mean of the local-only networks' logits, without weights, clipping, "
        "noise or groups, distilled into the central architecture.",
    ),
    "noise_proxies": (
        "Noise-image proxies",
        "A control: the same federation, speaking models, clip and noise level, but asked about "
        "images of uniform noise instead of natural images. Linear heads on one public network "
        "(dp-sgd) are told by natural images as well as by X-rays, and by images of noise far "
        "worse.",
    ),
}


def local_only(
    config: Config,
    federation: Federation,
    site: Site,
    public: Network,
    seeds: Seeds,
    progress: Progress | None = None,
) -> Network:
    """One site's network on its own images."""
    generator = seeds.torch("local only", site.name)
    network = fresh(public, len(federation.task.classes), generator)
    schedule = Schedule(_epochs(config), config.models.batch // 2, PERSONAL_RATE)
    fine_tune(
        network, site.train, federation.naturals, LocalLoss(), None, schedule, generator, progress
    )
    return network


def pooled(
    config: Config,
    federation: Federation,
    public: Network,
    seeds: Seeds,
    progress: Progress | None = None,
) -> Network:
    """The central architecture on everybody's images."""
    generator = seeds.torch("pooled")
    network = fresh(public, len(federation.task.classes), generator)
    schedule = Schedule(_epochs(config), config.models.batch // 2, PERSONAL_RATE)
    everything = joined([site.train for site in federation.sites])
    fine_tune(
        network, everything, federation.naturals, LocalLoss(), None, schedule, generator, progress
    )
    return network


def plain_mean(
    config: Config,
    federation: Federation,
    locals_: Mapping[str, Network],
    public: Network,
    rows: Rows,
    seeds: Seeds,
    progress: Progress | None = None,
) -> Network:
    """A student of the plain mean of all local-only networks' logits on the asked proxies."""
    generator = seeds.torch("plain mean")
    multi_label = federation.task.multi_label
    images = federation.naturals.images[rows]
    logits = torch.stack([logits_of(network, images) for network in locals_.values()]).mean(0)
    if not multi_label:
        logits = logits - logits.mean(-1, keepdim=True)
    target = Target(
        images,
        logits,
        torch.ones(len(rows), 1, 1),
        federation.naturals.labels[rows],
        torch.full((1,), torch.inf),
    )
    student = fresh(public, len(federation.task.classes), generator)
    distil(
        student,
        target,
        config.natimg.natural_weight,
        Schedule(_distillation_epochs(config), config.models.batch, CENTRAL_RATE),
        generator,
        progress,
        multi_label=multi_label,
    )
    return student


def noise_proxies(
    config: Config,
    system: NatImgFL,
    terms: Terms,
    speaking: Mapping[str, Speaking],
    public: Network,
    seeds: Seeds,
    progress: Progress | None = None,
) -> Network:
    """A central model of the same federation, asked about as many images of noise."""
    size, count = config.data.size, config.proxies.per_round * config.system.rounds
    pixels = noise_images(count, size, np.random.default_rng(seeds.integer("noise images")))
    images = torch.from_numpy(to_float(pixels.images, size))
    return asked_about(images, config, system, terms, speaking, public, seeds, progress)


def in_domain_proxies(
    config: Config,
    system: NatImgFL,
    terms: Terms,
    speaking: Mapping[str, Speaking],
    public: Network,
    seeds: Seeds,
    progress: Progress | None = None,
) -> Network:
    """The same, asked about the sites' own training images in turn: what no federation may do."""
    count = config.proxies.per_round * config.system.rounds
    everything = joined([site.train for site in system.federation.sites]).images
    order = np.random.default_rng(seeds.integer("in domain")).permutation(len(everything))
    images = everything[np.resize(order, count)]
    return asked_about(images, config, system, terms, speaking, public, seeds, progress)


def asked_about(
    images: torch.Tensor,
    config: Config,
    system: NatImgFL,
    terms: Terms,
    speaking: Mapping[str, Speaking],
    public: Network,
    seeds: Seeds,
    progress: Progress | None = None,
) -> Network:
    """A central model of the same federation, asked about other `images`, one for each proxy."""
    everything = np.arange(len(images), dtype=np.int64)
    answers = {}
    for name, one in speaking.items():
        with _uncharged(terms, name, seeds) as begin:
            answers[name] = system.speak(one, everything, 0, None, images, begin)
    generator = seeds.torch("noise proxies")
    central = fresh(public, len(system.federation.task.classes), generator, len(system.heads))
    released: Released | None = None
    for rows in np.split(everything, config.system.rounds):
        sums = {
            group: _simulated_sum(system, terms, {s: answers[s] for s in sites}, rows, seeds)
            for group, sites in terms.groups.items()
        }
        found = system.read(rows, sums, terms.teachers, terms.noise)
        released = found if released is None else released.followed_by(found)
        system.absorb(central, released, -1, progress, images[released.rows])
    return central


@contextmanager
def _uncharged(terms: Terms, site: str, seeds: Seeds) -> Iterator[Begin | None]:
    """Training under noise on a ledger that is thrown away: a control releases nothing."""
    mechanism, plan = terms.mechanisms[site], terms.noise_plan
    if plan is None or not isinstance(mechanism, TrainedOutput):
        yield None
        return
    random = seeds.protective(os.urandom, "noise control", site)
    with (
        TemporaryDirectory() as folder,
        Ledger(
            Path(folder) / "ledger.db",
            site,
            "control",
            relation=plan.relation,
            budget_epsilon=None,
            delta=plan.delta,
        ) as ledger,
    ):
        key = ReleaseKey("control", 0)
        yield lambda size: mechanism.begin(ledger, key, random).descent  # noqa: ARG005


def _simulated_sum(
    system: NatImgFL, terms: Terms, answers: Mapping[str, Answer], rows: Rows, seeds: Seeds
) -> Matrix:
    """What the sites' aggregate would be: clipped, noised and weighted, but nothing is released."""
    total = np.zeros(system.layout(len(rows)).size, np.int64)
    for name, answer in answers.items():
        part = replace(answer, xray=answer.xray[:, rows], natural=answer.natural[:, rows])
        mechanism = terms.mechanisms[name]
        total += terms.alphas[name] * mechanism.total(system.weighted(part, rows))
        if isinstance(mechanism, ShardTeachers):
            random = seeds.protective(os.urandom, "noise control", name, int(rows[0]))
            noise = discrete_gaussian(total.size, mechanism.sigma_share, random)
            total += terms.alphas[name] * noise
    step: float = next(iter(terms.mechanisms.values())).step
    return step * total.astype(np.float64)


def _epochs(config: Config) -> int:
    return config.system.rounds * config.natimg.local_epochs


def _distillation_epochs(config: Config) -> int:
    """As many passes as the central model makes over rounds that grow by equal parts."""
    return math.ceil(config.natimg.distill_epochs * (config.system.rounds + 1) / 2)
