import numpy as np
import pytest
from pydantic import ValidationError

from protocols.errors import ConfigError, NatflError, ProtocolError
from protocols.messages import Floors, Group
from protocols.policy import cap, check_plan, check_retry, check_subset, effective
from protocols.rlwe import PK20_44


def group(name="g0", members="abcd", alphas=(1, 2, 3, 4)):
    return Group(name=name, participants=tuple(members), alphas=tuple(alphas))


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
        ({"holder": "0" * 64}, "holder"),
        ({"body": b""}, "proxies"),
        ({"body": np.array([4, 5, 4], "<u4").tobytes()}, "repeat"),
        ({"body": b"123"}, "whole"),
        ({"floors": Floors(participants=2)}, "participant floor"),
        ({"floors": Floors(effective=1.5)}, "effective weights"),
        ({"floors": Floors(participants=5)}, "too few participants"),
        ({"floors": Floors(effective=3.5)}, "too few effective"),
        ({"groups": (group(members="ab", alphas=(1, 1)),)}, "too few participants"),
        ({"groups": (group(alphas=(1, 1, 1)),)}, "one weight"),
        ({"groups": (group(alphas=(60, 1, 1, 1)),)}, "effective"),
        ({"groups": (group(alphas=(16, 16, 16, 16)),)}, "exact"),
        ({"groups": (group(members="abca"),)}, "twice"),
        ({"groups": (group(), group("g1", "def", (1, 1, 1)))}, "twice"),
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


def test_two_thousand_random_weight_lists_keep_to_the_floor_and_no_honest_one_is_refused(world):
    """One-hot, dominated, equal and random weights: accepted exactly when every rule holds."""
    draw, accepted = np.random.default_rng(4), 0
    plan, enrolment = world.plan(), world.enrolment()
    for _ in range(2000):
        members = "abcdef"[: draw.integers(1, 7)]
        alphas = np.maximum(1, (draw.pareto(0.7, len(members)) * 2).astype(int)).clip(max=100)
        alphas = [int(alpha) for alpha in alphas]
        good = (
            len(members) >= 3
            and sum(alphas) ** 2 >= 2 * sum(alpha**2 for alpha in alphas)
            and sum(alphas) <= PK20_44.largest_total
        )
        asked = plan.model_copy(update={"groups": (group(members=members, alphas=alphas),)})
        if good:
            check_plan(asked, enrolment)
            accepted += 1
        else:
            with pytest.raises(NatflError):
                check_plan(asked, enrolment)
    assert 300 < accepted < 1700


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
