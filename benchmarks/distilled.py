"""The distillation baselines beside FedAvg and local training, on real packs.

    python -m benchmarks.distilled run   --data PACKS --out runs.jsonl --seeds 0 1 2
    python -m benchmarks.distilled table --out runs.jsonl

Every arm has the same network, public start, rounds, local epochs and rates, none of them tuned. A
seed cuts sites, training and test anew and names all draws. Sums are added in the clear, as a
protected run opens them but for its grid. `run` appends one JSON line per arm and leaves out what
the file has. A figure is of what each site uses, on its own test part, averaged over sites.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from secure_natfl.config import Config
from secure_natfl.evaluation import probabilities, quick_auroc, site_test
from secure_natfl.federation import Federation, Site, build
from secure_natfl.methods.plain_models import started, train_plain
from secure_natfl.seeds import Seeds
from secure_natfl.systems.summed import Summed, SummedSystem, make_system
from secure_natfl.training import Schedule

NETWORK: Final = "secure_natfl.methods.small_network:small"
ROUNDS, EPOCHS, RATE, BATCH, ASKED = 3, 2, 3e-3, 64, 400
_XRAY: Final[dict[str, Any]] = {"kind": "npz", "path": "xray6/xray6.dev.npz", "sites": 3}
PACKS: Final[dict[str, tuple[int, list[dict[str, Any]]]]] = {
    "xray6": (
        32,
        [
            {**_XRAY, "name": "guangzhou", "source": "guangzhou", "group": "paediatric"},
            {**_XRAY, "name": "nih", "source": "nih", "group": "adult", "unit": "patient"},
        ],
    ),
    "brainmri": (
        28,
        [
            {
                "name": "brain",
                "kind": "npz",
                "path": "brainmri/brainmri.dev.npz",
                "sites": 4,
                "partition": "dirichlet",
                "concentration": 0.5,
            }
        ],
    ),
}
ARMS: Final = ("local", "fedavg", "fedmd", "feddf", "ds-fl", "fedaux")


def configured(pack: str, arm: str, seed: int, data: str) -> Config:
    """One arm of one pack; the local arm has FedAvg's table, which it never plays."""
    size, hospitals = PACKS[pack]
    system: dict[str, Any] = {"kind": "fedavg", "alpha": "equal"}
    if arm not in ("local", "fedavg"):
        system = {"kind": "distilled", "method": arm, "distill_epochs": 3, "distill_rate": RATE}
    system |= {"rounds": ROUNDS, "local_epochs": EPOCHS, "learning_rate": RATE}
    tables = [{**table, "architectures": [NETWORK]} for table in hospitals]
    return Config.model_validate(
        {
            "data": {"root": data, "size": size, "split_seed": seed, "hospitals": tables},
            "proxies": {
                "kind": "npz",
                "path": "natural_cifar10/natural_cifar10.dev.npz",
                "images": 2000,
                "per_round": ASKED,
            },
            "models": {"central": NETWORK, "pretrain_epochs": 4, "batch": BATCH},
            "system": system,
            "aggregation": {"kind": "plain"},
            "privacy": {"mechanism": "none"},
        }
    )


def play(system: SummedSystem, federation: Federation) -> None:
    """All rounds, every site in each, sums in the clear."""
    alphas = system.weights()
    for number in range(ROUNDS):
        for phase in system.phases(number):
            vectors = {
                s.name: system.contribute(s, number, phase.name, None) for s in federation.sites
            }
            sums = {}
            for group, sites in federation.groups.items():
                names = tuple(s.name for s in sites)
                total = np.sum([alphas[name] * vectors[name] for name in names], axis=0)
                weight = float(sum(alphas[name] for name in names))
                sums[group] = Summed(total, weight, names, 0.0)
            system.absorb(sums, number, phase.name)
        for site in federation.sites:
            system.personalise(site, number)


def local(config: Config, federation: Federation, site: Site, seeds: Seeds) -> nn.Module:
    """A site alone, for as many epochs as all rounds have."""
    network = started(config, federation, NETWORK, site.task, seeds)
    schedule = Schedule(ROUNDS * EPOCHS, BATCH // 2, RATE)
    train_plain(network, site.train, schedule, seeds.torch("local arm", site.name))
    return network.eval()


def figures(models: dict[str, nn.Module], federation: Federation) -> dict[str, dict[str, float]]:
    """Hospital → AUROC and accuracy, means over its sites."""
    found: dict[str, dict[str, float]] = {}
    for hospital, sites in federation.hospitals.items():
        auroc, accuracy = [], []
        for site in sites:
            part = site_test(site)
            said = probabilities(models[site.name], part)
            auroc.append(quick_auroc([said], part))
            right = said.argmax(1) == site.test.targets.argmax(1).numpy()
            accuracy.append(float(right.mean()))
        known = [value for value in auroc if value is not None]
        found[hospital] = {"auroc": float(np.mean(known)), "accuracy": float(np.mean(accuracy))}
    return found


def trial(pack: str, arm: str, seed: int, data: str) -> dict[str, Any]:
    """One arm, as a line of the results."""
    began, seeds = time.process_time(), Seeds.of_study(seed)
    config = configured(pack, arm, seed, data)
    federation = build(config, lambda name: name.encode().ljust(32, b"k"))
    sites = federation.sites
    if arm == "local":
        models = {site.name: local(config, federation, site, seeds) for site in sites}
        shared, numbers = {}, 0
    else:
        system = make_system(config, federation, seeds)
        play(system, federation)
        models = {site.name: system.answering(site) for site in sites}
        central = {site.name: system.central(site) for site in sites}
        shared = {name: network for name, network in central.items() if network is not None}
        numbers = sum(phase.layout.size for phase in system.phases(0))
    return {
        "pack": pack,
        "arm": arm,
        "seed": seed,
        "numbers": numbers,
        "used": figures(models, federation),
        "central": figures(shared, federation) if shared else None,
        "cpu": time.process_time() - began,
    }


def run(data: str, out: Path, seeds: list[int]) -> None:
    """Every trial that the file lacks."""
    lines = _lines(out)
    done = {(line["pack"], line["arm"], line["seed"]) for line in lines}
    for seed in seeds:
        for pack in PACKS:
            for arm in ARMS:
                if (pack, arm, seed) not in done:
                    line = trial(pack, arm, seed, data)
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")


def table(out: Path) -> str:
    """Arm × hospital: the mean over seeds, lowest and highest in brackets."""
    lines = _lines(out)
    rows = []
    for pack in PACKS:
        for arm in ARMS:
            ours = [line for line in lines if (line["pack"], line["arm"]) == (pack, arm)]
            for who in ("used", "central") if arm == "ds-fl" else ("used",):
                for hospital in ours[0][who] if ours else ():
                    cells = []
                    for figure in ("auroc", "accuracy"):
                        values = [line[who][hospital][figure] for line in ours]
                        low, high = min(values), max(values)
                        cells.append(f"{np.mean(values):.3f} ({low:.3f}–{high:.3f})")
                    name = f"{arm}, server's network" if who == "central" else arm
                    sent = str(ours[0]["numbers"])
                    rows.append("| " + " | ".join([hospital, name, *cells, sent]) + " |")
    return "\n".join(rows)


def _lines(out: Path) -> list[dict[str, Any]]:
    if not out.exists():
        return []
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data", default=".")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "run":
        run(given.data, given.out, given.seeds)
    else:
        sys.stdout.write(table(given.out) + "\n")


if __name__ == "__main__":
    main()
