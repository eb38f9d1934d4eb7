"""Networks and losses for masks: MONAI's figures, unknown pixels, and what a federation needs."""

import pytest
import torch
from monai.losses.dice import DiceCELoss
from torch import Tensor

from protocols.errors import ModelError
from secure_natfl.methods.segmentation import build_medical, check_medical, mask_losses

CLASSES = 3


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 4, side: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    logits = torch.randn(count, CLASSES, side, side, generator=drawn())
    labels = torch.randint(CLASSES, (count, side, side), generator=drawn())
    targets = torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).float()
    return logits, targets, torch.ones_like(targets)


def test_the_loss_is_monai_s_dice_with_cross_entropy_where_all_pixels_are_known() -> None:
    logits, targets, known = batch()
    whole = DiceCELoss(softmax=True)(logits, targets)
    torch.testing.assert_close(mask_losses(logits, targets, known).mean(), whole)


def test_what_is_said_of_an_unknown_pixel_counts_in_neither_part() -> None:
    logits, targets, known = batch()
    known[:, :, :5] = 0
    found = mask_losses(logits, targets, known)
    logits[:, :, :5] += 7 * torch.randn(4, CLASSES, 5, 16, generator=drawn(1))
    targets[:, :, :5] = targets[:, :, :5].flip(1)
    torch.testing.assert_close(mask_losses(logits, targets, known), found)


def test_a_record_without_a_known_pixel_has_a_finite_loss() -> None:
    logits, targets, known = batch()
    assert mask_losses(logits, targets, 0 * known).isfinite().all()


def test_no_record_changes_the_loss_of_another() -> None:
    logits, targets, known = batch()
    alone = torch.cat(
        [mask_losses(logits[i : i + 1], targets[i : i + 1], known[:1]) for i in (0, 1)]
    )
    torch.testing.assert_close(mask_losses(logits, targets, known)[:2], alone)


@pytest.mark.parametrize(
    ("architecture", "shape", "answer"),
    [
        ("unet-4", (2, 1, 32, 32), (2, CLASSES, 32, 32)),
        ("unet-8", (1, 3, 48, 48), (1, CLASSES, 48, 48)),
        ("unet3d-4", (1, 1, 16, 16, 16), (1, CLASSES, 16, 16, 16)),
        ("densenet3d-4", (2, 1, 32, 32, 32), (2, CLASSES)),
    ],
)
def test_networks_answer_in_shape_and_keep_no_statistics(
    architecture: str,
    shape: tuple[int, ...],
    answer: tuple[int, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = build_medical(architecture, shape[1], CLASSES, drawn()).train()
    images = torch.randn(*shape, generator=drawn())
    assert network(images).shape == answer
    assert not list(network.buffers())  # the public code's 33 and 18 batch norms keep theirs
    whole, alone = network(images)[:1], network(images[:1])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().out == ""


def test_the_same_generator_gives_the_same_network_and_leaves_torch_s_stream_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, other = (build_medical("unet-4", 1, 2, drawn(s)) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize("name", ["unet", "unet-3", "unet-0", "densenet-8", "unet4d-8"])
def test_other_names_and_widths_are_refused(name: str) -> None:
    with pytest.raises(ModelError):
        build_medical(name, 1, 2, drawn())


@pytest.mark.parametrize(
    ("name", "shape", "form", "said"),
    [
        ("unet-4", (1, 1, 16, 16, 16), "mask", "for flat images"),
        ("unet3d-4", (1, 1, 32, 32), "mask", "for volumes"),
        ("densenet3d-4", (1, 1, 16, 16, 16), "mask", "for classes of images"),
        ("unet-4", (1, 1, 32, 32), "single", "for masks"),
        ("unet-4", (1, 1, 40, 40), "mask", "40×40"),
        ("densenet3d-4", (1, 1, 16, 32, 32), "single", "16×32×32"),
    ],
)
def test_networks_for_other_images_or_tasks_are_refused(
    name: str, shape: tuple[int, ...], form: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        check_medical(name, torch.zeros(shape), form)  # type: ignore[arg-type]
