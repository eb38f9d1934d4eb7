"""The laboratory of collusion: rounds of a fresh federation with the run's mode and weights.

Implements `attacks.key_rows.CoalitionLab`. Members pool what the wire showed them and what a client
keeps after a round, the integers that it sent; keys of an attempt are gone by then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from attacks.key_rows import Integers
from attacks.pooling import Memory, Pool, Round
from protocols.chain import SigningKey, digest
from protocols.envelope import identity
from protocols.mechanisms import Released
from protocols.messages import Floors, Group, Mode, RoundPlan
from protocols.parties import Client, Server
from protocols.policy import SERVER, Enrolment, holder_name
from protocols.secagg.topology import draft
from protocols.slots import SLOTS18_140
from protocols.transcript import NETWORK, Transcript
from protocols.transport import Wire
from secure_natfl.custody import Custody
from secure_natfl.leakage.releases import SESSION, Releases

_SIZE: Final = 64


@dataclass(frozen=True)
class RunCoalitions:
    """Groups with the run's weights. colluders: clients that its noise plan counts on at most."""

    mode: Mode
    preset: str
    alphas: tuple[int, ...]
    colluders: int
    releases: Releases

    def coalitions(
        self, arm: str, count: int, random: np.random.Generator
    ) -> Iterator[tuple[Pool, str, Integers]]:
        """`all but one`: all other clients. protected: server, wire, and the colluders counted on.

        Every coalition of the kind is tried on every client outside it, in one federation after
        another.
        """
        size = len(self.alphas) - 1 if arm == "all but one" else self.colluders
        left = count
        while left > 0:
            with TemporaryDirectory() as folder, closing(_Federation(self, Path(folder))) as played:
                now, values = played.round(random)
                for members in combinations(values, size):
                    pool = Pool(now, {SERVER, NETWORK, *members, *map(holder_name, members)})
                    for target in (name for name in values if name not in members):
                        if left > 0:
                            yield pool, target, values[target]
                        left -= 1


class _Federation:
    """Parties of a mode in a folder of their own, with real keys and messages."""

    def __init__(self, lab: RunCoalitions, folder: Path) -> None:
        self.lab = lab
        names = [f"site-{at}" for at in range(len(lab.alphas))]
        server = SigningKey.generate(os.urandom)
        keys = {name: SigningKey.generate(os.urandom) for name in names}
        self._custody = Custody(lab.mode, server, keys, folder / "sites", folder)
        self._enrolment = Enrolment(
            session=SESSION,
            mode=lab.mode,
            server=server.public.hex(),
            clients={name: key.public.hex() for name, key in keys.items()},
            holders=self._custody.holders,
            threshold=self._custody.threshold,
            malicious=self._custody.malicious,
            preset=lab.preset,
            proxies=digest(b"proxies"),
            terms=digest(b"terms"),
            floors=Floors(),
        )
        self._group = Group(name="all", participants=tuple(names), alphas=lab.alphas)
        self._transcript = Transcript(folder / "transcript")
        self._sent: dict[str, Released] = {}
        clients = {
            name: Client(name, key, self._enrolment, partial(self._release, name))
            for name, key in keys.items()
        }
        wire = Wire(self._transcript)
        self._topology = self._custody.assemble(Server(server, self._enrolment), clients, wire)

    def round(self, random: np.random.Generator) -> tuple[Round, dict[str, Integers]]:
        """Play the one round; what was seen and kept, and what each client sent."""
        size = 2 * SLOTS18_140.slots if self.lab.mode == "slots/shared" else _SIZE
        drawn = [self.lab.releases.draw(size, 1, random)[0] for _ in self._group.participants]
        self._sent = dict(zip(self._group.participants, drawn, strict=True))
        plan = draft(
            self._enrolment,
            self._transcript,
            round_number=0,
            groups=[self._group],
            layout=digest(b"layout"),
            size=size,
            subset=[0],
        )
        self._topology.play(plan)
        ((plan, blob),) = self._transcript.recall(RoundPlan, 0)
        values = {name: one.values for name, one in self._sent.items()}
        memories = {name: Memory(integers=integers) for name, integers in values.items()}
        kept = Round(self._enrolment, plan, identity(blob), self._group, self._transcript, memories)
        return kept, values

    def close(self) -> None:
        """End the key holders and close every file."""
        self._custody.close()
        self._transcript.close()

    def _release(self, name: str, plan: RoundPlan) -> Released:
        del plan
        return self._sent[name]
