"""How a planted defect is put beside the check that finds it.

What the defects are is in mutants/*_defects.py, how they are found in mutants/*_checks.py.
"""

import importlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attacks.canaries import Group
from protocols.client_gaussian import plan_clients
from protocols.dp_sgd import DpSgd
from protocols.ledger import Ledger
from protocols.noise_plan import NoisePlan
from protocols.sampler import seeded_random
from secure_natfl.unit_gradients import hooks


def beside(folder: Path, *names: str) -> list[Any]:
    """Modules that stand beside the tests, outside every package."""
    sys.path.insert(0, str(folder))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))


checks, defects, descents, bent, ledgers, books, figures, wrong, gradients, coupled = beside(
    Path(__file__).parent / "mutants",
    "privacy_checks",
    "privacy_defects",
    "descent_checks",
    "descent_defects",
    "ledger_checks",
    "ledger_defects",
    "figure_checks",
    "figure_defects",
    "gradient_checks",
    "gradient_defects",
)


def plan(sites="abcd", alphas=(1, 1, 1, 1), epsilon=8.5, **changes):
    usual = {
        "epsilon": epsilon,
        "delta": 1e-5,
        "rounds": 1,
        "alphas": dict(zip(sites, alphas, strict=True)),
        "groups": dict.fromkeys(sites, "g"),
        "colluders": 1,
        "dropouts": 0,
        "shards": dict.fromkeys(sites, 5),
        "clip_norm": 2.0,
        "size": 8,
        "bits": 24,
    }
    return NoisePlan.calibrate(**usual | changes)


SOUND = plan("ab", (1, 1)).mechanisms["a"]
WIDE = plan("ab", (1, 1), size=20_000).mechanisms["a"]
CLIENTS = plan_clients(
    epsilon=8.0,
    delta=1e-5,
    rounds=1,
    alphas=dict.fromkeys("abc", 1),
    groups=dict.fromkeys("abc", "g"),
    colluders=1,
    dropouts=0,
    clip_norm=1.0,
    size=8,
    rows=4,
    classes=2,
    override=True,
).mechanisms["a"]


def tight(mechanism):
    """The same with a clamp that is reached: as many bits as two deviations need."""
    limit = 2 * mechanism.sigma_share
    return defects.become(type(mechanism), mechanism, bits=math.floor(math.log2(limit)) + 2)


def alone(mechanism):
    """The victim's own noise only: everybody else colludes."""
    return Group(mechanisms={"a": mechanism}, victim="a")


def weighted(change=None, sites="abcde", alphas=(6, 1, 1, 1, 1)):
    made = plan(sites, alphas, dropouts=1)
    mechanisms = change(made) if change else made.mechanisms
    return Group(
        mechanisms=mechanisms, victim="a", colluders=frozenset("b"), dropped=frozenset("c")
    )


def few(change=None):
    made = plan(dropouts=2)
    mechanisms = change(made) if change else made.mechanisms
    return Group(
        mechanisms=mechanisms, victim="a", colluders=frozenset("b"), dropped=frozenset("cd")
    )


def own(site, number):
    return os.urandom


def one_seed(site, number):
    return seeded_random(b"federation")


def one_seed_per_site(site, number):
    return seeded_random(site.encode())


def comb(alpha, sigma, weights):
    return (
        [sigma] * len(weights) if alpha else [],
        weights,
        8,
        lambda: replace(SOUND, alpha=alpha, alpha_max=alpha, sigma_share=sigma, honest=4),
    )


def unvalidated_comb():
    """The α ratio of a comb, in a mechanism that does not look at it."""
    return [4.0] * 4, [19, 19, 19, 1], 8, lambda: None


@dataclass(frozen=True)
class Case:
    """A defect, the check that must find it, and the sound subject that the check must pass."""

    name: str
    check: Callable[..., bool]
    sound: Callable[[], tuple[Any, ...]]
    broken: Callable[[], tuple[Any, ...]]


def mechanism_case(name, check, kind, *extra, base=SOUND):
    """A defect of the mechanism's class."""
    return Case(
        name,
        check,
        lambda: (base, *extra),
        lambda: (defects.become(kind, base), *extra),
    )


def audited(name, kind, *extra):
    """A defect that the two-world audit of a release finds."""
    return Case(
        name,
        checks.leaks,
        lambda: (alone(SOUND), *extra),
        lambda: (alone(defects.become(kind, SOUND)), *extra),
    )


def ledger_case(name, check, kind, *extra):
    return Case(name, check, lambda: (Ledger, *extra), lambda: (kind, *extra))


def simple_case(name, check, sound, broken):
    """A subject that the check takes alone."""
    return Case(name, check, lambda: (sound,), lambda: (broken,))


def release_case(name, check, kind):
    """A defect of how a mechanism releases, in the order of charge, noise and store."""
    return mechanism_case(name, check, kind, os.urandom)


def descent_case(name, check, kind, *extra):
    """A defect of DP-SGD: of its plan, or of the descent that it hands out."""
    made = kind if issubclass(kind, DpSgd) else bent.bent(kind)
    return Case(name, check, lambda: (DpSgd, *extra), lambda: (made, *extra))


def gradient_case(name, path):
    """A defect of how gradients of single units are made."""
    figures = coupled.network, coupled.SINGLE
    return Case(
        name, gradients.is_not_the_gradient, lambda: (hooks, *figures), lambda: (path, *figures)
    )


def coupling_case(name, network, loss):
    """A network or a loss in which the images of a batch depend on each other."""
    sound = coupled.network, coupled.SINGLE
    return Case(name, gradients.couples_images, lambda: sound, lambda: (network, loss))
