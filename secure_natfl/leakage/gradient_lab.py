"""The laboratory of attacks on gradients: the run's private images in clients that send updates.

Nothing of that kind leaves a site of this system, which is the arm "nothing shown". The other arms
are what systems that share gradients or weights would have shown of the same images.
"""

from __future__ import annotations

import numpy as np
import torch

from attacks.gradients.simulated import SimulatedLab
from protocols.chain import RandomBytes
from protocols.mechanisms import TrainedOutput
from protocols.sampler import seeded_random
from secure_natfl.data.arrays import DEVIATION, MEAN
from secure_natfl.federation import joined
from secure_natfl.leakage.attacked import AttackedRun

_MOST_PUBLIC = 256
_STAGES = (0, 1, 10)
"""Epochs of training before an attack: none, early and late; one trial after another."""


def gradient_lab(run: AttackedRun) -> SimulatedLab:
    """Training images are attacked, and test images of other patients are the attacker's own.

    So the attacker is given images of the same hospitals, the best prior that there could be. A
    run under dp-sgd lends its noise multiplier to the arm of that name, which is 1 otherwise.
    """
    federation = run.federation
    private = joined([site.train for site in federation.sites])
    public = torch.cat([site.test.images for site in federation.sites])
    names = [f"{s.hospital}/{patient}" for s in federation.sites for patient in s.train_patients]
    _, clusters = np.unique(names, return_inverse=True)
    chosen = np.random.default_rng(0).permutation(len(public))[:_MOST_PUBLIC]
    return SimulatedLab(
        images=_shown(private.images),
        labels=private.targets.argmax(1),
        clusters=clusters.reshape(-1).astype(np.int64),
        public=_shown(public[torch.from_numpy(np.sort(chosen))]),
        mean=MEAN,
        deviation=DEVIATION,
        classes=len(federation.task.classes),
        noise_multiplier=_multiplier(run),
        random=_study(run),
        epochs=_STAGES,
    )


def _shown(inputs: torch.Tensor) -> torch.Tensor:
    """Inputs of a network as images in [0, 1]."""
    return (inputs * DEVIATION + MEAN).clamp(0, 1)


def _multiplier(run: AttackedRun) -> float:
    mechanism = next(iter(run.terms.mechanisms.values()))
    return mechanism.training.noise_multiplier if isinstance(mechanism, TrainedOutput) else 1.0


def _study(run: AttackedRun) -> RandomBytes:
    """Noise that a study repeats; no attack is handed the seed."""
    return seeded_random(f"{run.folder.nonce} gradients".encode().ljust(32)[:32])
