import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from protocols.errors import ModelError
from secure_natfl.surgery import (
    OutOfPlace,
    check_fit,
    check_untied,
    contiguous_inputs,
    fitted,
    frozen,
    trainable,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny(name):
    return timm.create_model(name, in_chans=1, num_classes=3)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet_gn"])
def test_what_needs_no_surgery_answers_as_before(name):
    network = tiny(name).eval()
    images = draw(2, 1, 160, 160)
    with torch.no_grad():
        assert torch.equal(fitted(network)(images), network(images))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_batch_normalisation_becomes_group_normalisation(name):
    network = tiny(name)
    fit = fitted(network)
    assert any(isinstance(m, _BatchNorm) for m in network.modules()), "the original is left alone"
    assert not any(isinstance(m, _BatchNorm) for m in fit.modules())
    assert not any(getattr(m, "inplace", False) for m in fit.modules())
    assert fit.training
    images = draw(3, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(fit(images)[:1], fit(images[:1]), rtol=1e-4, atol=1e-5)


def test_scale_shift_and_activation_are_kept():
    norm = BatchNormAct2d(32, act_layer=nn.SiLU)
    with torch.no_grad():
        norm.weight.copy_(draw(32))
        norm.bias.copy_(draw(32, seed=1))
    images = draw(2, 32, 4, 4, seed=2)
    grouped = nn.functional.group_norm(images, 16, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(fitted(nn.Sequential(norm))(images), nn.functional.silu(grouped))


@pytest.mark.parametrize(("channels", "groups"), [(64, 16), (24, 8), (16, 8), (2, 1), (1, 1)])
def test_a_group_has_more_than_one_channel_where_it_can(channels, groups):
    (norm,) = fitted(nn.Sequential(nn.BatchNorm2d(channels)))
    assert norm.num_groups == groups


def test_a_bare_normalisation_and_frozen_ones_are_replaced_too():
    assert isinstance(fitted(nn.BatchNorm1d(8)), nn.GroupNorm)
    frozen = nn.Sequential(nn.BatchNorm2d(8).requires_grad_(False), nn.Linear(3, 2))
    assert list(trainable(fitted(frozen))) == ["1.weight", "1.bias"]


def test_dropout_is_off():
    network = timm.create_model(
        "test_vit", in_chans=1, num_classes=3, drop_rate=0.5, drop_path_rate=0.5, attn_drop_rate=0.5
    )
    fit, images = fitted(network), draw(1, 1, 160, 160)
    with torch.no_grad():
        assert torch.equal(fit(images), fit(images))


def test_layers_that_cannot_be_made_fit_are_named():
    for layer, what in (
        (nn.InstanceNorm2d(4, track_running_stats=True), "running statistics"),
        (nn.LazyLinear(4), "no shape"),
        (nn.LazyBatchNorm2d(), "no shape"),
        (nn.Embedding(4, 2, sparse=True), "sparse"),
    ):
        with pytest.raises(ModelError, match=rf"layer 1 \({type(layer).__name__}\).*{what}.*Next"):
            fitted(nn.Sequential(nn.ReLU(), layer))
    with pytest.raises(ModelError, match=r"BatchNorm2d.*surgery\.fitted"):
        check_fit(tiny("test_resnet"))
    with pytest.raises(ModelError, match="frozen"):
        trainable(nn.Linear(2, 2).requires_grad_(False))


def test_tied_weights_are_named():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    check_untied(tied)
    tied[1].weight = tied[0].weight
    with pytest.raises(ModelError, match=r"1\.weight.*0\.weight.*loop"):
        check_untied(tied)
    tied[0].weight.requires_grad_(False)
    check_untied(tied)


def test_augmented_assignment_leaves_the_old_tensor_alone():
    old, other = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    with OutOfPlace():
        new = old
        new += other
        new *= 2
        new -= 1
        new /= 5
        nn.functional.relu(-other, inplace=True)
        shown = nn.functional.relu(old - 2, inplace=True)
    assert old.tolist() == [1, 2]
    torch.testing.assert_close(new, torch.tensor([7.0, 13.0]) / 5)
    assert shown.tolist() == [0, 0]


def test_convolutions_see_contiguous_inputs_only_while_entered():
    seen = []
    layer = nn.Conv2d(3, 4, 3)
    network = nn.Sequential(layer)
    images = draw(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].is_contiguous()))
    network(images)
    with contiguous_inputs(network):
        network(images)
    network(images)
    assert seen == [False, True, False]


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_frozen_statistics_answer_as_in_evaluation_mode(name):
    network = tiny(name)
    with torch.no_grad():
        network.train()(draw(8, 1, 64, 64))  # statistics of its own
    network.eval()
    fit, images = frozen(network), draw(3, 1, 64, 64, seed=1)
    assert not any(isinstance(m, _BatchNorm) for m in fit.modules())
    with torch.no_grad():
        torch.testing.assert_close(fit.train()(images), network(images))
    assert trainable(fit).keys() == trainable(network).keys()


def test_without_statistics_nothing_can_be_frozen():
    with pytest.raises(ModelError, match=r"without statistics.*surgery\.fitted"):
        frozen(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
