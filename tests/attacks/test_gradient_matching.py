"""Objectives, labels and closed forms on real gradients of real networks."""

import math
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from attacks.gradients import labels as label_attacks
from attacks.gradients.analytic import (
    image_of_linear,
    image_of_transformer,
    images_of_imprint,
    linear_layers,
)
from attacks.gradients.differentiation import batched, looped
from attacks.gradients.inversions import DLG, IDLG, INVERTING, SEE_THROUGH, WARM, invert
from attacks.gradients.laboratory import Knowledge, Observation
from attacks.gradients.matching import Matching, Penalties
from attacks.gradients.networks import (
    Imprint,
    convolutional,
    fishing,
    fully_connected,
    lenet,
    transformer,
)
from attacks.image_scores import nrmse, ssim
from protocols.errors import ConfigError

SHAPE, CLASSES = (1, 16, 16), 10


@pytest.fixture(autouse=True)
def seeded():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(before)


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images in [0, 1]."""
    noise = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(noise, size=SHAPE[1:], mode="bicubic").clamp(0, 1)


def observe(network, images, labels, *, steps=1, rate=0.05, clip=math.inf, noise=0.0):
    """What torch's own SGD shows of these images."""
    client = [p.detach().clone().requires_grad_() for p in network.parameters()]
    names = [name for name, _ in network.named_parameters()]
    optimiser = torch.optim.SGD(client, lr=rate)
    known = Knowledge(
        network,
        tuple(images.shape[1:]),
        CLASSES,
        images=len(images),
        steps=steps,
        rate=rate,
        clip=clip,
        noise=noise,
        mean=0.5,
        deviation=0.25,
    )
    for x, y in zip(known.inputs(images).chunk(steps), labels.chunk(steps), strict=True):
        weights = dict(zip(names, client, strict=True))
        optimiser.zero_grad()
        functional.cross_entropy(torch.func.functional_call(network, weights, (x,)), y).backward()
        optimiser.step()
    seen = [
        (p.detach() - c.detach()) / (rate * steps)
        for p, c in zip(network.parameters(), client, strict=True)
    ]
    norm = torch.cat([g.flatten() for g in seen]).norm()
    seen = [g * min(1.0, clip / float(norm)) + noise * torch.randn_like(g) for g in seen]
    return Observation(known, tuple(seen))


@pytest.mark.parametrize(
    ("steps", "images", "clip"), [(1, 3, math.inf), (4, 8, math.inf), (1, 1, 0.01)]
)
def test_the_truth_explains_the_observation(steps, images, clip):
    network = convolutional(SHAPE, CLASSES, 4)
    truth, labels = pictures(images), torch.arange(images) % CLASSES
    seen = observe(network, truth, labels, steps=steps, clip=clip)
    for distance in ("euclidean", "cosine"):
        objective = Matching(seen, labels, distance)
        point = seen.knowledge.inputs(truth).flatten()
        assert objective(point, functional=False).item() < 1e-3
        assert objective(point.flip(0), functional=False).item() > 1e-2
        for found in (looped(objective, point[None]), batched(objective, None, point[None])):
            assert float(found[0]) < 1e-3


def test_every_image_is_clipped_by_itself():
    network = convolutional(SHAPE, CLASSES, 4)
    truth, labels = pictures(3), torch.tensor([3, 1, 2])
    single = [observe(network, truth[i : i + 1], labels[i : i + 1], clip=0.5) for i in range(3)]
    mean = [torch.stack(parts).mean(0) for parts in zip(*(s.gradient for s in single), strict=True)]
    knowledge = replace(single[0].knowledge, images=3)
    objective = Matching(Observation(knowledge, tuple(mean)), labels)
    point = knowledge.inputs(truth).flatten()
    for found in (looped(objective, point[None]), batched(objective, None, point[None])):
        assert found[0].item() < 1e-4
    whole = Matching(Observation(replace(knowledge, clip=math.inf), tuple(mean)), labels)
    assert looped(whole, point[None])[0].item() > 0.1


def test_ways_agree_on_batch_norm_in_training_and_leave_the_network_alone():
    network = with_batch_norm()
    seen = observe(network, pictures(4), torch.arange(4))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    objective = Matching(
        seen,
        torch.arange(4),
        "cosine",
        Penalties(variation=0.1, energy=1e-3, statistics=0.1),
    )
    rows = torch.randn(3, objective.size)
    one, all_at_once = looped(objective, rows), batched(objective, None, rows)
    assert torch.allclose(one[0], all_at_once[0], rtol=1e-4)
    assert torch.allclose(one[1], all_at_once[1], rtol=1e-2, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_batch_statistics_of_the_client_count_where_they_are_known():
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(256, CLASSES)).eval()
    images = pictures(4)
    seen = observe(network, images, torch.arange(4))
    inputs = seen.knowledge.inputs(images)
    told = ((inputs.mean((0, 2, 3)), inputs.var((0, 2, 3), unbiased=False)),)
    knowledge = replace(seen.knowledge, statistics=told)
    weights = Penalties(statistics=1.0)
    for known, near in ((knowledge, True), (seen.knowledge, False)):
        objective = Matching(Observation(known, seen.gradient), torch.arange(4), penalties=weights)
        assert (objective(inputs.flatten(), functional=False).item() < 1e-4) is near


def test_one_image_behind_a_linear_layer_is_exact():
    truth = pictures(1)
    seen = observe(fully_connected(SHAPE, CLASSES), truth, torch.tensor([3]), rate=1.0)
    assert float(nrmse(image_of_linear(seen), truth)) < 1e-4
    with pytest.raises(ConfigError, match="an image has"):
        image_of_linear(observe(convolutional(SHAPE, CLASSES), truth, torch.tensor([3])))


def test_one_image_behind_a_vision_transformer_is_exact():
    shape = (3, 32, 32)
    truth = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    seen = observe(transformer(shape, CLASSES), truth, torch.tensor([3]), rate=1.0)
    assert float(nrmse(image_of_transformer(seen), truth)) < 1e-3
    with pytest.raises(ConfigError, match="no position embedding"):
        image_of_transformer(observe(lenet(SHAPE, CLASSES), pictures(1), torch.tensor([3])))


def test_an_imprint_gives_most_of_a_batch_away():
    truth, labels = pictures(8), torch.arange(8)
    network = Imprint(lenet(SHAPE, CLASSES), (pictures(200, seed=1) - 0.5) / 0.25, 64)
    found = images_of_imprint(observe(network, truth, labels, rate=1.0))
    errors = torch.stack([nrmse(image.expand_as(truth), truth) for image in found])
    assert int((errors.amin(0) < 1e-2).sum()) >= 4


def test_fishing_leaves_the_gradient_of_one_class_only():
    network = lenet(SHAPE, CLASSES, torch.Generator().manual_seed(0))
    crafted, truth, labels = fishing(network, 3), pictures(4), torch.tensor([3, 1, 2, 5])
    whole = observe(crafted, truth, labels, rate=1.0)
    alone = observe(crafted, truth[:1], labels[:1], rate=1.0)
    for both, one in zip(whole.gradient[:-2], alone.gradient[:-2], strict=True):
        assert torch.allclose(4 * both, one, rtol=1e-3, atol=1e-6)
    last = linear_layers(whole)[-1].name
    guess = invert(
        IDLG,
        whole,
        pictures(8, seed=1),
        restarts=2,
        steps=120,
        generator=torch.Generator().manual_seed(0),
        images=1,
        labels=torch.tensor([3]),
        skip=frozenset({f"{last}.weight", f"{last}.bias"}),
    )
    assert float(ssim(guess.images, truth[:1])) > 0.8


@pytest.mark.parametrize("attack", [DLG, IDLG, WARM], ids=lambda attack: attack.name)
def test_gradient_matching_recovers_image_and_label_from_its_own_objective(attack):
    truth, label = pictures(1), torch.tensor([3])
    network = lenet(SHAPE, CLASSES, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    guess = invert(
        attack,
        observe(network, truth, label),
        pictures(8, seed=1),
        restarts=4,
        generator=generator,
        steps=120,
    )
    assert float(ssim(guess.images, truth)) > 0.8
    assert guess.labels.tolist() == [3]  # the label found, not the one it started from


def test_an_inversion_that_was_cut_off_finds_its_warm_start_again(tmp_path):
    network = lenet(SHAPE, CLASSES, torch.Generator().manual_seed(0))
    seen, found = observe(network, pictures(1), torch.tensor([3])), []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        state = tmp_path / "image.safetensors"
        found.append(
            invert(
                WARM,
                seen,
                pictures(8, seed=1),
                restarts=2,
                steps=20,
                generator=generator,
                state=state,
            )
        )
    assert torch.equal(found[0].images, found[1].images)
    assert found[1].found.steps == 20
    assert found[1].found.value == found[0].found.value


def test_penalties_and_searched_labels_go_together():
    attack = replace(DLG, penalties=Penalties(variation=1e-3, energy=1e-3))
    network = lenet(SHAPE, CLASSES, torch.Generator().manual_seed(0))
    seen = observe(network, pictures(2), torch.tensor([3, 7]))
    generator = torch.Generator().manual_seed(0)
    guess = invert(attack, seen, pictures(8, seed=1), restarts=2, generator=generator, steps=60)
    assert torch.isfinite(guess.images).all()
    assert guess.found.value < 0.5
    assert sorted(guess.labels.tolist()) == [3, 7]


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(196, CLASSES),
    )


@pytest.mark.parametrize("attack", [INVERTING, SEE_THROUGH], ids=lambda attack: attack.name)
def test_attacks_with_penalties_explain_a_batch_better_than_the_mean_image(attack):
    labels, prior = torch.tensor([3, 7]), pictures(50, seed=1)
    seen = observe(with_batch_norm(), pictures(2), labels)
    generator = torch.Generator().manual_seed(0)
    guess = invert(attack, seen, prior, restarts=2, generator=generator, steps=100, labels=labels)
    mean = seen.knowledge.inputs(prior.mean(0, keepdim=True).repeat(2, 1, 1, 1)).flatten()
    objective = Matching(seen, labels, attack.distance, attack.penalties)
    assert torch.isfinite(guess.images).all()
    assert guess.found.value < 0.5 * objective(mean, functional=False).item()


def multisets(attack, batch: int, runs: int = 40) -> float:
    scores = []
    for run in range(runs):
        torch.manual_seed(run)
        network = convolutional(SHAPE, CLASSES, 8)
        truth = torch.randint(CLASSES, (batch,))
        seen = observe(network, pictures(batch, seed=run), truth, rate=1.0)
        scores.append(label_attacks.multiset_accuracy(attack(seen), truth, CLASSES))
    return sum(scores) / runs


def test_labels_of_a_batch():
    prior = pictures(50, seed=99)
    assert multisets(lambda seen: label_attacks.bias_corrected(seen, prior), 8) > 0.97
    # Repeats are taken off the class that was just found: about 0.3 otherwise.
    assert multisets(label_attacks.wainakh, 32, 20) > 0.55
    assert multisets(label_attacks.wainakh, 8) > 0.8
    assert multisets(label_attacks.yin, 1, 10) == 1.0
    assert multisets(label_attacks.idlg, 1, 10) == 1.0


def test_labels_of_several_local_steps_without_being_told():
    truth = torch.tensor([1, 1, 4, 7, 7, 7, 9, 2])
    seen = observe(convolutional(SHAPE, CLASSES, 8), pictures(8), truth, steps=4)
    assert "labels" not in {field.name for field in fields(Knowledge)}
    found = label_attacks.bias_corrected(seen, pictures(50, seed=1))
    assert Counter(found.tolist()) == Counter(truth.tolist())


def test_labels_under_drowning_noise_fall_back_to_equal_shares():
    truth = torch.full((10,), 3)
    seen = observe(convolutional(SHAPE, CLASSES, 8), pictures(10), truth, rate=1.0, noise=100.0)
    found = label_attacks.bias_corrected(seen, pictures(50, seed=1))
    assert found.tolist() == list(range(10))


def test_nothing_shown_is_refused_by_every_attack():
    known = Knowledge(lenet(SHAPE, CLASSES), SHAPE, CLASSES)
    with pytest.raises(ConfigError, match="no gradient is shown"):
        Matching(Observation(known, None), None)
    with pytest.raises(ConfigError, match="no gradient is shown"):
        image_of_linear(Observation(known, None))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda seen: Observation(replace(seen.knowledge, images=0), None), "an empty batch"),
        (lambda seen: replace(seen, gradient=seen.gradient[:-1]), "not a gradient of this network"),
        (
            lambda seen: replace(
                seen, knowledge=replace(seen.knowledge, network=convolutional(SHAPE, CLASSES, 8))
            ),
            "not a gradient of this network",
        ),
        (
            lambda seen: replace(seen, gradient=tuple(part / 0 for part in seen.gradient)),
            "a gradient that is not finite",
        ),
    ],
)
def test_what_cannot_be_attacked_is_refused_in_one_line(spoil, says):
    seen = observe(lenet(SHAPE, CLASSES), pictures(1), torch.tensor([1]))
    with pytest.raises(ConfigError, match=says) as refused:
        spoil(seen)
    assert "\n" not in str(refused.value)
