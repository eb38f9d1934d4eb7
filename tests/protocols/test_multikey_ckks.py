"""Multi-key sums are exact: bit for bit, at random and at the bounds of the proof."""

import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError, ProtocolError
from protocols.gaussian_errors import gaussian_errors
from protocols.multikey import MK18_39, MultiKeyPreset
from protocols.multikey_ckks import _ciphertext, protect
from protocols.ntt import transform
from tests.protocols.second_multikey import (
    PRESETS,
    REFERENCE,
    Values,
    added,
    fresh_key,
    integers,
    key_sum,
    masks,
    opened_by,
    public_transforms,
    second_body,
    second_opening,
)

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


# What is not taken.


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
