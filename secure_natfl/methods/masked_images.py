"""Masked image modelling: a ViT learns from unlabelled images by filling in what is hidden.

Source: He, Chen, Xie, Li, Dollár and Girshick, "Masked Autoencoders Are Scalable Vision Learners",
CVPR 2022 (arXiv 2111.06377), §3: the encoder sees the visible patches alone, a light decoder
predicts the pixels of the hidden ones, each patch normalised by its own mean and deviation, and
the loss counts hidden patches only.

Everything here depends on public images; nothing of it is charged to anybody.
"""

from __future__ import annotations

import hashlib
from typing import cast

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from protocols.chain import canonical, digest
from protocols.errors import ModelError
from secure_natfl.methods.task_network import distance
from secure_natfl.models import build_backbone
from secure_natfl.pretraining import cache_folder, keep_tensors, restore_tensors
from secure_natfl.training import Progress, Schedule, augment, features_of, fit

_RATE = 2e-3
_DECAY = 0.05
_DECODER_WIDTH = 64


def vit_small() -> VisionTransformer:
    """96 features, 4 blocks, patches of 8 pixels: 0.31 million parameters; one core trains it."""
    return _vit(96, 4, 3)


def vit_smallest() -> VisionTransformer:
    """32 features, 2 blocks, patches of 8 pixels: 20 thousand parameters, for smoke runs."""
    return _vit(32, 2, 2)


def _vit(width: int, depth: int, heads: int) -> VisionTransformer:
    return VisionTransformer(
        img_size=48,
        patch_size=8,
        in_chans=1,
        num_classes=0,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=2.0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        dynamic_img_size=True,
    )


def vit(architecture: str, size: int) -> VisionTransformer:
    """The timm ViT of that name for grey images of `size`; ModelError for any other network.

    `architecture`: as for `build_backbone`. Called for the shared encoder, before any training.
    """
    encoder, _ = build_backbone(architecture, size)
    if not isinstance(encoder, VisionTransformer):
        raise ModelError(
            f"is a {type(encoder).__name__}, and masked image modelling hides patches of a ViT",
            where=architecture,
            fix='choose a timm ViT, or "secure_natfl.methods.masked_images:vit_small"',
        )
    patch = encoder.patch_embed.patch_size[0]
    if size < 2 * patch:
        raise ModelError(
            f"sees an image of {size} pixels as one patch of {patch}, and hides none of it",
            where=architecture,
            fix=f"set data.size to {2 * patch} or more, or choose smaller patches",
        )
    return encoder


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Images [n, ch, S, S] as rows of patches [n, L, ch·patch²], in the order of a ViT's tokens."""
    return functional.unfold(images, patch, stride=patch).transpose(1, 2)


def normalised(patches: Tensor) -> Tensor:
    """Each patch less its mean, over its deviation (He et al., §3, "simple implementation").

    A patch of one grey value becomes zeros.
    """
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def shuffled(images: int, tokens: int, generator: torch.Generator) -> Tensor:
    """An order of the tokens for each image, [images, tokens]; the first ones will be visible."""
    return torch.rand(images, tokens, generator=generator).argsort(1)


class MaskedAutoencoder(nn.Module):
    """A ViT encoder with the decoder that trains it. The decoder is thrown away afterwards."""

    def __init__(self, encoder: VisionTransformer, side: int, mask: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch = int(encoder.patch_embed.patch_size[0])
        self.tokens = (side // self.patch) ** 2
        self.visible = max(1, round(self.tokens * (1 - mask)))
        width = min(_DECODER_WIDTH, encoder.embed_dim)
        self.embed = nn.Linear(encoder.embed_dim, width)
        self.hidden = nn.Parameter(torch.zeros(width))
        self.places = nn.Parameter(torch.zeros(self.tokens, width))
        self.block = Block(width, num_heads=2, mlp_ratio=2.0, qkv_bias=True)
        self.norm = nn.LayerNorm(width)
        channels = int(encoder.patch_embed.proj.in_channels)
        self.pixels = nn.Linear(width, channels * self.patch**2)
        nn.init.trunc_normal_(self.hidden, std=0.02)
        nn.init.trunc_normal_(self.places, std=0.02)

    def seen(self, images: Tensor, order: Tensor) -> Tensor:
        """The encoder's tokens [n, prefix + visible, d] of the visible patches alone."""
        vit = self.encoder
        tokens = vit._pos_embed(vit.patch_embed(images))
        first = vit.num_prefix_tokens
        shown = _rows(tokens[:, first:], order[:, : self.visible])
        kept = vit.norm_pre(torch.cat([tokens[:, :first], shown], 1))
        return cast(Tensor, vit.norm(vit.blocks(kept)))

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        """Loss of each image [n]: mean squared error over the pixels of its hidden patches.

        images [n, ch, S, S]; order [n, L] as `shuffled` draws it.
        """
        seen = self.embed(self.seen(images, order)[:, self.encoder.num_prefix_tokens :])
        hidden = self.hidden.expand(len(images), self.tokens - self.visible, -1)
        placed = _rows(torch.cat([seen, hidden], 1), order.argsort(1)) + self.places
        guess = self.pixels(self.norm(self.block(placed)))
        off: Tensor = (guess - normalised(patches_of(images, self.patch))).square().mean(-1)
        return off.gather(1, order[:, self.visible :]).mean(1)

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of a batch under masks drawn from `generator`."""
        return cast(Tensor, self(images, shuffled(len(images), self.tokens, generator)).mean())


def _rows(tokens: Tensor, order: Tensor) -> Tensor:
    """The tokens [n, L, d] in the order [n, m] → [n, m, d]."""
    return tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def learn_masked(
    autoencoder: MaskedAutoencoder,
    images: Tensor,
    epochs: int,
    batch: int,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> float:
    """Train encoder and decoder on unlabelled images [N, ch, S, S]; loss of the last epoch."""

    def loss(rows: Tensor) -> Tensor:
        return autoencoder.loss(augment(images[rows], generator), generator)

    schedule = Schedule(epochs, batch, _RATE, _DECAY)
    return fit(autoencoder, loss, len(images), schedule, generator, progress)


def match_features(
    autoencoder: MaskedAutoencoder,
    images: Tensor,
    change: Tensor,
    *,
    masked_weight: float,
    anchor: float,
    schedule: Schedule,
    generator: torch.Generator,
) -> float:
    """Move the encoder's features of public images by `change` [n, d], in place; the last loss.

    The squares are in units of the change's mean square; beside them stand `masked_weight` times
    the masked images' loss, and `anchor`/2 times the squared distance from where it begins.
    """
    encoder = autoencoder.encoder
    target = features_of(encoder, images) + change
    apart = change.square().mean().clamp_min(1e-12)
    before = [parameter.detach().clone() for parameter in encoder.parameters()]

    def loss(rows: Tensor) -> Tensor:
        off = (encoder(images[rows]) - target[rows]).square().mean() / apart
        value: Tensor = off + distance(encoder, before, anchor)
        if masked_weight:
            shown = augment(images[rows], generator)
            value = value + masked_weight * autoencoder.loss(shown, generator)
        return value

    return fit(autoencoder, loss, len(images), schedule, generator)


def masked_start(
    architecture: str,
    images: Tensor,
    *,
    mask: float,
    epochs: int,
    batch: int,
    seed: int,
    progress: Progress | None = None,
) -> MaskedAutoencoder:
    """The public start E₀: a ViT after `epochs` of masked images, from this machine's cache or new.

    images: the public pool [N, 1, S, S]. mask: share of hidden patches. Deterministic in its inputs
    on one machine. With 0 epochs it is as it was drawn.
    """
    size = int(images.shape[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = MaskedAutoencoder(vit(architecture, size), size, mask)
    if epochs == 0:
        return autoencoder.eval()
    stated = {
        "architecture": architecture,
        "images": hashlib.sha256(images.numpy().tobytes()).hexdigest(),
        "size": size,
        "mask": str(mask),
        "epochs": epochs,
        "batch": batch,
        "rate": str(_RATE),
        "seed": seed,
        "versions": [str(torch.__version__), str(timm.__version__)],
    }
    file = cache_folder() / f"masked-{digest(canonical(stated))}.safetensors"
    if not restore_tensors(autoencoder, file):
        generator = torch.Generator().manual_seed(seed)
        learn_masked(autoencoder, images, epochs, batch, generator, progress)
        keep_tensors(autoencoder.state_dict(), file)
    return autoencoder.eval()
