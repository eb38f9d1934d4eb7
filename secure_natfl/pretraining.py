"""The public start of every network: trained on labelled natural images, before anything private.

It depends on public inputs alone (architecture, images, labels, epochs, versions), so it is cached
under the hash of these and shared by all runs and sites of a machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from protocols.chain import canonical, digest
from secure_natfl.models import Network, SideBySide, build_backbone, parts_of, weights_file
from secure_natfl.training import Naturals, Progress, Schedule, augment, features_of, fit

_RATE = 2e-3
_SEED = 20_26


def cache_folder() -> Path:
    """Where public pre-trainings are kept: $XDG_CACHE_HOME or ~/.cache, secure_natfl."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "secure_natfl" / "pretrained"


def pretrained(
    architecture: str,
    naturals: Naturals,
    *,
    size: int,
    classes: int,
    groups: int = 1,
    weights: str = "none",
    epochs: int,
    progress: Progress | None = None,
) -> Network:
    """A network of `architecture` after `epochs` on the natural images, from the cache if there.

    The X-ray head is untrained. Networks side by side are trained one by one, and the mean of
    their logits is the natural head. Deterministic for the same inputs on the same machine.
    """
    parts = parts_of(architecture)
    if len(parts) > 1:
        networks = [
            pretrained(
                part,
                naturals,
                size=size,
                classes=classes,
                weights=weights,
                epochs=epochs,
                progress=progress,
            )
            for part in parts
        ]
        return _beside(networks, groups)
    natural_classes = int(naturals.labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        backbone, features = build_backbone(architecture, size, weights)
        network = Network(backbone, features, classes, natural_classes, groups)
    if epochs == 0:
        return network.eval()
    file = cache_folder() / f"{_key(architecture, naturals, size, weights, epochs)}.safetensors"
    if not restore_tensors(network, file):
        _pretrain(network, naturals, epochs, progress)
        keep_tensors(_learned(network), file)
    return network.eval()


def _beside(networks: list[Network], groups: int) -> Network:
    """One network of several: all their features, and the mean of their natural logits."""
    first, features = networks[0], sum(network.features for network in networks)
    backbone = SideBySide(network.backbone for network in networks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        joined = Network(backbone, features, first.classes, first.natural.out_features, groups)
    with torch.no_grad():
        weights = [network.natural.weight / len(networks) for network in networks]
        joined.natural.weight.copy_(torch.cat(weights, 1))
        joined.natural.bias.copy_(torch.stack([n.natural.bias for n in networks]).mean(0))
    return joined.eval()


def public_features(
    network: Network, naturals: Naturals, *, architecture: str, size: int, weights: str, epochs: int
) -> torch.Tensor:
    """Features [P, d] of the natural images under a public start, kept beside it in the cache."""
    if epochs == 0:
        return features_of(network.backbone, naturals.images)
    key = _key(architecture, naturals, size, weights, epochs)
    file = cache_folder() / f"{key}.features.safetensors"
    try:
        return load_file(file)["features"]
    except (OSError, SafetensorError, KeyError):
        features = features_of(network.backbone, naturals.images)
        keep_tensors({"features": features}, file)
        return features


def _pretrain(network: Network, naturals: Naturals, epochs: int, progress: Progress | None) -> None:
    generator = torch.Generator().manual_seed(_SEED)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        _, logits = network(augment(naturals.images[rows], generator))
        return functional.cross_entropy(logits, naturals.labels[rows])

    schedule = Schedule(epochs, batch=64, rate=_RATE)
    fit(network, loss, len(naturals.labels), schedule, generator, progress)


def _key(architecture: str, naturals: Naturals, size: int, weights: str, epochs: int) -> str:
    content = hashlib.sha256(naturals.images.numpy().tobytes())
    content.update(naturals.labels.numpy().tobytes())
    if weights not in ("none", "hub"):
        for part in parts_of(architecture):
            content.update(weights_file(part, weights).read_bytes())
    stated = {
        "architecture": architecture,
        "images": content.hexdigest(),
        "size": size,
        "weights": "file" if weights not in ("none", "hub") else weights,
        "epochs": epochs,
        "rate": _RATE,
        "versions": [str(torch.__version__), str(timm.__version__)],
    }
    return digest(canonical(stated))


def _learned(network: Network) -> dict[str, torch.Tensor]:
    """Everything but the X-ray head, whose shape depends on the task."""
    return {
        name: tensor.contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith("xray.")
    }


def restore_tensors(network: nn.Module, file: Path) -> bool:
    """Load what a cached file holds of a module's state; False where there is no usable file."""
    try:
        state = load_file(file)
        network.load_state_dict(network.state_dict() | state)
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def keep_tensors(tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Store for the next run; a cache that cannot be written costs time, not the run."""
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part)
        part.replace(file)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            part.unlink()
