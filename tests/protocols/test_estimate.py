"""The security estimate against published rows, and the figures of docs/protocol.md against it."""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.estimate import (
    ATTACKS,
    HINTED_WIDTH,
    Instance,
    bdd,
    core_svp,
    dual_hybrid,
    figures,
    usvp,
)
from protocols.multikey import ERROR_WIDTH

KYBER = {
    512: Instance(512, 3329, math.sqrt(1.5), math.sqrt(1.5)),
    768: Instance(768, 3329, 1.0, 1.0),
    1024: Instance(1024, 3329, 1.0, 1.0),
}
PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.fixture(scope="module")
def found():
    return figures()


@pytest.mark.parametrize(("n", "bits"), [(512, 118), (768, 182), (1024, 256)])
def test_core_svp_is_that_of_the_kyber_submission(n, bits):
    # Kyber specification, round 3 (2021), table 4.
    assert core_svp(KYBER[n]).bits == pytest.approx(bits, abs=1)


def test_usvp_is_the_lattice_estimators():
    # malb/lattice-estimator, estimator/lwe_primal.py: ≈2^143.8, β: 406, d: 998.
    cost = usvp(KYBER[512])
    assert (round(cost.bits, 1), cost.beta, cost.dimension) == (143.8, 406, 998)


@pytest.mark.parametrize(
    ("lwe", "bits"),
    [
        (KYBER[512], 140.2),
        (KYBER[768], 201.0),
        (KYBER[1024], 270.7),
        (Instance(1024, 2**27, 3.0, 3.0), 136.7),  # HomomorphicEncryption.org, 1024 samples
    ],
)
def test_bdd_is_the_lattice_estimators(lwe, bits):
    # Its docs/schemes/nist-pqc-round-3.rst and docs/schemes/hes.rst.
    assert bdd(lwe).bits == pytest.approx(bits, abs=0.5)


def test_dual_hybrid_is_the_lattice_estimators():
    # estimator/lwe.py: ≈2^139.2, by a coarser search.
    assert dual_hybrid(KYBER[512]).bits == pytest.approx(139.2, abs=0.5)


def test_a_larger_modulus_and_a_smaller_error_cost_less():
    for attack in ATTACKS.values():
        middle = attack(Instance(1024, 2**30, 3.2, 3.2)).bits
        assert attack(Instance(1024, 2**32, 3.2, 3.2)).bits < middle
        assert attack(Instance(1024, 2**30, 1.6, 1.6)).bits < middle
        assert attack(Instance(1100, 2**30, 3.2, 3.2)).bits > middle


def test_every_preset_costs_at_least_2_to_the_128_gates(found):
    for name, bits in found.items():
        gates = {attack: value for attack, value in bits.items() if attack != "core-svp"}
        assert min(gates.values()) >= 128, name


def test_the_figures_in_the_protocol_page_are_these(found):
    text = PROTOCOL.read_text(encoding="utf-8")
    rows = dict(
        re.findall(r"^\| `([a-z]+[0-9]+-[0-9]+)` \|.*?\| ([0-9. |]+) \|$", text, re.MULTILINE)
    )
    written = {name: [float(x) for x in row.split("|")] for name, row in rows.items()}
    assert written.keys() == found.keys()
    for name, bits in found.items():
        assert written[name] == pytest.approx(list(bits.values()), abs=0.051)


def remaining(sigma, fresh, norm):
    """τ² and ε of lemma 2 for errors of width sigma, fresh ones of width `fresh`, |v| = norm."""
    background = sigma**2 - (fresh * norm) ** 2
    squared = 1 / (1 / fresh**2 + norm**2 / background) if background > 0 else 0.0
    return squared, 2.01 * math.exp(-2 * math.pi**2 * squared)


def gaussian(x, variance):
    return np.exp(-(x * x) / (2 * variance))


@pytest.mark.parametrize("alphas", [(1, 1), (3, 2), (4, 1), (4, 4)])
@pytest.mark.parametrize("sigma_per_norm", [1.3, 1.6])
def test_errors_are_a_background_plus_fresh_ones_as_lemma_2_says(alphas, sigma_per_norm):
    divisor = math.gcd(*alphas)
    v = np.array([alphas[1], -alphas[0]]) / divisor
    norm, fresh = float(np.hypot(*v)), 1.0
    sigma = sigma_per_norm * norm
    squared, epsilon = remaining(sigma, fresh, norm)
    # Sum over z of the fresh law at z and of the background, covariance σ²I − σ₀²vvᵀ, at x − v·z.
    x = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 2)).reshape(2, -1).T
    total = np.zeros(len(x))
    for z in range(-60, 61):
        y = x - v * z
        along = y @ v / norm
        across = (y**2).sum(1) - along**2
        exponent = across / sigma**2 + along**2 / (sigma**2 - (fresh * norm) ** 2)
        total += gaussian(z, fresh**2) * np.exp(-exponent / 2)
    ratio = total / np.exp(-(x**2).sum(1) / (2 * sigma**2)) / math.sqrt(2 * math.pi * squared)
    assert np.abs(ratio - 1).max() <= epsilon
    assert np.abs(ratio - 1).max() >= epsilon / 4  # the bound is not idle


def test_the_error_width_leaves_what_the_estimate_assumes():
    heaviest = 1.0  # everything scales with it
    _, epsilon = remaining(ERROR_WIDTH * heaviest, HINTED_WIDTH, math.sqrt(2) * heaviest)
    assert epsilon <= 2**-200
    # The same for all clients at once, ‖V‖ ≤ 2·heaviest and a thousand of them.
    squared, _ = remaining(ERROR_WIDTH * heaviest, HINTED_WIDTH, 2 * heaviest)
    assert 2 * 1000 * math.exp(-2 * math.pi**2 * squared) <= 2**-105


def test_widening_by_the_ratio_of_weights_would_leave_a_comb():
    # α = (4, 3): given E the errors move along v = (3, −4) only, with width σ/5.
    ratios = 3.2 * math.sqrt(1 + (4 / 3) ** 2)
    assert ratios / 5 < 1.1
    assert ERROR_WIDTH * 4 / 5 > HINTED_WIDTH
