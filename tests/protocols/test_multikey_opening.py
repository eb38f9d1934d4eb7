"""Which multi-key sums do not open, and what is not taken or protected."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from protocols.errors import PrivacyError, ProtocolError
from protocols.multikey import MK18_39
from protocols.multikey_ckks import MultiKeySum, Protected, _ciphertext, protect
from protocols.sharing import consistent, expand, weighted_share
from tests.protocols.second_multikey import REFERENCE, added, fresh_key, integers, shared_key

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
