"""Own estimate of what it costs to break one key of each preset, by the usual lattice attacks.

`python -m benchmarks.estimate --json` prints nothing else on standard output. Figures are log2 of
classical gates. They are this file's own: formulas of the literature, evaluated here, and held
against published rows by tests/protocols/test_estimate.py. No structure of the ring is used.

Three attacks on n secrets of width `secret`, errors of width `error`, modulus q, samples enough:

- uSVP: BKZ until the embedded short vector shows (Alkim et al., USENIX 2016, section 6.3; success
  condition of Albrecht et al., ASIACRYPT 2017), small secrets scaled (Bai and Galbraith 2014).
- BDD: weaker BKZ, then one call to a shortest-vector solver in a larger block (Liu and Nguyen,
  CT-RSA 2013), profile by the geometric series assumption.
- Dual hybrid: guessing and a Fourier transform over short dual vectors (MATZOV 2022, theorem 7.6).
  Its independence heuristics are disputed (Ducas and Pulles, CRYPTO 2023): a cautious figure.

One block costs `core` = 0.292·β bits (core-SVP), or the gates of Albrecht et al. (ASIACRYPT 2020)
as MATZOV corrected them, with the dimensions for free of Ducas (EUROCRYPT 2018).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from protocols.multikey import MULTIKEY_PRESETS
from protocols.rlwe import PRESETS

HINTED_WIDTH = 3.2
"""Width of the errors that are left to whoever knows Σα·e (docs/protocol.md, lemma 2)."""

_SLOPE, _OFFSET = 0.29613500308205365, 20.387885985467914  # MATZOV 2022, fit up to β = 1024
_PROGRESSIVE = math.log2(1 / (1 - 2**-_SLOPE))
_MULTIPLY, _ADD = 32**2, 5 * 32  # gates, MATZOV 2022, p. 37
_SIEVED = 0.2075  # a sieve in dimension b leaves 2^(0.2075·b) short vectors


@dataclass(frozen=True)
class Instance:
    """LWE: dimension n, modulus q, standard deviations of a secret's entry and of an error."""

    n: int
    q: int
    secret: float
    error: float


@dataclass(frozen=True)
class Cost:
    """log2 of gates (or of core-SVP operations), block size β and lattice dimension d."""

    bits: float
    beta: int
    dimension: int


def instances() -> dict[str, Instance]:
    """The instance behind one key of every preset.

    A uniform secret with enough samples is one with a secret of the errors' law (Applebaum et al.,
    CRYPTO 2009); SEAL's keys are ternary, its errors centred binomial of variance 21/2.
    """
    hinted = {
        name: Instance(preset.degree, preset.q, HINTED_WIDTH, HINTED_WIDTH)
        for name, preset in MULTIKEY_PRESETS.items()
    }
    public = {
        name: Instance(
            preset.degree, preset.prime * preset.special, math.sqrt(2 / 3), math.sqrt(10.5)
        )
        for name, preset in PRESETS.items()
    }
    return {**hinted, **public}


def core_svp(lwe: Instance) -> Cost:
    """uSVP in the core-SVP model: 2^(0.292·β), everything else free."""
    return _best(_usvp(lwe, beta, lambda block, _: 0.292 * block) for beta in _blocks())


def usvp(lwe: Instance) -> Cost:
    """uSVP in gates."""
    return _best(_usvp(lwe, beta, _gates) for beta in _blocks())


def bdd(lwe: Instance) -> Cost:
    """BDD in gates: the cheapest pair of reduction and final block."""
    return _best(_bdd(lwe, beta) for beta in _blocks(usvp(lwe).beta + 1))


def dual_hybrid(lwe: Instance) -> Cost:
    """Dual hybrid attack in gates, best over modulus and sizes of the guessed part."""

    def over_beta(p: int, enumerated: int, transformed: int) -> Cost:
        return _valley(lambda beta: _dual(lwe, beta, p, enumerated, transformed), 40, lwe.n)

    return _best(
        _first_minimum(over_beta(p, enumerated, t) for t in range(0, 400, 5))
        for p in range(2, 9)
        for enumerated in range(0, 60, 5)
    )


ATTACKS: Mapping[str, Callable[[Instance], Cost]] = {
    "core-svp": core_svp,
    "usvp": usvp,
    "bdd": bdd,
    "dual-hybrid": dual_hybrid,
}


def root_hermite(beta: int) -> float:
    """δ of BKZ with blocks of β ≥ 40 (Chen 2013)."""
    return float(
        (beta / (2 * math.pi * math.e) * (math.pi * beta) ** (1 / beta)) ** (0.5 / (beta - 1))
    )


def _usvp(lwe: Instance, beta: int, price: Callable[[int, int], float]) -> Cost | None:
    """The smallest dimension d in which BKZ-β finds the embedded vector, if there is one."""
    scale = max(lwe.error / lwe.secret, 1.0)
    delta, log_q = math.log(root_hermite(beta)), math.log(lwe.q)
    length = math.log(lwe.error * math.sqrt(beta))
    for d in range(max(lwe.n, beta) + 1, _widest(lwe, delta) + 1):
        volume = math.log(lwe.error) + lwe.n * math.log(scale) + (d - lwe.n - 1) * log_q
        if length <= (2 * beta - d - 1) * delta + volume / d:
            return Cost(price(beta, d), beta, d)
    return None


def _bdd(lwe: Instance, beta: int) -> Cost | None:
    """BKZ-β in the widest dimension that helps, then the block η in which the error shows."""
    delta = math.log(root_hermite(beta))
    d = _widest(lwe, delta)
    scale = max(lwe.error / lwe.secret, 1.0)
    volume = (d - lwe.n) * math.log(lwe.q) + lwe.n * math.log(scale)

    def shows(eta: int) -> bool:
        projected = eta / d * volume - (d - eta) * eta * delta + math.log(lwe.error)
        ball = (eta + 1) / 2 * math.log(math.pi) - math.lgamma((eta + 1) / 2 + 1)
        return (projected - ball) / (eta + 1) >= math.log(lwe.error * math.sqrt(eta + 1))

    eta = next((eta for eta in range(beta, d) if shows(eta)), None)
    if eta is None:
        return None
    return Cost(_log_sum(_gates(beta, d), _gates(eta + 1, eta + 1)), beta, d)


def _dual(lwe: Instance, beta: int, p: int, enumerated: int, transformed: int) -> Cost:
    """MATZOV's cost for given sizes: vectors wanted, sieves that yield them, guesses."""
    kept = lwe.n - enumerated - transformed
    d = kept + lwe.n
    sieve = _sieve_dimension(beta, d)
    delta = math.log(root_hermite(beta))
    spread = (
        lwe.n / d * math.log(lwe.error)
        + kept / d * math.log(lwe.secret * lwe.q)
        + 0.5 * math.log(4 / 3 * sieve / (2 * math.pi * math.e))
        + (d - sieve) * delta
    )
    relative = min(math.exp(min(spread - math.log(lwe.q), 20.0)) * math.pi, 1e3)
    entropy = _entropy(lwe.secret)
    wanted = (
        4 * relative**2
        + transformed / 3 * (lwe.secret * math.pi / p) ** 2
        + math.log(enumerated * entropy + transformed * math.log(p) + math.log(2))
    ) / math.log(2)
    sieves = max(wanted - _SIEVED * sieve, 0.0)
    one = _log_sum(_gates(beta, d), _PROGRESSIVE + _SLOPE * sieve + _OFFSET)
    per_guess = math.log2(4 * _ADD) + wanted
    if transformed:
        transform = math.log2(_MULTIPLY * transformed) + (transformed + 1) * math.log2(p)
        per_guess = _log_sum(per_guess, transform)
    hump = 2 * math.pi**2 * lwe.secret**2
    blur = 4 * hump * math.exp(-hump) * math.tanh(hump / 2) / math.log(2)
    guesses = enumerated * (blur + 1 - 0.5 / math.log(2) + entropy)
    guesses -= math.log2(1 - math.exp(-0.5 / lwe.secret**2))
    return Cost(_log_sum(sieves + one, guesses + per_guess), beta, d)


def _entropy(width: float) -> float:
    """Bits in one entry of the secret, as MATZOV count them (p. 29)."""
    squared = (math.pi * width) ** 2
    return (
        0.5 + math.log(math.sqrt(2 * math.pi) * width) - math.log(math.tanh(squared))
    ) / math.log(2)


def _sieve_dimension(beta: int, d: int) -> int:
    """The largest sieve that costs about what BKZ costs."""
    room = math.log2(max(d - beta, 1)) + _PROGRESSIVE
    return min(d, math.floor(beta - math.floor(_free(beta)) + room / _SLOPE))


def _gates(beta: int, d: int) -> float:
    """log2 gates of BKZ-β in dimension d, progressive, after LLL."""
    calls = math.log2(max(d - beta, 1)) + _PROGRESSIVE
    block = _PROGRESSIVE + _SLOPE * (beta - _free(beta)) + _OFFSET
    return _log_sum(3 * math.log2(d), calls + block)


def _free(beta: int) -> float:
    """Dimensions for free."""
    return max(beta * math.log(4 / 3) / math.log(beta / (2 * math.pi * math.e)), 0.0)


def _widest(lwe: Instance, delta: float) -> int:
    """The dimension beyond which further samples do not help."""
    return math.ceil(math.sqrt(lwe.n * math.log(lwe.q) / delta))


def _log_sum(x: float, y: float) -> float:
    return max(x, y) + math.log2(1 + 2.0 ** -abs(x - y))


def _blocks(stop: int = 2000) -> range:
    return range(60, stop)


def _best(costs: Iterable[Cost | None]) -> Cost:
    return min((cost for cost in costs if cost is not None), key=lambda cost: cost.bits)


def _first_minimum(costs: Iterator[Cost]) -> Cost:
    """The last cost before the sequence rises."""
    best = next(costs)
    for cost in costs:
        if cost.bits > best.bits:
            break
        best = cost
    return best


def _valley(cost: Callable[[int], Cost], low: int, high: int) -> Cost:
    """The least cost over [low, high], of a function that falls and then rises."""
    while high - low > 2:
        third = (high - low) // 3
        if cost(low + third).bits < cost(high - third).bits:
            high -= third
        else:
            low += third
    return _best(map(cost, range(low, high + 1)))


def figures() -> dict[str, dict[str, float]]:
    """Bits per preset and attack, to one decimal."""
    return {
        name: {attack: round(cost(lwe).bits, 1) for attack, cost in ATTACKS.items()}
        for name, lwe in instances().items()
    }


def main() -> None:
    """Print the figures, as a table or as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    found = figures()
    if parser.parse_args().json:
        print(json.dumps(found))  # noqa: T201
        return
    for name, bits in found.items():
        print(name, *(f"{attack} {value:.1f}" for attack, value in bits.items()), sep="  ")  # noqa: T201


if __name__ == "__main__":
    main()
