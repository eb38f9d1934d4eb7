"""How near a guessed image is to the true one, per image; nothing here averages over images.

Images are float tensors [N, C, H, W] in [0, 1]. An image that holds a NaN scores NaN and leaves
the scores of the others alone, so that a broken guess can never pass for privacy. Called by the
scoring of rows; an attack itself never sees a truth to score against.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from protocols.errors import ConfigError, ModelError

_WINDOW, _SIGMA = 11, 1.5
_STABLE: Final = (0.01**2, 0.03**2)
# Where a ReLU of torchvision's AlexNet ends one of LPIPS' five stages, and the stages' widths.
_STAGES: Final = {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}
# LPIPS' own constants for RGB in [−1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def psnr(guess: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB [N] for a peak of 1; infinite for an exact image."""
    error = (_same(guess, truth) - truth).square().flatten(1).mean(1)
    return torch.log10(error).mul(-10)


def nrmse(guess: Tensor, truth: Tensor) -> Tensor:
    """‖guess − truth‖/‖truth‖ [N]; infinite or NaN for a truth that is all black."""
    _same(guess, truth)
    norms = [torch.linalg.vector_norm(x.flatten(1), dim=1) for x in (guess - truth, truth)]
    relative: Tensor = norms[0] / norms[1]
    return relative


def ssim(guess: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity [N], at most 1 (Wang et al. 2004); both are clamped to [0, 1] first.

    Gaussian window of 11×11 pixels and σ = 1.5, windows inside the image only, data range 1,
    population covariance, mean over windows and channels: scikit-image's with `gaussian_weights`
    and without `use_sample_covariance`. ConfigError for images below 11 pixels.
    """
    _same(guess, truth)
    if min(truth.shape[-2:]) < _WINDOW:
        raise ConfigError(
            f"images of {tuple(truth.shape[-2:])} pixels", where="SSIM", fix="use 11×11 at least"
        )
    a, b = guess.double().clamp(0, 1), truth.double().clamp(0, 1)
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    cov = _blurred(a * b) - mean_a * mean_b
    first, second = _STABLE
    ratio = (2 * mean_a * mean_b + first) * (2 * cov + second)
    ratio = ratio / ((mean_a**2 + mean_b**2 + first) * (var_a + var_b + second))
    return ratio.flatten(1).mean(1)


def identified(guess: Tensor, truth: Tensor, lures: Tensor) -> Tensor:
    """1 where the truth is nearer to its guess (in L2) than every lure, else 0; NaN for a NaN [N].

    lures: other images [M, C, H, W] of the same source. Whoever guesses without looking is right
    with probability 1/(M + 1) at most, ties counting against the guess.
    """
    flat = _same(guess, truth).flatten(1).double()
    own = (flat - truth.flatten(1)).norm(dim=1)
    others = torch.cdist(flat, lures.flatten(1).double()).amin(1)
    return torch.where(flat.isfinite().all(1), (own < others).double(), torch.nan)


def leakage_over_prior(similarity: Tensor, prior: Tensor) -> Tensor:
    """RDLV: (similarity − prior)/prior (Hatamizadeh et al. 2022), NaN where the prior is not > 0.

    similarity and prior: a similarity (SSIM) of the guess, and of the best guess without looking.
    """
    return torch.where(prior > 0, (similarity - prior) / prior, torch.nan)


def matched(guess: Tensor, truth: Tensor) -> NDArray[np.int64]:
    """Which guess [G] stands for each truth [T ≤ G]: least total squared error (Kuhn 1955).

    It knows the truth, in the attack's favour; wherever it is used, the baselines use it too.
    """
    cost = torch.cdist(truth.flatten(1).double(), guess.flatten(1).double()).square()
    # A NaN guess is chosen last, and then scores NaN.
    table = torch.nan_to_num(cost, nan=1e30, posinf=1e30).numpy()
    if len(truth) > len(guess):
        raise ConfigError(f"{len(guess)} guesses for {len(truth)} images", fix="guess all of them")
    return np.asarray(linear_sum_assignment(table)[1], np.int64)


class Lpips:
    """LPIPS with AlexNet (Zhang et al. 2018), from weights that the user has.

    The file is a .safetensors with torchvision's `features.*` and the heads `lin0.weight` to
    `lin4.weight` [1, width, 1, 1]; nothing is ever downloaded. Without a file, a report says
    "not computed".
    """

    def __init__(self, file: Path, sha256: str) -> None:
        """Raises ModelError if the file is not the one that was pinned, or does not fit."""
        content = file.read_bytes() if file.is_file() else b""
        found = hashlib.sha256(content).hexdigest()
        if found != sha256.lower():
            raise ModelError(
                "not the pinned LPIPS weights",
                where=str(file),
                why=f"its SHA-256 is {found}" if content else "there is no such file",
                fix="give the file and its SHA-256 hash together",
            )
        try:
            weights = load(content)
            self._heads = [weights.pop(f"lin{i}.weight") for i in range(len(_STAGES))]
            network = torchvision.models.alexnet(weights=None).features
            network.load_state_dict({k.removeprefix("features."): v for k, v in weights.items()})
        except (SafetensorError, KeyError, RuntimeError) as error:
            why = str(error).splitlines()[0]
            raise ModelError("no LPIPS weights", where=str(file), why=why) from None
        self._network = network.eval()

    @torch.no_grad()
    def __call__(self, guess: Tensor, truth: Tensor) -> Tensor:
        """Perceptual distance [N], 0 for equal images; one channel counts as grey."""
        pairs = zip(self._stages(guess), self._stages(truth), self._heads, strict=True)
        return torch.stack(
            [((a - b).square() * head).sum(1).flatten(1).mean(1) for a, b, head in pairs]
        ).sum(0)

    def _stages(self, images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(v).view(3, 1, 1) for v in (_SHIFT, _SCALE))
        x = (2 * images.float().expand(-1, 3, -1, -1) - 1 - shift) / scale
        found = []
        for number, layer in enumerate(self._network):
            x = layer(x)
            if number in _STAGES:
                found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found


def _blurred(images: Tensor) -> Tensor:
    """The means [N·C, 1, H − 10, W − 10] under a Gaussian window."""
    places = torch.arange(_WINDOW, dtype=images.dtype) - _WINDOW // 2
    window = torch.exp(-(places**2) / (2 * _SIGMA**2))
    window = window / window.sum()
    channels = images.shape[1]
    down = window.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    across = functional.conv2d(images, down, groups=channels)
    return functional.conv2d(across, down.transpose(2, 3), groups=channels)


def _same(guess: Tensor, truth: Tensor) -> Tensor:
    if guess.shape != truth.shape or truth.ndim != 4:
        raise ConfigError(
            f"a guess {tuple(guess.shape)} for images {tuple(truth.shape)}",
            where="image scores",
            fix="give both as [N, C, H, W]",
        )
    return guess
