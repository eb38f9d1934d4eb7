"""Networks: any timm backbone by name, or any module of the user's, with two heads.

A network is backbone → features [B, d] → (X-ray logits, natural-image logits). Parties choose
their backbones freely; only logits are ever compared between them.
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub.constants
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from protocols.errors import ModelError


class Network(nn.Module):
    """A backbone with an X-ray head of `groups` × `classes` logits and a natural-image head."""

    def __init__(
        self, backbone: nn.Module, features: int, classes: int, natural: int, groups: int = 1
    ) -> None:
        super().__init__()
        # Convolutions on one core are a third faster in this layout; results differ by rounding.
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.features = features
        self.groups, self.classes = groups, classes
        self.xray = nn.Linear(features, groups * classes)
        self.natural = nn.Linear(features, natural)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 1, H, W] → (X-ray logits [B, groups, C], natural-image logits [B, C_n])."""
        return self.answers(self.backbone(images))

    def answers(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The same of images given as the backbone's features [B, d]."""
        return self.xray(features).unflatten(1, (self.groups, self.classes)), self.natural(features)

    @property
    def parameter_count(self) -> int:
        """Number of trainable scalars."""
        return sum(p.numel() for p in self.parameters())


class SideBySide(nn.Module):
    """Backbones that see the same images; their features stand beside one another."""

    def __init__(self, backbones: Iterable[nn.Module]) -> None:
        super().__init__()
        self.backbones = nn.ModuleList(backbones)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 1, H, W] → the features [B, d] of all, in order."""
        return torch.cat([backbone(images) for backbone in self.backbones], 1)


def parts_of(architecture: str) -> list[str]:
    """The names that a "+" joins; one where there is none."""
    return architecture.split("+")


def build_backbone(architecture: str, size: int, weights: str = "none") -> tuple[nn.Module, int]:
    """A backbone for grey images of `size`, and its number of features d.

    `architecture`: a timm name, or "package.module:factory" whose factory takes no argument and
    returns a module from [B, 1, H, W] to [B, d], or several of these joined by "+", side by side.
    `weights`: "none", "hub", or a .safetensors file (or a folder with one per architecture); timm
    adapts the first layer to one channel. Raises ModelError with the nearest name, or with what is
    wrong with the weights.
    """
    parts = parts_of(architecture)
    if len(parts) > 1:
        backbones, features = zip(*(build_backbone(p, size, weights) for p in parts), strict=True)
        return SideBySide(backbones), sum(features)
    own = ":" in architecture
    backbone = _made(architecture) if own else _timm(architecture, size, weights)
    try:
        with torch.no_grad():
            shape = backbone.eval()(torch.zeros(2, 1, size, size)).shape
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ModelError(
            f"cannot take grey images of {size}×{size}",
            where=architecture,
            why=str(error).splitlines()[0],
            fix="change data.size or choose another architecture",
        ) from None
    if len(shape) != 2:
        raise ModelError(
            f"gives a tensor of shape {tuple(shape)}, not images × features", where=architecture
        )
    return backbone, int(shape[1])


def check_architecture(architecture: str) -> None:
    """Refuse a name that nothing can be built from; `natfl check` calls it before any training."""
    parts = parts_of(architecture)
    if len(parts) > 1:
        for part in parts:
            check_architecture(part)
    elif ":" in architecture:
        _own(architecture)
    elif not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), 1)
        raise ModelError(
            "timm knows no such architecture",
            where=architecture,
            fix=f"did you mean {near[0]!r}?" if near else "see timm.list_models()",
        )


def _own(architecture: str) -> Callable[[], nn.Module]:
    module, _, factory = architecture.partition(":")
    try:
        found = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError("cannot be imported", where=architecture, why=str(error)) from None
    if not callable(found):
        raise ModelError("is not a factory", where=architecture, fix="name a function or class")
    return found  # type: ignore[no-any-return]


def _made(architecture: str) -> nn.Module:
    try:
        made = _own(architecture)()
    except TypeError as error:
        raise ModelError(
            "cannot be called without an argument", where=architecture, why=str(error)
        ) from None
    if not isinstance(made, nn.Module):
        raise ModelError(f"gives a {type(made).__name__}, not a torch module", where=architecture)
    return made


def weights_file(architecture: str, weights: str) -> Path:
    """The file itself, or that of this architecture in a folder: `<architecture>.safetensors`."""
    path = Path(weights)
    return path / f"{architecture}.safetensors" if path.is_dir() else path


def _timm(architecture: str, size: int, weights: str) -> nn.Module:
    check_architecture(architecture)
    options: dict[str, Any] = {"in_chans": 1, "num_classes": 0}
    if "img_size" in _fixed_input(architecture):
        options["img_size"] = size
    if weights == "none":
        return _created(architecture, options)
    options["pretrained"] = True
    if weights == "hub":
        _check_hub(architecture)
        return _created(architecture, options)
    file = weights_file(architecture, weights)
    if not file.is_file() or file.suffix != ".safetensors":
        raise ModelError(
            "not a .safetensors file",
            where=str(file),
            fix='give one, a folder with one per architecture, "none", or "hub"',
        )
    options["pretrained_cfg_overlay"] = {"file": str(file)}
    created = _created(architecture, options)
    _check_complete(created, architecture, file)
    return created


def _check_complete(network: nn.Module, architecture: str, file: Path) -> None:
    """timm loads what a file has and leaves the rest random; here a file must have all of it."""
    with safe_open(file, framework="pt") as stored:
        found = set(stored.keys())
    needed = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    if missing := sorted(needed - found):
        raise ModelError(
            f"the weights lack {len(missing)} of {len(needed)} tensors, such as {missing[0]}",
            where=f"{architecture}, {file}",
            fix='use weights of this very architecture under timm\'s names, or weights = "none"',
        )


def _created(architecture: str, options: dict[str, Any]) -> nn.Module:
    try:
        created: nn.Module = timm.create_model(architecture, **options)
    except (RuntimeError, OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            "weights cannot be loaded into this architecture",
            where=architecture,
            why=str(error).splitlines()[0],
            fix='use weights of this very architecture, or weights = "none"',
        ) from None
    return created


def _fixed_input(architecture: str) -> tuple[str, ...]:
    """timm's models with a fixed input take `img_size`; the others take any size."""
    configuration = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    fixed = configuration is not None and configuration.fixed_input_size
    return ("img_size",) if fixed else ()


def _check_hub(architecture: str) -> None:
    """Ask for the hub's address first: without a network the download retries for a minute."""
    host = urlparse(huggingface_hub.constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        raise ModelError(
            "the weights hub cannot be reached",
            where=architecture,
            why=f"no address for {host}",
            fix='use weights = "none", or a .safetensors file on this machine',
        ) from None
