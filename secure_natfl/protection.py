"""Between a system's arrays and a released aggregate: mechanisms, ledgers, keys and the topology.

`Protection` is made once per run. It gives each site its mechanism, plays each round through the
chosen topology, and turns the released integers back into numbers. The order inside a site is
fixed: bound, charge, noise, store, encrypt; or, where noise is in the training: charge, train,
store, encrypt. A site that has stored its integers for a round sends those, and does nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from protocols.chain import SigningKey, canonical, digest
from protocols.dp_sgd import Descent
from protocols.errors import ModelError, ProtocolError
from protocols.ledger import Ledger, ReleaseKey
from protocols.mechanisms import FurtherOutput, Paid, Released, TrainedOutput
from protocols.messages import Group, RoundPlan
from protocols.outcome import Outcome
from protocols.parties import Client, Server
from protocols.policy import Enrolment
from protocols.quantize import Layout
from protocols.secagg.topology import Topology, draft
from protocols.transcript import Transcript
from protocols.transport import Wire
from secure_natfl import __version__
from secure_natfl.config import Config
from secure_natfl.custody import Custody
from secure_natfl.federation import Federation
from secure_natfl.kept_heads import KeptHeads
from secure_natfl.schedule import Schedule
from secure_natfl.seeds import Seeds
from secure_natfl.site_state import open_ledger, secret, state_folder
from secure_natfl.systems.private_head import Begin
from secure_natfl.terms import Terms, floors_of

Contributions = Mapping[str, NDArray[np.float64]]


@dataclass
class Spending:
    """Seconds that protection took, by what it did."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, step: str, seconds: float) -> None:
        """Add to one step."""
        self.seconds[step] = self.seconds.get(step, 0.0) + seconds


class Protection:
    """All parties of a run but the models; a context manager that ends the key holders.

    schedule: what the run opens, where that is more than one sum per round with all sites in it;
    `terms` and `layout` are then those of the first phase. A `round_number` is the number of an
    opening everywhere here.
    """

    def __init__(
        self,
        config: Config,
        federation: Federation,
        terms: Terms,
        layout: Layout,
        session: str,
        folder: Path,
        seeds: Seeds,
        schedule: Schedule | None = None,
    ) -> None:
        self.config, self.terms, self.layout, self.session = config, terms, layout, session
        self.schedule = schedule or Schedule.single(terms, layout, config.system.rounds)
        self.spending = Spending()
        self._seeds = seeds
        self._pending: Contributions = {}
        self._paid: dict[tuple[str, ReleaseKey], Paid] = {}
        sites = state_folder(config, folder)
        self._custody: Custody | None = None
        self.ledgers: dict[str, Ledger] = {}
        self.transcript = Transcript(folder / "transcript")
        self.wire = Wire(self.transcript)
        try:
            for site in federation.sites:
                self.ledgers[site.name] = open_ledger(
                    config, sites / site.name, site.name, site.records
                )
            self._require()
            self._topology = self._assemble(federation, sites, folder)
        except BaseException:
            self.close()
            raise

    def play(
        self, round_number: int, rows: NDArray[np.int64], contributions: Contributions
    ) -> tuple[Outcome, dict[str, NDArray[np.float64]]]:
        """One round: every site's teachers [M, size] in, per group the released sum [size] out.

        A site whose integers are stored already needs none.
        """
        self._pending = contributions
        agreed = self.schedule.at(round_number)
        plan = draft(
            self.enrolment,
            self.transcript,
            round_number=round_number,
            groups=self.schedule.groups(round_number),
            layout=digest(canonical(agreed.described)),
            size=agreed.layout.size,
            subset=rows,
        )
        outcome = self._topology.play(plan)
        self._heads.keep()
        for seconds in outcome.cost.protect.values():
            self.spending.add("encrypt and sign", seconds)
        self.spending.add("aggregate", outcome.cost.aggregate)
        self.spending.add("open", outcome.cost.open)
        grid = next(iter(agreed.terms.mechanisms.values())).grid
        return outcome, {
            group: grid.dequantise(found.integers) for group, found in outcome.aggregates.items()
        }

    def stored(self, site: str, round_number: int) -> bool:
        """Whether a site has its integers for a round: they are sent, and nothing is trained."""
        return self.ledgers[site].stored(self._key(round_number)) is not None

    def begin(self, site: str, round_number: int) -> Begin:
        """What charges for a site's training under noise and gives it its steps."""

        def begin(size: int) -> Descent:
            mechanism = self.schedule.at(round_number).mechanism(site)
            if not isinstance(mechanism, TrainedOutput) or mechanism.training.size != size:
                raise ModelError(
                    f"a head of {size} parameters",
                    where=site,
                    why="the terms were agreed on for another one",
                    fix="start a new run for a changed network",
                )
            random = self._seeds.protective(os.urandom, "noise", site, round_number)
            paid = mechanism.begin(self.ledgers[site], self._key(round_number), random)
            self._paid[site, paid.key] = paid
            return paid.descent

        return begin

    def close(self) -> None:
        """End the key holders and close every file."""
        if self._custody is not None:
            self._custody.close()
        for ledger in self.ledgers.values():
            ledger.close()
        self.transcript.close()

    def __enter__(self) -> Protection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _assemble(self, federation: Federation, sites: Path, folder: Path) -> Topology:
        server_key = SigningKey(secret(folder / "server", "signing", os.urandom))
        keys = {
            site.name: SigningKey(secret(sites / site.name, "signing", os.urandom))
            for site in federation.sites
        }
        self._heads = KeptHeads(sites, self.terms.groups.values(), keys, self.ledgers)
        self._heads.check()
        custody = self._custody = Custody(self.config.mode, server_key, keys, sites, folder)
        self.enrolment = Enrolment(
            session=self.session,
            mode=self.config.mode,
            server=server_key.public.hex(),
            clients={name: key.public.hex() for name, key in keys.items()},
            holders=custody.holders,
            threshold=custody.threshold,
            malicious=custody.malicious,
            preset=self.terms.preset,
            proxies=federation.proxy_digest,
            terms=self.schedule.digest,
            floors=floors_of(self.config),
        )
        clients = {
            name: Client(name, key, self.enrolment, self._releaser(name))
            for name, key in keys.items()
        }
        return custody.assemble(Server(server_key, self.enrolment), clients, self.wire)

    def _releaser(self, site: str) -> Callable[[RoundPlan], Released]:
        ledger = self.ledgers[site]

        def release(plan: RoundPlan) -> Released:
            self._check_agreed(plan, site)
            key, agreed = self._key(plan.round), self.schedule.at(plan.round)
            mechanism, layout = agreed.mechanism(site), agreed.layout
            before = mechanism.again(ledger, key, layout)
            if before is not None:
                return before
            outputs = self._pending[site]
            start = time.perf_counter()
            if isinstance(mechanism, TrainedOutput | FurtherOutput):
                if isinstance(mechanism, FurtherOutput):
                    after = self._key(self.schedule.first(plan.round))
                    released = mechanism.release(outputs, layout, ledger, key, after)
                else:
                    released = mechanism.release(outputs, layout, self._training(site, key))
                self.spending.add("quantise and store", time.perf_counter() - start)
                return released
            bounded = mechanism.bound(outputs, layout)
            self.spending.add("quantise and clip", time.perf_counter() - start)
            start = time.perf_counter()
            random = self._seeds.protective(os.urandom, "noise", site, plan.round)
            released = mechanism.release(bounded, ledger, key, random)
            self.spending.add("charge, noise and store", time.perf_counter() - start)
            return released

        return release

    def _training(self, site: str, key: ReleaseKey) -> Paid:
        if (site, key) not in self._paid:
            raise ProtocolError(
                "a plan for a round in which nothing was trained",
                where=f"{site}, round {key.round}",
                fix="play the rounds in their order",
            )
        return self._paid[site, key]

    def _check_agreed(self, plan: RoundPlan, site: str) -> None:
        """At a site, before anything is charged: the plan asks for what was agreed, no more.

        The noise counts on n − d shares of its group at these weights, and on so many rounds; a
        signed plan that asks for others would spend more than the site agreed to.
        """
        known = plan.round in range(self.schedule.openings)
        agreed: list[Group] = self.schedule.groups(plan.round) if known else []
        if not all(group in agreed for group in plan.groups_of(site)):
            raise ProtocolError(
                "the plan's group, weights or round are not those agreed on",
                where=f"{site}, round {plan.round}",
                fix="start a new session to change who takes part, their weights or the rounds",
            )

    def _key(self, round_number: int) -> ReleaseKey:
        return ReleaseKey(self.session, round_number)

    def _require(self) -> None:
        """Every ledger must be able to pay for all rounds before the first is played."""
        for site, ledger in self.ledgers.items():
            mine = {"session": self.session, "patients": ledger.patients}
            charged = {line["round"] for line in ledger.lines() if mine.items() <= line.items()}
            left = len(self.schedule.costly(site) - charged)
            if left:
                ledger.require(self.terms.mechanisms[site].event(), left)


def session_of(config: Config, federation: Federation, nonce: str) -> str:
    """The session's id: configuration, version, proxy set, and a nonce that no other run has."""
    stated = [config.identity, __version__, federation.proxy_digest, nonce]
    return digest(canonical(stated))[:32]
