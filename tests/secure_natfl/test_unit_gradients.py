from contextlib import nullcontext

import pytest
import timm
import torch
from opacus.grad_sample import GradSampleModule
from torch import nn
from torch.nn.functional import one_hot
from torch.nn.utils.parametrizations import spectral_norm

from protocols.errors import ModelError
from secure_natfl import unit_gradients
from secure_natfl.checked_gradients import UnitGradients, pick
from secure_natfl.surgery import fitted
from secure_natfl.unit_gradients import (
    PATHS,
    RecordLoss,
    ghost_clipped_sum,
    ghost_norms,
    hooks,
    loop,
    outer,
)
from secure_natfl.unit_independence import check_independent
from secure_natfl.unit_oracle import LAYOUTS, check_path, oracle

CLASSES = 3
SINGLE = RecordLoss(multi_label=False)


def units(*counts, side=32, seed=0, channels=1):
    """Units of so many images each, with labels."""
    generator = torch.Generator().manual_seed(seed)

    def one(images):
        labels = torch.randint(CLASSES, (images,), generator=generator)
        inputs = torch.randn(images, channels, side, side, generator=generator)
        return inputs, one_hot(labels, CLASSES).float(), torch.ones(images, CLASSES)

    return [one(images) for images in counts]


def convolutions(channels=1):
    """Conv, ReLU, strided conv, pool, linear: the smallest network that shows unfold2d's fault."""
    made = nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    ).train()
    generator = torch.Generator().manual_seed(7)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return made


def kept(path, network, some):
    """All gradients, each in a tensor of its own."""
    return [gradient.clone() for gradient in PATHS[path](network, SINGLE, some)]


def tiny(name):
    options = {"img_size": 32, "patch_size": 8} if "vit" in name else {}
    return fitted(timm.create_model(name, in_chans=1, num_classes=CLASSES, **options))


def raw_hooks(network, loss, units):
    """The mutant: Opacus as it comes, without contiguous inputs."""
    for unit in units:
        wrapped = GradSampleModule(network, loss_reduction="sum", strict=True)
        loss(network, unit).sum().backward()
        yield torch.cat([p.grad_sample.mean(0).reshape(-1) for p in network.parameters()])
        wrapped.cleanup()
        network.zero_grad(set_to_none=True)


NETWORKS = ["test_resnet", "test_efficientnet", "test_vit", "test_convnext"]


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("path", ["loop", "hooks"])
def test_every_path_gives_the_oracles_gradients_in_every_layout(name, path):
    check_path(path, PATHS[path], tiny(name), SINGLE, units(1, 3, 0, 1))


@pytest.mark.parametrize("path", ["loop", "hooks"])
def test_no_unit_gives_no_gradient(path):
    assert list(PATHS[path](convolutions(), SINGLE, [])) == []
    (empty,) = PATHS[path](convolutions(), SINGLE, units(0))
    assert not empty.any()


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize(
    ("network", "channels", "layout"),
    [
        (lambda: convolutions(3), 3, "channels_last"),
        # ConvNeXt turns its layers' inputs by itself: plain NCHW images meet the fault too.
        (lambda: tiny("test_convnext"), 1, "contiguous"),
    ],
)
def test_the_oracle_catches_unfold2d_and_contiguous_inputs_cure_it(network, channels, layout):
    probe = units(1, 2, channels=channels)
    with pytest.raises(ModelError, match=rf"float\d\d, {layout}:.*norm \d\.\d+ times") as error:
        check_path("raw", raw_hooks, network(), SINGLE, probe)
    assert '"raw"' in error.value.what
    assert "weight" in error.value.where
    check_path("hooks", hooks, network(), SINGLE, probe)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_under_unfold2d_ghost_clipping_lets_units_in_beyond_the_clip(monkeypatch):
    # Three times the same unit, for a batch of one image is contiguous once it is padded.
    network, (unit,) = convolutions(3), units(1, channels=3)
    for layer in (network[0].bias, network[2].bias, network[5]):  # which the fault does not touch
        layer.requires_grad_(False)
    trio, clip = [(LAYOUTS["channels_last"](unit[0]), *unit[1:])] * 3, 1e-3
    cured = ghost_clipped_sum(network, SINGLE, trio, clip).norm() / 3
    torch.testing.assert_close(cured, torch.tensor(clip))
    monkeypatch.setattr(unit_gradients, "contiguous_inputs", lambda _: nullcontext())
    wrong = ghost_clipped_sum(network, SINGLE, trio, clip).norm() / 3
    assert wrong > 1.05 * clip


def test_a_path_that_fails_is_not_picked():
    def half(network, loss, units):
        return (gradient / 2 for gradient in loop(network, loss, units))

    network, probe = convolutions(), units(1, 2)
    picked, refused = pick(network, SINGLE, probe, {"half": half, "loop": loop})
    assert picked == "loop"
    assert "norm 0.500 times" in str(refused["half"])
    with pytest.raises(ModelError, match="half"):
        pick(network, SINGLE, probe, {"half": half})


def test_an_error_below_float64s_but_in_the_training_type_is_caught():
    def coarse(network, loss, units):
        for gradient in loop(network, loss, units):
            yield gradient * (0.995 if gradient.dtype == torch.float32 else 1)

    with pytest.raises(ModelError, match="float32"):
        check_path("coarse", coarse, convolutions(), SINGLE, units(1, 2))


@pytest.mark.parametrize(
    ("share", "dtype", "passes"),
    [
        (0.02, torch.float32, True),  # one unit on the other side of a kink
        (0.1, torch.float32, False),
        (0.001, torch.float64, False),
        (float("nan"), torch.float32, False),
    ],
)
def test_how_far_one_unit_may_be_off(share, dtype, passes):
    def off(network, loss, units):
        for place, gradient in enumerate(loop(network, loss, units)):
            yield gradient * (1 + share * (place == 1 and gradient.dtype == dtype))

    if passes:
        check_path("off", off, convolutions(), SINGLE, units(1, 2, 1))
    else:
        with pytest.raises(ModelError, match=r'"off"'):
            check_path("off", off, convolutions(), SINGLE, units(1, 2, 1))


@pytest.mark.parametrize("sureness", [1, 10, 30, 100])
def test_a_head_that_is_sure_of_most_units_trains_on(sureness):
    torch.manual_seed(0)
    head = nn.Linear(64, 2)
    head.weight.data *= sureness
    probe = [(torch.randn(1, 64), torch.eye(2)[[at % 2]], torch.ones(1, 2)) for at in range(8)]
    norms = [float(gradient.norm()) for gradient in oracle(head, SINGLE, probe)]
    assert sureness < 30 or min(norms) < 1e-4 * max(norms)
    assert pick(head, SINGLE, probe)[1] == {}


def test_a_small_gradient_may_not_grow_to_a_large_one():
    def grown(network, loss, units):
        gradients = [gradient.clone() for gradient in loop(network, loss, units)]
        least = min(gradients, key=torch.linalg.vector_norm)
        least += 0.01 * max(gradients, key=torch.linalg.vector_norm)
        yield from gradients

    torch.manual_seed(0)
    head = nn.Linear(64, 2)
    head.weight.data *= 30
    probe = [(torch.randn(1, 64), torch.eye(2)[[at % 2]], torch.ones(1, 2)) for at in range(8)]
    with pytest.raises(ModelError, match="grown"):
        check_path("grown", grown, head, SINGLE, probe)


def test_losses_that_couple_a_batch_are_refused():
    def scaled(network, unit):
        each = SINGLE(network, unit)
        return each * each.mean()

    def weighted(network, unit):
        each = SINGLE(network, unit)
        return each * each.mean().detach()

    def hidden(network, unit):  # its values are right, its gradients are not
        each = SINGLE(network, unit)
        return each + each.mean() - each.mean().detach()

    def whole(network, unit):
        return SINGLE(network, unit).mean()

    probe = units(1, 2, 1)
    check_independent(convolutions(), SINGLE, probe)
    for loss, what in (
        (scaled, "loss depends on the other images"),
        (weighted, "loss depends on the other images"),
        (hidden, "gradient depends on the other images"),
        (whole, "shape"),
    ):
        with pytest.raises(ModelError, match=what):
            UnitGradients(convolutions(), loss, probe)


def test_networks_that_couple_a_batch_are_refused():
    probe = units(1, 2, 1)
    mixed = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), convolutions())
    with pytest.raises(ModelError, match="depends on the other images"):
        check_independent(mixed, SINGLE, probe)
    random = nn.Sequential(nn.Dropout(0.5), convolutions())
    with pytest.raises(ModelError, match="from one run to the next"):
        check_independent(random, SINGLE, probe)

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, images):
            self.seen += images.sum()
            return images

    with pytest.raises(ModelError, match=r"buffer 0\.seen"):
        check_independent(nn.Sequential(Counting(), convolutions()), SINGLE, probe)
    moving = nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(1024, CLASSES)))
    with pytest.raises(ModelError, match=r"one run to the next|buffer|other images"):
        check_independent(moving.train(), SINGLE, probe)


def test_a_probe_of_one_image_shows_nothing():
    with pytest.raises(ModelError, match="less than two"):
        UnitGradients(convolutions(), SINGLE, units(1))


def test_tied_weights_go_by_the_loop_and_functional_ones_too():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(1024, 1024), nn.Linear(1024, CLASSES)

        def forward(self, images):
            return self.second(self.first(images.flatten(1)) @ self.first.weight.T)

    shared = nn.Sequential(nn.Flatten(), nn.Linear(1024, 1024), nn.Linear(1024, 1024))
    shared[2].weight = shared[1].weight
    shared.append(nn.Linear(1024, CLASSES))
    for network in (Tied(), shared):
        picked, refused = pick(network.train(), SINGLE, units(1, 2))
        assert picked == "loop"
        assert set(refused) == {"hooks"}


def test_a_layer_with_buffers_is_refused_by_hooks_alone():
    class Shifted(nn.Linear):
        def __init__(self):
            super().__init__(1024, CLASSES)
            self.register_buffer("shift", torch.ones(CLASSES))

        def forward(self, images):
            return super().forward(images) + self.shift

    picked, refused = pick(nn.Sequential(nn.Flatten(), Shifted()).train(), SINGLE, units(1, 2))
    assert picked == "loop"
    assert "buffers" in str(refused["hooks"])


def test_freezing_after_the_checks_is_noticed():
    network = convolutions()
    gradients = UnitGradients(network, SINGLE, units(1, 2))
    assert gradients.size == sum(p.numel() for p in network.parameters())
    network[0].requires_grad_(False)
    with pytest.raises(ModelError, match="freeze first"):
        gradients(units(1))


def test_frozen_layers_have_no_part():
    network = convolutions()
    network[0].requires_grad_(False)
    check_path("hooks", hooks, network, SINGLE, units(1, 2))
    (gradient,) = loop(network, SINGLE, units(1))
    assert len(gradient) == sum(p.numel() for p in network[1:].parameters())


@pytest.mark.parametrize("path", ["loop", "hooks"])
def test_a_units_gradient_is_the_mean_over_its_images(path):
    (unit,) = units(5)
    network = convolutions()
    singles = [tuple(t[i : i + 1] for t in unit) for i in range(5)]
    (whole,) = PATHS[path](network, SINGLE, [unit])
    each = torch.stack(kept(path, network, singles))
    torch.testing.assert_close(whole, each.mean(0))


def test_in_the_loop_not_even_rounding_depends_on_other_units():
    network, some = convolutions(), units(1, 4, 2, 3)
    together = kept("loop", network, some)
    for gradient, unit in zip(together, some, strict=True):
        assert torch.equal(gradient, next(loop(network, SINGLE, [unit])))


def some_rows(counts, width, multi_label, seed=3):
    """Units of so many rows each, as features."""
    generator = torch.Generator().manual_seed(seed)

    def one(rows):
        targets = (torch.rand(rows, CLASSES, generator=generator) < 0.5).float()
        known = (torch.rand(rows, CLASSES, generator=generator) < 0.7).float()
        if not multi_label:
            targets = one_hot(targets.argmax(-1), CLASSES).float()
        return torch.randn(rows, width, generator=generator), targets, known

    return [one(rows) for rows in counts]


@pytest.mark.parametrize("width", [7, 385])
@pytest.mark.parametrize("multi_label", [False, True])
def test_in_the_closed_form_not_even_rounding_depends_on_other_units(width, multi_label):
    loss, head = RecordLoss(multi_label), nn.Linear(width, CLASSES)
    some = some_rows([1, 3, 0, 2, 4, 1] * 60, width, multi_label)
    together = list(outer(head, loss, some))
    assert len(together) == len(some)
    order = torch.randperm(len(some), generator=torch.Generator().manual_seed(1)).tolist()
    turned = list(outer(head, loss, [some[i] for i in order]))
    for place, i in enumerate(order):
        assert torch.equal(turned[place], together[i])
    for i in (0, 1, 2, 4, 259, len(some) - 1):
        assert torch.equal(next(outer(head, loss, [some[i]])), together[i])


@pytest.mark.parametrize("path", ["loop", "hooks"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_one_bad_image_spoils_its_own_gradient_only(path, value):
    network, some = convolutions(), units(1, 1, 1)
    clean = kept(path, network, some)
    some[1][0][0, 0, 3, 3] = value
    found = kept(path, network, some)
    assert not torch.equal(found[1], clean[1])
    torch.testing.assert_close(found[0], clean[0])
    torch.testing.assert_close(found[2], clean[2])


@pytest.mark.parametrize("path", ["loop", "hooks"])
def test_nothing_of_a_unit_is_left_in_the_next_gradient(path):
    network, (unit, empty, other) = convolutions(), units(1, 0, 1)
    found = kept(path, network, [unit, empty, other])
    assert not found[1].any()
    torch.testing.assert_close(found[2], kept(path, network, [other])[0])


def test_hooks_leave_nothing_behind():
    network = convolutions()
    next(iter(hooks(network, SINGLE, units(1, 1))))
    list(hooks(network, SINGLE, units(1, 1)))
    assert not any(m._forward_hooks or m._backward_hooks for m in network.modules())
    assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in network.parameters())
    with pytest.raises(ModelError, match="evaluation mode"):
        list(hooks(network.eval(), SINGLE, units(1)))


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_closed_form_of_logistic_regression(multi_label):
    loss = RecordLoss(multi_label)
    head = nn.Linear(7, CLASSES)
    probe = some_rows([1, 4, 0, 2], 7, multi_label)
    check_path("outer", outer, head, loss, probe)
    assert "outer" not in pick(head, loss, probe)[1]
    for frozen in (head.weight, head.bias):
        frozen.requires_grad_(False)
        check_path("outer", outer, head, loss, probe)
        frozen.requires_grad_(True)
    with pytest.raises(ModelError, match="closed-form"):
        list(outer(convolutions(), loss, units(1)))


@pytest.mark.parametrize("name", NETWORKS)
def test_ghost_norms_and_the_clipped_sum(name):
    network = tiny(name).double()
    some = [tuple(t.double() for t in unit) for unit in units(1, 1, 1)]
    gradients = torch.stack(oracle(network, SINGLE, some))
    norms = gradients.norm(dim=1)
    torch.testing.assert_close(ghost_norms(network, SINGLE, some), norms, rtol=1e-6, atol=0)
    clip = float(norms.median())
    scaled = gradients * (clip / norms).clamp(max=1).unsqueeze(1)
    torch.testing.assert_close(
        ghost_clipped_sum(network, SINGLE, some, clip), scaled.sum(0), rtol=1e-4, atol=1e-9
    )


def test_ghost_takes_one_image_per_unit():
    with pytest.raises(ModelError, match="one image"):
        ghost_norms(convolutions(), SINGLE, units(1, 2))
    assert len(ghost_norms(convolutions(), SINGLE, [])) == 0
