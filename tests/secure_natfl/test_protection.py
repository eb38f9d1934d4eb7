"""Protected rounds: what is summed, sent again, charged, and learned by whom."""

import dataclasses
import json
import math

import numpy as np
import pytest

from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import ReleaseKey
from protocols.messages import Contribution, Opening, OpeningRequest
from protocols.quantize import Layout, Segment
from secure_natfl.protection import Protection, session_of
from secure_natfl.seeds import Seeds
from tests.secure_natfl.protecting import (
    PLAIN,
    SESSION,
    SILENT,
    SYSTEM,
    contributions,
    digests,
    expected_sum,
)
from tests.secure_natfl.protecting import protect as protect

# Playing a round


def test_the_opened_sum_is_the_weighted_sum_of_clipped_integers(protect):
    protection = protect(*SILENT, PLAIN)
    given = contributions(protection, loud=5.0)
    outcome, sums = protection.play(0, np.arange(40), given)
    expected = expected_sum(protection, given)
    assert (outcome.aggregates["all"].integers == expected).all()
    step = next(iter(protection.terms.mechanisms.values())).step
    np.testing.assert_array_equal(sums["all"], step * expected)
    # 5·N(0, 1) in 120 places has norm 55: the clip at 20 was at work.
    raw = sum(part.sum(0) for part in given.values())
    assert np.linalg.norm(sums["all"]) < 0.6 * np.linalg.norm(raw)


def test_encrypted_and_plain_sums_are_the_same_to_the_last_bit(protect):
    """Without noise, and with the predictable noise of a study."""
    for changes in (SILENT, ()):
        secured = protect(*changes, folder=f"ckks {len(changes)}")
        plain = protect(*changes, PLAIN, folder=f"plain {len(changes)}")
        given = contributions(secured)
        first, sums = secured.play(0, np.arange(40), given)
        second, other = plain.play(0, np.arange(40), given)
        assert digests(first) == digests(second)
        assert (sums["all"] == other["all"]).all()
        assert np.abs(sums["all"]).max() > 0


def test_noise_is_unpredictable_unless_the_run_is_seeded(protect):
    def played(folder, seeds, session=SESSION):
        protection = protect(PLAIN, folder=folder, seeds=seeds, session=session)
        return digests(protection.play(0, np.arange(40), contributions(protection))[0])

    assert played("1", SYSTEM) != played("2", SYSTEM)
    assert played("3", Seeds.of_study(0)) == played("4", Seeds.of_study(0))
    assert played("5", Seeds.of_study(1)) != played("3b", Seeds.of_study(0))


def test_rounds_and_sites_have_noise_of_their_own(protect):
    protection = protect(PLAIN)
    zero = contributions(protection, loud=0.0)
    for number, rows in ((0, np.arange(40)), (1, np.arange(40, 80))):
        protection.play(number, rows, zero)
    drawn = [
        ledger.stored(ReleaseKey(SESSION, number))
        for ledger in protection.ledgers.values()
        for number in (0, 1)
    ]
    assert len({values.tobytes() for values in drawn}) == 6
    assert all(np.abs(values).max() > 0 for values in drawn)


def test_the_line_is_in_the_ledger_before_anything_is_uploaded(protect):
    protection = protect()
    key, seen = ReleaseKey(SESSION, 0), []
    append = protection.transcript.append

    def watched(blob, sender, receivers):
        entry = append(blob, sender, receivers)
        if entry.kind == Contribution.kind and sender in protection.ledgers:
            ledger = protection.ledgers[sender]
            seen.append((sender, len(ledger.lines()), ledger.stored(key) is not None))
        return entry

    protection.transcript.append = watched
    protection.play(0, np.arange(40), contributions(protection))
    assert seen == [(name, 1, True) for name in protection.ledgers]
    for ledger in protection.ledgers.values():
        ledger.verify()


class Killed(BaseException):
    """Ends a round the way a signal would: nothing after it runs."""


def killed_at(protection, kind):
    append = protection.transcript.append

    def watched(blob, sender, receivers):
        entry = append(blob, sender, receivers)
        if entry.kind == kind.kind:
            raise Killed
        return entry

    protection.transcript.append = watched
    with pytest.raises(Killed):
        protection.play(0, np.arange(40), contributions(protection))
    protection.close()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ((), Contribution),
        ((), OpeningRequest),
        ((), Opening),
        ((PLAIN,), Contribution),
        ((PLAIN,), Opening),
    ],
    ids=["ckks-upload", "ckks-request", "ckks-opening", "plain-upload", "plain-opening"],
)
def test_a_round_taken_up_again_sends_what_was_stored_and_costs_nothing(protect, changes, kind):
    killed_at(protect(*changes, seeds=SYSTEM), kind)
    again = protect(*changes, seeds=SYSTEM)
    key = ReleaseKey(SESSION, 0)
    stored = {name: ledger.stored(key) for name, ledger in again.ledgers.items()}
    # Training anew may give other answers; what was drawn for the first ones is sent.
    given = contributions(again, seed=99)
    outcome, _ = again.play(0, np.arange(40), given)
    total = 0
    for name, ledger in again.ledgers.items():
        assert len(ledger.lines()) == 1
        now = ledger.stored(key)
        if stored[name] is not None:
            assert (now == stored[name]).all()
        total = total + again.terms.alphas[name] * now
    assert (outcome.aggregates["all"].integers == total).all()
    # The first upload stops the round where one site alone has drawn.
    count = sum(values is not None for values in stored.values())
    assert count == (1 if kind is Contribution else 3)


def test_the_same_round_twice_is_one_release(protect):
    protection = protect(PLAIN, seeds=SYSTEM)
    first, _ = protection.play(0, np.arange(40), contributions(protection))
    again, _ = protection.play(0, np.arange(40), contributions(protection, seed=5))
    assert digests(first) == digests(again)
    assert {len(ledger.lines()) for ledger in protection.ledgers.values()} == {1}


# Budgets


def spent_of(protection):
    return {len(ledger.lines()) for ledger in protection.ledgers.values()}


def test_a_budget_that_is_too_small_for_the_run_is_refused_before_it_starts(protect, tmp_path):
    with pytest.raises(LedgerError, match=r"2 more release\(s\) would take ε from 0 to 8"):
        protect("ledger.budget_epsilon=6.0", PLAIN)
    # One of two rounds would fit; the run is refused as a whole, and nothing is on any ledger.
    assert spent_of(protect(PLAIN)) == {0}
    assert list((tmp_path / "run" / "transcript" / "messages").iterdir()) == []


def test_a_budget_spans_runs(protect):
    first = protect("ledger.budget_epsilon=8.1", PLAIN)
    for number, rows in ((0, np.arange(40)), (1, np.arange(40, 80))):
        first.play(number, rows, contributions(first))
    first.close()
    with pytest.raises(LedgerError, match="beyond the budget"):
        protect("ledger.budget_epsilon=8.1", PLAIN, session="b" * 32)
    taken_up = protect("ledger.budget_epsilon=8.1", PLAIN)
    assert spent_of(taken_up) == {2}


def test_a_charge_that_a_crash_cut_short_is_not_asked_for_twice(protect):
    """The budget is spent to the last line, one of which has no integers yet: it may be drawn."""
    first = protect("ledger.budget_epsilon=8.1", PLAIN)
    first.play(0, np.arange(40), contributions(first))
    for name, ledger in first.ledgers.items():
        ledger.charge(ReleaseKey(SESSION, 1), first.terms.mechanisms[name].event())
    first.close()
    again = protect("ledger.budget_epsilon=8.1", PLAIN)
    again.play(1, np.arange(40, 80), contributions(again))
    assert spent_of(again) == {2}


def test_no_noise_needs_a_ledger_without_a_budget(protect):
    with pytest.raises(LedgerError, match="mechanism with noise"):
        protect(*SILENT, PLAIN, "ledger.budget_epsilon=100.0")
    free = protect(*SILENT, PLAIN)
    free.play(0, np.arange(40), contributions(free))
    assert all(ledger.spent().epsilon == math.inf for ledger in free.ledgers.values())


def test_after_a_refusal_everything_is_closed_again(protect):
    with pytest.raises(LedgerError):
        protect("ledger.budget_epsilon=6.0")
    # Each ledger has one writer: a second protection on them proves they were let go.
    second = protect()
    with pytest.raises(LedgerError, match="another process is writing"):
        protect()
    second.close()


# Who learns what


def test_neither_server_nor_transcript_hold_private_numbers(protect, world):
    protection = protect(*SILENT)
    given = contributions(protection)
    protection.play(0, np.arange(40), given)
    folder = protection.transcript.folder.parent
    protection.close()
    clear = {
        protection.terms.mechanisms[name]
        .bound(part, protection.layout)
        .values.astype("<i4")
        .tobytes()
        for name, part in given.items()
    }
    blobs = [file.read_bytes() for file in (folder / "transcript").rglob("*") if file.is_file()]
    assert not any(part[:64] in blob for blob in blobs for part in clear)
    # Sites are called children-1 to children-3, and so are three of the patients.
    patients = {p.encode() for site in world.sites for p in site.train_patients if p[-2:].isdigit()}
    assert len(patients) > 50
    every = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    assert not any(patient in blob for blob in every for patient in patients)
    # The plain arm shows that the check can see.
    plain = protect(*SILENT, PLAIN, folder="plain")
    plain.play(0, np.arange(40), given)
    blobs = [file.read_bytes() for file in (plain.transcript.folder / "messages").iterdir()]
    assert any(part[:64] in blob for blob in blobs for part in clear)


def test_protection_is_quick_and_its_seconds_are_named(protect):
    protection = protect()
    protection.play(0, np.arange(40), contributions(protection))
    assert set(protection.spending.seconds) == {
        "quantise and clip",
        "charge, noise and store",
        "encrypt and sign",
        "aggregate",
        "open",
    }
    assert all(seconds > 0 for seconds in protection.spending.seconds.values())


def test_a_session_is_told_apart_by_everything_it_rests_on(world, tiny):
    base = session_of(world.config, world.federation, "n")
    assert base == session_of(tiny("speed.threads=3"), world.federation, "n")
    images = world.federation.natural_records.images[::-1]
    naturals = dataclasses.replace(world.federation.natural_records, images=images)
    others = {
        session_of(world.config, world.federation, "other"),
        session_of(tiny("privacy.clip=21"), world.federation, "n"),
        session_of(world.config, dataclasses.replace(world.federation, pool=naturals), "n"),
    }
    assert len(others | {base}) == 4
    assert len(base) == 32


def test_a_changed_layout_is_not_read_as_the_old_one(protect, world, planned, tmp_path):
    first = protect(PLAIN)
    first.play(0, np.arange(40), contributions(first))
    first.close()
    config, terms = planned(PLAIN)
    smaller = Layout((Segment("numerators", 30, 2), Segment("denominators", 30, 1)))
    with Protection(
        config, world.federation, terms, smaller, SESSION, tmp_path / "run", world.seeds
    ) as other:
        given = {name: np.zeros((m.shards, smaller.size)) for name, m in terms.mechanisms.items()}
        with pytest.raises(LedgerError, match="120 integers are stored, the layout has 90"):
            other.play(0, np.arange(30), given)
        with pytest.raises(PrivacyError, match="shape"):
            other.play(1, np.arange(40, 70), given)


def test_the_ledgers_of_a_run_say_what_was_released(protect):
    protection = protect(PLAIN)
    protection.play(0, np.arange(40), contributions(protection))
    for name, ledger in protection.ledgers.items():
        (line,) = ledger.lines()
        json.dumps(line)
        assert (line["session"], line["round"]) == (SESSION, 0)
        assert line["event"]["mechanism"] == "shard-teachers"
        assert ledger.spent().epsilon == pytest.approx(
            protection.terms.noise_plan.spending(name).epsilon, rel=0.5
        )
        assert ledger.spent().epsilon < 8.0
