"""R3: whatever happens to messages and processes, in whatever order, no invariant breaks.

A Hypothesis state machine plays rounds of a real federation. Every step is an attempt in a process
of its own under some schedule, and every invariant is checked from disk after every step.
"""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run

from tests.faults.federation import Ended, Federation, killed_at
from tests.faults.network import Schedule

SEEDS = st.integers(0, 2**32 - 1)
ROUNDS = 40
STEPS: list[Ended] = []


class Rounds(RuleBasedStateMachine):
    """One session; a round is left once it is open, or given up."""

    @initialize()
    def begin(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.federation = Federation(Path(self.place.name), rounds=ROUNDS)
        self.round = 0

    @rule()
    def all_is_well(self) -> None:
        self._play(Schedule())

    @rule(seed=SEEDS, loss=st.sampled_from([0.01, 0.05, 0.2]))
    def messages_are_lost(self, seed: int, loss: float) -> None:
        self._play(Schedule(seed=seed, drop=loss))

    @rule(seed=SEEDS, rate=st.sampled_from([0.02, 0.1]))
    def messages_are_late_repeated_and_swapped(self, seed: int, rate: float) -> None:
        everything = dict.fromkeys(("delay", "duplicate", "swap", "replay"), rate)
        self._play(Schedule(seed=seed, **everything))

    @rule(seed=SEEDS)
    def messages_are_torn(self, seed: int) -> None:
        self._play(Schedule(seed=seed, tear=0.03, replay=0.1))

    @rule(seed=SEEDS, rate=st.sampled_from([0.02, 0.3]))
    def holders_restart(self, seed: int, rate: float) -> None:
        self._play(Schedule(seed=seed, restart=rate))

    @rule(
        cut=st.lists(st.sampled_from(["a", "b", "a.holder", "c.holder", "d.holder"]), max_size=3),
        when=st.sampled_from(["round-plan", "round-key", "contribution", "opening-request"]),
    )
    def parties_go(self, cut: list[str], when: str) -> None:
        self._play(Schedule(cut=tuple(cut), when=when))

    @rule(seed=SEEDS, moment=st.integers(0, 230), rate=st.sampled_from([0.0, 0.01]))
    def everybody_is_killed(self, seed: int, moment: int, rate: float) -> None:
        self._play(Schedule(seed=seed, drop=rate, delay=rate), killed_at(moment))

    @rule()
    def the_round_is_given_up(self) -> None:
        self.round += 1

    @invariant()
    def all_invariants_hold(self) -> None:
        if hasattr(self, "federation"):
            self.federation.check()

    def _play(self, schedule: Schedule, watcher=None) -> None:
        if self.federation.opened(self.round) is not None:
            self.round += 1
        STEPS.append(self.federation.attempt(self.round, schedule, watcher))

    def teardown(self) -> None:
        """Whatever happened before, a round without faults opens."""
        if hasattr(self, "federation"):
            self.round += 1
            assert self.federation.attempt(self.round) is Ended.WELL
            self.federation.check()
            self.federation.tape.close()
            self.place.cleanup()


def machine(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_r03_random_schedules_break_no_invariant() -> None:
    STEPS.clear()
    run(Rounds, settings=machine(8, 6))
    assert STEPS.count(Ended.WELL) >= 5
    assert STEPS.count(Ended.REFUSED) + STEPS.count(Ended.KILLED) >= 5


@pytest.mark.nightly
@pytest.mark.timeout(10800)
def test_r03_twenty_thousand_random_schedules_break_no_invariant() -> None:
    STEPS.clear()
    run(Rounds, settings=machine(400, 50))
    assert len(STEPS) >= 10_000
