"""Losses, alignment, training loops, and the seeds of a study."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from secure_natfl.alignment import Alignment
from secure_natfl.models import Network
from secure_natfl.seeds import Seeds
from secure_natfl.training import (
    Examples,
    Schedule,
    answers_of,
    augment,
    distillation_losses,
    features_of,
    fit,
    logits_of,
    record_losses,
)
from tests.secure_natfl.tensors import draw, same, state

SEEDS = Seeds.of_study(3)
SCHEDULE = Schedule(epochs=2, batch=16, rate=1e-3)

# Losses


def test_single_label_loss_is_cross_entropy_of_each_record():
    logits, labels = draw(3, 5, 4), torch.arange(15).reshape(3, 5) % 4
    targets = functional.one_hot(labels, 4).float()
    found = record_losses(logits, targets, torch.ones_like(targets), multi_label=False)
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(found.flatten(), expected)
    padded = record_losses(logits, targets, torch.zeros_like(targets), multi_label=False)
    assert (padded == 0).all()


def test_unknown_findings_cost_nothing_whatever_their_logit():
    logits, targets = draw(6, 3), (draw(6, 3, seed=1) > 0).float()
    known = torch.tensor([[1.0, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
    found = record_losses(logits, targets, known, multi_label=True)
    for i in range(6):
        each = [
            float(functional.binary_cross_entropy_with_logits(logits[i, c], targets[i, c]))
            for c in range(3)
            if known[i, c]
        ]
        assert float(found[i]) == pytest.approx(np.mean(each) if each else 0.0, abs=1e-6)
    shouted = torch.where(known > 0, logits, torch.tensor(1e4))
    assert torch.equal(record_losses(shouted, targets, known, multi_label=True), found)


@pytest.mark.parametrize("multi_label", [False, True])
def test_distillation_is_the_divergence_from_the_teacher(multi_label):
    student, teacher, t = draw(7, 3), draw(7, 3, seed=1), 2.5
    found = distillation_losses(student, teacher, t, multi_label=multi_label)
    for i in range(7):
        expected = 0.0
        if multi_label:
            for c in range(3):
                p, q = (1 / (1 + math.exp(-float(x[i, c]) / t)) for x in (teacher, student))
                expected += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        else:
            p, q = (torch.softmax(x[i].double() / t, 0) for x in (teacher, student))
            expected = float((p * (p / q).log()).sum())
        assert float(found[i]) == pytest.approx(t * t * expected, abs=1e-5)
    equal = distillation_losses(teacher, teacher, t, multi_label=multi_label)
    assert equal.abs().max() < 1e-6


# Alignment


def test_alignment_of_one_record_does_not_depend_on_others():
    align = Alignment(draw(200, 8), SEEDS.torch("a"))
    records = draw(30, 8, seed=1)
    whole = align(records)
    assert whole.shape == (30,)
    for kept in ([4], list(range(10, 30))):
        torch.testing.assert_close(align(records[kept]), whole[kept])
    other = records.clone()
    other[0] = 100.0
    assert torch.equal(align(other)[1:], whole[1:])


def test_alignment_is_the_cross_term_of_the_discrepancy():
    """Against the Gaussian kernel itself, which random features approximate."""
    natural, records = draw(400, 8), 0.5 * draw(20, 8, seed=1) + 0.5
    width = float(natural.std()) * math.sqrt(8)
    kernel = torch.exp(-(torch.cdist(records, natural) ** 2) / (2 * width**2)).mean(1)
    found = torch.stack([Alignment(natural, SEEDS.torch("a", i))(records) for i in range(30)])
    torch.testing.assert_close(found.mean(0), -2 * kernel, atol=0.06, rtol=0)


def test_alignment_pulls_towards_public_statistics():
    natural = draw(300, 6)
    align = Alignment(natural, SEEDS.torch("a"))
    near, far = natural[:50] + 0.05, natural[:50] + 3
    assert align(near).mean() < align(far).mean()


# Loops


def test_augmentation_mirrors_or_shifts_by_a_sixteenth_at_most():
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    images = torch.cat([ramp + 100 * i for i in range(20)])
    generator = SEEDS.torch("augment")
    seen = set()
    for _ in range(30):
        made = augment(images, generator) - torch.arange(20.0).reshape(-1, 1, 1, 1) * 100
        assert made.shape == images.shape
        inner = made[:, 0, 0, 4:-4]
        slope = inner.diff()
        mirrored = slope[:, 0] < 0
        assert set(slope.flatten().tolist()) <= {1.0, -1.0}
        shift = inner[:, 0] - torch.where(mirrored, 27, 4)
        assert len(shift.unique()) == 1, "one shift for the batch"
        assert abs(float(shift[0])) <= 2
        seen |= {(bool(m), float(shift[0])) for m in mirrored}
    assert len(seen) == 10


def test_training_is_repeatable_whatever_else_draws_random_numbers():
    """Also for a network with dropout, which draws from torch's global stream."""

    def trained(noise):
        torch.manual_seed(noise)
        torch.rand(noise)
        network = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 1))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(0.1)
        before = torch.get_rng_state()
        x = draw(64, 4)
        fit(network, lambda rows: network(x[rows]).square().mean(), 64, SCHEDULE, SEEDS.torch("d"))
        assert torch.equal(torch.get_rng_state(), before), "others' randomness was moved on"
        return state(network)

    assert same(trained(1), trained(2))


def test_an_epoch_sees_every_row_once_and_the_last_epochs_loss_is_returned():
    parameter = nn.Linear(1, 1)
    seen = []

    def loss(rows):
        seen.append(rows.tolist())
        return 0 * parameter(torch.ones(1, 1)).sum() + len(seen)

    steps = []
    last = fit(
        parameter,
        loss,
        48,
        Schedule(3, batch=16, rate=0.1),
        SEEDS.torch("rows"),
        lambda done, total: steps.append((done, total)),
    )
    for epoch in range(3):
        rows = chain.from_iterable(seen[3 * epoch : 3 * epoch + 3])
        assert sorted(rows) == list(range(48))
    assert seen[0] != seen[3]
    assert last == pytest.approx((7 + 8 + 9) / 3)
    assert steps == [(i, 9) for i in range(1, 10)]
    assert fit(parameter, loss, 48, Schedule(0, 16, 0.1), SEEDS.torch("none")) == 0.0
    assert len(seen) == 9


def rates(steps):
    """Share of the peak rate at every step of a fit of so many."""
    parameter = torch.nn.Parameter(torch.zeros(()))
    found = []

    class Heard(torch.optim.AdamW):
        def step(self, closure=None):
            found.append(self.param_groups[0]["lr"])
            return super().step(closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Heard)
        holder = nn.ParameterList([parameter])
        fit(holder, lambda _: parameter.square(), 1, Schedule(steps, 1, 1.0), SEEDS.torch("rates"))
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_short_fit_trains_at_half_its_rate_or_more_on_the_whole(steps):
    """As a longer one does; no step is spent at the cold start of the cycle."""
    found = rates(steps)
    assert found[0] > 0.5
    assert np.mean(found) >= 0.5


@pytest.mark.parametrize("steps", [5, 17])
def test_a_longer_fit_warms_up_over_a_fifth_and_cools_down(steps):
    expected = [
        max(0.05, 5 * step / steps)
        if step < steps / 5
        else (1 + math.cos(math.pi * (step / steps - 0.2) / 0.8)) / 2
        for step in range(steps)
    ]
    assert rates(steps) == pytest.approx(expected)


def test_fewer_examples_than_a_batch_are_one_batch():
    parameter, seen = nn.Linear(1, 1), []

    def loss(rows):
        seen.append(len(rows))
        return parameter(torch.ones(1, 1)).sum()

    fit(parameter, loss, 5, SCHEDULE, SEEDS.torch("few"))
    assert seen == [5, 5]


def test_answers_are_those_of_evaluation_in_one_pass_or_two(world):
    network = world.network("test_resnet", "answers")
    network.train()
    images = world.federation.naturals.images
    xray, natural = answers_of(network, images)
    assert not network.training
    assert torch.equal(xray, logits_of(network, images))
    assert xray.shape == (120, 1, 2)
    features = features_of(network.backbone, images)
    torch.testing.assert_close(network.natural(features), natural)


# Seeds


def test_streams_differ_by_purpose_and_by_study():
    def first(seeds, *purpose):
        return seeds.torch(*purpose).initial_seed()

    assert first(SEEDS, "a", 1) == first(Seeds.of_study(3), "a", 1)
    streams = [("a", 1), ("a", 2), ("a", "1"), ("a1",), ("b", 1)]
    drawn = {first(SEEDS, *purpose) for purpose in streams}
    assert len(drawn) == len(streams)
    assert first(Seeds.of_study(4), "a", 1) not in drawn
    assert 0 <= SEEDS.integer("a") < 2**32


def test_only_a_study_predicts_what_protects():
    def system(count):
        return b"\x07" * count

    own = Seeds(b"r" * 32, seeded=False)
    assert own.protective(system, "noise")(9) == b"\x07" * 9
    drawn = SEEDS.protective(system, "noise")(64)
    assert drawn == Seeds.of_study(3).protective(system, "noise")(64)
    assert drawn not in (
        SEEDS.protective(system, "other")(64),
        Seeds.of_study(4).protective(system, "noise")(64),
        b"\x07" * 64,
    )
    assert "root" not in repr(own)


def test_examples_keep_their_rows_together(world):
    train = world.sites[0].train
    assert isinstance(train, Examples)
    some = train.at(torch.tensor([3, 1]))
    assert len(some) == 2
    assert torch.equal(some.images[0], train.images[3])
    assert torch.equal(some.targets[1], train.targets[1])
    assert isinstance(world.networks["test_resnet"], Network)
