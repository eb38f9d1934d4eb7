"""Attacks on weighted sums against groups of small real sites."""

import numpy as np
import pytest
import torch

from attacks.rows import Budget
from attacks.sums.differences import closeness, relative_error, victim_answers
from attacks.sums.laboratory import Published
from attacks.sums.poisoning import exchanged
from attacks.sums.probing import correlation, probed_weights
from attacks.sums.table import admission_row, difference_row, poisoning_row, probing_row, sum_rows
from attacks.verdicts import Verdict, judge
from tests.attacks.small_sums import SmallSums


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lab():
    return SmallSums(rows=60)


@pytest.fixture
def random():
    return np.random.default_rng(2)


def played(row, targets, random, arms=None):
    return {
        (row.id, arm): row.play(arm, Budget(targets, seconds=60), random)
        for arm in arms or row.arms
    }


def verdicts(row, measured, random):
    return {found.arm: found.verdict for found in judge([row], measured, random)}


# A1.


def test_two_sums_that_differ_by_a_client_give_it_away_exactly(lab, random):
    row = difference_row(lab)
    measured = played(row, 10, random)
    assert measured["A1", "feigned dropout"].extra["largest relative error"] < 1e-6
    shut = measured["A1", "protected"]
    assert shut.scores == pytest.approx(shut.baselines["the one sum"], abs=1e-12)
    found = verdicts(row, measured, random)
    assert found == {"feigned dropout": Verdict.CONTROL, "protected": Verdict.INCONCLUSIVE}


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ([[1, 1, 1, 1], [0, 1, 1, 1]], True),
        ([[3, 2, 5, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], True),
        ([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0]], False),
        ([[3, 2, 5, 1], [1, 4, 2, 2], [2, 1, 1, 5], [4, 1, 3, 2]], True),
        ([[1, 1, 1, 1], [2, 2, 2, 2]], False),
        ([[0, 1, 1, 1]], False),
    ],
    ids=["n and n−1", "all others collude", "ring", "weights that change", "twice", "not in it"],
)
def test_what_follows_from_sums_is_found_and_nothing_else(random, weights, found):
    weights, vectors = np.array(weights), random.normal(size=(4, 500))
    guess = victim_answers(Published(weights, weights @ vectors, 0.0), 0, np.zeros(500))
    assert (relative_error(guess, vectors[0]) < 1e-6) == found
    if not found:
        assert relative_error(guess, vectors[0]) > 0.5


def test_a_first_client_that_subtracts_its_neighbours_hops_reads_the_one_between(random):
    """Ring neighbours k−1 and k+1 know the running sums before and after k."""
    vectors = random.normal(size=(5, 500))
    weights = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    guess = victim_answers(Published(weights, weights @ vectors, 0.0), 2, np.zeros(500))
    assert relative_error(guess, vectors[2]) < 1e-6


def test_as_much_is_taken_from_a_noisy_sum_as_is_signal(random):
    """Alone in a sum, signal 1 and noise σ: the best linear guess leaves σ/√(1 + σ²)."""
    answers = random.normal(size=20_000)
    for noise in (0.5, 1.0, 2.0):
        total = answers + noise * random.normal(size=answers.size)
        published = Published(np.ones((1, 1), np.int64), total[None], noise)
        guess = victim_answers(published, 0, np.zeros(answers.size))
        assert relative_error(guess, answers) == pytest.approx(
            noise / np.sqrt(1 + noise**2), rel=0.03
        )


def test_without_a_sum_or_below_the_noise_the_guess_is_the_prior(random):
    prior, answers = random.normal(size=(2, 300))
    none = Published(np.zeros((0, 3), np.int64), np.zeros((0, 300)), 0.0)
    assert (victim_answers(none, 0, prior) == prior).all()
    drowned = Published(
        np.ones((1, 1), np.int64), (answers + 100 * random.normal(size=300))[None], 100.0
    )
    assert closeness(victim_answers(drowned, 0, prior), answers, prior) == 0


# A9, A12, P2.


def test_a_patient_who_came_shows_in_clear_answers(lab, random):
    row = admission_row(lab)
    measured = played(row, 320, random, ("clear",))
    assert verdicts(row, measured, random)["clear"] is Verdict.CONTROL


def test_probes_read_weights_from_a_quotient_and_not_from_fresh_rows(lab, random):
    row = probing_row(lab)
    measured = played(row, 24, random)
    assert measured["A12", "quotient shown"].scores.min() > 0.999
    shut = measured["A12", "protected"]
    assert (shut.scores == shut.baselines["reading one round"]).all(), "it stays with that"
    assert verdicts(row, measured, random) == {
        "quotient shown": Verdict.CONTROL,
        "protected": Verdict.INCONCLUSIVE,
    }


def test_probes_solve_for_the_denominators_of_all_others(random):
    numerators, denominators = random.normal(size=(30, 4)), random.uniform(0.5, 3, (30, 1))

    def ask(n, d):
        return (numerators + n) / (denominators + d)

    found = probed_weights(ask, np.ones(30), 4, 0.0)
    np.testing.assert_allclose(found, denominators[:, 0], rtol=1e-9)
    silent = probed_weights(lambda n, d: np.zeros((30, 4)), np.arange(30.0), 4, 0.0)
    assert (silent == np.arange(30)).all(), "what says nothing leaves the passive guess"
    assert correlation(np.ones(5), np.arange(5.0)) == 0


def test_exchanged_answers_are_the_farthest_permutation(random):
    answers = random.normal(size=(3, 7, 5))
    turned = exchanged(answers, 1.0)
    assert (np.sort(turned) == np.sort(answers)).all()
    product = (answers * turned).sum(-1)
    for _ in range(200):
        shuffled = random.permuted(answers, axis=-1)
        assert (product <= (answers * shuffled).sum(-1) + 1e-12).all()
    assert (turned.argmax(-1) == answers.argmin(-1)).all()


def test_one_loud_client_ruins_an_unbounded_mean_and_a_clip_holds_it(lab, random):
    row = poisoning_row(lab)
    measured = played(row, 8, random, ("unbounded", "clipped"))
    assert verdicts(row, measured, random)["unbounded"] is Verdict.CONTROL
    lost = {arm: one.scores.mean() for (_, arm), one in measured.items()}
    assert lost["clipped"] < lost["unbounded"] / 3


class _Misleading:
    """A loud poison costs more on the attacker's own groups, and nothing on those attacked."""

    def __init__(self):
        self.seeds = {True: set(), False: set()}

    def central_accuracy(self, arm, poison, seed, *, shadow):
        self.seeds[shadow].add(seed)
        sent = 0.0 if poison is None else abs(poison(np.ones((1, 2, 3)))).max()
        return 0.9 if sent <= 1 else 0.4 if shadow else 1.0


def test_a_poison_is_chosen_on_groups_of_the_attackers_own(random):
    lab = _Misleading()
    found = poisoning_row(lab).play("clipped", Budget(12, seconds=1), random)
    assert found.scores == pytest.approx(np.full(12, -0.1)), "loud, though it does not pay"
    assert len(lab.seeds[False]) == 12
    assert lab.seeds[True]
    assert not lab.seeds[True] & lab.seeds[False]


def test_every_row_has_its_control_first(lab):
    assert [(row.id, row.arms[0]) for row in sum_rows(lab)] == [
        ("A1", "feigned dropout"),
        ("A9", "clear"),
        ("A12", "quotient shown"),
        ("P2", "unbounded"),
    ]


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_table_of_sums_at_its_stated_trials(lab, random):
    """Controls succeed, and no attack does worse than its own prior on any arm."""
    trials = {"A1": 32, "A9": 1400, "A12": 64, "P2": 64}
    for row in sum_rows(lab):
        found = judge([row], played(row, trials[row.id], random), random)
        assert found[0].verdict is Verdict.CONTROL, found[0]
        assert not any("broken" in one.why for one in found), found
