"""R7, R8: clients and key holders that drop out, at every phase, down to too few."""

from itertools import chain, combinations

import numpy as np
import pytest

from benchmarks.ours import Ours
from protocols.accounting import compose
from protocols.envelope import identity, outline
from protocols.errors import ProtocolError
from protocols.secagg.threshold import open_with
from protocols.secagg.topology import Absent
from tests.faults.federation import Ended, Federation
from tests.faults.network import Schedule

PHASES = ("round-plan", "round-key", "contribution", "opening-request")
SHARES = (0, 0.06, 0.1, 0.2, 0.3, 0.33, 0.5)
CLIENTS = tuple(f"c{at:02d}" for at in range(30))
LEAST = 20
HOLDERS = tuple(f"holder-{at}" for at in range(5))


def thirty(federation, rounds: int) -> Federation:
    return federation(names=CLIENTS, least=LEAST, holders=HOLDERS, rounds=rounds, size=8)


def drop_out(made: Federation, number: int, share: float, phase: str, seed: int) -> None:
    """One round in which so many clients go at this phase, for good."""
    gone = round(share * len(CLIENTS))
    draw = np.random.default_rng(seed)
    away = tuple(str(name) for name in draw.choice(CLIENTS, gone, replace=False))
    ended = made.attempt(number, Schedule(cut=away, when=phase))
    late = phase == "opening-request"
    included = len(CLIENTS) if late else len(CLIENTS) - gone
    assert (ended is Ended.WELL) == (included >= LEAST), (share, phase)
    if ended is Ended.WELL:
        found = made.opened(number)["participants"]
        assert found == [name for name in CLIENTS if late or name not in away]


def spent_exactly(made: Federation) -> None:
    """ε of every site is that of the rounds it was charged for, no more."""
    made.check()
    for name in (CLIENTS[0], CLIENTS[-1]):
        with made.ledger(name) as ledger:
            event = made.plan.mechanisms[name].event()
            expected = compose([event] * len(ledger.lines()), 1e-5).epsilon
            assert ledger.spent().epsilon == pytest.approx(expected, abs=1e-9)


def test_r07_thirty_clients_drop_out_at_seven_rates(federation) -> None:
    made = thirty(federation, len(SHARES))
    for number, share in enumerate(SHARES):
        drop_out(made, number, share, PHASES[number % 4], seed=number)
    spent_exactly(made)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_r07_560_dropouts(federation) -> None:
    for seed in range(20):
        made = thirty(federation, 28)
        grid = [(share, phase) for share in SHARES for phase in PHASES]
        for number, (share, phase) in enumerate(grid):
            drop_out(made, number, share, phase, seed)
        spent_exactly(made)


def test_r08_only_sets_of_three_or_more_of_five_holders_open(tmp_path) -> None:
    """All 32 subsets of the answers that five real holders gave to one request."""
    made = Ours(tmp_path, (1, 2, 3), rows=20, columns=2)
    sent = [made.client(at) for at in range(3)]
    total, blob = made.aggregate(one.contribution for one in sent)
    answers = made.answers([one.shares for one in sent], blob)
    request = outline(blob)
    checked = {
        number: made.server.accept_key_opening(
            answer, request, identity(blob), name, made.ring.share_bytes
        )
        for number, (name, answer) in enumerate(zip(made.holders, answers, strict=True), 1)
    }
    for there in chain.from_iterable(combinations(checked, size) for size in range(6)):
        found = {number: checked[number] for number in there}
        arguments = (total, found, request, made.group, made.ring, made.enrolment, Absent())
        if len(there) >= 3:
            np.testing.assert_array_equal(open_with(*arguments), made.expected())
        else:
            with pytest.raises(ProtocolError, match="the sum did not open"):
                open_with(*arguments)
