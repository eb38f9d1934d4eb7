"""PPPML-HMI against FedAvg on masks: strengths of heterogeneity, numbers of sites, sizes, networks.

`python -m benchmarks.pppml STUDY --seeds 1 2 3 4 5 --out FILE.csv` plays the systems themselves,
without protection and without a run folder, and appends one row per seed, setting and arm; a row
that is there is not played again. Studies: tune (rates, on validation images alone), strength,
sites, sizes, networks, makers, orders. `--table FILE.csv` prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy import stats
from torch import nn

from benchmarks.pppml_sites import STRENGTHS, unlike
from secure_natfl.config import Config
from secure_natfl.evaluation import probabilities, quick_dice, site_test
from secure_natfl.federation import Federation, Site, build
from secure_natfl.methods.meta_training import Parts, cut, own_network
from secure_natfl.seeds import Seeds
from secure_natfl.systems.summed import Summed, SummedSystem, make_system

ARMS: Final = ("fedavg", "fedavg, own steps", "pppml-hmi, shared", "pppml-hmi")
ROUNDS: Final = 10
TUNING_SEED: Final = 0
_FOLDS: Final = 5

FEDAVG: Final[dict[str, Any]] = {"kind": "fedavg", "local_epochs": 2, "learning_rate": 3.2e-2}
PPPML: Final[dict[str, Any]] = {
    "kind": "pppml-hmi",
    "local_epochs": 2,
    "learning_rate": 1e-2,
    "inner_rate": 0.1,
    "own_steps": 60,
}
"""Both as `tune` found them best."""


@dataclass(frozen=True)
class Setting:
    """One federation: how many sites, how unlike, how much of the training images, which network.

    makers: sites are the makers' own (cut in 2 and 3) in place of random parts of both together.
    """

    strength: float = 0.0
    sites: int = 3
    share: float = 1.0
    network: str = "unet-8"
    makers: bool = False


def config_of(setting: Setting, system: dict[str, Any], seed: int, root: str) -> Config:
    """Cells at 48 pixels; the seed cuts sites and test parts and draws everything else."""
    pack = {
        "kind": "npz",
        "path": "wbc_seg/wbc_seg.dev.npz",
        "target": "mask",
        "classes": ["background", "cytoplasm", "nucleus"],
        "architectures": [setting.network],
    }
    hospitals = [{**pack, "name": "cells", "sites": setting.sites}]
    if setting.makers:
        hospitals = [
            {**pack, "name": "cellavision", "source": "cellavision", "sites": 2},
            {**pack, "name": "tecom", "source": "tecom", "sites": 3},
        ]
    return Config.model_validate(
        {
            "run": {"name": "pppml", "seed": seed},
            "data": {"root": root, "size": 48, "split_seed": seed, "hospitals": hospitals},
            "models": {"central": setting.network, "pretrain_epochs": 0, "batch": 16},
            "system": {"rounds": ROUNDS, "alpha": "equal", **system},
            "aggregation": {"kind": "plain"},
            "privacy": {"mechanism": "none"},
        }
    )


def federation_of(config: Config, setting: Setting, *, tuning: bool) -> Federation:
    """The sites, unlike by the strength; for tuning their test parts are cut from training."""
    federation = unlike(build(config, lambda _: b"benchmark of pppml"), setting.strength)
    sites = [_smaller(site, setting.share) for site in federation.sites]
    if tuning:
        sites = [_without_test(site) for site in sites]
    return replace(federation, sites=tuple(sites))


def played(config: Config, federation: Federation) -> SummedSystem:
    """All rounds of the system with sums in clear."""
    system = make_system(config, federation, Seeds.of_study(int(config.run.seed)))
    alphas = system.weights()
    for number in range(config.system.rounds):
        chosen = [site for site in federation.sites if site.name in system.cohort(number)]
        sums: dict[str, Summed] = {}
        for group in dict.fromkeys(system.group_of(site) for site in chosen):
            members = [site for site in chosen if system.group_of(site) == group]
            given = [alphas[s.name] * system.contribute(s, number, "update", None) for s in members]
            weight = float(sum(alphas[s.name] for s in members))
            names = tuple(s.name for s in members)
            sums[group] = Summed(np.sum(given, axis=0), weight, names, 0.0)
        system.absorb(sums, number, "update")
    for site in federation.sites:
        system.personalise(site, config.system.rounds - 1)
    return system


def rows_of(
    setting: Setting,
    seed: int,
    root: str,
    fedavg: dict[str, Any],
    pppml: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """The arms' Dice at every site."""
    parts: dict[str, list[nn.Module]] = {}
    spent = {}
    for name, table in (("fedavg", fedavg), ("pppml-hmi", pppml)):
        config = config_of(setting, table, seed, root)
        federation = federation_of(config, setting, tuning=False)
        start = time.process_time()
        system = played(config, federation)
        spent[name] = time.process_time() - start
        central = [_shared(system, site) for site in federation.sites]
        if name == "fedavg":
            parts["fedavg"] = central
            parts["fedavg, own steps"] = [
                _tuned(network, site, pppml, seed)
                for network, site in zip(central, federation.sites, strict=True)
            ]
        else:
            parts["pppml-hmi, shared"] = central
            parts["pppml-hmi"] = [system.answering(site) for site in federation.sites]
    for arm in ARMS:
        for network, site in zip(parts[arm], federation.sites, strict=True):
            part = site_test(site)
            yield {
                "seed": seed,
                **vars(setting),
                "arm": arm,
                "site": site.name,
                "dice": quick_dice([probabilities(network, part)], part),
                "images": len(site.train),
                "test images": len(site.test),
                "cpu_s": round(spent[arm.partition(",")[0]], 1),
            }


def _shared(system: SummedSystem, site: Site) -> nn.Module:
    network = system.central(site)
    if network is None:
        raise SystemExit(f"{system.name} has no shared network")
    return network


def _tuned(network: nn.Module, site: Site, pppml: dict[str, Any], seed: int) -> nn.Module:
    """FedAvg's network after the very own steps of PPPML-HMI: K, rate, batch and choice alike."""
    own = copy.deepcopy(network).train()
    parts: Parts = cut(site, _FOLDS, seed)
    draw = Seeds.of_study(seed).torch("own steps of fedavg", site.name)
    own_network(own, parts, pppml["own_steps"], pppml["inner_rate"], 8, draw)
    return own


def _smaller(site: Site, share: float) -> Site:
    rows = np.arange(max(2, round(share * len(site.train))))
    return _kept(site, rows) if share < 1 else site


def _without_test(site: Site) -> Site:
    """The same split that chooses among own steps would leave nothing to judge them on."""
    parts = cut(site, _FOLDS, 1000)
    if parts.chooses is None:
        raise SystemExit(f"{site.name} is too small to tune on")
    held = set(site.train_patients) - set(parts.patients)
    kept = np.array([i for i, p in enumerate(site.train_patients) if p not in held])
    names = tuple(p for p in site.train_patients if p in held)
    return replace(_kept(site, kept), test=parts.chooses, test_patients=names)


def _kept(site: Site, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Site:
    at = torch.from_numpy(rows)
    return replace(site, train=site.train.at(at), records=site.records.take(rows))


def _urgent(strength: float) -> tuple[bool, float]:
    """The ends before the middle, should time run out."""
    return 0 < strength < 1, abs(strength - 0.5) if 0 < strength < 1 else -strength


def settings_of(study: str) -> list[Setting]:
    """What a study plays."""
    return {
        "strength": [Setting(strength=s) for s in sorted(STRENGTHS, key=_urgent)],
        "sites": [Setting(strength=1.0, sites=k) for k in (2, 3, 5, 11)],
        "sizes": [Setting(strength=1.0, share=s) for s in (0.25, 0.5, 1.0)],
        "networks": [Setting(strength=1.0, network=f"unet-{w}") for w in (4, 8, 16)],
        "makers": [Setting(makers=True)],
        "orders": [Setting(strength=1.0)],
    }[study]


def tune(root: str, out: Path) -> None:
    """As many trials of FedAvg as of PPPML-HMI, at strength 1, on one seed's validation images."""
    setting = Setting(strength=1.0)
    trials: list[tuple[str, dict[str, Any]]] = [
        ("fedavg", {**FEDAVG, "learning_rate": rate})
        for rate in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 0.128)
    ]
    ours = [*itertools.product((2e-3, 5e-3, 1e-2), (0.03, 0.1), (20,))]
    ours += [(1e-2, inner, 60) for inner in (0.03, 0.1)]
    trials += [
        ("pppml-hmi", {**PPPML, "learning_rate": rate, "inner_rate": inner, "own_steps": steps})
        for rate, inner, steps in ours
    ]
    done = out.read_text() if out.exists() else ""
    with out.open("a") as file:
        for name, table in trials:
            if f"{name} {table} " in done:
                continue
            config = config_of(setting, table, TUNING_SEED, root)
            federation = federation_of(config, setting, tuning=True)
            system = played(config, federation)
            found = []
            for site in federation.sites:
                part = site_test(site)
                dice = quick_dice([probabilities(system.answering(site), part)], part)
                found.append(dice or 0.0)
            file.write(f"{name} {table} {statistics.mean(found):.4f} {found}\n")
            file.flush()


def play(study: str, seeds: list[int], root: str, out: Path) -> None:
    """Append what is missing in `out`."""
    done = set()
    if out.exists():
        done = {_key(row) for row in csv.DictReader(out.open())}
    pppml = {**PPPML, "order": "hessian-free"} if study == "orders" else PPPML
    for seed, setting in itertools.product(seeds, settings_of(study)):
        if _key({"seed": seed, **vars(setting)}) in done:
            continue
        rows = list(rows_of(setting, seed, root, FEDAVG, pppml))
        new = not out.exists()
        with out.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if new:
                writer.writeheader()
            writer.writerows(rows)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("seed", *vars(Setting())))


def table(path: Path) -> str:
    """Mean Dice of each arm over seeds, and PPPML-HMI less the two FedAvg arms with 95 % t."""
    rows = list(csv.DictReader(path.open()))
    names = [name for name in vars(Setting()) if len({row[name] for row in rows}) > 1]
    names = names or ["strength"]
    lines = [f"| {', '.join(names)} | {' | '.join(ARMS)} | gain over FedAvg | over its own steps |"]
    lines.append("|---" * (len(ARMS) + 3) + "|")
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        some = [row for row in rows if tuple(row[name] for name in names) == key]
        means = {arm: _by_seed(some, arm) for arm in ARMS}
        cells = [f"{100 * statistics.mean(m.values()):.1f}" for m in means.values()]
        gains = [_gain(means["pppml-hmi"], means[arm]) for arm in ARMS[:2]]
        lines.append(f"| {', '.join(key)} | {' | '.join(cells + gains)} |")
    cpu = sum({(r["seed"], *_key(r), r["arm"][:6]): float(r["cpu_s"]) for r in rows}.values())
    seeds = len({row["seed"] for row in rows})
    return "\n".join(lines) + f"\n\n{seeds} seeds, {cpu / 3600:.2f} CPU-hours."


def _by_seed(rows: list[dict[str, str]], arm: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["arm"] == arm:
            found.setdefault(row["seed"], []).append(float(row["dice"]))
    return {seed: statistics.mean(values) for seed, values in found.items()}


def _gain(ours: dict[str, float], theirs: dict[str, float]) -> str:
    off = [100 * (ours[seed] - theirs[seed]) for seed in ours]
    mean = statistics.mean(off)
    if len(off) < 2:
        return f"{mean:+.1f}"
    half = stats.t.ppf(0.975, len(off) - 1) * statistics.stdev(off) / len(off) ** 0.5
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def main() -> None:
    """Play a study, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="strength")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--root", default=".")
    parser.add_argument("--out", type=Path, default=Path("pppml.csv"))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print(table(given.table))  # noqa: T201
    elif given.study == "tune":
        tune(given.root, given.out)
    else:
        play(given.study, given.seeds, given.root, given.out)


if __name__ == "__main__":
    main()
