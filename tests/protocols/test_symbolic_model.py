"""docs/protocol/attempts.maude, searched to the end: what holds, and which rule it rests on.

A search visits every reachable state of a case, or stops at the first that is broken: two sums
that differ are open over the same integers of one honest client, or over the same key.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

MAUDE = shutil.which("maude")
MODEL = Path(__file__).parents[2] / "docs" / "protocol" / "attempts.maude"
RULES = frozenset({"tombstone", "once", "round", "kept", "ask", "fresh"})

pytestmark = pytest.mark.skipif(
    MAUDE is None, reason="maude is not installed (Debian: apt-get install maude)"
)

# Plans: g1, g2 are attempts 1 and 2 of a group of three; g1_fewer is another attempt 1;
# h2 sums two of them under another name; h3 is a third attempt; next_round asks two again.
PLANS = """
  ops g1 g2 g1-fewer h2 h3 next-round classes four four-split four-less : -> Plan .
  eq g1 = plan(1, 1, group('g, 0, 0, ('a, 'b, 'c))) .
  eq g2 = plan(1, 2, group('g, 0, 0, ('a, 'b, 'c))) .
  eq g1-fewer = plan(1, 1, group('g, 0, 0, ('a, 'b))) .
  eq h2 = plan(1, 2, group('h, 0, 0, ('a, 'b))) .
  eq h3 = plan(1, 3, group('h, 0, 0, ('a, 'b, 'c))) .
  eq next-round = plan(2, 1, group('g, 0, 0, ('a, 'b))) .
  eq classes = plan(1, 1, group('g, 0, 0, ('a, 'b, 'c)) & group('k, 1, 1, ('a, 'b))) .
  eq four = plan(1, 1, group('g, 0, 0, ('a, 'b, 'c, 'd))) .
  eq four-split = plan(1, 2, group('g, 0, 0, ('a, 'b)) & group('k, 0, 0, ('c, 'd))) .
  eq four-less = plan(1, 2, group('h, 0, 0, ('a, 'b, 'c))) .
"""


@dataclass(frozen=True)
class Case:
    """The plans that the server may issue, t, f, honest holders, least set, honest clients."""

    plans: str
    threshold: int = 2
    malicious: int = 0
    honest: int = 3
    least: int = 2
    clients: str = "a"
    rules: frozenset[str] = RULES

    def without(self, *rules: str) -> "Case":
        return replace(self, rules=self.rules - set(rules))

    @property
    def term(self) -> str:
        rules = " . ".join(f"'{rule}" for rule in sorted(self.rules))
        holders = "holder(no-plan, no-items) " * self.honest
        clients = " ".join(f"client('{name}, no-items)" for name in self.clients)
        return (
            f"{{ {rules} ; {self.plans} ; {self.threshold} ; {self.malicious} ; {self.least} "
            f"| {holders} | {clients} }}"
        )


RETRY = Case("g1 g2 h2")
ROUNDS = Case("g1 next-round", honest=2)


def reaches(tmp_path: Path, case: Case, condition: str) -> bool:
    """Is there a reachable state with the condition; the whole space is searched if not."""
    search = tmp_path / "search.maude"
    search.write_text(
        f"mod CASE is including ATTEMPTS .{PLANS}endm\n"
        f"search [1] {case.term} =>* S:State such that {condition} .\nquit\n"
    )
    done = subprocess.run(
        [MAUDE, "-no-banner", "-no-ansi-color", str(MODEL), str(search)],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert not done.stderr, done.stderr
    found, none = "Solution 1" in done.stdout, "No solution." in done.stdout
    assert found != none, done.stdout
    assert int(re.search(r"states: (\d+)", done.stdout)[1]) > 20
    return found


def broken(tmp_path: Path, case: Case) -> bool:
    return reaches(tmp_path, case, "broken(S:State)")


@pytest.mark.parametrize("condition", ["done(S:State, 1)", "done(S:State, 2)"])
def test_rounds_do_open_in_the_first_attempt_and_in_the_second(tmp_path, condition):
    assert reaches(tmp_path, RETRY, condition)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(RETRY, id="n3-t2-f0"),
        pytest.param(replace(RETRY, threshold=3, malicious=1), id="n4-t3-f1"),
        pytest.param(replace(RETRY, threshold=4, malicious=2), id="n5-t4-f2"),
        pytest.param(Case("g1 g1-fewer h2"), id="two-plans-of-one-attempt"),
        pytest.param(Case("four four-split four-less", least=3), id="four-clients"),
        pytest.param(Case("g1 h2", clients="ab"), id="two-honest-clients"),
        pytest.param(Case("classes"), id="a-group-per-class"),
        pytest.param(ROUNDS, id="two-rounds"),
    ],
)
def test_no_two_sums_are_open_over_the_same_integers_or_key(tmp_path, case):
    assert not broken(tmp_path, case)


def test_no_single_contribution_opens_unless_the_least_set_is_one_client(tmp_path):
    assert not reaches(tmp_path, RETRY, "single(S:State)")
    assert reaches(tmp_path, replace(RETRY, least=1), "single(S:State)")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("g1", honest=4), id="t-is-half-of-n"),
        pytest.param(Case("g1", malicious=1, honest=2), id="t-is-half-of-n-and-f"),
        pytest.param(Case("four", threshold=3, malicious=2, honest=2), id="n4-t3-f2"),
    ],
)
def test_a_threshold_of_half_of_n_and_f_opens_two_sums(tmp_path, case):
    assert 2 * case.threshold <= case.honest + 2 * case.malicious
    assert broken(tmp_path, case)


@pytest.mark.parametrize("rule", ["tombstone", "once", "kept"])
def test_without_one_of_the_holders_rules_two_sums_open(tmp_path, rule):
    assert broken(tmp_path, RETRY.without(rule))


@pytest.mark.parametrize("rule", ["round", "ask"])
def test_the_holders_memory_and_the_clients_question_are_two_locks_on_one_door(tmp_path, rule):
    assert not broken(tmp_path, RETRY.without(rule))


def test_a_retry_that_nobody_remembers_or_asks_about_opens_two_sums(tmp_path):
    assert broken(tmp_path, RETRY.without("round", "ask"))


@pytest.mark.parametrize("case", [ROUNDS, Case("classes")], ids=["rounds", "classes"])
def test_one_key_for_two_rounds_or_two_groups_gives_two_sums_of_it(tmp_path, case):
    assert broken(tmp_path, case.without("fresh"))


def test_within_one_group_of_one_round_one_opening_does_not_rest_on_fresh_keys(tmp_path):
    assert not broken(tmp_path, RETRY.without("fresh"))


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case("g1 h2 h3"), id="three-attempts"),
        pytest.param(Case("g1 g1-fewer g2 h2"), id="four-plans"),
        pytest.param(Case("g1 h2", threshold=3, honest=5), id="n5-t3-f0"),
        pytest.param(Case("g1 h2", threshold=4, malicious=1, honest=5), id="n6-t4-f1"),
        pytest.param(Case("four four-split four-less"), id="four-clients-least-two"),
        pytest.param(Case("g1 g2 h2", clients="abc"), id="three-honest-clients"),
        pytest.param(replace(ROUNDS, honest=3), id="two-rounds-n3"),
    ],
)
def test_larger_cases_hold_too(tmp_path, case):
    assert not broken(tmp_path, case)
