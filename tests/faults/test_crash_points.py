"""R2, R22, R23: everybody dies at a named moment around a durable write, and the study goes on."""

from collections import Counter

import numpy as np
import pytest

from tests.faults.federation import Ended, Federation, killed_at
from tests.faults.network import Schedule

GIVEN_UP = "an earlier attempt may still be opened"
"""Why a round may end shut: some holders had answered, and the others lost their shares."""


def moments_of(made: Federation) -> list[str]:
    """The moments of the second round's attempt, in order."""
    assert made.attempt(0) is Ended.WELL
    assert made.attempt(1, None, lambda m: made.tape.note("moment", moment=m)) is Ended.WELL
    return [note["moment"] for note in made.tape.read() if note["what"] == "moment"]


def go_on(made: Federation, number: int) -> str:
    """Take a killed round up again until it is open, or must be given up for the next one."""
    for _ in range(3):
        if made.attempt(number) is Ended.WELL:
            assert len(made.opened(number)["participants"]) == len(made.names)
            return "finished"
    refusals = [note["why"] for note in made.tape.read() if note["what"] == "refused"]
    assert GIVEN_UP in refusals[-1]
    assert made.opened(number) is None
    return "aborted"


def die_and_go_on(made: Federation, number: int, at: int) -> str:
    assert made.attempt(number, None, killed_at(at)) is Ended.KILLED
    made.check()
    return go_on(made, number)


def test_r02_killed_once_before_and_after_every_kind_of_durable_write(federation) -> None:
    """At an occurrence drawn from a fixed seed; six federations of three kinds each."""
    ends, draw = Counter[str](), np.random.default_rng(2)
    moments = moments_of(federation(rounds=2))
    kinds = sorted(set(moments))
    assert len(kinds) == 18
    for start in range(0, len(kinds), 6):
        made = federation(rounds=8)
        # In a federation's first round there are other moments than later.
        made.attempt(0)
        for number, kind in enumerate(kinds[start : start + 6], start=1):
            places = [place for place, one in enumerate(moments) if one == kind]
            ends[die_and_go_on(made, number, int(draw.choice(places)))] += 1
        assert made.attempt(7) is Ended.WELL
        assert made.check().charges == 8 * len(made.names)
    assert ends["finished"] >= 14


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_r02_killed_at_every_moment_three_times(federation) -> None:
    moments = moments_of(federation(rounds=2))
    ends = Counter[str]()
    for _ in range(3):
        for start in range(0, len(moments), 10):
            made = federation(rounds=12)
            made.attempt(0)
            for number, at in enumerate(range(start, min(start + 10, len(moments))), start=1):
                ends[die_and_go_on(made, number, at)] += 1
            assert made.attempt(11) is Ended.WELL
            made.check()
    print(dict(ends))  # noqa: T201 - the counts of docs/results/reliability.md


def test_r22_killed_in_each_of_ten_rounds_it_ends_as_if_it_had_not_been(federation) -> None:
    """Before the sum is asked for, so that every round can be finished."""
    made, draw = federation(rounds=10), np.random.default_rng(22)
    for number in range(10):
        moment = killed_at(int(draw.integers(0, 8)), lambda m: "ledger" in m)
        assert made.attempt(number, None, moment) is Ended.KILLED
        assert go_on(made, number) == "finished"
    done = made.check()
    assert done.charges == 10 * len(made.names)
    assert done.openings == done.records == 10


def test_r23_a_server_that_is_gone_and_a_client_that_misses_three_rounds(federation) -> None:
    """The client comes back; it was charged for no round that it missed, and enters none twice."""
    made = federation(rounds=6)
    away = Schedule(cut=("a", "a.holder"))
    for number, schedule in enumerate([None, away, away, away, None]):
        # The server dies while contributions come in, and is back later.
        ended = made.attempt(number, schedule, killed_at(1, lambda m: "attachment" in m))
        assert ended is Ended.KILLED
        assert made.attempt(number, schedule) is Ended.WELL
        expected = list(made.names)[schedule is not None :]
        assert made.opened(number)["participants"] == expected
    made.check()
    with made.ledger("a") as ledger:
        assert [line["round"] for line in ledger.lines()] == [0, 4]
    assert made.attempt(5, Schedule(drop=1.0)) is Ended.REFUSED
    made.check()
