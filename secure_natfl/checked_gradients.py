"""Per-unit gradients that may train: checked for this network and loss, by the fastest path."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from protocols.errors import ModelError
from secure_natfl.surgery import check_fit, trainable
from secure_natfl.unit_gradients import PATHS, Loss, Path, RecordLoss, Unit
from secure_natfl.unit_independence import check_independent
from secure_natfl.unit_oracle import check_path, collected, in_double, oracle, unit_in_double

_HANDICAP = 1.25  # hooks must earn what they cost in memory and in rounding


class UnitGradients:
    """A network, a loss, and a path that was found right and fast for the two of them.

    Making it runs every check, ten seconds or more for a ResNet-18; ModelError says what failed.
    Call it with units for their gradients, as often as wanted. What is trainable must stay so.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        probe: Sequence[Unit],
        paths: Mapping[str, Path] = PATHS,
    ) -> None:
        check_fit(network)
        self.network, self.loss = network.train(), loss
        self._names = list(trainable(network))
        check_independent(network, loss, probe)
        self.path, self.refused = pick(network, loss, probe, paths)
        self._gradients = paths[self.path]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters in the order of a gradient; ModelError when they changed."""
        found = trainable(self.network)
        if list(found) != self._names:
            raise ModelError(
                "other parameters are trainable than were checked",
                fix="freeze first, then make UnitGradients",
            )
        return list(found.values())

    @property
    def size(self) -> int:
        """Length of a gradient."""
        return sum(parameter.numel() for parameter in self.parameters)

    def __call__(self, units: Iterable[Unit]) -> Iterator[Tensor]:
        """One gradient [size] per unit, in order; the next one may overwrite it."""
        self.parameters  # noqa: B018
        self.network.train()
        return self._gradients(self.network, self.loss, units)


def pick(
    network: nn.Module, loss: Loss, probe: Sequence[Unit], paths: Mapping[str, Path] = PATHS
) -> tuple[str, dict[str, ModelError]]:
    """The fastest path of those that are right for this network, and why the others are not.

    Timed on the probe, so that the choice tells nothing of private images. If no path is right,
    the first one's error is raised.
    """
    truth = oracle(in_double(network).train(), loss, [unit_in_double(unit) for unit in probe])
    refused: dict[str, ModelError] = {}
    seconds: dict[str, float] = {}
    for name, path in paths.items():
        if name == "outer" and not (type(network) is nn.Linear and isinstance(loss, RecordLoss)):
            continue
        try:
            check_path(name, path, network, loss, probe, truth)
        except ModelError as error:
            refused[name] = error
            continue
        seconds[name] = min(_timed(name, path, network, loss, probe) for _ in range(3))
        seconds[name] *= _HANDICAP if name == "hooks" else 1
    if not seconds:
        raise next(iter(refused.values()))
    return min(seconds, key=lambda name: seconds[name]), refused


def _timed(name: str, path: Path, network: nn.Module, loss: Loss, units: Sequence[Unit]) -> float:
    start = time.perf_counter()
    collected(name, path, network, loss, units)
    return time.perf_counter() - start
