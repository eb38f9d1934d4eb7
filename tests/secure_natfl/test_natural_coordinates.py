"""Heads in natural coordinates: the coordinates, where a head starts, and how far it may go."""

import math

import numpy as np
import pytest
import torch

from protocols.accounting import ADD_OR_REMOVE_ONE
from protocols.dp_sgd import DpSgd
from protocols.ledger import Ledger, ReleaseKey
from protocols.sampler import seeded_random
from secure_natfl.dp_training import calm
from secure_natfl.fine_tuning import Target, distil, fresh, solved
from secure_natfl.heads import Knowledge
from secure_natfl.natural_coordinates import NaturalCoordinates
from secure_natfl.seeds import Seeds
from secure_natfl.systems.natimg_fl import Released
from secure_natfl.training import Schedule, features_of, logits_of

SEEDS = Seeds.of_study(3)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def skewed():
    """Features of very different sizes, shifted and mixed."""
    sizes = torch.tensor([10.0, 3.0, 1.0, 0.3, 1e-3])
    return draw(4000, 5) * sizes @ draw(5, 5, seed=1) + 7


def test_natural_images_are_white_but_for_directions_that_hardly_vary(skewed):
    space = NaturalCoordinates.of(skewed)
    inputs = space.inputs(skewed)
    assert float(inputs.square().sum(1).mean()) == pytest.approx(1)
    values = torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs))
    scaled = (skewed.double() - space.mean) / space.scale
    before = torch.linalg.eigvalsh(scaled.T @ scaled / len(scaled))
    assert float(before[-1] / before[-2]) > 2
    assert float(values[-1] / values[-2]) < 1.4
    assert float(values[0] / values[-1]) < 1e-3, "noise in a flat direction stays small"


def test_a_head_goes_in_and_comes_out_as_it_was(skewed):
    space = NaturalCoordinates.of(skewed)
    weight, bias = draw(2, 5, seed=2).double(), draw(2, seed=3).double()
    inward = space.inward(weight, bias)
    logits = skewed.double() @ weight.T + bias
    torch.testing.assert_close(space.inputs(skewed) @ inward.T, logits)
    for found, right in zip(space.outward(inward), (weight, bias), strict=True):
        torch.testing.assert_close(found, right)


def plan_of(**changes):
    given = {"clip_norm": 0.5, "noise_multiplier": 2.0, "rate": 1.0, "steps": 25}
    return DpSgd(**{**given, "size": 6, "expected": 100.0} | changes)


def test_the_rate_is_in_clips_and_no_weight_walks_far_by_noise_alone():
    assert calm(7.0, plan_of()) == 7.0 / 0.5
    for changes in ({"noise_multiplier": 40.0}, {"expected": 5.0}, {"steps": 10_000}):
        plan = plan_of(**changes)
        noise = plan.noise_multiplier * plan.clip_norm / plan.expected
        assert calm(7.0, plan) < 14
        assert calm(7.0, plan) * noise * math.sqrt(plan.steps) == pytest.approx(1.6)


def test_linear_answers_are_matched_without_touching_the_network(world):
    """By each head, though there is no noise; and otherwise the whole network would learn."""
    naturals = world.federation.naturals.images
    network = world.network("test_resnet", "central", 2)
    taught = logits_of(world.network("test_resnet", "taught", 2), naturals)
    target = Target(
        naturals, taught, torch.ones(120, 2, 1), None, torch.full((2,), math.inf), linear=True
    )
    backbone = [p.clone() for p in network.backbone.parameters()]
    off = distil(
        network, target, 1.0, Schedule(1, 20, 1e-3), SEEDS.torch("distil"), multi_label=False
    )
    assert off < 1e-6
    torch.testing.assert_close(logits_of(network, naturals), taught, rtol=1e-3, atol=1e-3)
    for before, after in zip(backbone, network.backbone.parameters(), strict=True):
        assert torch.equal(before, after)


def test_the_central_head_is_the_latest_rounds(tiny, world):
    """Sites went on from the round before, so that its answers count no more."""
    system = world.system(tiny("privacy.mechanism=dp-sgd"))
    images = world.federation.naturals.images
    rounds = []
    for number in (0, 1):
        rows = np.arange(40 * number, 40 * (number + 1))
        logits = logits_of(world.network("test_resnet", f"round {number}"), images[rows])
        rounds.append(
            Released(rows, {"all": logits[:, 0]}, {"all": torch.ones(40)}, {"all": math.inf})
        )
    central = world.network("test_resnet", "central")
    system.absorb(central, rounds[0].followed_by(rounds[1]), 1)
    said = logits_of(central, images[:80])[:, 0]
    torch.testing.assert_close(said[40:], rounds[1].logits["all"], rtol=1e-2, atol=1e-2)
    assert float((said[:40] - rounds[0].logits["all"]).abs().max()) > 0.1


def test_a_head_starts_from_what_was_returned_else_from_zero(tiny, world, tmp_path):
    """Seen after one step at a rate so small that it moves nothing."""
    config = tiny("privacy.mechanism=dp-sgd", "privacy.learning_rate=1e-6")
    site = world.sites[1]
    speaking = world.speaking_of(site, config)
    assert site.architecture == "test_efficientnet"
    assert speaking.backbone.network is world.networks["test_resnet"], "the central public start"
    images = world.federation.naturals.images
    raw = features_of(speaking.backbone.network.backbone, images)
    returned = logits_of(world.network("test_resnet", "returned"), images)[:, 0]

    def says(number, known):
        ledger = Ledger(
            tmp_path / f"{number}",
            "site",
            "0" * 64,
            relation=ADD_OR_REMOVE_ONE,
            budget_epsilon=None,
            delta=1e-5,
        )

        def begin(size):
            plan = plan_of(size=size, steps=1, expected=float(site.patients))
            return plan.begin(ledger, ReleaseKey("study", number), seeded_random(b"noise"))

        network = fresh(speaking.backbone.network, 2, SEEDS.torch("head"))
        speaking.head.train(network, images, raw, known, begin, seeded_random(b"drawn"))
        ledger.close()
        return logits_of(network, images)[:, 0]

    assert float(says(0, None).abs().max()) < 1e-3
    found = says(1, Knowledge(raw, returned))
    torch.testing.assert_close(found, returned, rtol=1e-2, atol=1e-2)


def test_ridge_without_noise_is_least_squares():
    features = draw(50, 4, seed=5)
    weight, bias = draw(2, 4, seed=6), draw(2, seed=7)
    logits = features @ weight.T + bias
    for found, right in zip(
        solved(features, logits, torch.ones(50, 1), math.inf), (weight, bias), strict=True
    ):
        torch.testing.assert_close(found.float(), right, rtol=1e-3, atol=1e-3)
