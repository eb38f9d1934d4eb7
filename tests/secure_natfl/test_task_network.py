import math

import pytest
import torch
from torch.nn import functional

from secure_natfl.methods.masked_images import vit_smallest
from secure_natfl.methods.task_network import TaskNetwork, losses, moved, over, probe_head, tune
from secure_natfl.training import Examples, Schedule


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def encoder(seed=0):
    torch.manual_seed(seed)
    return vit_smallest()


def bright(images=48, form="single"):
    """One half of each image is bright: upper or lower is the class, and the half is the mask."""
    labels = torch.arange(images) % 2
    pictures = 0.3 * torch.randn(images, 1, 32, 32, generator=generator())
    half = torch.zeros(images, 32, 32)
    half[labels == 0, :16] = 1.0
    half[labels == 1, 16:] = 1.0
    pictures += half.unsqueeze(1)
    if form == "mask":
        targets = torch.stack([1 - half, half], 1)
        return Examples(pictures, targets, torch.ones_like(targets), multi_label=False)
    targets = functional.one_hot(labels, 2).float()
    return Examples(pictures, targets, torch.ones_like(targets), multi_label=form == "multi")


def right(network, examples):
    with torch.no_grad():
        called = network(examples.images).argmax(1)
    return float((called == examples.targets.argmax(1)).float().mean())


@pytest.mark.parametrize(("form", "shape"), [("single", (5, 3)), ("mask", (5, 3, 32, 32))])
def test_a_head_answers_in_the_form_of_its_task(form, shape):
    network = TaskNetwork(encoder(), 3, form)
    assert network(torch.randn(5, 1, 32, 32, generator=generator())).shape == shape


def test_a_masks_logits_lie_where_their_patch_lies():
    network = TaskNetwork(encoder(), 2, "mask")
    inputs = torch.zeros(1, 16, 32)
    inputs[0, 6] = 1.0  # second row, third column of patches
    torch.nn.init.ones_(network.head.weight)
    answer = network.read(inputs, 32)
    inside = answer[0, :, 8:16, 16:24]
    assert (inside > 0).all()
    assert answer.sum() == inside.sum()


@pytest.mark.parametrize("form", ["single", "multi", "mask"])
def test_a_probe_fits_the_head_alone_and_ends_at_the_same_head_from_anywhere(form):
    examples = bright(form=form)
    network = over(encoder(), examples)
    before = [p.clone() for p in network.encoder.parameters()]
    loss = probe_head(network, examples)
    found = network.head.weight.clone()
    assert right(network, examples) > 0.95
    assert loss < 0.35
    torch.nn.init.normal_(network.head.weight)
    assert probe_head(network, examples) == pytest.approx(loss, rel=1e-3)
    torch.testing.assert_close(network.head.weight, found)
    assert all(torch.equal(a, b) for a, b in zip(before, network.encoder.parameters(), strict=True))


def test_what_is_unknown_counts_in_no_loss():
    examples = bright(4, "mask")
    known = examples.known.clone()
    known[0, :, :8] = 0
    logits = torch.randn(4, 2, 32, 32, generator=generator())
    part = Examples(examples.images, examples.targets, known, multi_label=False)
    changed = logits.clone()
    changed[0, :, :8] += 10
    torch.testing.assert_close(losses(changed, part), losses(logits, part))
    by_hand = functional.cross_entropy(
        logits[:1, :, 8:], examples.targets[:1, :, 8:].argmax(1), reduction="mean"
    )
    torch.testing.assert_close(losses(logits, part)[0], by_hand)


def test_a_mask_moves_with_its_image():
    examples = bright(16, "mask")
    drawn = torch.where(examples.targets[:, 1:] > 0, 1.0, -1.0)
    marked = Examples(drawn, examples.targets, examples.known, multi_label=False)
    for seed in range(5):
        found = moved(marked, generator(seed))
        assert torch.equal(found.images > 0, found.targets[:, 1:] > 0)


def test_tuning_learns_and_an_anchor_holds_the_encoder():
    examples, start = bright(32), encoder()
    far, loss = [], []
    for anchor in (0.0, 30.0):
        network = over(start, examples)
        tune(network, examples, Schedule(12, 8, 3e-3), generator(), anchor=anchor)
        with torch.no_grad():
            loss.append(float(losses(network(examples.images), examples).mean()))
        pairs = zip(network.encoder.parameters(), start.parameters(), strict=True)
        far.append(float(sum((a - b).detach().square().sum() for a, b in pairs)))
    assert loss[0] < math.log(2) / 2
    assert far[1] < far[0] / 4


def test_a_copy_is_tuned_and_the_shared_encoder_stays():
    examples, start = bright(16), encoder()
    before = [p.clone() for p in start.parameters()]
    tune(over(start, examples), examples, Schedule(1, 8, 1e-2), generator())
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True))
