"""What depth is worth under DP-SGD: the head, the last block, or the whole network, at one ε.

    python -m benchmarks.dp_depth --seeds 0 1 2 --json

One site of phantoms, one start, one plan of steps; only `layers` differs. A seed cuts training and
test anew and names the network's start; noise is the operating system's.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from io import StringIO
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from sklearn.metrics import roc_auc_score

from protocols.accounting import ADD_OR_REMOVE_ONE
from protocols.chain import digest
from protocols.dp_sgd import Descent, DpSgd
from protocols.ledger import Ledger, ReleaseKey
from secure_natfl.deep_training import train_layers
from secure_natfl.dp_training import Cohort, Recipe, train_head
from secure_natfl.federation import build
from secure_natfl.fine_tuning import fresh
from secure_natfl.progress import Stages
from secure_natfl.setup import public_networks
from secure_natfl.toml_config import load
from secure_natfl.training import features_of, logits_of

LAYERS: Final = ("head", "last", "network")
EPSILON: Final = 8.0
DELTA: Final = 1e-5
RATE: Final = 0.25
STEPS: Final = 32
CLIP: Final = 0.15


def main() -> None:
    """Print AUROC and seconds of every seed and depth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = [
        {"seed": seed, "layers": layers, **trial(seed, layers, asked.images)}
        for seed in asked.seeds
        for layers in LAYERS
    ]
    for line in found:
        print(json.dumps(line) if asked.json else line)  # noqa: T201


def trial(seed: int, layers: str, images: int) -> dict[str, float]:
    """One training under noise and its AUROC on held-back phantoms of the same site."""
    config = load("smoke", [f"data.split_seed={seed}", "run.baselines=false"])
    table = config.data.hospitals[0].model_copy(update={"images": images, "sites": 1})
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"hospitals": [table]})}
    )
    federation = build(config, lambda name: bytes(32))  # noqa: ARG005
    public = public_networks(config, federation, Stages(Console(file=StringIO())))
    site, naturals = federation.sites[0], federation.naturals
    network = fresh(public[config.models.central], len(federation.task.classes), torch.Generator())
    torch.nn.init.zeros_(network.xray.weight)
    torch.nn.init.zeros_(network.xray.bias)
    features = features_of(network.backbone, naturals.images)
    cohort = Cohort.of_patients(site.train, site.train_patients)
    recipe = Recipe(rate=7.0, momentum=0.0, average=0.0)
    multi_label, size = federation.task.multi_label, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger(
            Path(folder) / "ledger.db",
            site.name,
            digest(b"depth"),
            relation=ADD_OR_REMOVE_ONE,
            budget_epsilon=None,
            delta=DELTA,
        ) as ledger,
    ):

        def begin(parameters: int) -> Descent:
            nonlocal size
            size = parameters
            plan = DpSgd.calibrate(
                epsilon=EPSILON,
                delta=DELTA,
                rounds=1,
                clip_norm=CLIP,
                rate=RATE,
                steps=STEPS,
                size=parameters,
                expected=RATE * len(cohort),
            )
            return plan.begin(ledger, ReleaseKey("depth", 0), os.urandom)

        start = time.perf_counter()
        if layers == "head":
            train_head(network, features, cohort, begin, recipe, multi_label=multi_label)
        else:
            train_layers(
                network, layers, naturals.images, features, cohort, begin, recipe,
                multi_label=multi_label,
            )  # fmt: skip
        seconds = time.perf_counter() - start
    logits = logits_of(network, site.test.images)[:, 0]
    auroc = float(roc_auc_score(site.test.targets[:, 1], logits[:, 1] - logits[:, 0]))
    return {"units": len(cohort), "parameters": size, "auroc": auroc, "seconds": seconds}


if __name__ == "__main__":
    main()
