"""Attacks on answers against small real sites. `SURE`: one false alarm in a million runs."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, entropy, norm

from attacks.answers.crafted import colliding_pictures
from attacks.answers.label_distribution import distance, divergence, guess_shares
from attacks.answers.laboratory import Candidates, Knowledge, Seen, Sites
from attacks.answers.membership import (
    Shadows,
    Signals,
    Trial,
    coop_lira,
    offline_lira,
    offline_rmia,
    online_lira,
    online_rmia,
)
from attacks.answers.membership_rows import crafted_row, epsilon_bound, membership_row
from attacks.answers.picture_rows import decoder_row, inversion_row
from attacks.answers.pictures import nearest, paired_logits
from attacks.answers.properties import figures, guess_property
from attacks.answers.regression import _leave_one_out, learn, views
from attacks.answers.students import reader, strength_of, students
from attacks.answers.table import answer_rows, label_row, metadata_row, property_row, stealing_row
from attacks.rows import Budget
from attacks.scores import auc
from attacks.threat import ThreatError
from attacks.verdicts import Verdict, judge
from tests.attacks.small_sites import SmallSites, textures

FALSE_ALARM, SHADOWS = 1e-6, 64


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def lab():
    return SmallSites(rows=60)


@pytest.fixture
def random():
    return np.random.default_rng(1)


def played(row, arms, targets, random, **budget):
    budget = Budget(targets, seconds=60, **budget)
    return {(row.id, arm): row.play(arm, budget, random) for arm in arms}


def verdicts(row, measured, random):
    return {found.arm: found for found in judge([row], measured, random)}


# What is learnt from shadows.


def test_leave_one_out_guesses_are_those_of_regressions_without_the_point(random):
    numbers, truth = random.normal(size=(12, 5)), random.normal(size=(12, 3))
    numbers, truth = numbers - numbers.mean(0), truth - truth.mean(0)
    typical = np.maximum(np.linalg.eigvalsh(numbers @ numbers.T), 0).mean()
    penalties = np.logspace(-4, 3, 15) * typical
    found = list(_leave_one_out(numbers, truth))
    for at in (0, 7, 14):
        for left in (0, 11):
            kept = np.delete(np.arange(12), left)
            centre, mean = numbers[kept].mean(0), truth[kept].mean(0)
            x, y = numbers[kept] - centre, truth[kept] - mean
            weights = np.linalg.solve(x.T @ x + penalties[at] * np.eye(5), x.T @ y)
            expected = (numbers[left] - centre) @ weights + mean
            np.testing.assert_allclose(found[at][1][left], expected, atol=1e-8)


def test_where_nothing_can_be_learnt_the_guess_is_the_prior(random):
    """Pure noise, 50 times: the prior itself in most, and hardly worse in the mean."""
    kept, worse = 0, []
    for _ in range(50):
        truth = random.dirichlet(np.ones(4), 64)
        learned = learn(
            {"noise": random.normal(size=(64, 30))},
            truth,
            lambda one, guess: ((one - guess) ** 2).sum(-1),
        )
        fresh = random.dirichlet(np.ones(4), 200)
        guess = learned.guess({"noise": random.normal(size=(200, 30))})
        kept += learned.share == 0
        lost = ((fresh - guess) ** 2).sum(-1) - ((fresh - learned.prior) ** 2).sum(-1)
        worse.append(lost.mean() / ((fresh - learned.prior) ** 2).sum(-1).mean())
    assert kept >= 45
    assert np.mean(worse) < 0.02


def test_divergence_is_scipys(random):
    truth, guess = random.dirichlet(np.ones(5), 20), random.dirichlet(np.full(5, 5.0), 20)
    guess = np.maximum(guess, 0.01) / np.maximum(guess, 0.01).sum(-1, keepdims=True)
    found = divergence(truth, guess, multi_label=False)
    np.testing.assert_allclose(found, entropy(truth, guess, axis=-1))
    several = divergence(truth, guess, multi_label=True)
    pairs = entropy(np.stack([truth, 1 - truth]), np.stack([guess, 1 - guess]), axis=0)
    np.testing.assert_allclose(several, pairs.mean(-1))
    one_hot, other = np.eye(2)[[0]], np.eye(2)[[1]]
    assert np.isfinite(divergence(one_hot, other, multi_label=False)).all()
    assert distance(one_hot, other, multi_label=False) == 1


def test_a_student_of_linear_answers_says_what_the_model_says(random):
    proxies, model = random.normal(size=(2, 40, 6)), random.normal(size=(3, 6, 4))
    answers = np.einsum("rnd,sdc->srnc", proxies, model)
    knows = Knowledge(proxies, 4, 0.0, np.inf)
    wanted = random.normal(size=(5, 6))
    expected = np.einsum("nd,sdc->snc", wanted, model)
    np.testing.assert_allclose(students(answers, knows, wanted), expected, atol=1e-3)
    noisy = answers + 30 * random.normal(size=answers.shape)
    assert strength_of(noisy, proxies) > 100 * strength_of(answers, proxies)
    assert reader(proxies, wanted, 0.1).shape == (5, 80)


# L1.


def test_clear_answers_give_label_shares_and_noised_ones_the_prior(lab, random):
    row = label_row(lab, SHADOWS)
    measured = played(row, row.arms, 48, random)
    found = verdicts(row, measured, random)
    assert found["clear"].verdict is Verdict.CONTROL
    assert found["clipped"].verdict is Verdict.LEAKS
    for arm in ("noised", "protected"):
        assert (measured["L1", arm].scores == measured["L1", arm].baselines["prior"]).all()
        assert found[arm].verdict is Verdict.INCONCLUSIVE, "it never left the prior"
    assert found["clear"].baseline == "prior"


def test_the_attack_adapts_to_noise_where_a_fixed_one_falls_behind_the_prior(lab, random):
    """Gaussian noise of 1 to 300 times the answers' size: gains fall, and never much below 0."""
    knows = lab.knowledge("clear")
    mine, known = lab.sites("clear", 96, random, shadow=True)
    seen, truth = lab.sites("clear", 64, random, shadow=False)
    size, gains, fixed = float(np.sqrt((mine.answers**2).mean())), [], []
    for factor in (0, 1, 4, 300):
        noise = factor * size
        noisy = [a + noise * random.normal(size=a.shape) for a in (seen.answers, mine.answers)]
        here = Knowledge(knows.proxies, knows.classes, noise, np.inf)
        guess, prior = guess_shares(noisy[0], here, noisy[1], known.shares)
        lost = divergence(truth.shares, prior[None], multi_label=False).mean()
        gains.append(1 - divergence(truth.shares, guess, multi_label=False).mean() / lost)
        means = [one.mean((1, 2)) for one in noisy]
        centred = means[1] - means[1].mean(0)
        weights = np.linalg.pinv(centred) @ (known.shares - prior)
        plain = prior + (means[0] - means[1].mean(0)) @ weights
        fixed.append(1 - divergence(truth.shares, plain, multi_label=False).mean() / lost)
    assert gains[0] > 0.5
    assert gains[1] > 0.25, "noise on single numbers averages out"
    assert gains[0] > gains[2] > -0.05
    assert abs(gains[3]) < 0.05
    assert fixed[3] < gains[3]


# L2.


def trial_of(margin, inside, seen):
    """A trial with given margins alone; probabilities are logistic in them."""
    shadows = Shadows(np.zeros((len(margin), 1, 1, 1)), inside)
    known, own = (Signals(one, 1 / (1 + np.exp(-one))) for one in (margin, seen))
    knows = Knowledge(np.zeros((1, 1, 1)), 1, 0.0, np.inf)
    return Trial(knows, Candidates(np.zeros((1, 1)), np.ones((1, 1))), shadows, known, None, own)


def test_lira_is_as_good_as_the_ideal_test_of_two_gaussians(random):
    """Margins N(m, 1) and N(m + 1.5, 1), each record with its own m: an area of Φ(1.5/√2)."""
    places, inside = 5 * random.normal(size=300), random.random((64, 300)) < 0.5
    own = random.random((40, 300)) < 0.5
    margin, seen = (places + 1.5 * i + random.normal(size=i.shape) for i in (inside, own))
    trial = trial_of(margin, inside, seen)
    ideal = norm.cdf(1.5 / np.sqrt(2))
    areas = {f.__name__: f(trial) for f in (online_lira, offline_lira, coop_lira)}
    areas = {name: auc(scores[own], scores[~own]) for name, scores in areas.items()}
    assert areas["online_lira"] == pytest.approx(ideal, abs=0.02)
    assert areas["offline_lira"] == pytest.approx(ideal, abs=0.03)
    assert areas["coop_lira"] == pytest.approx(ideal, abs=0.05)
    assert auc(seen[own], seen[~own]) < ideal - 0.1, "without shadows, records differ too much"


def test_rmia_ranks_a_record_among_the_sites_other_candidates(random):
    inside, own = random.random((64, 50)) < 0.5, random.random((30, 50)) < 0.5
    margin, seen = (3 * i + random.normal(size=i.shape) - 1 for i in (inside, own))
    for attack in (online_rmia, offline_rmia):
        scores = attack(trial_of(margin, inside, seen))
        assert scores.min() == 0
        assert scores.max() == 1
        assert auc(scores[own], scores[~own]) > 0.9


def test_members_are_told_in_the_clear_and_not_behind_noise(lab, random):
    row = membership_row(lab, SHADOWS)
    measured = played(row, ("clear", "noised"), 24, random)
    found = verdicts(row, measured, random)
    assert found["clear"].verdict is Verdict.CONTROL
    assert found["clear"].trials == 24 * 60
    clear, noised = (measured["L2", arm] for arm in ("clear", "noised"))
    assert clear.extra["ε lower bound (95 %)"] > 0.5
    assert clear.extra["TPR at 1 % FPR"] > 0.03
    assert "TPR at 0.1 % FPR" not in clear.extra, "720 others are too few"
    assert found["noised"].verdict is not Verdict.LEAKS
    assert noised.extra["ε lower bound (95 %)"] < 1
    swapped = clear.baselines["another site's answers"]
    area = auc(swapped[clear.members], swapped[~clear.members])
    assert abs(area - 0.5) < 5 * 0.41 / np.sqrt(720)


def test_the_bound_on_epsilon_holds_for_randomised_response(random):
    """Each bit told right with probability e/(1 + e): ε = 1, and the bound comes close."""
    inside = random.random((100, 60)) < 0.5
    told = np.where(random.random(inside.shape) < np.e / (1 + np.e), inside, ~inside)
    scores = told + 1e-9 * random.normal(size=told.shape)
    assert 0.7 < epsilon_bound(scores.astype(float), inside, random) < 1.05


# P1.


def test_crafted_proxies_tell_more_than_as_many_honest_ones(lab, random):
    row = crafted_row(lab, SHADOWS)
    found = verdicts(row, played(row, row.arms[:1], 48, random), random)
    assert found["few"].verdict is Verdict.CONTROL


def test_crafted_proxies_are_asked_of_as_many_sites_as_there_is_time_for(lab, random):
    """Eight sites at least, and in every arm the same."""
    row = crafted_row(lab, SHADOWS)
    for arm in row.arms[:2]:
        found = row.play(arm, Budget(48, seconds=1e-6), np.random.default_rng(0))
        assert len(np.unique(found.clusters)) == 8
        assert len(found.scores) == len(found.baselines["honest proxies"]) == 64


def test_natural_pictures_can_be_made_to_collide_with_a_patient(lab, random):
    """Features nearly those of the patient, and pictures nearer to their natural start."""
    private, _ = lab.records(random, np.arange(6) % lab.classes)
    natural = torch.from_numpy(textures(random, 6, 1.2))
    wanted = lab.backbone(torch.from_numpy(private))
    crafted = colliding_pictures(lab.backbone, natural, wanted, 300)
    left = (lab.backbone(crafted) - wanted).square().mean()
    assert left < 0.1 * (lab.backbone(natural) - wanted).square().mean()
    own, other = ((crafted - one).square().mean() for one in (natural, torch.from_numpy(private)))
    assert own < other
    assert float(crafted.min()) >= 0
    assert float(crafted.max()) <= 1


# L4 and L5.


def test_a_copy_agrees_with_the_model_and_behind_noise_with_the_average(lab, random):
    row = stealing_row(lab, SHADOWS)
    measured = played(row, ("clear", "noised"), 32, random)
    found = verdicts(row, measured, random)
    assert found["clear"].verdict is Verdict.CONTROL
    assert measured["L5", "clear"].scores.mean() > 0.85
    assert abs(found["noised"].effect) < 0.05


def test_classes_are_pictured_from_clear_answers_to_pictures_like_them(lab, random):
    """In-domain: 32 hits among eight pictures each, far beyond guessing."""
    row = decoder_row(lab)
    measured = played(row, ("in-domain",), 8, random, iterations=200)["L4", "in-domain"]
    hits = measured.scores.sum()
    assert hits > binom.isf(FALSE_ALARM, measured.scores.size, 1 / 8)
    assert measured.baselines["chance"][0] == 1 / 8


def test_a_stolen_model_pictures_its_classes(lab, random):
    row = inversion_row(lab)
    measured = played(row, ("clear",), 16, random, iterations=150, restarts=2)["L5b", "clear"]
    assert measured.scores.sum() > binom.isf(FALSE_ALARM, measured.scores.size, 1 / 8)


def test_the_nearest_picture_disregards_brightness_and_contrast(random):
    gallery = textures(random, 20, 1.5)
    assert (
        nearest(0.3 * gallery + 0.1 + 0.02 * random.normal(size=gallery.shape), gallery)
        == np.arange(20)
    ).mean() > 0.9


def test_no_picture_is_drawn_without_the_proxies(lab, random):
    knows = Knowledge(np.zeros((1, 5, 3)), 2, 0.0, np.inf)
    with pytest.raises(ThreatError, match="no proxy images"):
        paired_logits(np.zeros((2, 1, 5, 2)), knows, Budget(2, 1), 0)


# L6.


class Alike(SmallSites):
    """Sites of which all that are attacked share a property that shadows have by halves."""

    def sites(self, arm, count, random, *, shadow):
        seen, truth = super().sites(arm, count, random, shadow=shadow)
        kind = random.permutation(np.arange(count) % 3 // 2 if shadow else np.zeros(count, int))
        marked = seen.answers + 10 * kind[:, None, None, None]
        return Seen(marked, {}), Sites(truth.shares, truth.sizes, {"kind": kind})


def test_a_property_that_all_attacked_sites_share_is_no_finding(random):
    row = property_row(Alike(rows=20), 16)
    found = row.play("clear", Budget(16, seconds=60), random)
    assert found.extra["kind"] == 1
    assert found.baselines["chance"] == pytest.approx(np.ones(16))


def test_properties_show_in_answers_and_weights(lab, random):
    answers, metadata = property_row(lab, SHADOWS), metadata_row(lab, SHADOWS)
    measured = played(answers, ("clear",), 64, random)["L6", "clear"]
    assert measured.extra["darker"] > 0.9
    weights = played(metadata, metadata.arms, 64, random)
    found = verdicts(metadata, weights, random)
    assert weights["L6b", "clear"].extra["larger than average"] == 1
    assert found["clear"].verdict is Verdict.CONTROL
    assert found["protected"].verdict is not Verdict.LEAKS


def test_without_figures_the_commonest_value_is_guessed():
    truth = np.array([0, 1, 1, 1] * 10)
    guessed = guess_property(figures({}, 7), figures({}, 40), truth)
    assert (guessed.values == 1).all()
    assert (guessed.chance, guessed.gain) == (0.75, 0)


def test_every_row_has_criteria_that_its_control_can_meet(lab):
    rows = answer_rows(lab, SHADOWS)
    assert [row.id for row in rows] == ["L1", "L2", "L4", "L5", "L5b", "L6", "L6b", "P1"]
    for row in rows:
        assert 0 < row.margin <= 0.15
        assert row.control_margin > 0
        assert row.arms[-1] == "protected"


def test_views_take_the_known_noise_out_of_second_moments(random):
    """Without signal, columns' mean products come out at 0, within five standard errors."""
    noise = 3 * random.normal(size=(40, 2, 200, 2))
    seen = views(noise, Knowledge(random.normal(size=(2, 200, 5)), 2, 3.0, np.inf))
    second = seen["columns"][:, 2:]
    assert abs(second.mean()) < 5 * second.std() / np.sqrt(second.size)
    assert seen["rows"].shape == (40, 800)
    assert seen["student"].shape == (40, 10)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_the_table_of_answers_at_its_stated_trials(random):
    """Controls succeed, and no attack does worse than its own prior on any arm."""
    lab, trials = SmallSites(), {"L2": 24, "L6": 128, "L6b": 128, "P1": 88, "L4": 208, "L5b": 208}
    for row in answer_rows(lab):
        measured = played(row, row.arms, trials.get(row.id, 64), random)
        found = judge([row], measured, random)
        assert found[0].verdict is Verdict.CONTROL, found[0]
        assert not any("broken" in one.why for one in found), found
