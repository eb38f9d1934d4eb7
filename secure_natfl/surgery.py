"""Making a network fit for gradients of single units, and saying which networks are not.

A unit's gradient must depend on that unit alone, so nothing in a network may mix the examples of a
batch (batch normalisation) or carry something over from one batch to the next (running statistics).
Group normalisation with 16 groups takes their place, as De et al. 2022 (arXiv 2204.13650) train,
or, in a network with public weights, the statistics that it has, which then stay as they are.

The two context managers serve Opacus alone, whose hooks crash on in-place changes of a layer's
output, and whose unfold2d reads convolution inputs as if they were contiguous.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from protocols.errors import ModelError

_GROUPS = 16
_RATES = ("drop_prob", "drop_rate", "dropout")


def fitted(network: nn.Module) -> nn.Module:
    """A copy of `network` that is fit for per-unit gradients, in training mode.

    Every batch normalisation, timm's BatchNormAct2d among them, becomes a group normalisation that
    keeps scale, shift and activation; running statistics are lost, so pre-trained weights want
    some public training afterwards. Activations leave their inputs alone, dropout rates are 0.
    Where there was neither, outputs stay what they were. Raises ModelError for what cannot be made
    fit. Call it before any parameter is frozen or wrapped.
    """
    return _operated(network, _group_norm)


def frozen(network: nn.Module) -> nn.Module:
    """A copy of `network` that is fit and answers as the original does in evaluation mode.

    Every batch normalisation keeps its running statistics for good and stays trainable in scale and
    shift. The statistics must be public. Otherwise as `fitted`; ModelError where there are none.
    """
    return _operated(network, FrozenBatchNorm)


def check_fit(network: nn.Module) -> None:
    """Return if no layer is known to mix examples, else ModelError naming the layer and a cure.

    What a network computes in its own code is for the numerical checks of `unit_independence`.
    """
    for name, module in network.named_modules():
        where = f"layer {name or 'network'} ({type(module).__name__})"
        _refuse_lazy(name, module)
        if getattr(module, "running_mean", None) is not None:
            raise ModelError(
                "keeps running statistics over batches",
                where=where,
                why="they carry one unit's images into the gradients of others",
                fix="pass the network through surgery.fitted, or switch track_running_stats off",
            )
        if getattr(module, "sparse", False):
            raise ModelError("gives sparse gradients", where=where, fix="make it with sparse=False")
        for kind, parameter in module.named_parameters(recurse=False):
            if not parameter.is_floating_point():
                raise ModelError(
                    f"{kind} is of type {parameter.dtype}", where=where, fix="use real weights"
                )


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that gradients are taken for, by name; ModelError when there is none."""
    found = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not found:
        raise ModelError("every parameter is frozen", fix="leave a head or a block trainable")
    return found


def check_untied(network: nn.Module) -> None:
    """ModelError when two layers share a trainable parameter, which only the loop can take."""
    owners: dict[int, str] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first != name and parameter.requires_grad:
            raise ModelError(
                f"shares its values with {first}",
                where=f"parameter {name}",
                why="hooks see one layer at a time",
                fix='use the path "loop", or give each layer weights of its own',
            )


class FrozenBatchNorm(nn.Module):
    """A batch normalisation in evaluation mode, for good: each image is mapped on its own."""

    mean: Tensor
    variance: Tensor

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        if norm.running_mean is None or norm.running_var is None:
            raise ModelError(
                "a batch normalisation without statistics",
                fix="train the network on public images first, or use surgery.fitted",
            )
        self.register_buffer("mean", norm.running_mean.detach().clone())
        self.register_buffer("variance", norm.running_var.detach().clone())
        self.weight, self.bias, self._eps = norm.weight, norm.bias, norm.eps
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, inputs: Tensor) -> Tensor:
        """Channels along dimension 1, as of the original."""
        found = functional.batch_norm(
            inputs, self.mean, self.variance, self.weight, self.bias, eps=self._eps
        )
        return self.act(found)  # type: ignore[no-any-return]


class OutOfPlace(TorchFunctionMode):
    """While entered, `x += y` makes a new tensor, and `inplace=True` is not heeded.

    Residual blocks of timm add to the output of a layer in place. An augmented assignment rebinds
    its name, so that the result is the same. `x.add_(y)` for its effect alone would lose it: such
    a network fails the oracle, which enters no mode.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if given.get("inplace"):
            given["inplace"] = False
        return _OUT_OF_PLACE.get(func, func)(*args, **given)


_OUT_OF_PLACE: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    Tensor.add_: torch.add,
    Tensor.sub_: torch.sub,
    Tensor.mul_: torch.mul,
    Tensor.div_: torch.div,
}


@contextmanager
def contiguous_inputs(network: nn.Module) -> Iterator[None]:
    """While entered, every Conv2d sees its input in contiguous NCHW, whatever the layout was.

    Opacus 1.6 (utils/tensor_utils.py, unfold2d) is wrong on others: norms come out at half or
    twice their size, and ghost clipping then lets a unit in with a multiple of its bound.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    handles = [layer.register_forward_pre_hook(_contiguous) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)


def _operated(network: nn.Module, instead: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    for name, module in network.named_modules():
        _refuse_lazy(name, module)
    network = copy.deepcopy(network)
    if isinstance(network, _BatchNorm):
        network = instead(network)
    for module in list(network.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, child_name, instead(child))
    for module in network.modules():
        _quieten(module)
    check_fit(network)
    return network.train()


def _group_norm(norm: _BatchNorm) -> nn.Module:
    """Same channels, scale and shift; timm's activation, if there is one, comes after it."""
    groups = math.gcd(norm.num_features, _GROUPS)
    if groups == norm.num_features:  # one value per group would be normalised to zero
        groups = max(1, groups // 2)
    made = nn.GroupNorm(groups, norm.num_features, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        made.to(norm.weight.device, norm.weight.dtype)
        with torch.no_grad():
            made.weight.copy_(norm.weight)
            made.bias.copy_(norm.bias)
        made.weight.requires_grad_(norm.weight.requires_grad)
        made.bias.requires_grad_(norm.bias.requires_grad)
    act = getattr(norm, "act", None)
    return made if act is None else nn.Sequential(OrderedDict(norm=made, act=act))


def _quieten(module: nn.Module) -> None:
    """No in-place activation, no dropout."""
    if getattr(module, "inplace", False) is True:
        module.inplace = False  # type: ignore[assignment]
    if isinstance(module, _DropoutNd):
        module.p = 0.0
    for rate in _RATES:
        if isinstance(getattr(module, rate, None), float):
            setattr(module, rate, 0.0)


def _refuse_lazy(name: str, module: nn.Module) -> None:
    own = chain(module.parameters(recurse=False), module.buffers(recurse=False))
    if any(is_lazy(tensor) for tensor in own):
        raise ModelError(
            "has no shape yet",
            where=f"layer {name} ({type(module).__name__})",
            fix="run the network once on public images first",
        )
