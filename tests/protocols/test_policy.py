from itertools import combinations, compress, product

import numpy as np
import pytest
from pydantic import ValidationError

from protocols.errors import ConfigError, NatflError, PrivacyError, ProtocolError
from protocols.messages import Floors, Group
from protocols.policy import (
    DECRYPTOR,
    SERVER,
    Enrolment,
    cap,
    check_included,
    check_plan,
    check_retry,
    check_subset,
    effective,
    holder_name,
    threshold_of,
)
from protocols.presets import PRESETS, check_width, find_preset


def group(name="g0", members="abcd", alphas=(1, 2, 3, 4), **fields):
    return Group(name=name, participants=tuple(members), alphas=tuple(alphas), **fields)


def test_effective_contributors_are_n_for_equal_weights_and_one_for_one():
    assert effective([3, 3, 3]) == 3
    assert effective([5]) == 1
    assert effective([2, 1, 1]) == pytest.approx(16 / 6)


def test_capping_reaches_the_floors_and_touches_only_the_heaviest():
    floors = Floors(participants=3, effective=2.0)
    draw = np.random.default_rng(3)
    for _ in range(300):
        alphas = {name: int(a) for name, a in zip("abcde", draw.integers(1, 40, 5), strict=True)}
        capped = cap(alphas, floors)
        assert effective(tuple(capped.values())) >= 2
        top = max(capped.values())
        assert all(capped[name] in (alphas[name], top) for name in alphas)
        assert all(1 <= capped[name] <= alphas[name] for name in alphas)
    assert cap({"a": 9, "b": 1, "c": 1}, floors)["a"] < 9
    with pytest.raises(ConfigError, match="2 participants"):
        cap({"a": 1, "b": 1}, floors)


def test_an_honest_plan_is_accepted(world):
    check_plan(world.plan(), world.enrolment())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"session": "other"}, "session"),
        ({"sender": "a"}, "server"),
        ({"version": "9.9"}, "version"),
        ({"proxies": "0" * 64}, "proxies"),
        ({"terms": "0" * 64}, "terms"),
        ({"preset": "plain"}, "preset"),
        ({"holders": "0" * 64}, "holders"),
        ({"mode": "plain/none"}, "mode differs"),
        ({"body": b""}, "proxies"),
        ({"body": np.array([4, 5, 4], "<u4").tobytes()}, "repeat"),
        ({"body": b"123"}, "whole"),
        ({"floors": Floors(participants=2)}, "participant floor"),
        ({"floors": Floors(effective=1.5)}, "effective weights"),
        ({"floors": Floors(participants=5)}, "too few contributions"),
        ({"floors": Floors(effective=3.5)}, "too few effective"),
        ({"groups": (group(members="ab", alphas=(1, 1)),)}, "too few contributions"),
        ({"groups": (group(least=5),)}, "too few contributions"),
        ({"groups": (group(alphas=(1, 1, 1)),)}, "one weight"),
        ({"groups": (group(alphas=(60, 1, 1, 1)),)}, "too few effective"),
        ({"groups": (group(alphas=(32, 32, 32, 32)),)}, "exact"),
        ({"groups": (group(members="abca"),)}, "twice in group"),
        ({"groups": (group(), group("g1", "def", (1, 1, 1)))}, "summed twice"),
        (
            {
                "groups": (
                    group(members="abc", alphas=(1, 1, 1)),
                    group(members="def", alphas=(1, 1, 1)),
                )
            },
            "name",
        ),
        ({"groups": (group(members="abcz"),)}, "enrolled"),
    ],
)
def test_plans_against_the_rules_are_refused(world, change, why):
    with pytest.raises(NatflError, match=why):
        check_plan(world.plan().model_copy(update=change), world.enrolment())


def column(draw, clients):
    """Integer weights of so many clients: one-hot, near-zero, extreme ratios, equal or random."""
    kind = draw.integers(0, 5)
    if kind == 0:
        weights = np.where(np.arange(clients) == draw.integers(clients), 120, 1)
    elif kind == 1:
        weights = np.ones(clients)
    elif kind == 2:
        weights = draw.pareto(0.7, clients) * 2
    elif kind == 3:
        weights = 10.0 ** draw.uniform(-3, 2.2, clients)
    else:
        weights = draw.integers(1, 12, clients)
    return np.maximum(1, weights.astype(int)).clip(max=130).tolist()


def test_ten_thousand_random_weight_matrices_pass_exactly_when_every_column_meets_the_floors(world):
    """A weight per client and class: each class is a group with a span of its own."""
    draw, accepted, refused = np.random.default_rng(4), 0, 0
    plan, enrolment = world.plan(), world.enrolment()
    for _ in range(10_000):
        members = "abcdef"[: draw.integers(2, 7)]
        classes = int(draw.integers(1, 4))
        matrix = [column(draw, len(members)) for _ in range(classes)]
        # Independently of protocols.policy: whole numbers only, and PK18_44's proved total.
        good = len(members) >= 3 and all(
            sum(alphas) ** 2 >= 2 * sum(alpha * alpha for alpha in alphas)
            and 2 * (4096 // 2 + 2) * sum(alphas) < 1 << 19
            for alphas in matrix
        )
        groups = tuple(
            group(f"g{at}", members, alphas, span=(10 * at, 10 * at + 10))
            for at, alphas in enumerate(matrix)
        )
        asked = plan.model_copy(update={"groups": groups})
        if good:
            check_plan(asked, enrolment)
            accepted += 1
        else:
            with pytest.raises(NatflError):
                check_plan(asked, enrolment)
            refused += 1
    assert min(accepted, refused) > 2000


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([(0, 40)], ""),
        ([(0, 20), (20, 40)], ""),
        ([(20, 40), (0, 20)], ""),
        ([(0, 1), (5, 6)], ""),
        ([(0, 20), (19, 40)], "summed twice"),
        ([(0, 40), None], "summed twice"),
        ([(10, 20), (0, 40)], "summed twice"),
        ([(7, 7)], "sums nothing"),
        ([(9, 7)], "sums nothing"),
        ([(0, 41)], "too much"),
        ([(40, 41)], "too much"),
    ],
)
def test_spans_lie_in_the_vector_and_no_number_enters_two_sums(world, spans, why):
    groups = tuple(group(f"g{at}", span=span) for at, span in enumerate(spans))
    plan = world.plan().model_copy(update={"groups": groups})
    if why:
        with pytest.raises(ProtocolError, match=why):
            check_plan(plan, world.enrolment())
    else:
        check_plan(plan, world.enrolment())


def test_different_clients_may_sum_the_same_span(world):
    groups = (group("g0", "abc", (1, 1, 1)), group("g1", "def", (1, 1, 1)))
    check_plan(world.plan().model_copy(update={"groups": groups}), world.enrolment())


def test_a_span_that_is_no_pair_of_whole_numbers_cannot_be_written():
    for span in ((-1, 4), (0, 0), (0.0, 4), (0, 1, 2), (0, 1 << 31)):
        with pytest.raises(ValidationError):
            group(span=span)


def test_every_subset_of_a_group_is_included_exactly_when_it_meets_least_and_floors(world):
    """All 64 subsets of 6 clients for each `least`, against the rules in whole numbers."""
    alphas, opened = (1, 1, 2, 3, 4, 12), 0
    for least in (1, 3, 4, 6):
        whole = group(members="abcdef", alphas=alphas, least=least)
        plan = world.plan().model_copy(update={"groups": (whole,)})
        for picked in product((False, True), repeat=6):
            names = tuple(compress("abcdef", picked))
            weights = tuple(compress(alphas, picked))
            enough = len(names) >= max(3, least)
            balanced = sum(weights) ** 2 >= 2 * sum(alpha * alpha for alpha in weights)
            if enough and balanced:
                included = check_included(plan, whole, names)
                assert (included.participants, included.alphas) == (names, weights)
                opened += 1
            else:
                with pytest.raises(ProtocolError, match="too few"):
                    check_included(plan, whole, names)
    assert 50 < opened < 200


@pytest.mark.parametrize("names", ["bacd", "abcb", "aabc", "abcc", "abcz", "abcdd"])
def test_names_that_repeat_change_places_or_are_strangers_are_not_included(world, names):
    plan = world.plan()
    with pytest.raises(ProtocolError, match="plan refused"):
        check_included(plan, plan.groups[0], tuple(names))


@pytest.mark.parametrize("alphas", [(0, 1, 1, 1), (-1, 1, 1, 1), (1.5, 1, 1, 1), (True, 1, 1, 1)])
def test_weights_that_are_no_positive_integers_cannot_be_written(alphas):
    with pytest.raises(ValidationError):
        group(alphas=alphas)


def test_no_client_may_bear_a_partys_name(world):
    for name in ("server", "decryptor", "network"):
        with pytest.raises(ValidationError, match="no client may be called"):
            world.enrolment(clients={name: "0" * 64})
    with pytest.raises(ProtocolError, match="not enrolled"):
        world.enrolment().verify_key("z")


def test_holders_are_those_of_the_mode_and_none_is_called_as_a_client(world):
    key = world.server_key.public.hex()
    cases = [
        ({"holders": {"other": key}}, "decryptor alone"),
        ({"holders": {"decryptor": key, "other": "0" * 64}}, "decryptor alone"),
        ({"mode": "ring/decryptor", "holders": {"server": key}}, "decryptor alone"),
        ({"mode": "plain/none"}, "server alone"),
        ({"mode": "plain/none", "holders": {"server": "0" * 64}}, "another key"),
        ({"holders": {}}, "at least 1"),
        (
            {"mode": "ckks/threshold", "holders": {"a": key, "x": "0" * 64}},
            "no client may be called",
        ),
    ]
    for change, why in cases:
        with pytest.raises(ValidationError, match=why):
            world.enrolment(**change)
    assert world.enrolment().opener == DECRYPTOR
    assert world.plain()[1].opener == SERVER
    assert world.shared().opener == SERVER


def test_a_threshold_is_enrolled_exactly_when_no_two_sets_of_holders_can_open_two_sums(world):
    """All t ≤ n + 1, f ≤ n for n ≤ 6, against counting: do any two t-sets share f + 1 holders?"""
    allowed = 0
    for n, f in product(range(1, 7), range(7)):
        for t in range(1, n + 2):
            sets = [set(chosen) for chosen in combinations(range(n), t)]
            safe = 2 <= t <= n and all(len(one & two) > f for one in sets for two in sets)
            if safe:
                enrolment = world.shared(t, f, n)
                assert enrolment.holder_order == tuple(holder_name(name) for name in "abcdef"[:n])
                allowed += 1
            else:
                with pytest.raises(ValidationError, match="threshold"):
                    world.shared(t, f, n)
    assert allowed > 30


def test_the_server_holds_no_share_and_other_holders_are_another_plan(world):
    holders = {**world.shared().holders, SERVER: world.server_key.public.hex()}
    with pytest.raises(ValidationError, match="server may hold no key share"):
        world.enrolment(mode="ckks/threshold", holders=holders, threshold=5, malicious=1)
    ids = [world.shared(*rule).holders_id for rule in ((4, 1, 6), (5, 1, 6), (4, 0, 6), (4, 1, 5))]
    assert len(set(ids)) == 4


def test_the_usual_threshold_is_safe_and_honest_holders_suffice(world):
    for n in range(2, 60):
        t, f = threshold_of(n)
        assert 2 <= t <= n - f
        assert 2 * t > n + f
        assert 3 * f < n <= 3 * f + 3
    assert threshold_of(6) == (4, 1)


def test_every_preset_is_found_by_its_name_and_no_other():
    assert {find_preset(name).name for name in PRESETS} == set(PRESETS)
    with pytest.raises(ConfigError, match="unknown preset 'plain'"):
        find_preset("plain")


def test_integers_up_to_the_presets_limit_pass_and_one_more_does_not():
    for preset in map(find_preset, ("pk18-44", "mk18-39", "mk18-49")):
        for sign in (-1, 1):
            check_width(np.array([0, sign * preset.value_limit]), preset)
            with pytest.raises(PrivacyError, match="wider"):
                check_width(np.array([sign * (preset.value_limit + 1)]), preset)
        check_width(np.array([], np.int64), preset)


def test_a_retry_asks_for_the_same_logits_and_leaves_opened_groups_alone(world):
    first = world.plan(groups=world.groups("abc", "def"))
    retry = first.model_copy(update={"attempt": 2})
    check_retry(retry, first, ["g0"])
    wrong = [
        {"attempt": 1},
        {"body": first.body[:-4]},
        {"size": first.size + 1},
        {"layout": "0" * 64},
        {"groups": (first.groups[1],)},
        {"groups": (group("g0", "abf", (1, 2, 3)), group("g1", "cde", (1, 2, 3)))},
        {"groups": (group("g0", "abc", (1, 2, 4)), first.groups[1])},
    ]
    for change in wrong:
        with pytest.raises(ProtocolError, match="plan refused"):
            check_retry(retry.model_copy(update=change), first, ["g0"])
    # Before anything is opened, the groups may change: a client that has gone is left out.
    check_retry(retry.model_copy(update={"groups": (first.groups[1],)}), first, [])


def test_proxies_are_not_asked_twice(world):
    first, second = world.plan(1), world.plan(2)
    check_subset(second, [first])
    check_subset(first.model_copy(update={"attempt": 2}), [first])
    again = world.plan(3, subset=[19, 50])
    with pytest.raises(ProtocolError, match="asked in round 1"):
        check_subset(again, [first, second])


@pytest.mark.parametrize("role", ["clients", "holders"])
def test_two_parties_of_a_role_do_not_share_a_key(world, role):
    enrolment = world.shared()
    keys = dict(getattr(enrolment, role))
    first, second, *_ = keys
    with pytest.raises(ValidationError, match="one verify key"):
        Enrolment.model_validate({**enrolment.model_dump(), role: {**keys, second: keys[first]}})
