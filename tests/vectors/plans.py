"""Vectors of plan rules: what every client and key holder accepts, and which rule refuses."""

from collections.abc import Iterator
from typing import Any

from cast import CLIENTS, enrolment, group, indices, plan

from protocols import __version__
from protocols.chain import digest
from protocols.messages import Floors, RoundPlan

RULES = "clients and key holders, before they act on a plan: docs/protocol.md section 3, step 2"
RETRIES = "key holders, so that no two sums open: docs/protocol.md section 3, step 3 and section 6"
SUBSETS = "key holders, so that noise is not averaged away: docs/protocol.md section 7"
INCLUDED = "server and key holders, of a request: docs/protocol.md section 3, step 6"

AGREED = {mode: enrolment(mode) for mode in ("ckks/threshold", "ckks/decryptor")}
Vector = dict[str, Any]


def document() -> dict[str, Any]:
    """The file: enrolments by mode, and the vectors that name them."""
    agreed = {mode: one.model_dump(mode="json") for mode, one in AGREED.items()}
    return {"version": __version__, "enrolments": agreed, "vectors": vectors()}


def vectors() -> list[Vector]:
    """Plans, attempts, subsets and included sets."""
    return [*_plans(), *_retries(), *_subsets(), *_included()]


def written(one: RoundPlan) -> Vector:
    """A plan as the vectors carry it."""
    return {"header": one.model_dump(mode="json"), "body": one.body.hex()}


def _vector(check: str, name: str, source: str, rule: str | None, **given: Any) -> Vector:
    expected = {"rule": rule} if rule else {"accepted": True}
    head = {"name": f"{check}: {name}", "source": source, "check": check}
    return {**head, **given, "expected": expected}


def _plans() -> Iterator[Vector]:
    for mode, agreed in AGREED.items():
        for name, change, rule in _changes(mode):
            made = written(plan(agreed).model_copy(update=change))
            yield _vector("plan", f"{mode}, {name}", RULES, rule, enrolment=mode, plan=made)


def _changes(mode: str) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    most = {"ckks/threshold": 32, "ckks/decryptor": 127}[mode]
    fourth = most - 3 * (most // 4)
    yield "honest", {}, None
    yield "another session", {"session": "other"}, "session"
    yield "not from the server", {"sender": "a"}, "sender"
    yield "another version", {"version": "9.9"}, "version"
    yield "without encryption", {"mode": "plain/none"}, "mode"
    yield "other proxies", {"proxies": "0" * 64}, "proxies"
    yield "other terms", {"terms": "0" * 64}, "terms"
    yield "another known preset", {"preset": "mk18-49"}, "preset"
    yield "unknown preset", {"preset": "none"}, "preset"
    yield "other holders", {"holders": "0" * 64}, "holders"
    for name, body in {
        "no proxies": b"",
        "a torn index": b"123",
        "an index twice": indices([4, 5, 4]),
    }.items():
        yield name, {"body": body}, "subset"
    yield "one proxy", {"body": indices([2**32 - 1])}, None
    yield "participant floor lowered", {"floors": Floors(participants=2)}, "floor"
    yield "effective floor lowered", {"floors": Floors(effective=1.999)}, "floor"
    yield "floors raised and met", {"floors": Floors(participants=4, effective=3.0)}, None
    yield "floors raised, too few", {"floors": Floors(participants=5)}, "too few"
    yield "floors raised, unbalanced", {"floors": Floors(effective=3.5)}, "unbalanced"
    groups: dict[str, tuple[Any, str | None]] = {
        "two participants": ((group(members="ab", alphas=(1, 1)),), "too few"),
        "a weight missing": ((group(alphas=(1, 1, 1)),), "pairing"),
        "one client outweighs": ((group(alphas=(27, 1, 1, 1)),), "unbalanced"),
        "effective exactly two": ((group("g0", "abc", (4, 1, 1)),), None),
        "weights as large as proved": ((group(alphas=(most // 4,) * 3 + (fourth,)),), None)
        if mode == "ckks/decryptor"
        else ((group("g0", "abcdefgh"[:6], (4, 4, 4, 4, 4, 4)),), None),
        "weights beyond what is proved": (
            (group(alphas=(most // 4 + 1,) * 3 + (fourth,)),),
            "exactness",
        ),
        "a client twice in a group": ((group(members="abca"),), "repeats"),
        "a stranger": ((group(members="abcz"),), "enrolled"),
        "two groups of one name": (
            (group(members="abc", alphas=(1, 1, 1)), group(members="def", alphas=(1, 1, 1))),
            "names",
        ),
        "two groups apart": ((group("g0", "abc", (1, 1, 1)), group("g1", "def", (1, 2, 1))), None),
        "a client in two whole groups": ((group(), group("g1", "def", (1, 1, 1))), "span"),
        "least above the group": ((group(least=5),), "too few"),
        "least met": ((group(least=4),), None),
        "spans side by side": (
            (group(span=(0, 30)), group("g1", "abcd", (4, 3, 2, 1), span=(30, 40))),
            None,
        ),
        "spans overlap by one": (
            (group(span=(0, 31)), group("g1", "abcd", (4, 3, 2, 1), span=(30, 40))),
            "span",
        ),
        "a span and the whole": ((group(span=(0, 1)), group("g1", "def", (1, 1, 1))), "span"),
        "an empty span": ((group(span=(7, 7)),), "span"),
        "a span backwards": ((group(span=(9, 7)),), "span"),
        "a span beyond the end": ((group(span=(0, 41)),), "span"),
    }
    for name, (made, rule) in groups.items():
        yield name, {"groups": made}, rule


def _retries() -> Iterator[Vector]:
    agreed = AGREED["ckks/threshold"]
    both = (group("g0", "abc", (1, 2, 3)), group("g1", "def", (1, 2, 3)))
    first = plan(agreed, groups=both)
    second = first.model_copy(update={"attempt": 2})
    again, other = both[0].model_copy(update={"name": "again"}), both[1]
    lower, heavier = group("g0", "abc", (1, 2, 3), least=2), group("g0", "abc", (1, 2, 4))
    moved = (group("g0", "abf", (1, 2, 3)), group("g1", "cde", (1, 2, 3)))
    cases: list[tuple[str, dict[str, Any], list[str], str | None]] = [
        ("the same again", {}, ["g0"], None),
        ("all opened, the same again", {}, ["g0", "g1"], None),
        ("nothing opened, a group left out", {"groups": both[1:]}, [], None),
        ("nothing opened, clients moved", {"groups": moved}, [], None),
        ("the other group changes", {"groups": (both[0], group("g1", "de", (1, 2)))}, ["g0"], None),
        ("the same attempt", {"attempt": 1}, [], "attempt"),
        ("fewer proxies", {"body": first.body[:-4]}, [], "body"),
        ("another size", {"size": 41}, [], "size"),
        ("another layout", {"layout": digest(b"other")}, [], "layout"),
        ("an opened group left out", {"groups": both[1:]}, ["g0"], "opened"),
        ("an opened group moved", {"groups": moved}, ["g0"], "opened"),
        ("an opened group reweighted", {"groups": (heavier, other)}, ["g0"], "opened"),
        ("an opened group's least lowered", {"groups": (lower, other)}, ["g0"], "opened"),
        ("an opened group renamed", {"groups": (again, other)}, ["g0"], "opened"),
    ]
    for name, change, opened, rule in cases:
        new = written(second.model_copy(update=change))
        given = {"plan": new, "earlier": written(first), "opened": opened}
        yield _vector("retry", name, RETRIES, rule, **given)


def _subsets() -> Iterator[Vector]:
    agreed = AGREED["ckks/threshold"]
    first = plan(agreed)
    for name, change, rule in (
        ("another round, other proxies", {"round": 2, "body": indices(range(20, 30))}, None),
        ("the same round again", {"attempt": 2}, None),
        ("another round, one proxy again", {"round": 2, "body": indices([19, 99])}, "asked"),
        ("another round, all again", {"round": 2}, "asked"),
    ):
        new = written(first.model_copy(update=change))
        yield _vector("subset", name, SUBSETS, rule, plan=new, others=[written(first)])


def _included() -> Iterator[Vector]:
    agreed = AGREED["ckks/threshold"]
    whole = group("g0", "abcdef", (1, 2, 3, 4, 4, 4), least=3)
    asked = plan(agreed, groups=(whole,))
    strict = plan(agreed, groups=(whole.model_copy(update={"least": 5}),))
    for name, one, names, rule in (
        ("everybody", asked, CLIENTS, None),
        ("one dropped out", asked, tuple("abdef"), None),
        ("as few as may be", asked, tuple("def"), None),
        ("too few for the floor", asked, tuple("ef"), "too few"),
        ("too few for the group", strict, tuple("abcd"), "too few"),
        ("a stranger", asked, (*"abcd", "z"), "outside"),
        ("out of order", asked, tuple("bacd"), "order"),
        ("one twice", asked, tuple("aabc"), "order"),
    ):
        given = {"plan": written(one), "group": "g0", "names": list(names)}
        yield _vector("included", name, INCLUDED, rule, **given)
    heavy = plan(agreed, groups=(group("g0", "abcd", (9, 1, 1, 6)),))
    given = {"plan": written(heavy), "group": "g0", "names": list("abc")}
    yield _vector("included", "unbalanced without one", INCLUDED, "unbalanced", **given)
