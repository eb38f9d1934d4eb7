"""One run, from a configuration to trained models; every step can be taken up again.

The order is that of a round: contribute → protect and open → absorb → personalise. A finished
round, and every finished baseline, is a step on disk. What a killed run had released stays in the
sites' ledgers, so that taking it up again sends the same integers and charges nothing.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from secure_natfl.arms import train_arms
from secure_natfl.audit.trail import Trail
from secure_natfl.config import Config
from secure_natfl.costs import per_site
from secure_natfl.evaluation import hospital_tests, predict, quick_auroc, site_test
from secure_natfl.federation import Federation, build
from secure_natfl.fine_tuning import fresh
from secure_natfl.models import Network
from secure_natfl.progress import Stages
from secure_natfl.protection import Protection, session_of
from secure_natfl.results import Results, State, account_of, by_message, head_of
from secure_natfl.run_folder import (
    RunFolder,
    load_arrays,
    load_network,
    save_arrays,
    save_network,
)
from secure_natfl.setup import check_architectures, public_networks, speaking_inputs
from secure_natfl.site_state import secret, state_folder
from secure_natfl.systems.natimg_fl import NatImgFL, Released, Rows
from secure_natfl.systems.speaking import Speaking
from secure_natfl.terms import agree


class Run:
    """All parties of one run in one process, the decryptor apart."""

    def __init__(self, config: Config, folder: RunFolder, console: Console) -> None:
        self.config, self.folder, self.seeds = config, folder, folder.seeds
        self.stages = Stages(console)
        self.started = time.perf_counter()
        if config.speed.threads:
            torch.set_num_threads(config.speed.threads)

    def play(self) -> Results:
        """All rounds, then the baselines."""
        config = self.config
        check_architectures(config)
        sites = state_folder(config, self.folder.path)
        with self.stages.stage("Load and check images"):
            federation = self._federation(sites)
        system = NatImgFL(config, federation, self.seeds)
        layout = system.layout(config.proxies.per_round)
        groups = {site.name: system.group_of(site) for site in federation.sites}
        terms = agree(config, federation, layout, system.weights(), groups)
        networks = self._networks(federation)
        speaking = speaking_inputs(config, federation, networks, sites, self.seeds, self.stages)
        system.recall(next(iter(speaking.values())).backbone)
        state = self._start(system, networks)
        session = session_of(config, federation, self.folder.nonce)
        with (
            Protection(
                config, federation, terms, layout, session, self.folder.path, self.seeds
            ) as protection,
            Trail(config, self.folder.path, protection.enrolment) as trail,
        ):
            rounds = [
                self._round(number, system, speaking, state, protection, trail)
                for number in range(config.system.rounds)
            ]
            accounts = {name: account_of(protection, name) for name in groups}
            kinds, enrolment = by_message(protection.transcript), protection.enrolment
        arms = {}
        if config.run.baselines:
            asked = np.concatenate([self._asked(r, system) for r in range(config.system.rounds)])
            arms = train_arms(
                config, system, terms, speaking, networks, asked, self.folder, self.stages
            )
        return Results(
            federation=federation,
            system=system,
            terms=terms,
            state=state,
            arms=arms,
            rounds=rounds,
            networks=networks,
            accounts=accounts,
            messages=kinds,
            holders=enrolment.holder_order,
            threshold=enrolment.threshold,
            folder=self.folder.path,
            stages=self.stages,
            started=self.started,
            seeds=self.seeds,
        )

    def _federation(self, sites: Path) -> Federation:
        return build(self.config, lambda name: secret(sites / name, "identity", os.urandom))

    def _networks(self, federation: Federation) -> dict[str, Network]:
        return public_networks(self.config, federation, self.stages)

    def _start(self, system: NatImgFL, networks: dict[str, Network]) -> State:
        classes = len(system.federation.task.classes)
        central = fresh(
            networks[self.config.models.central],
            classes,
            self.seeds.torch("central"),
            len(system.heads),
        )
        personal = {
            site.name: fresh(
                networks[site.architecture], classes, self.seeds.torch("personal", site.name)
            )
            for site in system.federation.sites
        }
        return State(central, personal)

    def _asked(self, number: int, system: NatImgFL) -> Rows:
        """The proxies of a round: no image is asked in two rounds."""
        count = self.config.proxies.per_round
        order = np.random.default_rng(self.seeds.integer("proxies")).permutation(
            len(system.federation.natural_records)
        )
        return np.sort(order[number * count : (number + 1) * count]).astype(np.int64)

    def _round(
        self,
        number: int,
        system: NatImgFL,
        speaking: dict[str, Speaking],
        state: State,
        protection: Protection,
        trail: Trail,
    ) -> dict[str, Any]:
        """Play round `number`, or take its result from disk."""
        name = f"round-{number:03d}"
        model = self.folder.step(name) / "central.safetensors"
        if self.folder.done(name):
            step = self.folder.intact(name)
            trail.taken_up(number, model)
            return self._restore(
                step,
                system,
                state,
                last=not self.folder.done(f"round-{number + 1:03d}"),
            )
        rows = self._asked(number, system)
        trail.planned(number, len(rows), protection)
        contributions = self._contribute(number, system, speaking, state, rows, protection)
        with self.stages.stage("Protect, add and open", f"round {number + 1}"):
            before, sent = dict(protection.spending.seconds), len(protection.transcript.entries)
            outcome, sums = protection.play(number, rows, contributions)
            trail.opened(number, outcome, protection)
        counted = protection.terms.among(
            {group: found.participants for group, found in outcome.aggregates.items()}
        )
        found = system.read(rows, sums, counted.teachers, counted.noise)
        traffic = per_site(protection.transcript.entries[sent:], protection.ledgers)
        state.released = found if state.released is None else state.released.followed_by(found)
        losses = self._learn(number, system, state)
        summary = {
            "aggregate_sha256": [a.sha256 for a in outcome.aggregates.values()],
            "absent": dict(outcome.absent),
            "upload_bytes": max(up for up, _ in traffic.values()),
            "download_bytes": max(down for _, down in traffic.values()),
            "signal_to_noise": min(found.signal_to_noise.values()),
            "protection": {
                step: seconds - before.get(step, 0.0)
                for step, seconds in protection.spending.seconds.items()
            },
            "losses": losses,
            "auroc": self._curve(system, state),
            "values": int(protection.layout.size),
        }
        self.folder.finish(name, lambda part: _keep(part, state, found, summary))
        trail.learned(number, model)
        return summary

    def _contribute(
        self,
        number: int,
        system: NatImgFL,
        speaking: dict[str, Speaking],
        state: State,
        rows: Rows,
        protection: Protection,
    ) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        contributions = {}
        with self.stages.stage("Train what speaks", f"round {number + 1}") as progress:
            for i, site in enumerate(system.federation.sites):
                if protection.stored(site.name, number):
                    continue
                returned = None
                if state.released is not None:
                    returned = system.returned(
                        state.central, state.released.rows, system.group_of(site)
                    )
                begin = protection.begin(site.name, number)
                contributions[site.name] = system.contribute(
                    speaking[site.name], rows, number, returned, begin
                )
                progress(i + 1, len(system.federation.sites))
        return contributions

    def _learn(self, number: int, system: NatImgFL, state: State) -> dict[str, float]:
        """The central model absorbs what was released; every site personalises."""
        if state.released is None:
            return {}
        losses: dict[str, float] = {}
        with self.stages.stage("Distil central model", f"round {number + 1}") as progress:
            losses["central"] = system.absorb(state.central, state.released, number, progress)
        return losses | self._personalise(number, system, state, state.released)

    def _personalise(
        self, number: int, system: NatImgFL, state: State, released: Released
    ) -> dict[str, float]:
        """Every site's own model takes up what came back."""
        losses = {}
        with self.stages.stage("Personalise", f"round {number + 1}") as progress:
            sites = system.federation.sites
            for i, site in enumerate(sites):
                returned = system.returned(state.central, released.rows, system.group_of(site))
                losses[site.name] = system.personalise(
                    state.personal[site.name], site, state.central, returned, number
                )
                progress(i + 1, len(sites))
        return losses

    def _answering(self, system: NatImgFL, state: State) -> dict[str, Network]:
        """What every site answers its own patients' images with."""
        return {
            site.name: system.answering(state.personal[site.name], site, state.central)
            for site in system.federation.sites
        }

    def _curve(self, system: NatImgFL, state: State) -> dict[str, dict[str, float | None]]:
        """AUROC per arm and hospital after this round."""
        state.answering = self._answering(system, state)
        found: dict[str, dict[str, float | None]] = {"central": {}, "personalised": {}}
        for hospital, part in hospital_tests(system.federation).items():
            found["central"][hospital] = quick_auroc(
                [predict(state.central, part, head_of(system, hospital))], part
            )
            found["personalised"][hospital] = quick_auroc(
                [
                    predict(state.answering[site.name], part)
                    for site in system.federation.hospitals[hospital]
                ],
                part,
            )
        for site in system.federation.sites:
            part = site_test(site)
            found[f"central at {site.name}"] = {
                site.name: quick_auroc(
                    [predict(state.central, part, head_of(system, site.hospital))], part
                )
            }
            found[f"personalised at {site.name}"] = {
                site.name: quick_auroc([predict(state.answering[site.name], part)], part)
            }
        return found

    def _restore(self, step: Path, system: NatImgFL, state: State, *, last: bool) -> dict[str, Any]:
        arrays = load_arrays(step / "released.npz")
        groups = sorted({name.partition(":")[2] for name in arrays if ":" in name})
        found = Released(
            arrays["rows"],
            {g: torch.from_numpy(arrays[f"logits:{g}"]) for g in groups},
            {g: torch.from_numpy(arrays[f"trust:{g}"]) for g in groups},
            {g: float(arrays[f"ratio:{g}"]) for g in groups},
        )
        state.released = found if state.released is None else state.released.followed_by(found)
        if last:
            load_network(state.central, step / "central.safetensors")
            for name, network in state.personal.items():
                load_network(network, step / f"personal-{name}.safetensors")
            state.answering = self._answering(system, state)
        summary: dict[str, Any] = json.loads((step / "summary.json").read_text())
        return summary


def _keep(part: Path, state: State, found: Released, summary: dict[str, Any]) -> None:
    save_network(state.central, part / "central.safetensors")
    for name, network in state.personal.items():
        save_network(network, part / f"personal-{name}.safetensors")
    arrays: dict[str, Any] = {"rows": found.rows}
    for group in found.logits:
        arrays[f"logits:{group}"] = found.logits[group]
        arrays[f"trust:{group}"] = found.trust[group]
        arrays[f"ratio:{group}"] = np.array(found.signal_to_noise[group])
    save_arrays(part / "released.npz", **arrays)
    (part / "summary.json").write_text(json.dumps(summary, indent=2))
