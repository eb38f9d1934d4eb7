import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError, PrivacyError, ProtocolError
from protocols.expansion import uniform
from protocols.gaussian_errors import gaussian_errors
from protocols.multikey import MK18_39, MK18_49, MultiKeyPreset
from protocols.multikey_ckks import MultiKeySum, Protected, _ciphertext, protect
from protocols.ntt import transform
from protocols.sharing import consistent, expand, interpolate, unpack_share, weighted_share

PRESETS = [MK18_39, MK18_49]
REFERENCE = hashlib.sha256(b"reference").digest()
Values = np.ndarray


# A second implementation, from the docstrings: Python integers, nothing of the first.


@lru_cache
def inverse_matrix(prime: int, degree: int) -> Values:
    """ψ^(−(2i+1)·n) by row n: N times the inverse of evaluation at the odd powers."""
    root = next(root for root in range(2, prime) if pow(root, degree, prime) == prime - 1)
    powers = np.array([pow(root, -power, prime) for power in range(2 * degree)])
    return powers[np.outer(np.arange(degree), 2 * np.arange(degree) + 1) % (2 * degree)]


def coefficients(values: Values, prime: int) -> Values:
    degree = len(values)
    whole = inverse_matrix(prime, degree) @ values.astype(np.int64) % prime
    return whole * pow(degree, -1, prime) % prime


def public_transforms(reference: bytes, prime: int, blocks: int, degree: int) -> list[list[int]]:
    tag = b"natfl multi-key reference" + prime.to_bytes(4, "little") + reference
    cipher = Cipher(algorithms.AES(hashlib.sha256(tag).digest()), modes.ECB()).encryptor()  # noqa: S305
    counters = (number.to_bytes(16, "big") for number in range(blocks * degree // 4 + 100))
    stream = b"".join(map(cipher.update, counters))
    words = (int.from_bytes(stream[at : at + 4], "little") for at in range(0, len(stream), 4))
    found = [word % prime for word in words if word < 2**32 // prime * prime]
    return [found[at * degree : (at + 1) * degree] for at in range(blocks)]


def big_product(one: Values, other: Values, prime: int) -> Values:
    """The product modulo X^N + 1 and p by one product of big integers (Kronecker)."""
    degree = len(one)
    big = [int.from_bytes(x.astype("<u8").tobytes(), "little") for x in (one, other)]
    whole = np.frombuffer((big[0] * big[1]).to_bytes(16 * degree, "little"), "<u8")
    return (whole[:degree].astype(np.int64) - whole[degree:].astype(np.int64)) % prime


def masks(preset: MultiKeyPreset, secret: Values, reference: bytes, blocks: int) -> list[int]:
    """Coefficients of a·s in [0, q)."""
    total = [0] * (blocks * preset.degree)
    for prime, row in zip(preset.primes, secret, strict=True):
        key = coefficients(row, prime)
        cofactor = preset.q // prime
        unit = cofactor * pow(cofactor, -1, prime)
        for at, public in enumerate(public_transforms(reference, prime, blocks, preset.degree)):
            product = big_product(coefficients(np.array(public), prime), key, prime).tolist()
            for n, residue in enumerate(product, at * preset.degree):
                total[n] = (total[n] + unit * residue) % preset.q
    return total


def second_body(
    preset: MultiKeyPreset, secret: Values, errors: Values, values: Values, reference: bytes
) -> bytes:
    blocks = len(errors) // preset.degree
    padded = values.tolist() + [0] * (len(errors) - len(values))
    stream = ""
    parts = zip(masks(preset, secret, reference, blocks), errors.tolist(), padded, strict=True)
    for mask, error, value in parts:
        b = (-mask + error + preset.scale * value) % preset.q
        stream = format((b + 2**9) // 2**10, f"0{preset.wire_bits}b") + stream
    return int(stream, 2).to_bytes(len(stream) // 8, "little")


def second_opening(
    preset: MultiKeyPreset,
    bodies: list[bytes],
    alphas: list[int],
    key_sum: Values,
    reference: bytes,
) -> list[int]:
    streams = [int.from_bytes(body, "little") for body in bodies]
    bits = preset.wire_bits
    count = len(bodies[0]) * 8 // bits
    opened = []
    for n, mask in enumerate(masks(preset, key_sum, reference, count // preset.degree)):
        integers = [stream >> bits * n & (1 << bits) - 1 for stream in streams]
        total = sum(a * c for a, c in zip(alphas, integers, strict=True))
        phase = (2**10 * total + mask) % preset.q
        phase -= preset.q if phase > preset.q // 2 else 0
        opened.append((2 * phase + preset.scale) // (2 * preset.scale))
    return opened


# Helpers.


def fresh_key(preset: MultiKeyPreset) -> Values:
    return np.stack([uniform(prime, preset.degree, os.urandom) for prime in preset.primes])


def key_sum(preset: MultiKeyPreset, keys: list[Values], alphas: list[int]) -> Values:
    total = sum(a * key.astype(np.int64) for a, key in zip(alphas, keys, strict=True))
    return (total % np.array(preset.primes)[:, None]).astype(np.uint64)


def added(preset: MultiKeyPreset, size: int, bodies: list[bytes], alphas: list[int]) -> MultiKeySum:
    total = MultiKeySum(preset, size)
    for body, alpha in zip(bodies, alphas, strict=True):
        total.add(body, alpha)
    return total


def integers(preset: MultiKeyPreset, size: int, draw: np.random.Generator) -> Values:
    limit = preset.value_limit
    return (
        draw.choice([limit, -limit, 0, int(draw.integers(-limit, limit + 1))], size)
        if draw.integers(2)
        else draw.integers(-limit, limit + 1, size)
    )


def opened_by(
    preset: MultiKeyPreset,
    contributions: list[Protected],
    alphas: list[int],
    size: int,
    holders: list[int],
    plan_alphas: list[int] | None = None,
) -> Values:
    """What these holders' answers open."""
    total = added(preset, size, [each.body for each in contributions], alphas)
    answers = {
        holder: unpack_share(
            preset,
            weighted_share(preset, [each.shares[holder - 1] for each in contributions], alphas),
        )
        for holder in holders
    }
    secret = interpolate(preset, answers)
    heaviest = max(plan_alphas or alphas)
    assert total.opens(secret, reference=REFERENCE, alphas=alphas, heaviest=heaviest)
    return total.open(secret, reference=REFERENCE, alphas=alphas, heaviest=heaviest)


# Bit for bit.


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [1, 2048, 2049, 5000])
def test_bodies_and_openings_are_those_of_a_second_implementation(
    preset: MultiKeyPreset, size: int
) -> None:
    draw, alphas = np.random.default_rng(size), [4, 1, 3]
    places = preset.blocks(size) * preset.degree
    keys = [fresh_key(preset) for _ in alphas]
    vectors = [integers(preset, size, draw) for _ in alphas]
    errors = [draw.choice([-462, 462], places), *(draw.integers(-462, 463, (2, places)))]
    parts = list(zip(keys, errors, vectors, strict=True))
    bodies = [_ciphertext(preset, *part, REFERENCE) for part in parts]
    assert bodies == [second_body(preset, *part, REFERENCE) for part in parts]
    assert {len(body) for body in bodies} == {preset.ciphertext_bytes(size)}
    secret = key_sum(preset, keys, alphas)
    opened = added(preset, size, bodies, alphas).open(secret, reference=REFERENCE, alphas=alphas)
    whole = second_opening(preset, bodies, alphas, secret, REFERENCE)
    assert opened.tolist() == whole[:size]
    assert not any(whole[size:])
    np.testing.assert_array_equal(opened, sum(a * v for a, v in zip(alphas, vectors, strict=True)))


# Exactness.


@given(st.data())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_rounds_are_exact(make_released: Callable[..., object], data: st.DataObject) -> None:
    preset = data.draw(st.sampled_from(PRESETS))
    size = data.draw(st.sampled_from([1, 2, 2047, 2048, 2049, 4097]))
    alphas = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    holders = data.draw(st.integers(1, 9))
    threshold = data.draw(st.integers(1, holders))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    start = data.draw(st.integers(0, 3))
    vectors = [integers(preset, size + 5, draw) for _ in alphas]
    contributions = [
        protect(
            preset,
            make_released(vector),
            (start, start + size),
            reference=REFERENCE,
            heaviest=max(alphas),
            holders=holders,
            threshold=threshold,
        )
        for vector in vectors
    ]
    chosen = data.draw(st.permutations(range(1, holders + 1)))[:threshold]
    opened = opened_by(preset, contributions, alphas, size, chosen)
    wanted = sum(a * v[start : start + size] for a, v in zip(alphas, vectors, strict=True))
    np.testing.assert_array_equal(opened, wanted)
    assert opened.dtype == np.int64


def chosen_residues(
    preset: MultiKeyPreset, body: Values, errors: Values, values: Values
) -> tuple[Values, bytes]:
    """A key, and a reference, under which these errors and values give b = `body` (one block).

    The adversary's best case: dropped bits at their extremes. With b and the rest given, a·s is
    known, and ŝ is its transform divided by â.
    """
    wanted = (errors + preset.scale * values - body) % preset.q
    while True:
        reference = os.urandom(32)
        publics = [public_transforms(reference, p, 1, preset.degree)[0] for p in preset.primes]
        if all(0 not in public for public in publics):
            break
    rows = []
    for prime, public in zip(preset.primes, publics, strict=True):
        target = transform(preset.degree, prime).forward((wanted % prime).astype(np.uint64))
        inverses = [pow(entry, -1, prime) for entry in public]
        rows.append([x * y % prime for x, y in zip(target.tolist(), inverses, strict=True)])
    return np.array(rows, np.uint64), reference


def worst_case(preset: MultiKeyPreset, sign: int, value: int) -> tuple[Values, int]:
    """The opening where every error is at its end, A = 32 in weights of 4; and the sum's error.

    One key and body stand for all eight clients.
    """
    alphas, limit = [4] * 8, preset.noise_bound(4) - 512
    errors = np.full(preset.degree, sign * limit)
    values = np.full(preset.degree, value)
    # Dropping ten bits adds 512 to ..512 and −511 to ..511: the two ends.
    b = 1024 * np.random.default_rng(3).integers(0, preset.q // 1024, preset.degree)
    b += 512 if sign > 0 else 511
    key, reference = chosen_residues(preset, b, errors, values)
    body = _ciphertext(preset, key, errors, values, reference)
    total = added(preset, preset.degree, [body] * 8, alphas)
    opened = total.open(
        key_sum(preset, [key] * 8, alphas), reference=reference, alphas=alphas, heaviest=4
    )
    return opened, 32 * (limit + (512 if sign > 0 else 511))


@pytest.mark.parametrize("value", [MK18_39.value_limit, -MK18_39.value_limit, 0])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scale", [62_337, MK18_39.scale, 64_008])
def test_all_errors_at_the_bound_are_exact_within_the_proof(
    scale: int, sign: int, value: int
) -> None:
    preset = replace(MK18_39, scale=scale)
    preset.prove([4] * 8)
    opened, _ = worst_case(preset, sign, value)
    assert (opened == 32 * value).all()


def test_one_step_outside_the_proof_the_worst_case_is_wrong() -> None:
    """The bound is tight: Δ = 2·A·B opens another integer, and the proof refuses it."""
    preset = replace(MK18_39, scale=62_336)
    opened, error = worst_case(preset, 1, 0)
    assert error == 32 * preset.noise_bound(4) == preset.scale // 2
    assert (opened == 1).all()
    with pytest.raises(ConfigError, match="no exact sum"):
        preset.prove([4] * 8)


def test_the_error_and_value_bounds_are_checked_at_opening() -> None:
    """Errors and values of A honest clients open; what is beyond by one is refused."""
    preset, alphas = MK18_39, [2, 1]
    bound = 3 * preset.noise_bound(2)
    key, zeros = fresh_key(preset), np.zeros(preset.degree, np.int64)
    for error, value, opens in (
        (bound, 0, True),
        (-bound, 3 * preset.value_limit, True),
        (bound, -3 * preset.value_limit, True),
        (bound + 1, 0, False),
        (-bound - 1, 7, False),
        (0, 3 * preset.value_limit + 1, False),
        (0, -3 * preset.value_limit - 1, False),
    ):
        phase = zeros.copy()
        phase[9] = value * preset.scale + error
        total = added(preset, 10, [bytes(preset.ciphertext_bytes(10))] * 2, alphas)
        # A sum whose phase is exactly as wished, dropped bits and all.
        mask = masks(preset, key, REFERENCE, 1)
        wanted = [(int(x) - m) % preset.q for x, m in zip(phase, mask, strict=True)]
        inverse = pow(1024, -1, preset.q)
        total._sum[:] = [x * inverse % preset.q for x in wanted]
        assert total.opens(key, reference=REFERENCE, alphas=alphas) is opens
        if opens:
            opened = total.open(key, reference=REFERENCE, alphas=alphas)
            assert opened.tolist() == [0] * 9 + [value]
        else:
            with pytest.raises(ProtocolError, match="not one of honest contributions"):
                total.open(key, reference=REFERENCE, alphas=alphas)


def test_the_heaviest_client_may_have_dropped_out() -> None:
    """Errors are as wide as the plan's heaviest weight asks, whoever is included."""
    preset = MK18_39
    key, errors = fresh_key(preset), np.full(preset.degree, 462)
    body = _ciphertext(preset, key, errors, np.arange(10), REFERENCE)
    total = added(preset, 10, [body], [1])
    opened = total.open(key, reference=REFERENCE, alphas=[1], heaviest=4)
    assert opened.tolist() == list(range(10))
    with pytest.raises(ProtocolError, match="honest"):
        total.open(key, reference=REFERENCE, alphas=[1])


def test_no_bit_need_be_dropped() -> None:
    preset, draw = replace(MK18_39, dropped=0), np.random.default_rng(8)
    assert preset.wire_bits == 39
    assert preset.noise_bound(1) == 116
    key, errors, values = fresh_key(preset), np.full(2048, 116), integers(preset, 2048, draw)
    body = _ciphertext(preset, key, errors, values, REFERENCE)
    opened = added(preset, 2048, [body], [1]).open(key, reference=REFERENCE, alphas=[1])
    np.testing.assert_array_equal(opened, values)


# What does not open.


@pytest.fixture
def round_of_three(make_released: Callable[..., object]) -> tuple[list[Protected], list[int]]:
    draw, alphas = np.random.default_rng(5), [3, 1, 4]
    return [
        protect(
            MK18_39,
            make_released(integers(MK18_39, 3000, draw)),
            (0, 3000),
            reference=REFERENCE,
            heaviest=4,
            holders=5,
            threshold=3,
        )
        for _ in alphas
    ], alphas


def shared_key(contributions: list[Protected], alphas: list[int], holders: list[int]) -> Values:
    return interpolate(
        MK18_39,
        {
            holder: expand(
                weighted_share(MK18_39, [c.shares[holder - 1] for c in contributions], alphas),
                MK18_39,
            )
            for holder in holders
        },
    )


@pytest.mark.parametrize(
    ("members", "weights"),
    [
        ([0, 1, 2], [3, 1, 3]),
        ([0, 1, 2], [3, 2, 4]),
        ([0, 1, 2], [1, 1, 4]),
        ([0, 1], [3, 1]),
        ([1, 2], [1, 4]),
        ([0], [3]),
        ([1], [1]),
    ],
)
def test_another_set_or_other_weights_open_nothing(
    round_of_three: tuple[list[Protected], list[int]], members: list[int], weights: list[int]
) -> None:
    contributions, alphas = round_of_three
    secret = shared_key(contributions, alphas, [1, 3, 4])
    total = added(MK18_39, 3000, [contributions[at].body for at in members], weights)
    assert not total.opens(secret, reference=REFERENCE, alphas=alphas)
    for claimed in (alphas, weights):
        with pytest.raises(ProtocolError, match="not one of honest contributions"):
            total.open(secret, reference=REFERENCE, alphas=claimed, heaviest=4)


def test_too_few_holders_a_wrong_share_or_another_reference_open_nothing(
    round_of_three: tuple[list[Protected], list[int]],
) -> None:
    contributions, alphas = round_of_three
    total = added(MK18_39, 3000, [each.body for each in contributions], alphas)
    right = shared_key(contributions, alphas, [2, 3, 5])
    assert total.opens(right, reference=REFERENCE, alphas=alphas)
    for holders in ([1, 2], [5], [3, 4]):
        secret = shared_key(contributions, alphas, holders)
        assert not total.opens(secret, reference=REFERENCE, alphas=alphas)
    wrong = right.copy()
    wrong[0, 0] ^= np.uint64(1)
    for secret, reference in ((wrong, REFERENCE), (right, bytes(32))):
        assert not total.opens(secret, reference=reference, alphas=alphas)
        with pytest.raises(ProtocolError, match="honest"):
            total.open(secret, reference=reference, alphas=alphas)


def test_a_wrong_answer_of_one_holder_is_found_by_the_others(
    round_of_three: tuple[list[Protected], list[int]],
) -> None:
    contributions, alphas = round_of_three
    answers = {
        holder: expand(
            weighted_share(MK18_39, [c.shares[holder - 1] for c in contributions], alphas), MK18_39
        )
        for holder in range(1, 6)
    }
    answers[2] = fresh_key(MK18_39)
    good = {holder: answers[holder] for holder in (1, 3, 5)}
    bad = {holder: answers[holder] for holder in (1, 2, 5)}
    assert consistent(MK18_39, good, 4, answers[4])
    assert not consistent(MK18_39, good, 2, answers[2])
    assert not consistent(MK18_39, bad, 4, answers[4])


def test_unused_coefficients_that_are_not_zero_are_refused() -> None:
    key, errors = fresh_key(MK18_39), np.zeros(2048, np.int64)
    values = np.zeros(11, np.int64)
    values[10] = 1
    body = _ciphertext(MK18_39, key, errors, values, REFERENCE)
    assert added(MK18_39, 11, [body], [1]).open(key, reference=REFERENCE, alphas=[1])[10] == 1
    with pytest.raises(ProtocolError, match="honest"):
        added(MK18_39, 10, [body], [1]).open(key, reference=REFERENCE, alphas=[1])


def test_only_the_first_block_is_tried() -> None:
    key, errors = fresh_key(MK18_39), np.zeros(4096, np.int64)
    body = _ciphertext(MK18_39, key, errors, np.arange(3000), REFERENCE)
    total = added(MK18_39, 3000, [body], [1])
    total._sum[-1] ^= np.uint64(1 << 20)
    assert total.opens(key, reference=REFERENCE, alphas=[1])
    with pytest.raises(ProtocolError, match="honest"):
        total.open(key, reference=REFERENCE, alphas=[1])


# What is not taken.


def test_bodies_of_other_lengths_weights_or_residues_are_refused() -> None:
    total, good = MultiKeySum(MK18_39, 100), bytes(MK18_39.ciphertext_bytes(100))
    for body, alpha in (
        (good[:-1], 1),
        (good + b"\0", 1),
        (b"", 1),
        (good, 0),
        (good, -1),
        (good, 33),
    ):
        with pytest.raises(ProtocolError, match="length or weight"):
            total.add(body, alpha)
    limit = MK18_39.wire_limit
    assert limit < 2**29
    for integer, taken in ((limit - 1, True), (limit, False), (2**29 - 1, False)):
        body = (integer << 29 * 7).to_bytes(len(good), "little")
        if taken:
            total.add(body, 1)
        else:
            with pytest.raises(ProtocolError, match="not below its modulus"):
                total.add(body, 1)
    total.add(good, 31)
    with pytest.raises(ProtocolError, match="length or weight"):
        total.add(good, 1)


def test_only_a_release_within_the_limit_is_protected(make_released: Callable[..., object]) -> None:
    options = {"reference": REFERENCE, "heaviest": 4, "holders": 3, "threshold": 2}
    for other in (np.arange(5), [1, 2, 3], object()):
        with pytest.raises(TypeError, match="Released"):
            protect(MK18_39, other, (0, 3), **options)
    values = np.array([1, 2, MK18_39.value_limit + 1])
    for beyond in (values, -values):
        with pytest.raises(PrivacyError, match="wider than the preset"):
            protect(MK18_39, make_released(beyond), (0, 3), **options)
        assert protect(MK18_39, make_released(beyond), (0, 2), **options).shares


def test_keys_errors_and_shares_are_fresh_each_time(make_released: Callable[..., object]) -> None:
    options = {"reference": REFERENCE, "heaviest": 4, "holders": 5, "threshold": 3}
    made = [protect(MK18_39, make_released(np.zeros(10)), (0, 10), **options) for _ in range(4)]
    assert len({each.body for each in made}) == 4
    assert len({share for each in made for share in each.shares}) == 20
    assert "body" not in repr(made[0])
    assert "shares" not in repr(made[0])


def test_a_body_looks_uniform_without_its_key(make_released: Callable[..., object]) -> None:
    """64 classes of c over 30,720 places: no sign of the constant integers beneath."""
    options = {"reference": REFERENCE, "heaviest": 1, "holders": 1, "threshold": 1}
    body = protect(MK18_39, make_released(np.full(30_000, 5)), (0, 30_000), **options).body
    stream = int.from_bytes(body, "little")
    places = np.array([stream >> 29 * n & (1 << 29) - 1 for n in range(30_720)])
    counts = np.bincount(places * 64 // MK18_39.wire_limit, minlength=64)
    # Chi-square with 63 degrees of freedom: mean 63, standard deviation 11.2.
    assert ((counts - 480) ** 2 / 480).sum() < 63 + 8 * math.sqrt(2 * 63)


@pytest.mark.nightly
@pytest.mark.parametrize("preset", PRESETS)
def test_three_hundred_rounds_at_the_proved_total_are_exact(preset: MultiKeyPreset) -> None:
    draw = np.random.default_rng(11)
    for number in range(300):
        alphas = [4] * (preset.largest_total(4) // 4)
        picked = alphas[: int(draw.integers(1, min(len(alphas), 40) + 1))]
        vectors = [integers(preset, 2048, draw) for _ in picked]
        keys = [fresh_key(preset) for _ in picked]
        bodies = [
            _ciphertext(preset, key, gaussian_errors(2048, 33.0, os.urandom), vector, REFERENCE)
            for key, vector in zip(keys, vectors, strict=True)
        ]
        total = added(preset, 2048, bodies, picked)
        opened = total.open(key_sum(preset, keys, picked), reference=REFERENCE, alphas=picked)
        assert (opened == 4 * sum(vectors)).all(), f"round {number}"
