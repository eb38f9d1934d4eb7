"""What gradients of single units cost, beside Opacus' hooks and beside training without privacy.

`python -m benchmarks.dp --json` prints nothing else on standard output. Each way makes the clipped
sum of 64 gradients of one 64×64 image each: Opacus' from GradSampleModule and DPOptimizer on the
whole batch, ours one after the other by the path that `pick` finds; `sgd` is one plain gradient of
the batch. Times are taken in turn on one thread in one process, and only their ratios are printed;
memory is the peak of a process of its own for each way, PyTorch and Opacus included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from opacus.grad_sample import GradSampleModule  # type: ignore[import-untyped]
from opacus.optimizers import DPOptimizer  # type: ignore[import-untyped]
from torch import nn

from benchmarks.interleave import interleaved, quartiles
from protocols.sampler import discrete_gaussian
from secure_natfl.checked_gradients import pick
from secure_natfl.surgery import OutOfPlace, contiguous_inputs, fitted
from secure_natfl.unit_gradients import PATHS, RecordLoss, Unit
from secure_natfl.unit_gradients import Path as GradientPath

BATCH, SIDE, CLASSES, CLIP = 64, 64, 10, 1.0
NETWORKS = {
    "resnet18gn": lambda: timm.create_model("resnet18", in_chans=3, num_classes=CLASSES),
    "vit_tiny": lambda: timm.create_model(
        "vit_tiny_patch16_224", in_chans=3, num_classes=CLASSES, img_size=SIDE, patch_size=8
    ),
}
_LOSS = RecordLoss(multi_label=False)
_DRAWS, _SIGMA = 200_000, 2.0**30


def units(count: int) -> list[Unit]:
    """Units of one image each."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, 3, SIDE, SIDE, generator=generator)
    labels = torch.randint(CLASSES, (count, 1), generator=generator)
    targets = nn.functional.one_hot(labels, CLASSES).float()
    return list(zip(images, targets, torch.ones_like(targets), strict=True))


def network(name: str) -> nn.Module:
    """The network as it trains: group norms, convolutions in the layout that is fastest here."""
    return fitted(NETWORKS[name]()).to(memory_format=torch.channels_last)


def ours(model: nn.Module, path: GradientPath) -> Callable[[], object]:
    """Clipped sum by one of our paths."""
    some = [(i.contiguous(memory_format=torch.channels_last), t, k) for i, t, k in units(BATCH)]
    size = sum(p.numel() for p in model.parameters())

    def run() -> torch.Tensor:
        total = torch.zeros(size)
        for gradient in path(model, _LOSS, some):
            total.add_(gradient, alpha=min(1.0, CLIP / float(gradient.norm())))
        return total

    return run


def opacus(model: nn.Module) -> Callable[[], object]:
    """Clipped sum by Opacus as it stands, on contiguous images and weights, its best case.

    Additions in place, on which it would crash, are turned into others.
    """
    model = model.to(memory_format=torch.contiguous_format)
    batch = tuple(torch.cat(column) for column in zip(*units(BATCH), strict=True))
    hooked = GradSampleModule(model, loss_reduction="sum", strict=True)
    optimiser = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=BATCH,
        loss_reduction="sum",
    )

    def run() -> None:
        with OutOfPlace(), contiguous_inputs(model):
            losses = _LOSS(model, batch)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimiser.clip_and_accumulate()
        optimiser.zero_grad()
        hooked.zero_grad(set_to_none=True)

    return run


def sgd(model: nn.Module) -> Callable[[], object]:
    """One gradient of the whole batch, without any clip."""
    batch = tuple(torch.cat(column) for column in zip(*units(BATCH), strict=True))
    images = batch[0].contiguous(memory_format=torch.channels_last)

    def run() -> None:
        torch.autograd.grad(_LOSS(model, (images, *batch[1:])).mean(), list(model.parameters()))

    return run


def way(kind: str, name: str) -> Callable[[], object]:
    """One way, by name: `sgd`, `opacus`, or one of our paths."""
    if kind in PATHS:
        return ours(network(name), PATHS[kind])
    return {"sgd": sgd, "opacus": opacus}[kind](network(name))


def peak(kind: str, name: str) -> int:
    """Peak resident bytes of a fresh process that does it twice."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "ignore", "-m", "benchmarks.dp", "--child", kind, name],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return int(done.stdout)


def measure(repeats: int) -> dict[str, float | str]:
    """All figures: ratios of medians, memory ratios, microseconds per draw of noise."""
    found: dict[str, float | str] = {}
    for name in NETWORKS:
        path, _ = pick(network(name), _LOSS, units(4))
        kinds = (path, "opacus", "sgd")
        seconds = interleaved({kind: way(kind, name) for kind in kinds}, repeats)
        medians = {kind: quartiles(seconds[kind]).median for kind in kinds}
        paired = [a / b for a, b in zip(seconds[path], seconds["opacus"], strict=True)]
        memory = {kind: peak(kind, name) for kind in kinds}
        found[f"{name}_path"] = path
        found[f"{name}_time_x_opacus_hooks"] = medians[path] / medians["opacus"]
        found[f"{name}_time_x_opacus_hooks_low"] = quartiles(paired).low
        found[f"{name}_time_x_opacus_hooks_high"] = quartiles(paired).high
        found[f"{name}_memory_x_opacus_hooks"] = memory[path] / memory["opacus"]
        found[f"{name}_memory_mib"] = memory[path] / 2**20
        found[f"{name}_memory_mib_opacus"] = memory["opacus"] / 2**20
        found[f"{name}_memory_mib_sgd"] = memory["sgd"] / 2**20
        found[f"{name}_time_x_sgd"] = medians[path] / medians["sgd"]
    discrete_gaussian(1000, _SIGMA, os.urandom)
    drawn = interleaved({"draw": lambda: discrete_gaussian(_DRAWS, _SIGMA, os.urandom)}, repeats)
    found["sampler_us_per_draw"] = quartiles(drawn["draw"]).median / _DRAWS * 1e6
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=2, metavar=("WAY", "NETWORK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        run = way(*arguments.child)
        run()
        run()
        # Not ru_maxrss, which starts from the peak of the process that forked this one.
        status = Path("/proc/self/status").read_text().split()
        print(int(status[status.index("VmHWM:") + 1]) * 1024)  # noqa: T201
        return
    start = time.perf_counter()
    figures = {**measure(arguments.repeats), "seconds": time.perf_counter() - start}
    if arguments.json:
        print(json.dumps(figures))  # noqa: T201
    else:
        for name, value in figures.items():
            print(f"{name:40} {value if isinstance(value, str) else format(value, '.4g')}")  # noqa: T201


if __name__ == "__main__":
    main()
