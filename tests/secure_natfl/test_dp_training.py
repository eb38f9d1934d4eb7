import random as python_random
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import one_hot

from protocols.accounting import ADD_OR_REMOVE_ONE
from protocols.dp_sgd import DpSgd
from protocols.errors import ConfigError, DataError, ModelError
from protocols.ledger import Ledger, ReleaseKey
from protocols.sampler import seeded_random
from protocols.unit_clip import clipped
from secure_natfl.alignment import Alignment
from secure_natfl.checked_gradients import UnitGradients
from secure_natfl.dp_training import (
    Cohort,
    Recipe,
    natural_loss,
    thaw,
    train,
    train_head,
)
from secure_natfl.exact_head import exact_head
from secure_natfl.flat_optimiser import FlatOptimiser
from secure_natfl.models import Network
from secure_natfl.natural_coordinates import NaturalCoordinates
from secure_natfl.surgery import fitted, trainable
from secure_natfl.training import Examples, Naturals, features_of, logits_of, record_losses
from secure_natfl.unit_gradients import RecordLoss, loop

CLASSES, SIDE = 2, 16
LAST = Recipe(rate=0.1, momentum=0.0, average=0.0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(images, seed=0, inputs=None):
    """A unit of images (or of given inputs) with labels."""
    inputs = draw(images, 1, SIDE, SIDE, seed=seed) if inputs is None else inputs
    labels = torch.arange(images) % CLASSES
    return inputs, one_hot(labels, CLASSES).float(), torch.ones(images, CLASSES)


def cohort(*counts):
    tensors = rows(sum(counts), seed=4)
    return Cohort(tensors, torch.arange(sum(counts)).split(list(counts)))


PROBE = [rows(1, seed=1), rows(2, seed=2), rows(1, seed=3)]


def network():
    """A `Network` on a small backbone, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=2, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        made = fitted(Network(backbone, 8, CLASSES, natural=3))
    thaw(made, None)
    return made


def naturals(count=12):
    return Naturals(draw(count, 1, SIDE, SIDE, seed=8), torch.arange(count) % 3)


class Paid:
    """A real Descent on a real ledger, with what passed through it."""

    def __init__(self, folder: Path, *, size, steps=3, rate=0.5, noise=1.0, clip=1.0, expected=2.0):
        self.plan = DpSgd(
            clip_norm=clip,
            noise_multiplier=noise,
            rate=rate,
            steps=steps,
            size=size,
            expected=expected,
        )
        self.ledger = Ledger(
            folder / "ledger",
            "site",
            "0" * 64,
            relation=ADD_OR_REMOVE_ONE,
            budget_epsilon=None,
            delta=1e-5,
        )
        key = ReleaseKey("session", 1)
        self.descent = self.plan.begin(self.ledger, key, seeded_random(b"study"))
        self.samples, self.gradients, self.noisy = [], [], []

    @property
    def left(self):
        return self.descent.left

    def sample(self, units):
        self.samples.append(self.descent.sample(units))
        return self.samples[-1]

    def step(self, gradients):
        given = [gradient.copy() for gradient in gradients]
        self.gradients.append(given)
        self.noisy.append(self.descent.step(given))
        return self.noisy[-1]


@pytest.fixture
def pay(tmp_path):
    ledgers = []

    def paid(**options):
        made = Paid(tmp_path, **options)
        ledgers.append(made.ledger)
        return made

    yield paid
    for ledger in ledgers:
        ledger.close()


def test_each_step_moves_by_the_noisy_gradient_and_nothing_else(pay):
    made = network()
    gradients = UnitGradients(made, RecordLoss(multi_label=False), PROBE)
    before = torch.cat([p.detach().reshape(-1) for p in gradients.parameters]).double()
    paid = pay(size=gradients.size)
    steps = []
    train(gradients, cohort(1, 3, 2), paid, LAST, progress=lambda *done: steps.append(done))
    after = torch.cat([p.detach().reshape(-1) for p in gradients.parameters]).double()
    moved = torch.from_numpy(np.sum(paid.noisy, axis=0)) * -0.1
    torch.testing.assert_close(after - before, moved, rtol=0, atol=1e-6)
    assert paid.left == 0
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for sample, given in zip(paid.samples, paid.gradients, strict=True):
        assert len(sample) == len(given)


def test_an_empty_sample_is_a_step_like_any_other(pay):
    gradients = UnitGradients(network(), RecordLoss(multi_label=False), PROBE)
    paid = pay(size=gradients.size, rate=1e-9)
    train(gradients, cohort(1, 1), paid, LAST)
    assert paid.gradients == [[], [], []]
    assert all(noisy.any() for noisy in paid.noisy)


LOUD = [0.0, 1.0, 1e10, 1e30, float("nan"), float("inf"), 1e-40]


@pytest.mark.parametrize("value", LOUD)
@pytest.mark.parametrize("aligned", [False, True])
def test_a_unit_moves_the_clipped_sum_by_at_most_the_clip(value, aligned):
    """With labels, alignment and several images at once: the sum moves by that unit alone."""
    made, clip, clip_int = network(), 1e-3, 2**30
    generator = torch.Generator().manual_seed(0)
    alignment = Alignment(draw(20, 8, seed=6), generator) if aligned else None
    loss = RecordLoss(multi_label=False, alignment=alignment, weight=0.5)
    gradients = UnitGradients(made, loss, PROBE)
    others = [rows(1, seed=11), rows(3, seed=12)]
    unit = rows(2, seed=13)
    unit[0].mul_(value) if value != 1e-40 else unit[0].fill_(value)

    def total(units):
        each = (g.numpy() for g in gradients(iter(units)))
        return sum(clipped(g, gradients.size, clip, clip_int) for g in each)

    moved = (total([others[0], unit, others[1]]) - total(others)).astype(object)
    assert int((moved * moved).sum()) <= clip_int**2
    if value == 1e10:
        assert int((moved * moved).sum()) > 0.99 * clip_int**2, "the bound is attained"


def test_a_whole_patient_is_one_unit_of_at_most_so_many_images(pay):
    seen = []

    def loss(made, unit):
        seen.append(unit[0])
        return RecordLoss(multi_label=False)(made, unit)

    gradients = UnitGradients(network(), loss, PROBE)
    some = cohort(5, 1, 2)
    paid = pay(size=gradients.size, rate=1.0, steps=40)
    seen.clear()
    train(gradients, some, paid, Recipe(rate=0.01, images=3))
    assert [len(images) for images in seen] == [3, 1, 2] * 40
    first = some.tensors[0][:5].flatten(1)
    drawn = [torch.cdist(images.flatten(1), first).argmin(1).tolist() for images in seen[::3]]
    assert all(len(set(images)) == 3 for images in drawn), "without replacement"
    assert {image for images in drawn for image in images} == {0, 1, 2, 3, 4}
    own = [set(map(tuple, some.tensors[0][u].flatten(1).tolist())) for u in some.units]
    for place, images in enumerate(seen):
        assert set(map(tuple, images.flatten(1).tolist())) <= own[place % 3]


def test_views_are_averaged_within_the_unit(pay):
    sizes = []

    def loss(made, unit):
        sizes.append(len(unit[0]))
        return RecordLoss(multi_label=False)(made, unit)

    gradients = UnitGradients(network(), loss, PROBE)
    paid = pay(size=gradients.size, rate=1.0, steps=1)
    sizes.clear()
    train(gradients, cohort(2, 1), paid, Recipe(rate=0.01, views=4))
    assert sizes == [8, 4]
    assert [len(given) for given in paid.gradients] == [2]


def test_patients_group_their_images():
    tensors = rows(5)
    examples = Examples(*tensors, multi_label=False)
    made = Cohort.of_patients(examples, ["b", "a", "b", "c", "a"])
    assert [unit.tolist() for unit in made.units] == [[0, 2], [1, 4], [3]]
    assert len(made) == 3


@pytest.mark.parametrize("units", [([0, 1], [1, 2]), ([0], [2, 2])])
def test_an_image_of_two_units_is_refused(units):
    with pytest.raises(DataError, match="two units"):
        Cohort(rows(3), tuple(torch.tensor(unit) for unit in units))


def test_public_images_enter_after_the_noise(pay, tmp_path):
    generator = torch.Generator().manual_seed(0)

    def run(folder, public):
        made = network()
        gradients = UnitGradients(made, RecordLoss(multi_label=False), PROBE, {"loop": loop})
        folder.mkdir()
        paid = Paid(folder, size=gradients.size, steps=1)
        train(gradients, cohort(1, 1), paid, LAST, public=public, random=seeded_random(b"r"))
        paid.ledger.close()
        return paid, torch.cat([p.detach().reshape(-1) for p in gradients.parameters])

    term = natural_loss(naturals(), 2.0, 6, generator)
    alone, weights = run(tmp_path / "a", None)
    beside, moved = run(tmp_path / "b", term)
    for one, other in zip(alone.gradients[0], beside.gradients[0], strict=True):
        assert np.array_equal(one, other), "what is clipped and noised has no public part"
    assert np.array_equal(alone.noisy[0], beside.noisy[0])
    made = network()
    public = natural_loss(naturals(), 2.0, 6, torch.Generator().manual_seed(0))(made)
    found = torch.autograd.grad(public, list(trainable(made).values()), allow_unused=True)
    assert found[-1] is None, "the X-ray head has no public part"
    right = torch.cat([(torch.zeros(2 * 9) if g is None else g).reshape(-1) for g in found[:4]])
    torch.testing.assert_close((weights - moved)[: len(right)] / 0.1, right, rtol=1e-3, atol=1e-5)


def test_no_global_randomness(pay, monkeypatch):
    gradients = UnitGradients(network(), RecordLoss(multi_label=False), PROBE)
    public = natural_loss(naturals(), 1.0, 4, torch.Generator().manual_seed(0))
    paid = pay(size=gradients.size, rate=1.0)

    def guarded(name, drawer):
        def call(*args, **kwargs):
            assert kwargs.get("generator") is not None, f"torch.{name} on the global stream"
            return drawer(*args, **kwargs)

        return call

    def forbidden(*_, **__):
        raise AssertionError("global randomness")

    for name in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"):
        monkeypatch.setattr(torch, name, guarded(name, getattr(torch, name)))
    for name in ("random", "randint", "sample", "shuffle", "gauss"):
        monkeypatch.setattr(python_random, name, forbidden)
    for name in ("normal", "rand", "randn", "random", "randint", "permutation", "shuffle"):
        monkeypatch.setattr(np.random, name, forbidden)
    state = torch.get_rng_state()
    recipe = Recipe(rate=0.01, images=1, views=2)
    train(gradients, cohort(3, 1), paid, recipe, public=public)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(AssertionError, match="global"):
        torch.randn(2)


def test_the_same_bytes_give_the_same_training_and_others_do_not(tmp_path):
    def run(name, seed):
        gradients = UnitGradients(network(), RecordLoss(multi_label=False), PROBE, {"loop": loop})
        (tmp_path / name).mkdir()
        paid = Paid(tmp_path / name, size=gradients.size, rate=1.0)
        recipe = Recipe(rate=0.1, images=1, views=2)
        train(gradients, cohort(4, 4), paid, recipe, random=seeded_random(seed))
        paid.ledger.close()
        return paid.gradients[0][0]

    assert np.array_equal(run("a", b"1"), run("b", b"1"))
    assert not np.array_equal(run("c", b"2"), run("d", b"3"))


def test_what_was_not_paid_for_is_not_trained(pay):
    gradients = UnitGradients(network(), RecordLoss(multi_label=False), PROBE)
    paid = pay(size=gradients.size - 1)
    with pytest.raises(ModelError, match="calibrate"):
        train(gradients, cohort(1, 1), paid, LAST)
    assert paid.left == 3
    assert paid.samples == []


def test_looking_ahead_takes_two_paid_steps(pay):
    gradients = UnitGradients(network(), RecordLoss(multi_label=False), PROBE, {"loop": loop})
    before = torch.cat([p.detach().reshape(-1) for p in gradients.parameters]).double()
    paid = pay(size=gradients.size, steps=2, rate=1.0)
    ahead = Recipe(rate=0.1, momentum=0.0, average=0.0, ahead=0.5)
    train(gradients, cohort(1, 1), paid, ahead)
    after = torch.cat([p.detach().reshape(-1) for p in gradients.parameters]).double()
    torch.testing.assert_close(
        after - before, torch.from_numpy(paid.noisy[1]) * -0.1, rtol=0, atol=1e-6
    )
    shifted = network()
    at = before - 0.5 * torch.from_numpy(paid.noisy[0])
    torch.nn.utils.vector_to_parameters(at.float(), trainable(shifted).values())
    units = [tuple(t[u] for t in cohort(1, 1).tensors) for u in cohort(1, 1).units]
    for found, right in zip(
        paid.gradients[1], loop(shifted, RecordLoss(multi_label=False), units), strict=True
    ):
        np.testing.assert_allclose(found, right.numpy(), rtol=1e-4, atol=1e-6)


def test_looking_ahead_wants_an_even_number_of_steps(pay):
    gradients = UnitGradients(network(), RecordLoss(multi_label=False), PROBE)
    with pytest.raises(ModelError, match="2 queries"):
        train(gradients, cohort(1), pay(size=gradients.size), Recipe(rate=0.1, ahead=0.1))


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_optimisers_are_torchs(optimiser):
    ours = FlatOptimiser(optimiser, 0.03, 0.8, 5)
    weights = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    theirs = (
        torch.optim.SGD([weights], lr=0.03, momentum=0.8)
        if optimiser == "sgd"
        else torch.optim.Adam([weights], lr=0.03)
    )
    at = torch.zeros(5, dtype=torch.float64)
    for seed in range(6):
        gradient = draw(5, seed=seed).double()
        at = at - ours.move(gradient)
        weights.grad = gradient
        theirs.step()
    torch.testing.assert_close(at, weights.detach())


def test_the_average_of_weights_is_what_stays(pay):
    gradients = UnitGradients(network(), RecordLoss(multi_label=False), PROBE)
    before = torch.cat([p.detach().reshape(-1) for p in gradients.parameters]).double()
    paid = pay(size=gradients.size, steps=2)
    train(gradients, cohort(1, 1), paid, Recipe(rate=0.1, momentum=0.0, average=0.5))
    first = before - 0.1 * torch.from_numpy(paid.noisy[0])
    second = first - 0.1 * torch.from_numpy(paid.noisy[1])
    average = 0.1 * before + 0.9 * first
    average = 2 / 11 * average + 9 / 11 * second
    after = torch.cat([p.detach().reshape(-1) for p in gradients.parameters]).double()
    torch.testing.assert_close(after, average, rtol=0, atol=1e-6)


def test_thawing():
    backbone = timm.create_model("test_resnet", in_chans=1, num_classes=0)
    made = fitted(Network(backbone, backbone.num_features, CLASSES, natural=3))

    def names():
        return {name.rsplit(".", 1)[0] for name in trainable(made)}

    thaw(made, 0)
    assert names() == {"xray"}
    thaw(made, 1)
    assert all(name.startswith(("backbone.layer4.", "xray")) for name in names())
    assert len(names()) > 3
    thaw(made, None)
    assert any(name.startswith("backbone.conv1") for name in names())
    assert "natural" not in names()


def test_a_block_is_more_than_its_last_normalisation():
    backbone = timm.create_model("test_efficientnet", in_chans=1, num_classes=0)
    made = fitted(Network(backbone, backbone.num_features, CLASSES, natural=3))
    thaw(made, 1)
    below = {name.split(".")[1] for name in trainable(made) if name.startswith("backbone.")}
    assert below == {"conv_head", "bn2"}


def test_a_linear_head_learns_under_noise(pay):
    made = network()
    patients = 400
    labels = torch.arange(patients) % CLASSES
    images = draw(patients, 1, SIDE, SIDE, seed=20) * (0.5 + labels[:, None, None, None])
    targets = one_hot(labels, CLASSES).float()
    frozen = [p.clone() for p in made.backbone.parameters()]
    some = Cohort((images, targets, torch.ones_like(targets)), torch.arange(patients).split(1))

    def begin(size):
        assert size == 9 * CLASSES
        return pay(size=size, steps=60, rate=0.25, noise=2.0, expected=100.0)

    public = features_of(made.backbone, naturals(40).images)
    train_head(made, public, some, begin, Recipe(rate=2.0), multi_label=False)
    right = (logits_of(made, images)[:, 0].argmax(-1) == labels).float().mean()
    assert right > 0.8
    for before, after in zip(frozen, made.backbone.parameters(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_head_without_noise_is_where_the_shrunk_loss_is_least(multi_label):
    made, ridge = network(), 1e-3
    public = features_of(made.backbone, naturals(40).images)
    features = features_of(made.backbone, draw(60, 1, SIDE, SIDE, seed=21))
    targets = one_hot(torch.arange(60) % CLASSES, CLASSES).float()
    known = torch.ones_like(targets)
    known[::7] = 0
    exact_head(made, public, (features, targets, known), ridge, multi_label=multi_label)
    space = NaturalCoordinates.of(public)
    weights = space.inward(made.xray.weight, made.xray.bias).detach().requires_grad_()
    logits = space.inputs(features) @ weights.T
    each = record_losses(logits, targets.double(), known.double(), multi_label=multi_label)
    (slope,) = torch.autograd.grad(each.mean() + ridge * weights.square().sum(), weights)
    assert slope.norm() < 1e-4
    assert weights.norm() > 0.1


def test_recipes_that_make_no_sense_are_refused():
    for options in ({"rate": 0}, {"images": 0}, {"momentum": 1}, {"average": 1}, {"ahead": -1}):
        with pytest.raises(ConfigError, match="recipe"):
            Recipe(**{"rate": 0.1, **options})
