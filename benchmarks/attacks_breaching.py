"""breaching 0.1.2 (Geiping et al.) on the same observations: only the benchmarks import it.

It is given the true labels, which ours reads off the gradient; its own label step is left out. One
line works round it: the metadata that it wants needs attributes and keys (`Metadata`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from attacks.gradients.laboratory import Observation


class Metadata(dict[str, object]):
    """A dictionary whose entries are attributes as well."""

    def __getattr__(self, name: str) -> object:
        if name in self:
            return self[name]
        raise AttributeError(name)


def guessed(
    observation: Observation, labels: Tensor, config: str, overrides: Sequence[str], seed: int
) -> Tensor:
    """Images [B, *shape] in [0, 1] that breaching's attack `config` finds, as it stands.

    labels: int64[B], the true ones. Draws from torch's global stream, as breaching does, inside a
    stream of its own.
    """
    known = observation.knowledge
    meta = Metadata(
        shape=known.shape,
        classes=known.classes,
        mean=[known.mean] * known.shape[0],
        std=[known.deviation] * known.shape[0],
        modality="vision",
        task="classification",
    )
    network = known.network
    payload = {
        "parameters": list(network.parameters()),
        "buffers": list(network.buffers()),
        "metadata": meta,
    }
    shared = {
        "gradients": [g.clone() for g in observation.gradient or ()],
        "buffers": None,
        "metadata": {
            "num_data_points": known.images,
            "labels": labels,
            "local_hyperparams": None,
        },
    }
    with quiet(), torch.random.fork_rng(devices=[]):
        import breaching

        torch.manual_seed(seed)
        attacker = breaching.attacks.prepare_attack(
            network,
            torch.nn.CrossEntropyLoss(),
            _configured(config, tuple(overrides)),
            {"dtype": torch.float, "device": torch.device("cpu")},
        )
        found, _ = attacker.reconstruct([payload], [shared], server_secrets={})
    return known.shown(found["data"].detach().nan_to_num(0.0))


@functools.cache
def _configured(config: str, overrides: tuple[str, ...]) -> Any:
    """Read once: what that takes is not breaching's attack."""
    import breaching

    return breaching.get_attack_config(config, overrides=list(overrides))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither its prints nor the deprecations of what it calls."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("breaching").setLevel(logging.ERROR)
        yield
