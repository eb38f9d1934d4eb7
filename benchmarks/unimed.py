"""UniMed on eight domains: is the encoder that all made better than masked images alone?

`python -m benchmarks.unimed --data PATH --out FILE` plays every arm for each seed and appends one
line of JSON per score, so that what a stop leaves can be gone on with. `--tune` chooses the rates
on a validation cut of half of the domains' training parts, on a seed that is never reported, with
the same budget for every arm. `--table FILE` prints the results page's tables.

Sums are plain here: protection is measured by `natfl run unimed-domains`. All arms end with the
same evaluation, at every site on its own test part: a linear probe, then the same fine-tuning.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from secure_natfl.config import Config
from secure_natfl.data.splits import split
from secure_natfl.evaluation import probabilities, quick_auroc, quick_dice, site_test
from secure_natfl.federation import Site, build, examples
from secure_natfl.methods.masked_images import MaskedAutoencoder, masked_start
from secure_natfl.methods.public_pool import public_pool
from secure_natfl.methods.task_network import TaskNetwork, over, probe_head, tune
from secure_natfl.seeds import Seeds
from secure_natfl.system_tables import UniMed as Table
from secure_natfl.systems.summed import Summed
from secure_natfl.systems.unimed import UniMed
from secure_natfl.toml_config import load
from secure_natfl.training import Schedule

TUNING_SEED = 100
TUNED_ON = ("guangzhou", "brainmri", "rbc", "covid-cxr")
RATES = (5e-4, 1e-3, 2e-3)
TRIED = (
    ("UniMed", True, {"learning_rate": 1e-3}),
    ("UniMed", True, {"learning_rate": 2e-3}),
    ("FedAvg, no MIM", False, {"learning_rate": 5e-4}),
    ("FedAvg, no MIM", False, {"learning_rate": 1e-3}),
    ("FedAvg, no MIM", False, {"learning_rate": 2e-3}),
)
"""Arm, whether it starts from masked images, and what is tried.

UniMed's third trial, masked images of the sites' own beside their labels, was no better and is no
option of the system.
"""
FEDAVG_RATE = 5e-4
"""The best of the three; of the other arms it is the preset's."""
START = 2026
"""Seed of the masked pre-training, the same for all: it is public, and made once."""

Score = dict[str, Any]


class Study:
    """One seed's federation: other splits, other training images, other order of batches."""

    def __init__(self, data: str, seed: int, images: int, *, validate: bool = False) -> None:
        settings = [f'data.root="{data}"', "run.seed=0", f"data.split_seed={seed}"]
        self.config: Config = load("unimed-domains", settings)
        self.table, self.seed = Table.model_validate(self.config.system), seed
        whole = build(self.config, lambda hospital: hospital.encode().ljust(32, b"k"))
        sites = [cut_again(site, self.config) if validate else site for site in whole.sites]
        self.federation = replace(
            whole, sites=tuple(fewer(site, images, seed, self.config) for site in sites)
        )
        self.pool = public_pool(whole, self.table.pool, data, self.config.data.size)

    def start(self, epochs: int) -> MaskedAutoencoder:
        """Masked images alone (E₀), or the network as it was drawn."""
        return masked_start(
            self.config.models.central,
            self.pool,
            mask=self.table.mask,
            epochs=epochs,
            batch=self.config.models.batch,
            seed=START,
        )

    def learnt(self, epochs: int, without: str = "", **changes: Any) -> MaskedAutoencoder:
        """The encoder after all stages, from E₀ (`epochs` of masked images) or from nothing."""
        joins = {without: 0} if without else {}
        options = self.table.model_copy(update={"joins": joins, **changes})
        config = self.config.model_copy(update={"system": options})
        seeds = Seeds.of_study(self.seed)
        system = UniMed(config, options, self.federation, seeds, self.start(epochs), self.pool)
        for stage in range(options.rounds):
            play(system, stage)
        return system.shared

    def scores(self, arm: str, shared: MaskedAutoencoder, epochs: int = 0) -> Iterator[Score]:
        """Probe and fine-tuning of an encoder at every site."""
        for site in self.federation.sites:
            yield from self.scores_at(arm, site, shared, epochs)

    def scores_at(
        self, arm: str, site: Site, shared: MaskedAutoencoder, epochs: int = 0, rate: float = 0.0
    ) -> Iterator[Score]:
        """The same at one site; `epochs` of fine-tuning other than the preset's."""
        network = over(shared.encoder, site.train)
        probe_head(network, site.train)
        yield self._score(arm, site, "probe", network)
        schedule = Schedule(
            epochs or self.table.tune_epochs,
            max(2, self.config.models.batch // 2),
            rate or self.table.tune_rate,
        )
        generator = Seeds.of_study(self.seed).torch("own", site.name)
        tune(network, site.train, schedule, generator)
        yield self._score(arm, site, "tuned", network)

    def _score(self, arm: str, site: Site, how: str, network: TaskNetwork) -> Score:
        part = site_test(site)
        found = [probabilities(network, part)]
        score = quick_dice(found, part) if site.train.form == "mask" else quick_auroc(found, part)
        return {"seed": self.seed, "arm": arm, "site": site.name, "how": how, "score": score}


def play(system: UniMed, stage: int) -> None:
    """One stage with plain sums."""
    (phase,), sites = system.phases(stage), {s.name: s for s in system.federation.sites}
    alphas, cohort = system.weights(), system.cohort(stage)
    total = sum(
        alphas[name] * system.contribute(sites[name], stage, phase.name, None) for name in cohort
    )
    weight = float(sum(alphas[name] for name in cohort))
    system.absorb({"all": Summed(np.asarray(total), weight, cohort, 0.0)}, stage, phase.name)


def fewer(site: Site, images: int, seed: int, config: Config) -> Site:
    """A site with at most `images` of its training images."""
    if len(site.train) <= images:
        return site
    rng = np.random.default_rng([seed, *site.name.encode()])
    rows = np.sort(rng.permutation(len(site.train))[:images])
    records = site.records.take(rows)
    return replace(site, records=records, train=examples(records, config.data.size))


def cut_again(site: Site, config: Config) -> Site:
    """A site whose test part is a third of its training part, by patient."""
    train, held = split(site.records, 0.33, TUNING_SEED)
    size = config.data.size
    return replace(
        site,
        records=train,
        train=examples(train, size),
        test=examples(held, size),
        test_patients=held.patients,
    )


def arms(study: Study) -> dict[str, Callable[[], Iterator[Score]]]:
    """Every arm of one seed, the decisive ones first."""
    table, epochs = study.table, study.config.models.pretrain_epochs
    more = table.rounds * table.local_epochs + table.tune_epochs
    return {
        "MIM only": lambda: study.scores("MIM only", study.start(epochs)),
        "UniMed": lambda: study.scores("UniMed", study.learnt(epochs)),
        "FedAvg, no MIM": lambda: study.scores(
            "FedAvg, no MIM", study.learnt(0, learning_rate=FEDAVG_RATE)
        ),
        "UniMed, left out": lambda: left_out(study),
        "UniMed, features": lambda: study.scores(
            "UniMed, features", study.learnt(epochs, merge="feature_distill")
        ),
        "no pre-training": lambda: study.scores("no pre-training", study.start(0)),
        "MIM only, tuned longer": lambda: study.scores(
            "MIM only, tuned longer", study.start(epochs), more
        ),
    }


def left_out(study: Study) -> Iterator[Score]:
    """The encoder of the other seven domains, fine-tuned at the eighth."""
    epochs = study.config.models.pretrain_epochs
    for site in study.federation.sites:
        shared = study.learnt(epochs, without=site.hospital)
        yield from study.scores_at("UniMed, left out", site, shared)


def tuning(study: Study) -> Iterator[Score]:
    """Three settings for each: of the fine-tuning by masked images alone, then of the stages."""
    epochs = study.config.models.pretrain_epochs
    sites = [site for site in study.federation.sites if site.name in TUNED_ON]
    for rate in RATES:
        for site in sites:
            yield from study.scores_at(f"MIM only, {rate}", site, study.start(epochs), rate=rate)
    for arm, masked, changes in TRIED:
        shared = study.learnt(epochs if masked else 0, **changes)
        for site in sites:
            yield from study.scores_at(f"{arm}, {changes}", site, shared)


def say(line: str) -> None:
    """One line for a person."""
    sys.stdout.write(f"{line}\n")


def table(file: Path) -> None:
    """Means over seeds per domain, and paired tests over the domains' means of shared seeds."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    sites = list(dict.fromkeys(line["site"] for line in lines))
    for how in ("probe", "tuned"):
        say(f"\n| {how} (seeds) | {' | '.join(sites)} | mean |\n|{'---|' * (len(sites) + 2)}")
        found: dict[tuple[str, int], dict[str, float]] = {}
        for one in (line for line in lines if line["how"] == how):
            found.setdefault((one["arm"], one["seed"]), {})[one["site"]] = one["score"]
        whole: dict[str, dict[int, list[float]]] = {}
        for (arm, seed), scores in found.items():
            if len(scores) == len(sites):
                whole.setdefault(arm, {})[seed] = [scores[site] for site in sites]
        for arm, seeds in whole.items():
            rows = np.array(list(seeds.values()))
            apart = rows.std(0, ddof=min(1, len(rows) - 1))
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(rows.mean(0), apart, strict=True)]
            say(f"| {arm} ({len(rows)}) | {' | '.join(cells)} | {rows.mean():.3f} |")
        for arm, other in PAIRS:
            if shared := sorted(whole.get(arm, {}).keys() & whole.get(other, {}).keys()):
                gains = [np.subtract(whole[arm][s], whole[other][s]) for s in shared]
                say(compared(arm, other, np.mean(gains, axis=0)))


PAIRS = (
    ("UniMed", "MIM only"),
    ("UniMed", "MIM only, tuned longer"),
    ("UniMed", "FedAvg, no MIM"),
    ("UniMed, features", "MIM only"),
    ("UniMed, left out", "MIM only"),
)


def compared(arm: str, other: str, gain: Any) -> str:
    """Wilcoxon's signed-rank test over the domains' means, two-sided and exact."""
    p = stats.wilcoxon(gain, method="exact").pvalue
    half = stats.t.ppf(0.975, len(gain) - 1) * stats.sem(gain)
    above = f"{int((gain > 0).sum())} of {len(gain)} domains"
    return f"{arm} − {other}: {gain.mean():+.4f} ± {half:.4f}, {above}, p = {p:.4f}"


def main() -> None:
    """Append what is missing in the file; the same command goes on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=".")
    parser.add_argument("--out", type=Path, default=Path("unimed.jsonl"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--arms", nargs="*", default=[])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table:
        table(options.table)
        return
    seeds = [TUNING_SEED] if options.tune else options.seeds
    for seed in seeds:
        study = Study(options.data, seed, options.images, validate=options.tune)
        parts = {"tuning": lambda s=study: tuning(s)} if options.tune else arms(study)
        for arm in options.arms or parts:
            if (seed, arm) not in finished(options.out, len(study.federation.sites)):
                append(options.out, parts[arm])


def append(file: Path, arm: Callable[[], Iterator[Score]]) -> None:
    """One line per score, with the processor's seconds since the arm began, its stages included."""
    started = time.process_time()
    with file.open("a") as out:
        for score in arm():
            line = score | {"cpu": round(time.process_time() - started, 1)}
            out.write(json.dumps(line) + "\n")
            out.flush()


def finished(file: Path, sites: int) -> set[tuple[int, str]]:
    """Seed and arm of what is whole in the file: a probe and a fine-tuning at every site."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    found: dict[tuple[int, str], set[str]] = {}
    for line in lines:
        found.setdefault((line["seed"], line["arm"]), set()).add(line["site"] + line["how"])
    return {key for key, scores in found.items() if len(scores) == 2 * sites}


if __name__ == "__main__":
    main()
