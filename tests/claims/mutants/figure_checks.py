"""Checks of figures and of what they stand for; each returns True if it found a fault."""

import math
from decimal import Decimal, localcontext
from types import SimpleNamespace

import numpy as np
import torch
from privacy_checks import DELTA, charged_distance, layout
from torch import nn

from protocols.accounting import REPLACE_ONE, Event, compose
from protocols.errors import PrivacyError
from protocols.sampler import DISTANCE
from secure_natfl.systems.speaking import PublicBackbone

EVENT = Event("shard-teachers", REPLACE_ONE, 0.1, 0.3, 0.0, 0.0, 0.0)


def reads_nonsense(kind):
    """A line with a figure that is unknown, malformed or below 0 becomes an event."""
    for change in ({"more": 1}, {"rho": "much"}, {"rho": -1.0}, {"clamp": None}):
        try:
            kind.from_line(EVENT.line() | change)
        except PrivacyError:
            continue
        return True
    return False


def hides_what_is_unprotected(mechanism):
    """A release without noise, between two with noise, leaves ε finite."""
    return compose([EVENT, mechanism.event(), EVENT], DELTA).epsilon < math.inf


def charges_slack_too_little(total):
    """δ of what is off by `slack` is below δ + (1 + e^ε)·slack."""
    return any(
        total(epsilon, DELTA, slack) < (DELTA + (1 + math.exp(epsilon)) * slack) * (1 - 1e-9)
        for epsilon in (0.1, 1.0, 8.0)
        for slack in (1e-12, 1e-9)
    )


def is_further_than_stated(table, sigma=10.0):
    """The law of the sampler's blocks is off by more than 2^-110, by sums of 60 digits."""
    made = table(sigma)
    edges = (0, *made.thresholds, 2**128)
    with localcontext() as context:
        context.prec = 60
        scale = -2 * Decimal(sigma) ** 2
        weights = [(Decimal((k * made.width) ** 2) / scale).exp() for k in range(len(edges) - 1)]
        total = sum(weights)
        off = sum(
            abs(Decimal(high - low) / 2**128 - weight / total)
            for low, high, weight in zip(edges, edges[1:], weights, strict=False)
        )
    return float(off / 2) > DISTANCE


def hides_a_seed(reasons):
    """A seeded run with noise gets no reason why it is not private."""
    return not reasons(SimpleNamespace(not_private_because=(), seeded=True), 1.0)


def absence_moves_too_far(mechanism):
    """A client's contribution is longer than what the event charges for its absence."""
    longest = 0
    for place in range(mechanism.size):
        teachers = 9 * mechanism.clip_norm * np.eye(mechanism.size)[place : place + 1]
        values = mechanism.bound(teachers, layout(mechanism.size)).values
        longest = max(longest, sum(int(value) ** 2 for value in values))
    return longest > charged_distance(mechanism) ** 2 * (1 + 1e-9)


def offers_what_is_worth_nothing(plan):
    """Five hospitals, 50 images, ε = 8: no refusal, or one without a figure."""
    names = "abcde"
    try:
        plan(
            epsilon=8.0,
            delta=DELTA,
            rounds=1,
            alphas=dict.fromkeys(names, 1),
            groups=dict.fromkeys(names, "g"),
            colluders=1,
            dropouts=0,
            clip_norm=1.0,
            size=100,
            rows=50,
            classes=2,
        )
    except PrivacyError as refused:
        return "%" not in refused.what or "shard-teachers" not in refused.fix
    return True


def one_patient_reaches_other_shards(make):
    """Other images of one patient change the features of more than that patient's shard."""
    train = SimpleNamespace(
        images=torch.rand(24, 4, 4, generator=torch.Generator().manual_seed(1)),
        targets=torch.ones(24, 2),
        known=torch.ones(24, 2),
    )
    names = [f"p{row // 2}" for row in range(24)]
    site = SimpleNamespace(train=train, train_patients=names, patients=12, unit="patient")
    public = PublicBackbone(
        SimpleNamespace(backbone=nn.Flatten()),
        torch.zeros(1, 16),
        torch.zeros(16),
        torch.ones(16),
        nn.Linear(16, 2),
        nn.Linear(2, 2),
    )
    figures = (public, 4, 2, b"k" * 32)
    other = train.images.clone()
    other[:2] = 1 - other[:2]
    changed = SimpleNamespace(**vars(site) | {"train": SimpleNamespace(**vars(train))})
    changed.train.images = other
    one, two = make(site, *figures), make(changed, *figures)
    return int((one.features != two.features).flatten(1).any(1).sum()) > 1
