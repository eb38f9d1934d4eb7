"""Named defects of figures: of events, of their conversion, of the sampler's table, of reports."""

import dataclasses
from functools import partial
from types import SimpleNamespace

from torch import nn

from protocols.accounting import Event
from protocols.client_gaussian import ClientGaussian, plan_clients
from protocols.mechanisms import NoNoise
from protocols.sampler import _table
from secure_natfl.report.words import why_not_private
from secure_natfl.systems.speaking import shard_batch


class Lenient(Event):
    """Reads what it knows of a line, and takes the rest for nothing."""

    @classmethod
    def from_line(cls, line):
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {name: value for name, value in line.items() if name in known}
        costs = {name: _number(kept[name]) for name in ("rho", "rho_isolated", "clamp")}
        return cls(**kept | costs)


def _number(said):
    return max(0.0, said) if isinstance(said, float) else 0.0


class Free(NoNoise):
    """An unprotected release that costs nothing."""

    def event(self):
        return dataclasses.replace(super().event(), rho=0.0, rho_isolated=0.0)


def charged_once(epsilon, delta, slack):
    """What is not ideal, added to δ as it is, where e^ε of it counts as well."""
    return delta + slack


def coarse(sigma):
    """The sampler's table with thresholds of 64 bits."""
    table = _table(sigma)
    return dataclasses.replace(
        table, thresholds=tuple((edge >> 64) << 64 for edge in table.thresholds)
    )


def silent(headline, epsilon):
    """Reasons why a run is not private, without that of a seed."""
    return tuple(said for said in why_not_private(headline, epsilon) if "seed" not in said)


class HalfTheClient(ClientGaussian):
    """Half the distance that a client's absence makes."""

    @property
    def sensitivity(self):
        return self.clip_int // 2


always = partial(plan_clients, override=True)
"""Offers client-gaussian whatever it would be worth."""


def personal_batch(site, backbone, *figures):
    """Shards on the features of a backbone that has seen all of the site's patients."""
    centred = nn.Sequential(backbone.network.backbone, nn.BatchNorm1d(16, affine=False, momentum=1))
    centred.train()(site.train.images)
    network = SimpleNamespace(backbone=centred)
    return shard_batch(site, dataclasses.replace(backbone, network=network), *figures)
