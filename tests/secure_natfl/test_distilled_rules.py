"""What FedMD, FedDF, DS-FL and FedAUX make of the answers of sites: each against its equation."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from secure_natfl.methods.distillation_rules import Rule

ROWS, CLASSES = 5, 3


def rule(method, *, multi_label=False, sharpening=0.1):
    return Rule(method, ROWS, CLASSES, multi_label, sharpening)


@pytest.fixture
def logits():
    """Of four sites: [4, rows, C]."""
    return torch.randn(4, ROWS, CLASSES, generator=torch.Generator().manual_seed(3))


def mean_of(made, logits, certainty=None):
    said = [made.said(z, None if certainty is None else certainty[k]) for k, z in enumerate(logits)]
    return np.mean(said, axis=0)


@pytest.mark.parametrize("method", ["fedmd", "feddf"])
def test_the_plain_rules_meet_in_the_mean_of_logits(logits, method):
    made = rule(method)
    torch.testing.assert_close(made.target(mean_of(made, logits), 0.0), logits.mean(0))


def test_fedmd_measures_absolute_distance_and_feddf_divergence_from_the_ensemble(logits):
    student, target = logits[0], logits[1]
    torch.testing.assert_close(
        rule("fedmd").losses(student, target).mean(), (student - target).abs().mean()
    )
    expected = functional.kl_div(student.log_softmax(-1), target.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(rule("feddf").losses(student, target).mean(), expected)


def test_ds_fl_sharpens_the_mean_of_probabilities(logits):
    made = rule("ds-fl")
    mean = logits.softmax(-1).mean(0)
    target = made.target(mean_of(made, logits), 0.0).softmax(-1)
    torch.testing.assert_close(target, (mean / 0.1).softmax(-1))

    def entropy(p):
        return -(p * p.log()).sum(-1)

    assert (entropy(target) < entropy(mean)).all()
    # Not the same as a sharpened mean of logits.
    assert not torch.allclose(target, (logits.mean(0) / 0.1).softmax(-1), atol=1e-2)


def test_ds_fl_takes_a_finding_and_its_absence_as_two_classes(logits):
    made = rule("ds-fl", multi_label=True)
    mean = logits.sigmoid().mean(0)
    both = torch.stack([mean, 1 - mean], -1)
    target = made.target(mean_of(made, logits), 0.0).sigmoid()
    torch.testing.assert_close(target, (both / 0.1).softmax(-1)[..., 0])


def test_fedaux_weights_each_answer_by_its_certainty(logits):
    made = rule("fedaux")
    certainty = torch.rand(4, ROWS, 1, generator=torch.Generator().manual_seed(1)).double()
    target = made.target(mean_of(made, logits, certainty), 0.0)
    expected = (certainty * logits).sum(0) / certainty.sum(0)
    torch.testing.assert_close(target, expected.float())
    assert not torch.allclose(target, logits.mean(0), atol=1e-2)
    assert [s.name for s in made.layout.segments] == ["answers", "certainty"]


def test_a_certainty_drowned_in_noise_does_not_blow_up_its_answer(logits):
    made = rule("fedaux")
    sent = made.layout.unpack(mean_of(made, logits, torch.full((4, ROWS, 1), 0.5).double()))
    sent["certainty"][0] = -1e-3
    sent["certainty"][1] = 0.0
    vector = made.layout.pack(sent)
    noisy = made.target(vector, noise=0.05)
    assert noisy.abs().max() <= 0.5 * logits.abs().max() / (2 * 0.05 * ROWS**0.5)
    assert torch.isfinite(made.target(vector, 0.0)).all()


def test_the_norm_that_is_clipped_is_the_root_mean_square_over_images(logits):
    made = rule("fedmd")
    sent = made.said(logits[0], None)
    rms = logits[0].square().sum(-1).mean().sqrt()
    assert np.linalg.norm(sent) == pytest.approx(float(rms), rel=1e-6)
