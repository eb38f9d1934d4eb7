"""PPPML-HMI against FedAvg on masks: strengths of heterogeneity, numbers of sites, sizes, networks.

`python -m benchmarks.pppml STUDY --seeds 1 2 3 4 5 --out FILE.csv` plays the systems themselves,
without protection and without a run folder, and keeps one row per seed, setting, arm and site; an
arm that is there is not played again, and one whose rows are taken out is. Studies: tune (rates, on
validation images alone), strength, sites, sizes, networks, makers, orders. `--table FILE.csv`
prints Markdown.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.pppml_arms import (
    ARMS,
    FEDAVG,
    PPPML,
    Setting,
    config_of,
    federation_of,
    played,
    rows_of,
)
from benchmarks.pppml_sites import STRENGTHS
from benchmarks.systems import half_interval
from secure_natfl.evaluation import probabilities, quick_dice, site_test

TUNING_SEED: Final = 0


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
        "orders": [Setting(strength=1.0, order="hessian-free")],
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
    """Add the arms that `out` lacks."""
    rows = read(out) if out.exists() else []
    done = {(*_key(row), row["arm"]) for row in rows}
    for seed, setting in itertools.product(seeds, settings_of(study)):
        key = _key({"seed": seed, **vars(setting)})
        if missing := [arm for arm in ARMS if (*key, arm) not in done]:
            rows += rows_of(setting, seed, root, missing)
            keep(rows, out)


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; a column of `Setting` that it lacks has its default."""
    defaults = {name: str(value) for name, value in vars(Setting()).items()}
    with path.open(newline="") as file:
        return [{"seed": row["seed"]} | defaults | row for row in csv.DictReader(file)]


def keep(rows: list[dict[str, Any]], out: Path) -> None:
    """Write all rows, whole or not at all."""
    part = out.with_name(f"{out.name}.part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    part.replace(out)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("seed", *vars(Setting())))


def table(path: Path) -> str:
    """Mean Dice of each arm over seeds, and PPPML-HMI less the two FedAvg arms with 95 % t."""
    rows = read(path)
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
    off = [100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs]
    if not off:
        return "not played"
    mean = statistics.mean(off)
    if len(off) < 2:
        return f"{mean:+.1f}"
    half = half_interval(off)
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
