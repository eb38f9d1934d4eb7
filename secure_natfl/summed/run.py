"""One run of a system that learns from sums, from a configuration to trained models.

The order of a round: cohort; for each phase contribute → protect and open → absorb; personalise.
Every opened sum and every round is a step on disk, and so is what is about to be sent. A run that
was killed goes on from there: what a site has stored is sent again, and charges nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from protocols.mechanisms import TrainedOutput
from protocols.outcome import Outcome
from secure_natfl.audit.trail import Trail
from secure_natfl.config import Config
from secure_natfl.costs import per_site
from secure_natfl.federation import build
from secure_natfl.progress import Stages
from secure_natfl.protection import Protection, session_of
from secure_natfl.results import SummedResults, account_of, by_message
from secure_natfl.run_folder import RunFolder
from secure_natfl.schedule import Agreed
from secure_natfl.site_state import secret, state_folder
from secure_natfl.summed.arms import train_arms
from secure_natfl.summed.contributions import beyond_clip, check_contribution
from secure_natfl.summed.evaluation import curve
from secure_natfl.summed.state import (
    CENTRAL,
    forget_sent,
    keep_sent,
    keep_state,
    last_sent,
    next_sent,
    notes_of,
    sent_of,
    take_up,
)
from secure_natfl.summed.terms import agree_sums
from secure_natfl.systems.summed import Phase, Rows, Summed, Vector, make_system

_LAST_INDEX = 2**32 - 1


class SummedRun:
    """All parties of one run in one process, the decryptor apart."""

    def __init__(self, config: Config, folder: RunFolder, console: Console) -> None:
        self.config, self.folder, self.seeds = config, folder, folder.seeds
        self.console, self.stages = console, Stages(console)
        self.started = time.perf_counter()
        self._behind: Path | None = None
        if config.speed.threads:
            torch.set_num_threads(config.speed.threads)

    def play(self) -> SummedResults:
        """All rounds, then the baselines."""
        config = self.config
        sites = state_folder(config, self.folder.path)
        with self.stages.stage("Load and check images"):
            federation = build(config, lambda name: secret(sites / name, "identity", os.urandom))
        with self.stages.stage("Make the networks"):
            system = make_system(config, federation, self.seeds)
        self.federation, self.system = federation, system
        schedule = agree_sums(config, federation, system)
        first = schedule.agreed[0]
        session = session_of(config, federation, self.folder.nonce)
        with (
            Protection(
                config,
                federation,
                first.terms,
                first.layout,
                session,
                self.folder.path,
                self.seeds,
                schedule,
            ) as protection,
            Trail(config, self.folder.path, protection.enrolment) as trail,
        ):
            self.protection, self.trail = protection, trail
            rounds = [self._round(number) for number in range(config.system.rounds)]
            accounts = {site.name: account_of(protection, site.name) for site in federation.sites}
            kinds, enrolment = by_message(protection.transcript), protection.enrolment
        self._catch_up()
        arms = {}
        if config.run.baselines:
            arms = train_arms(config, federation, self.folder, self.stages)
        return SummedResults(
            federation=federation,
            terms=first.terms,
            rounds=rounds,
            accounts=accounts,
            messages=kinds,
            holders=enrolment.holder_order,
            threshold=enrolment.threshold,
            folder=self.folder.path,
            stages=self.stages,
            started=self.started,
            seeds=self.seeds,
            system=system,
            schedule=schedule,
            arms=arms,
        )

    def _catch_up(self) -> None:
        """Take up the latest state on disk, where this process has not made it itself."""
        if self._behind is not None:
            take_up(self.system, self._behind)
            self._behind = None

    def _round(self, number: int) -> dict[str, Any]:
        """Play round `number`, or take its result from disk."""
        name = f"round-{number:03d}"
        phases = self.system.phases(number)
        openings = [number * len(phases) + at for at in range(len(phases))]
        opened = [
            self._phase(opening, number, phase)
            for opening, phase in zip(openings, phases, strict=True)
        ]
        if self.folder.done(name):
            self._behind = self.folder.intact(name)
            return notes_of(self._behind)
        self._catch_up()
        losses = self._personalise(number)
        summary = _joined(opened) | {
            "losses": losses,
            "cohort": list(self.system.cohort(number)),
            **curve(self.federation, self.system),
        }
        self.folder.finish(name, lambda part: keep_state(self.system, part, summary))
        for opening in openings:
            forget_sent(self.folder, opening)
        return summary

    def _phase(self, opening: int, number: int, phase: Phase) -> dict[str, Any]:
        """One opened sum, or what is on disk of it."""
        name = f"opening-{opening:03d}"
        if self.folder.done(name):
            self._behind = self.folder.intact(name)
            self.trail.taken_up(opening, self._behind / CENTRAL)
            return notes_of(self._behind)
        agreed = self.protection.schedule.at(opening)
        rows = self._asked(opening, number, phase.name)
        self._catch_up()
        self.trail.planned(opening, len(rows), self.protection)
        vectors, clipped = self._contributions(opening, number, agreed)
        with self.stages.stage("Protect, add and open", f"round {number + 1}, {phase.name}"):
            spent = dict(self.protection.spending.seconds)
            sent = len(self.protection.transcript.entries)
            outcome, sums = self.protection.play(
                opening, rows, {site: vector[None] for site, vector in vectors.items()}
            )
            self.trail.opened(opening, outcome, self.protection)
        opened = self._read(agreed, outcome, sums)
        with self.stages.stage("Take up the sums", f"round {number + 1}, {phase.name}"):
            self.system.absorb(opened, number, phase.name)
        traffic = per_site(self.protection.transcript.entries[sent:], self.protection.ledgers)
        notes = {
            "aggregate_sha256": [a.sha256 for a in outcome.aggregates.values()],
            "absent": dict(outcome.absent),
            "traffic": {site: list(bytes_) for site, bytes_ in traffic.items()},
            "signal_to_noise": min((_ratio(one) for one in opened.values()), default=0.0),
            "protection": {
                step: seconds - spent.get(step, 0.0)
                for step, seconds in self.protection.spending.seconds.items()
            },
            "values": int(agreed.layout.size),
            "clipped": clipped,
        }
        self.folder.finish(name, lambda part: keep_state(self.system, part, notes))
        self.trail.learned(opening, self.folder.step(name) / CENTRAL)
        return notes

    def _asked(self, opening: int, number: int, phase: str) -> Rows:
        """The images asked; where there are none, a number from the end that no image has."""
        rows = self.system.asked(number, phase)
        if len(rows):
            return rows
        return np.array([_LAST_INDEX - opening], dtype=np.int64)

    def _contributions(
        self, opening: int, number: int, agreed: Agreed
    ) -> tuple[dict[str, Vector], int]:
        """Every vector of the cohort that is still to be released, and how many were clipped."""
        cohort = [self._site(name) for name in self.protection.schedule.cohort(opening)]
        before = last_sent(self.folder, opening)
        vectors: dict[str, Vector] = {}
        if before is not None:
            step = self.folder.intact(before)
            take_up(self.system, step)
            vectors = sent_of(step)
        due = [site for site in cohort if not self.protection.stored(site.name, opening)]
        # A training under noise that died before it was stored begins again, on fresh noise.
        again = [
            site
            for site in due
            if site.name not in vectors or isinstance(agreed.mechanism(site.name), TrainedOutput)
        ]
        if again:
            stage = self.stages.stage("Train at the sites", f"round {number + 1}, {agreed.name}")
            with stage as progress:
                for i, site in enumerate(again):
                    vectors[site.name] = self._contribute(site, opening, number, agreed)
                    progress(i + 1, len(again))
            step_name = next_sent(self.folder, opening)
            self.folder.finish(step_name, lambda part: keep_sent(self.system, part, vectors))
        clipped = sum(self._clipped(site.name, vectors[site.name], agreed) for site in due)
        return {site.name: vectors[site.name] for site in due}, clipped

    def _contribute(self, site: Any, opening: int, number: int, agreed: Agreed) -> Vector:
        """One site's vector, checked before anything of the round is charged or sent."""
        trained = isinstance(agreed.mechanism(site.name), TrainedOutput)
        begin = self.protection.begin(site.name, opening) if trained else None
        vector = np.asarray(
            self.system.contribute(site, number, agreed.name, begin), dtype=np.float64
        )
        check_contribution(vector, agreed, site.name, number)
        return vector

    def _clipped(self, site: str, vector: Vector, agreed: Agreed) -> bool:
        """Whether the clip shortens a vector; said in the log, where it would surprise."""
        said = beyond_clip(vector, agreed, site)
        if said:
            self.console.print(f"         {said}", highlight=False)
        return bool(said)

    def _read(self, agreed: Agreed, outcome: Outcome, sums: dict[str, Vector]) -> dict[str, Summed]:
        """Group → the opened sum with what it is a sum of."""
        inside = {group: found.participants for group, found in outcome.aggregates.items()}
        terms = agreed.terms.among(inside)
        return {
            group: Summed(
                values=sums[group],
                weight=float(sum(terms.alphas[site] for site in sites)),
                participants=tuple(sites),
                noise=terms.noise[group],
            )
            for group, sites in inside.items()
        }

    def _personalise(self, number: int) -> dict[str, float]:
        losses = {}
        with self.stages.stage("Personalise", f"round {number + 1}") as progress:
            for i, site in enumerate(self.federation.sites):
                loss = self.system.personalise(site, number)
                if loss is not None:
                    losses[site.name] = float(loss)
                progress(i + 1, len(self.federation.sites))
        return losses

    def _site(self, name: str) -> Any:
        return next(site for site in self.federation.sites if site.name == name)


def _ratio(opened: Summed) -> float:
    """Root mean square of the signal over that of the noise; infinite without noise."""
    if not opened.noise:
        return float("inf")
    energy = float(np.mean(np.square(opened.values)))
    return float(np.sqrt(max(energy / opened.noise**2 - 1, 0.0)))


def _joined(opened: list[dict[str, Any]]) -> dict[str, Any]:
    """A round's figures from those of its phases."""
    sites = {site for one in opened for site in one["traffic"]}
    up, down = (
        max(sum(one["traffic"].get(site, [0, 0])[way] for one in opened) for site in sites)
        for way in (0, 1)
    )
    steps = {step for one in opened for step in one["protection"]}
    return {
        "aggregate_sha256": [digest for one in opened for digest in one["aggregate_sha256"]],
        "absent": {party: why for one in opened for party, why in one["absent"].items()},
        "upload_bytes": up,
        "download_bytes": down,
        "signal_to_noise": min(one["signal_to_noise"] for one in opened),
        "protection": {s: sum(one["protection"].get(s, 0.0) for one in opened) for s in steps},
        "values": sum(one["values"] for one in opened),
        "clipped": sum(one["clipped"] for one in opened),
    }
