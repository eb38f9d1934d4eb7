"""Fine-tuning at a site, and distilling the central model."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from secure_natfl.fine_tuning import LocalLoss, Target, Teacher, distil, fine_tune, fresh
from secure_natfl.seeds import Seeds
from secure_natfl.training import (
    Schedule,
    features_of,
    logits_of,
    record_losses,
)
from tests.secure_natfl.tensors import draw, same, state

SEEDS = Seeds.of_study(3)
SCHEDULE = Schedule(epochs=2, batch=16, rate=1e-3)

# Fine-tuning


def test_a_fresh_network_has_a_head_of_its_own_and_shares_no_memory(world):
    public = world.networks["test_resnet"]
    before = state(public)
    one = fresh(public, 3, SEEDS.torch("one"), groups=2)
    assert one(torch.zeros(2, 1, 32, 32))[0].shape == (2, 2, 3)
    assert torch.equal(fresh(public, 3, SEEDS.torch("one"), 2).xray.weight, one.xray.weight)
    assert not torch.equal(fresh(public, 3, SEEDS.torch("two"), 2).xray.weight, one.xray.weight)
    assert same(state(public.backbone), state(one.backbone))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.fill_(9.0)
    assert same(before, state(public))


def tuned(world, weights, teacher=None, **changes):
    site = world.sites[0]
    network = world.network(site.architecture, "tuned")
    train = replace(site.train, **changes)
    naturals = world.federation.naturals
    fine_tune(network, train, naturals, weights, teacher, SCHEDULE, SEEDS.torch("tune"))
    return state(network)


def some_teacher(world, weight=1.0, seed=0):
    rows = torch.arange(40)
    return Teacher(rows, 3 * draw(40, 2, seed=seed), torch.full((40,), weight))


def test_each_part_of_the_local_loss_changes_what_is_learned(world):
    teacher = some_teacher(world)
    whole = LocalLoss(natural=1.0, alignment=0.5, distillation=1.0)
    base = tuned(world, whole, teacher)
    assert same(base, tuned(world, whole, teacher)), "repeatable"
    for part in ("natural", "alignment", "distillation"):
        without = replace(whole, **{part: 0.0})
        assert not same(base, tuned(world, without, teacher)), part
    assert not same(base, tuned(world, whole, some_teacher(world, seed=1)))
    assert not same(base, tuned(world, whole, some_teacher(world, weight=0.3)))
    assert not same(base, tuned(world, replace(whole, temperature=4.0), teacher))


def test_what_is_switched_off_is_not_looked_at(world):
    plain = LocalLoss()
    assert same(tuned(world, plain), tuned(world, plain, some_teacher(world)))
    # No trust in the teacher is as good as no teacher.
    natural = LocalLoss(natural=1.0, distillation=1.0)
    asked = some_teacher(world, weight=0.0)
    assert same(
        tuned(world, natural, asked), tuned(world, natural, some_teacher(world, 0.0, seed=1))
    )


def test_unknown_labels_teach_nothing(world):
    site = world.sites[0]
    known = torch.ones_like(site.train.known)
    known[::2] = 0
    flipped = site.train.targets.clone()
    flipped[::2] = 1 - flipped[::2]
    one = tuned(world, LocalLoss(), known=known)
    other = tuned(world, LocalLoss(), known=known, targets=flipped)
    assert same(one, other)
    assert not same(one, tuned(world, LocalLoss(), targets=flipped))


def test_fine_tuning_learns_its_own_labels(world):
    site = world.sites[0]
    network = world.network(site.architecture, "learn")
    before = logits_of(network, site.train.images)[:, 0]
    fine_tune(
        network,
        site.train,
        world.federation.naturals,
        LocalLoss(),
        None,
        Schedule(25, 16, 3e-3),
        SEEDS.torch("learn"),
    )
    after = logits_of(network, site.train.images)[:, 0]
    losses = [
        float(record_losses(x, site.train.targets, site.train.known, multi_label=False).mean())
        for x in (before, after)
    ]
    assert losses[1] < 0.6 * losses[0]


# Distilling the central model


def target_of(world, logits, trust, labels=True, ratio=math.inf):
    naturals = world.federation.naturals
    n, heads = logits.shape[:2]
    return Target(
        naturals.images[:n],
        logits,
        trust,
        naturals.labels[:n] if labels else None,
        torch.full((heads,), ratio),
    )


def central_after(world, target, *, natural=0.0, schedule=SCHEDULE, multi_label=False):
    network = world.network("test_resnet", "central", target.logits.shape[1])
    value = distil(
        network, target, natural, schedule, SEEDS.torch("distil"), multi_label=multi_label
    )
    return network, value


def test_a_central_model_approaches_what_it_is_taught(world):
    """How bright an image is, and by the other head how dark."""
    bright = world.federation.naturals.images.mean((1, 2, 3))
    bright = (bright - bright.mean()) / bright.std()
    logits = torch.stack([bright, -bright], -1).unsqueeze(1) * torch.tensor([[1.0], [-1.0]])
    target = target_of(world, logits, torch.ones(120, 2, 1))
    first, last = (
        central_after(world, target, schedule=Schedule(epochs, 20, 4e-3)) for epochs in (1, 12)
    )
    assert last[1] < 0.5 * first[1]
    found = logits_of(last[0], target.images)
    found = found - found.mean(-1, keepdim=True)
    assert float((found - logits).square().mean()) < 0.5 * float(logits.square().mean())


def test_heads_are_solved_by_ridge_regression(world):
    """Against scikit-learn, at a signal as strong as the noise, where λ is the number of features.

    The network itself is not touched below a ratio of 1: it would learn the noise by heart.
    """
    logits, ratio = draw(120, 2, 2), 0.9
    target = target_of(world, logits, torch.ones(120, 2, 1), ratio=ratio)
    before = world.network("test_resnet", "central", 2)
    network, _ = central_after(world, target)
    features = features_of(before.backbone, target.images)
    scaled = ((features - features.mean(0)) / features.std(0).clamp_min(1e-6)).double().numpy()
    for head in range(2):
        ridge = Ridge(alpha=before.features / ratio**2).fit(scaled, logits[:, head].numpy())
        found = logits_of(network, target.images)[:, head]
        np.testing.assert_allclose(found.numpy(), ridge.predict(scaled), atol=1e-4)
    assert same(state(before.backbone), state(network.backbone))
    assert same(state(before.natural), state(network.natural))


def test_the_more_noise_the_smaller_the_answers(world):
    logits, trust = draw(120, 1, 2), torch.ones(120, 1, 1)
    spread = [
        float(
            logits_of(
                central_after(world, target_of(world, logits, trust, ratio=ratio))[0],
                world.federation.naturals.images,
            ).std()
        )
        for ratio in (0.9, 0.3, 0.1)
    ]
    assert spread[0] > 2 * spread[1] > 4 * spread[2] > 0


def test_steep_heads_of_a_noisy_round_do_not_spoil_the_next(world):
    """The ratio may pass 1 from one round to the next; training must not start far off."""
    logits, trust = draw(120, 1, 2), torch.ones(120, 1, 1)
    noisy = target_of(world, logits, trust, ratio=0.9)
    network, _ = central_after(world, noisy)
    with torch.no_grad():
        network.xray.weight *= 30
    clear = target_of(world, logits, trust, ratio=1.1)
    after = distil(network, clear, 0.0, SCHEDULE, SEEDS.torch("distil"), multi_label=False)
    _, from_fresh = central_after(world, clear)
    assert after < 2 * from_fresh


def test_the_network_follows_where_every_head_has_more_signal_than_noise(world):
    logits, trust = draw(40, 2, 2), torch.ones(40, 2, 1)
    start = state(world.network("test_resnet", "central", 2).backbone)
    for ratios, follows in (((2.0, 2.0), True), ((2.0, 0.5), False)):
        target = replace(target_of(world, logits, trust), signal_to_noise=torch.tensor(ratios))
        assert same(start, state(central_after(world, target)[0].backbone)) != follows


@pytest.mark.parametrize("ratio", [0.5, 5.0, math.inf])
def test_answers_without_trust_are_without_any_influence(world, ratio):
    logits, trust = draw(40, 1, 2), torch.ones(40, 1, 1)
    trust[:10] = 0
    wild = logits.clone()
    wild[:10] = 1e6
    one, first = central_after(world, target_of(world, logits, trust, ratio=ratio))
    other, second = central_after(world, target_of(world, wild, trust, ratio=ratio))
    assert same(state(one), state(other))
    assert first == second
    trusted = target_of(world, wild, torch.ones(40, 1, 1), ratio=ratio)
    assert not same(state(one), state(central_after(world, trusted)[0]))


def test_a_round_that_nothing_can_be_trusted_of_leaves_a_network_whole(world):
    target = target_of(world, draw(40, 1, 2), torch.zeros(40, 1, 1), ratio=0.01)
    network, last = central_after(world, target)
    assert math.isfinite(last)
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


def test_the_loss_is_relative_to_the_targets(world):
    logits, trust = draw(40, 1, 2), torch.ones(40, 1, 1)
    losses = [
        central_after(world, target_of(world, scale * logits, trust, ratio=0.5))[1]
        for scale in (0.1, 1, 1000)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)
    assert 0.1 < losses[0] < 1


def test_only_a_single_label_model_is_centred(world, monkeypatch):
    """A shift common to all classes changes no softmax, but every sigmoid."""
    monkeypatch.setattr("secure_natfl.fine_tuning._draw_heads", lambda *_: None)
    logits, trust = draw(40, 1, 2), torch.ones(40, 1, 1)
    target = target_of(world, logits - logits.mean(-1, keepdim=True), trust)
    for multi_label in (False, True):
        network = world.network("test_resnet", "central")
        with torch.no_grad():
            network.xray.bias += 50.0
        schedule, generator = Schedule(1, 40, 1e-6), SEEDS.torch("distil")
        value = distil(network, target, 0.0, schedule, generator, multi_label=multi_label)
        assert (value > 100) == multi_label


def test_natural_labels_are_an_auxiliary_task_of_the_central_model(world):
    logits, trust = draw(40, 1, 2), torch.ones(40, 1, 1)
    with_labels = target_of(world, logits, trust)
    without = target_of(world, logits, trust, labels=False)
    base = state(central_after(world, with_labels, natural=1.0)[0])
    assert not same(base, state(central_after(world, with_labels, natural=0.0)[0]))
    # Images that show nothing have no labels, and then the weight changes nothing.
    assert same(
        state(central_after(world, without, natural=1.0)[0]),
        state(central_after(world, without, natural=0.0)[0]),
    )
