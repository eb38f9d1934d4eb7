"""Protected rounds of the small federation, without its networks."""

import numpy as np
import pytest

from secure_natfl.protection import Protection
from secure_natfl.seeds import Seeds

SESSION = "a" * 32
SYSTEM = Seeds(b"r" * 32, seeded=False)


@pytest.fixture
def protect(world, planned, tmp_path):
    """A protection in a folder of its own (or of that name); it is closed at the end."""
    opened = []

    def make(*changes, folder="run", seeds=world.seeds, session=SESSION, **fields):
        config, terms = planned(*changes)
        path = tmp_path / folder
        layout = world.layout(config)
        made = Protection(config, world.federation, terms, layout, session, path, seeds)
        opened.append(made)
        return made

    yield make
    for one in opened:
        one.close()


def contributions(protection, seed=0, loud=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: loud * rng.normal(size=(m.shards, m.size))
        for name, m in protection.terms.mechanisms.items()
    }


def expected_sum(protection, given):
    total = 0
    for name, teachers in given.items():
        mechanism = protection.terms.mechanisms[name]
        bounded = mechanism.bound(teachers, protection.layout).values
        total = total + protection.terms.alphas[name] * bounded
    return total


PLAIN = "aggregation.kind=plain"
SILENT = ("privacy.mechanism=none", "privacy.speaking=shards")


def digests(outcome):
    return [aggregate.sha256 for aggregate in outcome.aggregates.values()]
