import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)

from secure_natfl.metrics import (
    Truth,
    auprc,
    auroc,
    auroc_of,
    balanced_accuracy,
    dice_of,
    expected_calibration_error,
    quick_dice,
    score,
)


@st.composite
def weighted_cases(draw):
    """Probabilities with many ties, both classes, weights as in a bootstrap or any other."""
    n = draw(st.integers(2, 40))
    steps = draw(st.sampled_from([2, 4, 16, 10_000]))
    p = np.array(draw(st.lists(st.integers(0, steps), min_size=n, max_size=n))) / steps
    truth = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    truth[:2] = True, False
    weight = st.integers(0, 5) | st.floats(0.01, 10)
    weights = np.array(draw(st.lists(weight, min_size=n, max_size=n)), dtype=float)
    weights[:2] = np.maximum(weights[:2], 1)
    order = np.array(draw(st.permutations(range(n))))
    return p[order], truth[order], weights[order]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (auroc, roc_auc_score),
        (auprc, average_precision_score),
        (
            balanced_accuracy,
            lambda t, p, sample_weight: balanced_accuracy_score(
                t, p >= 0.5, sample_weight=sample_weight
            ),
        ),
    ],
    ids=["auroc", "auprc", "balanced_accuracy"],
)
@settings(max_examples=80, deadline=None)
@given(case=weighted_cases())
def test_weighted_scores_are_those_of_scikit_learn(ours, theirs, case):
    p, truth, weights = case
    expected = theirs(truth, p, sample_weight=weights)
    once = theirs(truth, p, sample_weight=np.ones(len(p)))
    found = ours(p, truth, np.stack([weights, np.ones(len(p))]))
    assert found == pytest.approx([expected, once], rel=0, abs=1e-12)


def test_a_resample_without_a_class_has_no_score():
    p, truth = np.array([0.1, 0.9]), np.array([False, True])
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    for each in (auroc, balanced_accuracy):
        assert np.isnan(each(p, truth, weights)).tolist() == [True, True, False]
    assert np.isnan(auprc(p, truth, weights)).tolist() == [True, False, False]


@settings(max_examples=60, deadline=None)
@given(case=weighted_cases())
def test_calibration_error_is_its_definition(case):
    confidence, right, weights = case
    expected = 0.0
    for b in range(10):
        inside = [i for i, c in enumerate(confidence) if min(int(c * 10), 9) == b]
        mass = sum(weights[i] for i in inside)
        if mass:
            share = sum(weights[i] * right[i] for i in inside) / mass
            mean = sum(weights[i] * confidence[i] for i in inside) / mass
            expected += mass / weights.sum() * abs(share - mean)
    found = expected_calibration_error(confidence, right, weights[None])
    assert found == pytest.approx([expected], rel=0, abs=1e-12)


def test_calibration_error_of_known_cases():
    right = np.array([True, True, False, False])
    for confidence, expected in ((0.5, 0.0), (0.95, 0.45), (1.0, 0.5)):
        found = expected_calibration_error(np.full(4, confidence), right, np.ones((1, 4)))
        assert found == pytest.approx([expected])


def truth_of(labels, patients, classes=2, multi_label=False):
    if multi_label:
        targets, known = (labels == 1), (labels >= 0)
    else:
        targets, known = np.eye(classes)[labels], np.ones((len(labels), classes))
    return Truth(
        targets.astype(np.float32),
        known.astype(np.float32),
        tuple(patients),
        "patient",
        multi_label,
    )


@pytest.fixture
def clustered():
    """40 patients, 8 images each, which all look the same."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 40)
    chance = 1 / (1 + np.exp(-(label - 0.5 + rng.normal(0, 1, 40))))
    label, chance = np.repeat(label, 8), np.repeat(chance, 8)
    return label, np.stack([1 - chance, chance], 1), [f"p{i}" for i in np.repeat(np.arange(40), 8)]


def test_intervals_are_over_patients_not_images(clustered):
    label, p, patients = clustered
    by_patient = score([p], truth_of(label, patients))
    by_image = score([p], truth_of(label, [str(i) for i in range(len(label))]))
    assert by_patient.n == 40
    assert by_image.n == 320
    for figure in ("auroc", "auprc", "balanced_accuracy", "ece"):
        one, other = getattr(by_patient, figure), getattr(by_image, figure)
        assert one.value == pytest.approx(other.value)
        # Eight copies of an image are one piece of evidence: an image-level interval is √8 wrong.
        assert one.high - one.low > 1.8 * (other.high - other.low)


def test_the_interval_is_that_of_a_literal_bootstrap(clustered):
    label, p, patients = clustered
    rng = np.random.default_rng(1)
    rows = {name: [i for i, q in enumerate(patients) if q == name] for name in set(patients)}
    names = sorted(rows)
    literal = []
    for _ in range(300):
        drawn = [i for name in rng.choice(names, len(names)) for i in rows[name]]
        if len(set(label[drawn])) == 2:
            literal.append(roc_auc_score(label[drawn], p[drawn, 1]))
    low, high = np.percentile(literal, [2.5, 97.5])
    found = score([p], truth_of(label, patients)).auroc
    assert found.value == pytest.approx(roc_auc_score(label, p[:, 1]), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.04)


def test_one_class_has_no_ranking_but_a_calibration():
    p = np.array([[0.3, 0.7], [0.6, 0.4], [0.1, 0.9]])
    found = score([p], truth_of(np.array([1, 1, 1]), "abc"))
    assert (found.auroc, found.auprc, found.balanced_accuracy) == (None, None, None)
    # Wrong once in three, with confidences 0.7, 0.6 and 0.9.
    assert found.ece.value == pytest.approx((0.3 + 0.6 + 0.1) / 3)
    assert auroc_of([p], truth_of(np.array([1, 1, 1]), "abc")) is None


def test_several_models_are_scored_by_their_mean(clustered):
    label, p, patients = clustered
    worse = p[:, ::-1]
    truth = truth_of(label, patients)
    both = score([p, worse], truth)
    assert both.auroc.value == pytest.approx(0.5)
    assert auroc_of([p, worse], truth) == pytest.approx(0.5)
    assert auroc_of([p], truth) == pytest.approx(roc_auc_score(label, p[:, 1]), abs=1e-12)


def test_more_classes_are_the_mean_over_those_that_can_be_scored():
    rng = np.random.default_rng(2)
    label = rng.integers(0, 3, 60)
    p = rng.dirichlet(np.ones(4), 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score([p], truth_of(label, map(str, range(60)), classes=4))
    # Class 3 never occurs.
    expected = np.mean([roc_auc_score(label == c, p[:, c]) for c in range(3)])
    assert found.auroc.value == pytest.approx(expected, abs=1e-12)


def test_unknown_findings_count_in_no_score():
    rng = np.random.default_rng(3)
    labels = rng.integers(-1, 2, (80, 3))
    labels[:, 2] = np.where(labels[:, 2] == 0, -1, labels[:, 2])
    p = rng.random((80, 3))
    found = score([p], truth_of(labels, map(str, range(80)), multi_label=True))
    known = [labels[:, c] >= 0 for c in range(3)]
    expected = np.mean([roc_auc_score(labels[known[c], c] == 1, p[known[c], c]) for c in range(2)])
    assert found.auroc.value == pytest.approx(expected, abs=1e-12)
    # What an unknown label hides may be anything.
    other = np.where(labels < 0, rng.random((80, 3)), p)
    assert score([other], truth_of(labels, map(str, range(80)), multi_label=True)) == found


def test_accuracy_agrees_with_scikit_learn(clustered):
    label, p, patients = clustered
    found = score([p], truth_of(label, patients))
    assert found.accuracy.value == pytest.approx(accuracy_score(label, p.argmax(1)))
    assert found.accuracy.low < found.accuracy.value < found.accuracy.high
    assert found.dice is None
    several = truth_of(np.stack([label, 1 - label], 1), patients, multi_label=True)
    assert score([p], several).accuracy is None


def masks_of(labels, classes=3):
    """Masks [n, S, S] as a test part, −1 unknown; a patient an image."""
    known = np.repeat((labels >= 0)[:, None], classes, axis=1)
    targets = np.eye(classes)[labels].transpose(0, 3, 1, 2) * known
    ids = tuple(map(str, range(len(labels))))
    return Truth(targets.astype(np.float32), known.astype(np.float32), ids, "patient", False)


def test_dice_is_the_f1_score_of_pixels():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (12, 8, 8))
    labels[0] = 0
    labels[1, :4] = -1
    p = rng.dirichlet(np.ones(3), (12, 8, 8)).transpose(0, 3, 1, 2)
    p[0, 0] = 2
    truth = masks_of(labels)
    each = dice_of(p, truth)
    for i in range(1, 12):
        seen = labels[i] >= 0
        expected = f1_score(labels[i][seen], p[i].argmax(0)[seen], labels=[1, 2], average=None)
        assert each[i] == pytest.approx(expected)
    assert np.isnan(each[0]).all()
    found = score([p], truth)
    assert found.dice.value == pytest.approx(each[1:].mean())
    assert found.dice.value == pytest.approx(quick_dice([p], truth))
    assert found.dice.low < found.dice.value < found.dice.high
    assert found.auroc is found.auprc is found.balanced_accuracy is found.ece is None
    assert found.accuracy is None
    assert auroc_of([p], truth) is None


def test_dice_of_the_truth_is_one_and_of_its_opposite_zero():
    labels = np.zeros((5, 4, 4), dtype=np.int64)
    labels[:, :2] = 1
    right = np.eye(2)[labels].transpose(0, 3, 1, 2)
    truth = masks_of(labels, 2)
    assert score([right], truth).dice.value == 1
    assert score([1 - right], truth).dice.value == 0
    # A class that only the prediction shows counts against it.
    assert quick_dice([np.eye(3)[labels + 1].transpose(0, 3, 1, 2)], masks_of(labels)) == 0


def test_dice_intervals_are_over_patients():
    rng = np.random.default_rng(2)
    labels = np.repeat(rng.integers(0, 2, (20, 6, 6)), 8, axis=0)
    p = np.repeat(rng.dirichlet(np.ones(2), (20, 6, 6)).transpose(0, 3, 1, 2), 8, axis=0)
    by_image = masks_of(labels, 2)
    by_patient = replace(by_image, patients=tuple(f"p{i // 8}" for i in range(160)))
    wide, narrow = (score([p], truth).dice for truth in (by_patient, by_image))
    assert wide.value == pytest.approx(narrow.value)
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)
