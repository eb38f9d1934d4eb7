"""Networks and losses for masks, and networks for volumes: MONAI's, made fit for federations.

Every normalisation is by groups: batch statistics would be each site's own, and averaged weights
would meet statistics that belong to none of them. MONAI is read on demand (extra "medical").
"""

from __future__ import annotations

import importlib
import re
from contextlib import redirect_stdout
from io import StringIO
from typing import Any, Final

import torch
from torch import Tensor, nn

from protocols.errors import ModelError
from secure_natfl.data.records import Form
from secure_natfl.surgery import fitted

_GROUPS: Final = 4
_NORM: Final = ("group", {"num_groups": _GROUPS})
_NAME: Final = re.compile(r"(unet|densenet)(3d)?-(\d+)")
_LEVELS: Final = 4  # the U-Net below full resolution
_LEAST: Final = 32  # side that a DenseNet can halve five times


def is_medical(architecture: str) -> bool:
    """Whether `build_medical` knows the name: unet-W, unet3d-W or densenet3d-W."""
    found = _NAME.fullmatch(architecture)
    return found is not None and (found[1] == "unet" or found[2] is not None)


def build_medical(
    architecture: str, channels: int, classes: int, generator: torch.Generator
) -> nn.Module:
    """A network of MONAI with logits of its own, drawn from `generator`.

    architecture: "unet-W" for images, "unet3d-W" for volumes: [B, channels, (D,) S, S] →
    [B, classes, (D,) S, S], W to 8·W features over five resolutions (Ronneberger et al. 2015),
    sides divisible by 16. "densenet3d-W": one answer of a volume, [B, classes], by a DenseNet of
    growth W with blocks of 1, 3, 6 and 4 layers. W is a multiple of 4. Raises ModelError.
    """
    found = _NAME.fullmatch(architecture)
    if found is None or not is_medical(architecture):
        raise ModelError(
            "no network for masks or volumes has this name",
            where=architecture,
            fix='take "unet-16", "unet3d-16" or "densenet3d-16", or another width',
        )
    width = int(found[3])
    if width < _GROUPS or width % _GROUPS:
        raise ModelError(
            f"a width of {width} cannot be normalised in {_GROUPS} groups",
            where=architecture,
            fix=f"take a multiple of {_GROUPS}",
        )
    dimensions = 3 if found[2] else 2
    make = _unet if found[1] == "unet" else _densenet
    # MONAI draws from torch's global stream, which others move on.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return make(dimensions, channels, classes, width)


def mask_losses(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Soft Dice plus cross-entropy of each record: [B, C, (D,) H, W] → [B].

    targets: one-hot. known: 0 where a pixel is unknown; it then counts in neither part. With all
    pixels known this is MONAI's DiceCELoss of each record (Milletari et al. 2016; Isensee et al.
    2021 add the two). A record never changes the loss of another.
    """
    dice = _dice()(torch.softmax(logits, 1) * known, targets * known)
    surprise = -(targets * torch.log_softmax(logits, 1) * known).flatten(1).sum(1)
    pixels = known[:, 0].flatten(1).sum(1).clamp_min(1)
    found: Tensor = dice.flatten(1).mean(1) + surprise / pixels
    return found


def check_medical(architecture: str, images: Tensor, form: Form) -> None:
    """ModelError where a network of `build_medical` is for other images or another kind of task."""
    for found, wanted, words in (
        ("3d" in architecture, images.ndim == 5, ("volumes", "flat images")),
        (architecture.startswith("unet"), form == "mask", ("masks", "classes of images")),
    ):
        if found != wanted:
            raise ModelError(
                f"is for {words[not found]}, and here are {words[not wanted]}",
                where=architecture,
                fix="choose a network, or a target, of the other kind",
            )
    if form == "mask":
        check_sides(images)
    elif min(images.shape[2:]) < _LEAST:
        raise ModelError(
            f"halves volumes of {'×'.join(str(s) for s in images.shape[2:])} voxels to nothing",
            where=architecture,
            fix=f"take data.size and depth of {_LEAST} and more",
        )


def check_sides(images: Tensor) -> None:
    """ModelError where a side of images [N, ch, (D,) H, W] cannot be halved at every level."""
    step = 2**_LEVELS
    if any(side % step for side in images.shape[2:]):
        raise ModelError(
            f"a U-Net cannot halve sides of {'×'.join(str(s) for s in images.shape[2:])} pixels",
            where="data.size",
            fix=f"take sides that {step} divides",
        )


def _unet(dimensions: int, channels: int, classes: int, width: int) -> nn.Module:
    networks = _monai("monai.networks.nets.basic_unet")
    with redirect_stdout(StringIO()):  # it prints its features
        made: nn.Module = networks.BasicUNet(
            spatial_dims=dimensions,
            in_channels=channels,
            out_channels=classes,
            features=[width, *(width * 2**level for level in range(_LEVELS)), width],
            norm=_NORM,
        )
    return made


def _densenet(dimensions: int, channels: int, classes: int, width: int) -> nn.Module:
    networks = _monai("monai.networks.nets.densenet")
    made: nn.Module = networks.DenseNet(
        spatial_dims=dimensions,
        in_channels=channels,
        out_channels=classes,
        init_features=2 * width,
        growth_rate=width,
        block_config=(1, 3, 6, 4),
    )
    return fitted(made)  # its channels come in numbers that no one count of groups divides


def _dice() -> Any:
    losses = _monai("monai.losses.dice")
    return losses.DiceLoss(reduction="none")


def _monai(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelError(
            "networks for masks and volumes need MONAI",
            where=module,
            why=str(error),
            fix="install it: pip install 'secure_natfl[medical]'",
        ) from None
