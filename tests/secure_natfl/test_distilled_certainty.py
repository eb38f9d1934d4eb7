"""FedAUX' certainty: how far one record moves it, as published and as it is here."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from secure_natfl.methods.certainty import Bounds, certainty, fit_certainty, sensitivity, size_of

LOCAL, PUBLIC, WIDTH, DECAY = 40, 160, 6, 0.01


@pytest.fixture(scope="module")
def features():
    """Local and public features; local ones lie elsewhere."""
    generator = torch.Generator().manual_seed(0)
    public = torch.randn(PUBLIC, WIDTH, generator=generator)
    return torch.randn(LOCAL, WIDTH, generator=generator) + 0.5, public


def moved(bounds, public, local, patients, row, other):
    """How far the weights move when the patient of `row` has other images."""
    changed = local.clone()
    changed[[i for i, name in enumerate(patients) if name == patients[row]]] = other
    both = [
        fit_certainty(bounds.bounded(one), patients, bounds.bounded(public), DECAY)
        for one in (local, changed)
    ]
    return float(np.linalg.norm(both[0] - both[1]))


def test_the_published_calibration_understates_the_more_the_more_records():
    """Two domains that a line parts, as X-rays and natural images are, and one record that lies
    among the others: where the objective is a sum, it moves the line as far whatever n is, while
    the published bound shrinks with n.
    """
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found, claimed = {}, {}
    for records in (200, 2000):
        half = records // 2
        local, public = ends[:1].repeat(half, 1), ends[1:].repeat(half, 1)
        changed = torch.cat([ends[1:], local[1:]])
        claimed[records] = 2 / (records * DECAY)
        weights = [_published(one, public) for one in (local, changed)]
        found[records] = float(np.linalg.norm(weights[0] - weights[1]))
        assert found[records] > claimed[records]
        assert found[records] <= 2 / DECAY
        patients = [f"p{i}" for i in range(half)]
        assert sensitivity(size_of(patients, half), DECAY) == pytest.approx(claimed[records])
        ours = moved(Bounds(torch.zeros(2), 1.0), public, local, patients, 0, ends[1])
        assert 0 < ours <= claimed[records]
    assert found[2000] > found[200] / 2
    assert claimed[2000] == claimed[200] / 10


def _published(local, public):
    """The reference's solver: ‖w‖²/2 + 1/λ·Σ losses, a sum where its bound assumes a mean."""
    solver = LogisticRegression(C=1 / DECAY, max_iter=10_000, tol=1e-9)
    labels = np.repeat([1, 0], [len(local), len(public)])
    return solver.fit(torch.cat([local, public]).double().numpy(), labels).coef_[0]


def test_replacing_a_patient_moves_the_weights_by_the_bound_at_most(features):
    local, public = features
    bounds = Bounds.of(public)
    patients = ["several"] * 5 + [f"p{i}" for i in range(LOCAL - 5)]
    assert size_of(patients, PUBLIC) == LOCAL - 4 + PUBLIC
    bound = sensitivity(size_of(patients, PUBLIC), DECAY)
    others = [torch.full((WIDTH,), 1e6), torch.full((WIDTH,), -1e6), -3 * local[0]]
    found = [
        moved(bounds, public, local, patients, row, other) for row in (0, 7) for other in others
    ]
    assert max(found) <= bound
    # The bound is not idle: a patient moves the weights by a fair share of it.
    assert max(found) > bound / 50


def test_the_weights_minimise_the_mean_of_losses_with_a_decay_on_each(features):
    local, public = features
    bounds = Bounds.of(public)
    patients = ["two"] * 2 + [f"p{i}" for i in range(LOCAL - 2)]
    rows = np.concatenate([bounds.bounded(local), bounds.bounded(public)])
    w = fit_certainty(bounds.bounded(local), patients, bounds.bounded(public), DECAY)
    shares = np.array([0.5] * 2 + [1.0] * (LOCAL - 2 + PUBLIC))
    labels = np.repeat([1.0, 0.0], [LOCAL, PUBLIC])
    n = size_of(patients, PUBLIC)
    slope = ((1 / (1 + np.exp(-rows @ w)) - labels) * shares) @ rows / n + DECAY * w
    # Intercept and all: the last weight has its decay too.
    np.testing.assert_allclose(slope, 0, atol=1e-7)


def test_bounded_features_depend_on_no_other_private_record(features):
    local, public = features
    bounds = Bounds.of(public)
    rows = bounds.bounded(local)
    assert rows.shape == (LOCAL, WIDTH + 1)
    assert np.linalg.norm(rows, axis=1).max() <= 1 + 1e-12
    larger = local.clone()
    larger[0] *= 1e9
    np.testing.assert_array_equal(bounds.bounded(larger)[1:], rows[1:])
    assert np.linalg.norm(bounds.bounded(larger), axis=1).max() <= 1 + 1e-12


def test_images_like_the_sites_own_count_more(features):
    local, public = features
    bounds = Bounds.of(public)
    patients = [f"p{i}" for i in range(LOCAL)]
    weights = fit_certainty(bounds.bounded(local), patients, bounds.bounded(public), DECAY)
    own, other = (certainty(weights, bounds.bounded(one)) for one in (local, public))
    assert own.shape == (LOCAL, 1)
    assert float(own.mean()) > float(other.mean())
    assert 0 < float(other.min()) <= float(own.max()) < 1 + 1e-7
