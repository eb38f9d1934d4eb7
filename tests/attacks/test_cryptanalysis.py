import ast
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

import attacks.cryptanalysis
from attacks.cryptanalysis import (
    KeyGuess,
    from_integers,
    from_phases,
    from_slots,
    read_slots,
    recover_key,
)
from attacks.threat import ThreatError
from protocols.ledger import ReleaseKey
from protocols.mechanisms import Released
from protocols.quantize import Layout, Segment
from protocols.residues import unpack, weighted_sum
from protocols.rlwe import PK18_44
from protocols.slots import SLOTS18_140, SLOTS18_200
from protocols.tenseal_ckks import PublicKey, RoundSecret, encrypt
from protocols.tenseal_slots import SlotsSecret, SlotsSum

SIZE, LIMIT, FALSE_ALARM = 30_000, SLOTS18_140.value_limit, 1e-6


def beyond_chance(coefficients):
    """The number of right guesses of thirds that luck passes with probability 1e-6."""
    return binom.isf(FALSE_ALARM, coefficients, 1 / 3)


class Run:
    """One round of the `slots` mode: what its clients sent and what the server may see."""

    def __init__(self, secret, vectors, alphas, kind="scalar"):
        self.secret, self.preset, size = secret, secret.preset, len(vectors[0])
        self.uploads = [secret.encrypt(vector) for vector in vectors]
        total = SlotsSum(self.preset, size, secret.relin_key() if kind == "ciphertext" else None)
        for upload, alpha in zip(self.uploads, alphas, strict=True):
            each = np.full(size, float(alpha))
            forms = {"scalar": alpha, "slot": each}
            total.add(upload, forms[kind] if kind in forms else secret.encrypt_weights(each))
        body = total.body()
        self.values = secret.read_sum(body, size)
        self.ciphertexts = self._first_prime(body, self.preset.sum_primes)

    def _first_prime(self, body, primes):
        return self.preset.unpack(body, self.preset.blocks(len(self.values)), primes)[:, :, 0]

    def upload(self, client):
        return self._first_prime(self.uploads[client], self.preset.upload_primes)

    def published(self, values=None):
        values = self.values if values is None else values
        prime, scale = self.preset.primes[0], self.preset.slot_scale
        return from_slots(self.ciphertexts, prime, values, scale)

    def right(self, guess):
        return int((guess.coefficients == self.secret.coefficients()).sum())


def integers(draw, clients, size=SIZE):
    return [draw.integers(-LIMIT, LIMIT + 1, size) for _ in range(clients)]


@pytest.fixture(scope="module")
def run():
    vectors = integers(np.random.default_rng(0), 3)
    made = Run(SlotsSecret(SLOTS18_140), vectors, [1, 2, 5])
    made.vectors = vectors
    return made


def test_one_published_sum_of_slots_gives_the_whole_key_and_every_upload(run):
    """8,192 of 8,192 coefficients from one sum; then 3 × 28,672 integers of single clients."""
    guess = recover_key([run.published()])
    assert run.right(guess) == 8192
    assert guess.checked == 1
    for client, vector in enumerate(run.vectors):
        read = read_slots(
            guess, run.upload(client)[:7], SLOTS18_140.primes[0], SLOTS18_140.slot_scale
        )
        assert (np.rint(read) == vector[: 7 * 4096]).all()


@pytest.mark.parametrize(
    ("preset", "kind"),
    [(SLOTS18_140, "slot"), (SLOTS18_200, "scalar"), (SLOTS18_200, "ciphertext")],
)
def test_no_weighting_of_slots_protects_the_key(preset, kind):
    """Two sums of one whole block each, under one key."""
    secret, draw = SlotsSecret(preset), np.random.default_rng(1)
    runs = [Run(secret, integers(draw, 2, 4096), [3, 4], kind) for _ in range(2)]
    guess = recover_key([one.published() for one in runs])
    assert runs[0].right(guess) == 8192
    assert guess.checked == 1


def test_noise_before_encryption_does_not_protect_the_key():
    draw = np.random.default_rng(2)
    noisy = [
        np.clip(one + draw.normal(0, 900, 8192), -LIMIT, LIMIT) for one in integers(draw, 3, 8192)
    ]
    for vectors in (noisy, [np.rint(one) for one in noisy]):
        run = Run(SlotsSecret(SLOTS18_140), vectors, [1, 1, 1])
        assert run.right(recover_key([run.published()])) == 8192


def test_faint_noise_after_decryption_does_not_protect_the_key(run):
    """1e-12 of the slots' unit: lost when the attacker rounds to whole coefficients."""
    noise = np.random.default_rng(3).normal(0, 1e-12 * 2**17, SIZE)
    assert run.right(recover_key([run.published(run.values + noise)])) == 8192


@pytest.mark.parametrize("coarser", [np.float32, np.rint])
def test_rounding_after_decryption_defeats_this_attack(run, coarser):
    """That no other attack works is not shown; for exact integers see protocols/rlwe.py."""
    guess = recover_key([run.published(coarser(run.values))])
    assert guess.checked == 0
    assert run.right(guess) < beyond_chance(8192)


def test_an_upload_is_not_read_with_a_wrong_key(run):
    wrong = SlotsSecret(SLOTS18_140).coefficients()
    read = read_slots(
        KeyGuess(wrong, 1.0), run.upload(0)[:1], SLOTS18_140.primes[0], SLOTS18_140.slot_scale
    )
    assert not (np.rint(read) == run.vectors[0][:4096]).any()


def test_sums_of_two_keys_give_neither(run):
    other = Run(SlotsSecret(SLOTS18_140), integers(np.random.default_rng(5), 2, 4096), [1, 1])
    first = from_slots(
        run.ciphertexts, SLOTS18_140.primes[0], run.values[:4096], SLOTS18_140.slot_scale
    )
    guess = recover_key([first, other.published()])
    assert guess.checked == 0
    assert max(run.right(guess), other.right(guess)) < beyond_chance(8192)


def test_less_than_two_whole_blocks_are_too_few(run):
    for size in (4095, 8191):
        with pytest.raises(ThreatError, match="2 whole blocks"):
            recover_key([run.published(run.values[:size])])


class ExactRun:
    """One sum of the decryptor mode, three blocks of 4,096 integers by three clients."""

    def __init__(self):
        secret, draw, size = RoundSecret(PK18_44), np.random.default_rng(6), 3 * 4096
        public, alphas = PublicKey(PK18_44, secret.public_body), [1, 2, 4]
        bodies = [
            encrypt(public, released(vector), (0, size)) for vector in integers(draw, 3, size)
        ]
        body = weighted_sum(PK18_44, size, bodies, alphas)
        self.values = secret.open_sum(body, size, sum(alphas))
        residues = unpack(body, PK18_44.residue_bits, (PK18_44.prime,))
        self.ciphertexts = residues.reshape(3, 2, -1)
        # What no party publishes: phases with their errors, and, as the phase of (0, 1), the key.
        self.phases = np.stack([secret._phase(pair) for pair in self.ciphertexts])
        unit = np.zeros((2, 4096), np.uint64)
        unit[1, 0] = 1
        self.key = secret._phase(unit)


def released(values):
    """A release without mechanism and ledger: what is encrypted is all that matters here."""
    made, layout = object.__new__(Released), Layout((Segment("logits", len(values), 1),))
    for name, value in {"values": values, "layout": layout, "key": ReleaseKey("s", 1)}.items():
        object.__setattr__(made, name, value)
    return made


@pytest.fixture(scope="module")
def exact():
    return ExactRun()


def test_exact_integers_give_the_key_to_nobody(exact):
    """3 × 4,096 guesses, one per block: no better than chance, and the attacker sees it."""
    right = 0
    for block in range(3):
        numbers = exact.values[block * 4096 : (block + 1) * 4096]
        ciphertexts = exact.ciphertexts[block : block + 1]
        guess = recover_key([from_integers(ciphertexts, PK18_44.prime, numbers, PK18_44.scale)])
        assert guess.checked == 0
        right += int((guess.coefficients == exact.key).sum())
    assert right < beyond_chance(3 * 4096)


def test_the_same_attack_finds_that_key_if_errors_are_published(exact):
    """The control: 4,096 of 4,096 coefficients from one block of phases that were not rounded."""
    guess = recover_key([from_phases(exact.ciphertexts[1:2], PK18_44.prime, exact.phases[1:2])])
    assert (guess.coefficients == exact.key).all()
    assert guess.checked == 1
    # One coefficient of one block off by one is enough to hide it.
    shifted = exact.phases[1:2].copy()
    shifted[0, 9] += 1
    guess = recover_key([from_phases(exact.ciphertexts[1:2], PK18_44.prime, shifted)])
    assert (guess.coefficients == exact.key).sum() < beyond_chance(4096)


def test_the_attack_imports_no_cryptographic_library():
    tree = ast.parse(Path(attacks.cryptanalysis.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names
    }
    assert {name.split(".")[0] for name in imported} == {
        "attacks", "collections", "dataclasses", "itertools", "numpy"
    }  # fmt: skip
