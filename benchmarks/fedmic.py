"""FedMIC beside what it is compared with, on real packs cut into unlike sites.

    python -m benchmarks.fedmic tune  --data PACKS --out tuning.jsonl
    python -m benchmarks.fedmic run   --data PACKS --out runs.jsonl --seeds 0 1 2 3 4
    python -m benchmarks.fedmic sweep --data PACKS --out sweep.jsonl --seeds 0 1 2
    python -m benchmarks.fedmic cost  --data PACKS
    python -m benchmarks.fedmic wire  --data PACKS
    python -m benchmarks.fedmic table --out runs.jsonl

Every arm has the same network, start, epochs and batches, a learning rate that falls along a
cosine, and three trials of tuning, each on a validation part cut from the sites' training parts. A
seed cuts sites, training and test anew and names all draws. Sums are added in the clear, as a
protected run opens them but for its grid. `run` and `sweep` append one JSON line per trial and
leave out what the file has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.fedmic_arms import (
    CHOSEN,
    CUTS,
    SITES,
    TRIALS,
    configured,
    loaded,
    trial,
    validating,
)
from benchmarks.fedmic_costs import cost, wire
from benchmarks.systems import half_interval, read, write

TUNED_ON, TUNING_SEED = ("brainmri",), 1000


def run(root: Path, out: Path, seeds: list[int], packs: list[str]) -> None:
    """Every arm on every pack, cut and seed."""
    done = {(x["pack"], x["cut"], x["seed"], x["arm"]) for x in read(out)}
    for seed in seeds:
        for pack in packs:
            for cut in CUTS:
                federation = None
                for arm in (*TRIALS, "fedmic, factors"):
                    if (pack, cut, seed, arm) in done:
                        continue
                    keys = dict(CHOSEN[arm.partition(",")[0]])
                    if arm.endswith("factors"):
                        keys["compression"] = "svd_plain"
                    config = configured(root, pack, cut, seed, arm, keys)
                    federation = federation or loaded(config)
                    for line in trial(config, federation, arm, keys):
                        write(out, {"pack": pack, "cut": cut, "seed": seed, **line})


def tune(root: Path, out: Path) -> None:
    """Three trials of every arm on validation parts; prints the best of each."""
    for pack in TUNED_ON:
        federation = None
        for arm, trials in TRIALS.items():
            for number, keys in enumerate(trials):
                config = configured(root, pack, "dirichlet", TUNING_SEED, arm, keys)
                federation = federation or validating(loaded(config), TUNING_SEED)
                line = next(trial(config, federation, arm, keys))
                write(out, {"pack": pack, "trial": number, "keys": keys, **line})
    for arm, trials in TRIALS.items():
        means = [
            np.mean([x["accuracy"] for x in read(out) if x["arm"] == arm and x["trial"] == number])
            for number in range(len(trials))
        ]
        write(None, {"arm": arm, "chosen": trials[int(np.argmax(means))], "means": means})


def sweep(root: Path, out: Path, seeds: list[int]) -> None:
    """FedMIC and FedAvg where only a share of the sites takes part in a round."""
    done = {(x["participation"], x["seed"], x["arm"]) for x in read(out)}
    for seed in seeds:
        for share in (0.3, 0.5, 0.7, 1.0):
            for arm in ("fedavg", "fedmic"):
                if (share, seed, arm) in done:
                    continue
                keys = CHOSEN[arm]
                config = configured(
                    root, "brainmri", "dirichlet", seed, arm, keys, participation=share
                )
                line = next(trial(config, loaded(config), arm, keys))
                write(out, {"participation": share, "seed": seed, **line})


def table(out: Path) -> None:
    """Means with 95 % t intervals over seeds, and FedMIC less each arm, seed by seed."""
    lines = read(out)
    for pack, cut in dict.fromkeys((x["pack"], x["cut"]) for x in lines):
        mine = [x for x in lines if (x["pack"], x["cut"]) == (pack, cut)]
        arms = {arm: {x["seed"]: 100 * x["accuracy"] for x in mine if x["arm"] == arm}
                for arm in dict.fromkeys(x["arm"] for x in mine)}  # fmt: skip
        print(f"\n{pack}, {cut}: arm | accuracy, % | FedMIC less this arm")  # noqa: T201
        for arm, found in arms.items():
            ours = arms.get("fedmic", {})
            less = [ours[seed] - found[seed] for seed in sorted(found.keys() & ours.keys())]
            print(f"| {arm} | {interval(list(found.values()))} | {interval(less)} |")  # noqa: T201


def interval(values: list[float]) -> str:
    """Mean ± half the 95 % interval of Student's t; one value as it is."""
    if len(values) < 2:
        return " ".join(f"{value:.1f}" for value in values)
    return f"{np.mean(values):.1f} ± {half_interval(values):.1f}"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["tune", "run", "sweep", "cost", "wire", "table"])
    parser.add_argument("--data", type=Path, default=Path())
    parser.add_argument("--out", type=Path, default=Path("fedmic.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--packs", nargs="+", default=list(SITES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "tune":
        tune(asked.data, asked.out)
    elif asked.what == "run":
        run(asked.data, asked.out, asked.seeds, asked.packs)
    elif asked.what == "sweep":
        sweep(asked.data, asked.out, asked.seeds)
    elif asked.what == "cost":
        cost(asked.data)
    elif asked.what == "wire":
        wire(asked.data)
    else:
        table(asked.out)


if __name__ == "__main__":
    main()
