import pytest
import torch
from torch import nn

from protocols.errors import ModelError
from secure_natfl.methods.masked_images import (
    MaskedAutoencoder,
    learn_masked,
    masked_start,
    normalised,
    patches_of,
    shuffled,
    vit,
    vit_smallest,
)

SMALLEST = "secure_natfl.methods.masked_images:vit_smallest"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def textures(images, seed=0):
    """Stripes across or upright with a phase each, 32 pixels: patches tell of one another."""
    draw = torch.rand(images, 2, 1, generator=generator(seed))
    wave = torch.sin(torch.pi / 4 * torch.arange(32.0) + 6 * draw[:, 0]).unsqueeze(1)
    across = wave.expand(-1, 32, -1)
    return torch.where(draw[:, 1:] < 0.5, across, across.transpose(1, 2)).unsqueeze(1)


def autoencoder(mask=0.75, side=32, seed=0):
    torch.manual_seed(seed)
    return MaskedAutoencoder(vit_smallest(), side, mask)


def test_patches_come_in_the_order_of_the_tokens():
    encoder = vit_smallest()
    images = torch.randn(3, 1, 48, 48, generator=generator())
    with torch.no_grad():
        tokens = encoder.patch_embed(images).flatten(1, 2)
        kernel = encoder.patch_embed.proj
        by_hand = nn.functional.linear(patches_of(images, 8), kernel.weight.flatten(1), kernel.bias)
    torch.testing.assert_close(tokens, by_hand)


def test_each_patch_is_normalised_by_itself_and_a_flat_one_is_zero():
    patches = 3 + 5 * torch.randn(4, 9, 64, generator=generator())
    patches[0, 0] = 7.0
    found = normalised(patches)
    assert found[0, 0].abs().max() == 0
    torch.testing.assert_close(found[1:].mean(-1), torch.zeros(3, 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1:].std(-1, correction=0), torch.ones(3, 9))
    torch.testing.assert_close(normalised(2 * patches + 1)[1:], found[1:])


@pytest.mark.parametrize(("mask", "visible"), [(0.75, 4), (0.5, 8), (0.99, 1)])
def test_the_encoder_sees_as_many_patches_as_the_mask_leaves(mask, visible):
    network = autoencoder(mask)
    order = shuffled(5, 16, generator())
    assert network.seen(textures(5), order).shape == (5, visible, 32)


def test_the_encoder_sees_nothing_of_a_hidden_patch():
    network, images = autoencoder().eval(), textures(6)
    order = shuffled(6, 16, generator())
    hidden, shown = images.clone(), images.clone()
    for i in range(6):
        for changed, token in ((hidden, order[i, -1]), (shown, order[i, 0])):
            top, left = divmod(int(token), 4)
            changed[i, :, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8] += 1.0
    with torch.no_grad():
        before = network.seen(images, order)
        assert torch.equal(network.seen(hidden, order), before)
        assert (network.seen(shown, order) - before).abs().amax((1, 2)).min() > 1e-3


def test_the_loss_counts_hidden_patches_alone():
    network, images = autoencoder().eval(), textures(1)
    order = shuffled(1, 16, generator())
    target = normalised(patches_of(images, 8))[0]
    with torch.no_grad():
        nn.init.zeros_(network.pixels.weight)
        nn.init.zeros_(network.pixels.bias)
        found = network(images, order)
    torch.testing.assert_close(found[0], target[order[0, 4:]].square().mean())


def test_every_token_returns_to_its_place():
    """With places as the only difference, each token's output must follow its own place."""
    network, images = autoencoder().eval(), textures(2)
    order = shuffled(2, 16, generator())
    grabbed = []
    network.block.register_forward_hook(lambda module, inputs, output: grabbed.append(inputs[0]))
    with torch.no_grad():
        nn.init.zeros_(network.places)
        network(images, order)
        seen = network.embed(network.seen(images, order))
    for i in range(2):
        for j in range(16):
            want = seen[i, j] if j < 4 else network.hidden
            torch.testing.assert_close(grabbed[0][i, order[i, j]], want)


def test_learning_beats_the_mean_of_a_patch_on_images_never_seen():
    network = autoencoder()
    learn_masked(network, textures(128), 25, 16, generator())
    order = shuffled(64, 16, generator(1))
    with torch.no_grad():
        loss = network(textures(64, seed=5), order).mean()
    # A decoder that answers zeros, each patch's own mean, loses 1 by construction.
    assert loss < 0.75


def test_a_start_is_the_same_for_the_same_pool_and_seed_and_is_cached():
    pool = textures(64)
    start = [
        masked_start(SMALLEST, images, mask=0.75, epochs=epochs, batch=32, seed=seed)
        for images, epochs, seed in ((pool, 1, 0), (pool, 1, 0), (pool, 1, 1), (pool, 0, 0))
    ]
    first, again, other, untrained = (
        torch.cat([p.detach().flatten() for p in one.parameters()]) for one in start
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, untrained)


def test_only_a_vit_whose_patches_tile_the_image_can_be_masked():
    with pytest.raises(ModelError, match=r"is a ResNet, and masked .*choose a timm ViT"):
        vit("test_resnet", 32)
    with pytest.raises(ModelError, match=r"vit_smallest: cannot take grey images of 36×36"):
        vit(SMALLEST, 36)
    with pytest.raises(ModelError, match=r"an image of 16 pixels as one patch of 16"):
        vit("test_vit", 16)
    assert vit("test_vit", 48).num_prefix_tokens == 1


def test_a_vit_with_a_class_token_is_masked_too():
    torch.manual_seed(0)
    network = MaskedAutoencoder(vit("test_vit", 64), 64, 0.75)
    order = shuffled(3, 16, generator())
    images = torch.randn(3, 1, 64, 64, generator=generator())
    assert network.seen(images, order).shape == (3, 5, 64)
    assert network(images, order).shape == (3,)
