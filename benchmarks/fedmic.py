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
import copy
import json
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import nn

from protocols.errors import ConfigError, DataError
from secure_natfl.check import check
from secure_natfl.config import Config
from secure_natfl.data.splits import split
from secure_natfl.federation import Federation, Site, build, examples
from secure_natfl.methods.dual_distillation import Lessons, Pair, dual_loss
from secure_natfl.methods.plain_models import started, train_plain
from secure_natfl.methods.training_costs import step_cost
from secure_natfl.seeds import Seeds
from secure_natfl.system_tables import FedAvg
from secure_natfl.systems.fedavg import Averaging
from secure_natfl.systems.fedmic import FedMic, falling
from secure_natfl.systems.summed import Summed, SummedSystem, make_system
from secure_natfl.training import Examples, Schedule, record_losses

SITES: Final = {"wbc_seg": 5, "brainmri": 10, "rbc": 10, "derma28": 10}
CUTS: Final[dict[str, dict[str, Any]]] = {
    "dirichlet": {"partition": "dirichlet", "concentration": 0.1},
    "pathological": {"partition": "pathological", "classes_per_site": 2},
}
ROUNDS, BATCH, SIZE = 12, 64, 28
NETWORK: Final = "secure_natfl.methods.small_network:small"
TUNED_ON, TUNING_SEED = ("brainmri",), 1000

AGGREGATIONS: Final = (
    {"kind": "plain"},
    {"kind": "ckks", "custody": "decryptor"},
    {"kind": "ckks", "custody": "threshold"},
)

Arm = dict[str, Any]
TRIALS: Final[dict[str, list[Arm]]] = {
    "local": [{"learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2)],
    "fedavg": [{"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3)],
    "fedprox": [
        {"learning_rate": rate, "proximal": mu}
        for rate, mu in ((1e-3, 0.01), (1e-3, 0.1), (3e-3, 0.1))
    ],
    "fedbn": [{"learning_rate": rate, "keep_norms": True} for rate in (1e-3, 3e-3, 1e-2)],
    "fedmic": [{"learning_rate": rate, "rank": 4} for rate in (1e-3, 3e-3, 1e-2)],
}
CHOSEN: Final[dict[str, Arm]] = {
    "local": {"learning_rate": 3e-3},
    "fedavg": {"learning_rate": 3e-3},
    "fedprox": {"learning_rate": 3e-3, "proximal": 0.1},
    "fedbn": {"learning_rate": 3e-3, "keep_norms": True},
    "fedmic": {"learning_rate": 3e-3, "rank": 4},
}
"""The best trial of each arm on the validation parts, as `tune` found it."""


def configured(
    root: Path, pack: str, cut: str, seed: int, arm: str, keys: Arm, **more: Any
) -> Config:
    """One simulation: a pack cut into sites, and the table of an arm."""
    kind = "fedmic" if arm.startswith("fedmic") else "fedavg"
    hospital = {
        "name": pack.replace("_", "-"),
        "kind": "npz",
        "path": f"{pack}/{pack}.dev.npz",
        "sites": SITES[pack],
        "architectures": [NETWORK],
        **CUTS[cut],
    }
    return Config.model_validate(
        {
            "run": {"seed": seed},
            "data": {"root": str(root), "size": SIZE, "split_seed": seed, "hospitals": [hospital]},
            "models": {"central": NETWORK, "pretrain_epochs": 0, "batch": BATCH},
            "system": {"kind": kind, "rounds": ROUNDS, **keys, **more},
            "aggregation": {"kind": "plain"},
            "privacy": {"mechanism": "none"},
        }
    )


def played(config: Config, federation: Federation) -> SummedSystem:
    """All rounds of a system, its sums added in the clear."""
    system = make_system(config, federation, Seeds.of_study(int(config.run.seed)))
    sites, alphas = {site.name: site for site in federation.sites}, system.weights()
    for number in range(config.system.rounds):
        if isinstance(system, Averaging):
            rate = keys_of(config).learning_rate * falling(number, config.system.rounds)
            system.table = keys_of(config).model_copy(update={"learning_rate": rate})
        cohort = system.cohort(number)
        for phase in system.phases(number):
            vectors = [
                alphas[name] * system.contribute(sites[name], number, phase.name, None)
                for name in cohort
            ]
            weight = float(sum(alphas[name] for name in cohort))
            opened = Summed(np.sum(vectors, axis=0), weight, cohort, 0.0)
            system.absorb({"all": opened}, number, phase.name)
        for site in federation.sites:
            system.personalise(site, number)
    return system


def keys_of(config: Config) -> FedAvg:
    """The table of an averaging arm."""
    if not isinstance(config.system, FedAvg):
        raise ConfigError(f"the table is of {config.system.kind}", where="system.kind")
    return config.system


def alone(config: Config, federation: Federation, keys: Arm) -> dict[str, nn.Module]:
    """Every site on its own images, with the epochs of a whole run."""
    seeds, found = Seeds.of_study(int(config.run.seed)), {}
    for site in federation.sites:
        network = started(config, federation, NETWORK, site.task, seeds)
        schedule = Schedule(ROUNDS, BATCH // 2, keys["learning_rate"])
        train_plain(network, site.train, schedule, seeds.torch("alone", site.name))
        found[site.name] = network
    return found


def tuned(config: Config, system: SummedSystem, federation: Federation) -> dict[str, nn.Module]:
    """What a site answers with after one epoch more on its own images."""
    seeds, found = Seeds.of_study(int(config.run.seed)), {}
    for site in federation.sites:
        network = copy.deepcopy(system.answering(site))
        schedule = Schedule(1, BATCH // 2, 1e-3)
        train_plain(network, site.train, schedule, seeds.torch("tuned", site.name))
        found[site.name] = network
    return found


def scored(networks: dict[str, nn.Module], federation: Federation) -> dict[str, float]:
    """Accuracy on each site's own test part: over all images, and as the mean of the sites."""
    hits = {site.name: _hits(networks[site.name], site) for site in federation.sites}
    images = [len(site.test) for site in federation.sites]
    each = [sum(hits[site.name]) / len(site.test) for site in federation.sites]
    return {
        "accuracy": float(sum(sum(one) for one in hits.values()) / sum(images)),
        "mean_of_sites": float(np.mean(each)),
        "worst_site": float(min(each)),
    }


@torch.no_grad()
def _hits(network: nn.Module, site: Site) -> list[bool]:
    found = network.eval()(site.test.images).argmax(1) == site.test.targets.argmax(1)
    return [bool(hit) for hit in found]


def trial(config: Config, federation: Federation, arm: str, keys: Arm) -> Iterator[dict[str, Any]]:
    """The lines of one arm; fine-tuning and the shared model come along with what they end."""
    start, cpu = time.perf_counter(), time.process_time()
    if arm == "local":
        yield {"arm": arm, **scored(alone(config, federation, keys), federation)}
        return
    system = played(config, federation)
    seconds = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    answers = {site.name: system.answering(site) for site in federation.sites}
    yield {"arm": arm, **scored(answers, federation), **seconds, "traits": system.traits()}
    if arm == "fedavg":
        yield {"arm": "fedavg, then tuned", **scored(tuned(config, system, federation), federation)}
    if arm.startswith("fedmic"):
        shared = {site.name: system.central(site) for site in federation.sites}
        networks = {name: network for name, network in shared.items() if network is not None}
        yield {"arm": f"{arm}, student", **scored(networks, federation)}


def validating(federation: Federation, seed: int) -> Federation:
    """The same sites without their test parts: a quarter of what trained stands in for them."""
    sites = []
    for site in federation.sites:
        try:
            train, test = split(site.records, 0.25, seed)
        except DataError:  # a site with one patient cannot be divided; it tunes nothing
            continue
        sites.append(
            replace(
                site,
                train=examples(train, SIZE),
                test=examples(test, SIZE),
                records=train,
                test_patients=test.patients,
            )
        )
    return replace(federation, sites=tuple(sites))


def loaded(config: Config) -> Federation:
    """The federation of a configuration; nothing here is private."""
    return build(config, lambda name: bytes(32))  # noqa: ARG005


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
    half = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.1f} ± {half:.1f}"


def read(out: Path) -> list[dict[str, Any]]:
    """All lines that were written so far."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def write(out: Path | None, line: dict[str, Any]) -> None:
    """One line to the file, or to standard output."""
    text = json.dumps(line)
    if out is None:
        print(text, flush=True)  # noqa: T201
        return
    with out.open("a") as file:
        file.write(text + "\n")


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
