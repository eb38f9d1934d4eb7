"""Gradient inversion: ours beside breaching 0.1.2, at equal budgets and equally tuned.

`python -m benchmarks.attacks --json` prints nothing else on standard output. All figures are of
one thread in one process, in seconds of CPU time, the two sides taken in turn; a setting of each
side is chosen on images that are not reported, from grids of equal size.

- throughput: restarts · iterations per second of Adam on the cosine and total variation, ours over
  breaching's, the median of the repeats' ratios.
- time to quality: seconds of all runs over the runs that reach an SSIM of 0.6 (the expected running
  time, Hansen et al. 2010), breaching's over ours, with a bootstrap interval over images.
- quality: median SSIM of either side after equal seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.gradients.engine import search
from attacks.gradients.inversions import INVERTING
from attacks.gradients.laboratory import Knowledge, Observation
from attacks.gradients.matching import Matching
from attacks.gradients.networks import convolutional, lenet
from attacks.image_scores import matched, ssim
from benchmarks.attacks_settings import OURS, THEIRS, Attack, Setting, theirs
from secure_natfl.data.phantoms import HOSPITALS, chest_phantoms

SIDE, CLASSES, GOAL = 32, 10, 0.6
SHAPE = (3, SIDE, SIDE)  # breaching's total variation takes three channels only


def images_of(file: Path | None, count: int) -> Tensor:
    """`count` grey images [N, 3, 32, 32] in [0, 1]: phantoms, or of an .npz with `images`."""
    if file is None:
        hospital = next(iter(HOSPITALS.values()))
        found = chest_phantoms(count, SIDE, hospital, 0.5, np.random.default_rng(7)).images
    else:
        with np.load(file) as held:
            rows = np.random.default_rng(7).permutation(len(held["images"]))[:count]
            found = held["images"][rows]
    pixels = torch.from_numpy(np.ascontiguousarray(found)).float() / 255
    pixels = pixels.mean(-1) if pixels.ndim == 4 else pixels
    grey = functional.interpolate(pixels[:, None], size=(SIDE, SIDE), mode="area")
    return grey.repeat(1, 3, 1, 1)


def observed(network: nn.Module, images: Tensor, labels: Tensor) -> Observation:
    """The gradient of one step."""
    known = Knowledge(network, SHAPE, CLASSES, images=len(images), mean=0.5, deviation=0.25)
    loss = functional.cross_entropy(network(known.inputs(images)), labels)
    return Observation(known, torch.autograd.grad(loss, list(network.parameters())))


def network(name: str, seed: int = 0) -> nn.Module:
    """The networks compared: sigmoid LeNet, a ReLU network, a ResNet-18 that computes much."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "resnet18":
            made = timm.create_model("resnet18", in_chans=3, num_classes=CLASSES)
            return made.eval()  # type: ignore[no-any-return]
        return {"lenet": lenet, "convolutional": convolutional}[name](SHAPE, CLASSES)


def cpu(task: Callable[[], object]) -> float:
    """Seconds of CPU time."""
    start = time.process_time()
    task()
    return time.process_time() - start


def throughput(
    images: Tensor, repeats: int, cases: Sequence[tuple[str, int, int]]
) -> dict[str, float]:
    """Ratio by network and number of restarts, for cases (network, restarts, steps).

    What three times the steps cost beyond once the steps, on both sides: set-up is left out, which
    for ours is three to nine evaluations to choose the way.
    """
    found, label = {}, torch.tensor([3])
    for name, restarts, steps in cases:
        seen = observed(network(name), images[:1], label)
        objective = Matching(seen, label, "cosine", INVERTING.penalties)
        ratios = []
        for repeat in range(repeats + 1):
            their = [
                cpu(partial(theirs("invertinggradients", (), 1, count), seen, label, repeat))
                for count in (steps, 3 * steps)
            ]
            our = [
                cpu(partial(_searched, objective, restarts, count)) / restarts
                for count in (steps, 3 * steps)
            ]
            ratios.append((their[1] - their[0]) / (our[1] - our[0]))
        ratios = ratios[1:]  # the first warms up
        found[f"{name}_r{restarts}"] = float(np.median(ratios))
        say(f"throughput {name}, {restarts} restarts: {[f'{ratio:.2f}' for ratio in ratios]}")
    return found


def _searched(objective: Matching, restarts: int, steps: int) -> None:
    plan = replace(INVERTING.plan, steps=steps, seconds=math.inf, cull=False, box=(-2.0, 2.0))
    search(objective, torch.randn(restarts, objective.size), plan)


@dataclass(frozen=True)
class Tried:
    """Seconds and SSIM of one setting on images, one run each."""

    seconds: list[float]
    scores: list[float]

    @property
    def expected(self) -> float:
        """Seconds of all runs over runs that reach the goal."""
        return expected(list(range(len(self.scores))), self)


def expected(rows: Sequence[int], tried: Tried) -> float:
    """The expected running time of these runs; infinite without a success."""
    hits = sum(tried.scores[row] >= GOAL for row in rows)
    return sum(tried.seconds[row] for row in rows) / hits if hits else math.inf


def tried(attack: Attack, case: Case, images: Tensor, *, first: int = 0) -> Tried:
    """The attack on batches of images, each by a network and a seed of its own."""
    seconds, scores = [], []
    for number, batch in enumerate(images.split(case.batch)):
        labels = torch.arange(3, 3 + len(batch))
        seen = observed(network(case.network, first + number), batch, labels)
        start = time.process_time()
        found = attack(seen, labels, first + number)
        seconds.append(time.process_time() - start)
        found = found[matched(found, batch)]
        scores.append(float(ssim(found, batch).mean()))
    return Tried(seconds, scores)


@dataclass(frozen=True)
class Case:
    """A network, images per gradient, and seconds that either side may spend."""

    name: str
    network: str
    batch: int
    seconds: float


def time_to_quality(tuning: Tensor, testing: Tensor) -> dict[str, object]:
    """Ratio of expected running times on the LeNet, one image, with its interval."""
    case = Case("lenet", "lenet", 1, math.inf)
    sides = {}
    for side, settings in (("ours", OURS), ("breaching", THEIRS)):
        runs = [(s, tried(s.play(s.steps), case, tuning, first=100)) for s in settings]
        for setting, run in runs:
            say(f"tuning {side}: {setting.name}: {run.expected:.2f} s, SSIM {run.scores}")
        best = min(runs, key=lambda pair: (pair[1].expected, -np.mean(pair[1].scores)))[0]
        sides[side] = best.name, tried(best.play(best.steps), case, testing)
        say(f"{side}: {best.name}: {sides[side][1]}")
    our, their = sides["ours"][1], sides["breaching"][1]
    draw, ratios = np.random.default_rng(0), []
    for _ in range(2000):
        rows = draw.integers(0, len(testing), len(testing)).tolist()
        ratios.append(expected(rows, their) / expected(rows, our))
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    return {
        "time_to_quality": their.expected / our.expected,
        "time_to_quality_low": float(low),
        "time_to_quality_high": float(high),
        "seconds": {side: run.expected for side, (_, run) in sides.items()},
        "hits": {
            s: f"{sum(x >= GOAL for x in r.scores)}/{len(r.scores)}" for s, (_, r) in sides.items()
        },
        "settings": {side: name for side, (name, _) in sides.items()},
    }


def quality(case: Case, tuning: Tensor, testing: Tensor) -> dict[str, object]:
    """Median SSIM of both sides after equal seconds, each with its best setting on `tuning`."""
    result: dict[str, object] = {}
    for side, settings in (("ours", OURS), ("breaching", THEIRS)):
        best, top = settings[0].play(settings[0].steps), -math.inf
        for setting in settings:
            attack = setting.play(_fitting(setting, case, tuning[: case.batch]))
            score = float(np.median(tried(attack, case, tuning, first=100).scores))
            if score > top:
                best, top, result[f"{side}_setting"] = attack, score, setting.name
        run = tried(best, case, testing)
        result[side] = float(np.median(run.scores))
        result[f"{side}_seconds"] = float(np.mean(run.seconds))
        say(f"quality {case.name}, {side}: {result}")
    return result


def _fitting(setting: Setting, case: Case, images: Tensor) -> int:
    """Steps of a setting that take the seconds of a case."""
    short, long = (
        sum(tried(setting.play(steps), case, images, first=100).seconds)
        for steps in (setting.sample, 3 * setting.sample)
    )
    each = max((long - short) / (2 * setting.sample), 1e-5)
    return max(setting.sample, int(setting.sample + (case.seconds - short) / each))


def say(words: str) -> None:
    """Progress on standard error."""
    print(words, file=sys.stderr, flush=True)  # noqa: T201


LOADS = (("lenet", 1, 50), ("lenet", 32, 30), ("convolutional", 8, 15), ("resnet18", 2, 4))
CASES = (
    Case("lenet, 1 image", "lenet", 1, 1.0),
    Case("lenet, 2 images", "lenet", 2, 1.5),
    Case("ReLU network, 1 image", "convolutional", 1, 1.5),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--images", type=Path, help="an .npz with images instead of phantoms")
    parser.add_argument("--tests", type=int, default=10, help="images reported per case")
    parser.add_argument("--only", choices=("throughput", "time", "quality"), help="one part")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    images = images_of(chosen.images, 2 * chosen.tests + 3)
    tuning, testing = images[:3], images[3:]
    result: dict[str, object] = {}
    if chosen.only in (None, "throughput"):
        ratios = throughput(testing, 3, LOADS)
        result["restart_throughput_lenet_r32"] = ratios["lenet_r32"]
        result["throughput_min"] = min(ratios.values())
        result["throughput"] = ratios
    if chosen.only in (None, "time"):
        result |= time_to_quality(tuning, testing[: chosen.tests])
    if chosen.only in (None, "quality"):
        result["quality"] = {
            case.name: quality(case, tuning[: case.batch], testing[: case.batch * chosen.tests])
            for case in CASES
        }
    print(json.dumps(result, indent=None if chosen.json else 2))  # noqa: T201


if __name__ == "__main__":
    main()
