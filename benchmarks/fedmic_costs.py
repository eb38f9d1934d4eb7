"""What FedMIC costs a site: arithmetic and memory of a training step, and bytes of a round."""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import nn

from benchmarks.fedmic_arms import BATCH, CHOSEN, NETWORK, configured, loaded
from benchmarks.systems import write
from secure_natfl.check import check
from secure_natfl.config import Config
from secure_natfl.methods.dual_distillation import Lessons, Pair, dual_loss
from secure_natfl.methods.plain_models import started
from secure_natfl.methods.training_costs import step_cost
from secure_natfl.seeds import Seeds
from secure_natfl.systems.fedmic import FedMic
from secure_natfl.training import Examples, record_losses

AGGREGATIONS: Final = (
    {"kind": "plain"},
    {"kind": "ckks", "custody": "decryptor"},
    {"kind": "ckks", "custody": "threshold"},
)


def cost(root: Path) -> None:
    """Weights, memory and arithmetic of a training step, with a teacher and without."""
    for arm in ("fedavg", "fedmic"):
        config = configured(root, "brainmri", "dirichlet", 0, arm, CHOSEN[arm])
        federation = loaded(config)
        seeds, site = Seeds.of_study(0), federation.sites[0]
        batch = site.train.at(torch.arange(BATCH // 2))
        if arm == "fedavg":
            alone = started(config, federation, NETWORK, site.task, seeds)
            found = step_cost(alone, partial(_supervised, alone, batch))
        else:
            pair = FedMic(config, federation, seeds).pairs[site.name]
            found = step_cost(pair, partial(_together, pair, batch))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        write(None, {"arm": arm, **vars(found), "memory": found.memory_bytes, "peak_rss_mib": peak})


def wire(root: Path) -> None:
    """Bytes that a site sends in a round, as `natfl check` counts them: brainmri, ten sites."""
    for network in (NETWORK, "test_resnet", "resnet18"):
        for aggregation in AGGREGATIONS:
            found: dict[str, int] = {}
            for arm in ("fedavg", "fedmic"):
                config = configured(root, "brainmri", "dirichlet", 0, arm, CHOSEN[arm])
                raw = config.model_dump()
                raw["aggregation"], raw["models"]["central"] = aggregation, network
                raw["data"]["hospitals"][0]["architectures"] = [network]
                found[arm] = check(Config.model_validate(raw)).upload_bytes
            ratio = found["fedavg"] / found["fedmic"]
            write(None, {"network": network, **aggregation, **found, "ratio": round(ratio, 1)})


def _supervised(network: nn.Module, batch: Examples) -> torch.Tensor:
    logits = network(batch.images)
    return record_losses(logits, batch.targets, batch.known, multi_label=False).mean()


def _together(pair: Pair, batch: Examples) -> torch.Tensor:
    """A step of the student; one of the teacher costs as much."""
    pair.teacher.requires_grad_(False)
    teacher, student = pair(batch.images)
    return dual_loss(teacher, student, batch, Lessons())
