"""Teacher and student: who learns from whom, how strongly, and with which normalisation."""

from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_natfl.methods.dual_distillation import (
    Answer,
    Lessons,
    Pair,
    adaptive_weight,
    dual_loss,
    learn,
    taught,
)
from secure_natfl.methods.plain_models import Plain
from secure_natfl.models import Network
from secure_natfl.training import Examples, Schedule


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(seed: int = 0) -> Pair:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher, student = (
            Plain(
                Network(nn.Sequential(nn.Flatten(), nn.Linear(256, d), nn.ReLU()), d, 3, natural=1)
            )
            for d in (12, 8)
        )
    return Pair(teacher, student, seeded(seed))


def batch(count: int = 24, *, multi_label: bool = False) -> Examples:
    generator = seeded(1)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 1, 16, 16, generator=generator) / 4
    images += labels.view(-1, 1, 1, 1).float() - 1
    targets = functional.one_hot(labels, 3).float()
    return Examples(images, targets, torch.ones_like(targets), multi_label)


def answer(seed: int, count: int = 6) -> Answer:
    generator = seeded(seed)
    logits = 2 * torch.randn(count, 3, generator=generator)
    return Answer(
        logits.requires_grad_(), torch.randn(count, 4, generator=generator).requires_grad_()
    )


def test_decisions_are_averaged_over_the_batch_alone():
    # nn.KLDivLoss() of HtFLlib has reduction "mean": it divides by the number of classes too.
    pupil, guide = answer(0), answer(1)
    found = taught(pupil, guide, Lessons(representations=False), multi_label=False)
    logs = functional.log_softmax(pupil.logits, -1), functional.log_softmax(guide.logits, -1)
    right = functional.kl_div(*logs, reduction="batchmean", log_target=True)
    torch.testing.assert_close(found, right)
    with pytest.warns(UserWarning, match="batchmean"):
        wrong = nn.KLDivLoss(log_target=True)(*logs)
    torch.testing.assert_close(found, 3 * wrong)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_guide_is_a_target(multi_label: bool):
    pupil, guide = answer(2), answer(3)
    taught(pupil, guide, Lessons(), multi_label=multi_label).backward()
    assert pupil.logits.grad is not None
    assert pupil.features.grad is not None
    assert guide.logits.grad is None
    assert guide.features.grad is None


@pytest.mark.parametrize("multi_label", [False, True])
def test_nothing_is_to_be_learned_from_an_equal(multi_label: bool):
    one = answer(4)
    value = taught(one, one.detached(), Lessons(), multi_label=multi_label)
    torch.testing.assert_close(value, torch.zeros(()), atol=1e-6, rtol=0)


def test_the_adaptive_weight_follows_the_losses_and_has_a_bound():
    a, b = torch.tensor(0.6, requires_grad=True), torch.tensor(0.9, requires_grad=True)
    weight = adaptive_weight(a, b)
    torch.testing.assert_close(weight, torch.tensor(1 / 1.5))
    assert not weight.requires_grad
    assert float(adaptive_weight(torch.zeros(()), torch.zeros(()))) == 10


def test_the_loss_is_the_sum_of_both_with_their_parts():
    teacher, student = answer(5, 24), answer(6, 24)
    examples = batch()
    labels = examples.targets.argmax(1)
    ce = [functional.cross_entropy(one.logits, labels) for one in (teacher, student)]

    def kl(guide: Tensor, pupil: Tensor) -> Tensor:
        log = functional.log_softmax(pupil, -1)
        return functional.kl_div(log, functional.softmax(guide, -1), reduction="batchmean")

    hidden = functional.mse_loss(teacher.features, student.features)
    both = kl(student.logits, teacher.logits) + kl(teacher.logits, student.logits)
    expected = sum(ce) + (both + 2 * hidden) / sum(ce)
    torch.testing.assert_close(dual_loss(teacher, student, examples, Lessons()), expected)
    alone = Lessons(decisions=False, representations=False)
    torch.testing.assert_close(dual_loss(teacher, student, examples, alone), sum(ce))


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_one_learns_and_the_other_is_read_and_never_written(who: Literal["teacher", "student"]):
    one = pair()
    before = {name: p.detach().clone() for name, p in one.named_parameters()}
    learn(one, who, batch(), Lessons(), Schedule(2, 8, 1e-2), seeded(2))
    changed = {n for n, p in one.named_parameters() if not torch.equal(p, before[n])}
    assert {name.partition(".")[0] for name in changed} == {who, "bridge"}
    assert all(p.requires_grad for p in one.parameters())


@pytest.mark.parametrize(("who", "other"), [("teacher", "student"), ("student", "teacher")])
def test_one_learns_what_only_the_other_knows(
    who: Literal["teacher", "student"], other: Literal["teacher", "student"]
):
    # The labels of the third class are hidden from the pupil's own loss.
    knowing, examples = pair(), batch(60)
    learn(knowing, other, examples, Lessons(), Schedule(15, 12, 1e-2), seeded(3))
    hidden = Examples(
        examples.images,
        examples.targets,
        examples.known * (1 - examples.targets[:, 2:]),
        multi_label=False,
    )
    third = examples.targets[:, 2] > 0
    found = {}
    for lessons in (Lessons(), Lessons(decisions=False)):
        one = pair(7)
        getattr(one, other).load_state_dict(getattr(knowing, other).state_dict())
        learn(one, who, hidden, lessons, Schedule(15, 12, 1e-2), seeded(4))
        with torch.no_grad():
            logits = getattr(one, who)(examples.images[third])
        found[lessons.decisions] = float((logits.argmax(1) == 2).float().mean())
    assert found[True] > 0.9
    assert found[False] < 0.5
