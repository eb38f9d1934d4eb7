"""What protection costs one client in one round: clip, charge, noise, encrypt, add, open.

`python -m benchmarks.protection --json` prints nothing else on standard output. Every party is
real: ledgers on disk, the clients as key holders with their journals. Figures are
medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from protocols.chain import SigningKey, canonical, digest
from protocols.ledger import Ledger, ReleaseKey
from protocols.mechanisms import Released, ShardTeachers
from protocols.messages import Group, RoundPlan
from protocols.multikey import MK18_39
from protocols.noise_plan import NoisePlan
from protocols.outcome import Outcome
from protocols.parties import Client, Server
from protocols.policy import Enrolment, holder_name, threshold_of
from protocols.quantize import Layout, Segment
from protocols.secagg import Threshold, draft
from protocols.share_holder import ShareHolder
from protocols.transcript import Transcript
from protocols.transport import Beside, Wire

CLIENTS, ROWS, CLASSES, SHARDS, ROUNDS = 8, 2000, 14, 40, 7


class Bench:
    """Eight clients with 40 teachers each, ε = 8 over all rounds, one group."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.layout = Layout((Segment("numerators", ROWS, CLASSES),))
        self.names = tuple(f"client-{i}" for i in range(CLIENTS))
        self.plan = NoisePlan.calibrate(
            epsilon=8.0,
            delta=1e-5,
            rounds=ROUNDS,
            alphas=dict.fromkeys(self.names, 1),
            groups=dict.fromkeys(self.names, "all"),
            colluders=2,
            dropouts=0,
            shards=dict.fromkeys(self.names, SHARDS),
            clip_norm=100.0,
            size=self.layout.size,
        )
        self.teachers = np.random.default_rng(0).normal(size=(SHARDS, self.layout.size))
        self.release_seconds: list[float] = []

    def releaser(self, ledger: Ledger, mechanism: ShardTeachers) -> Callable[[RoundPlan], Released]:
        """The client's callback: bound, charge, noise, store."""

        def release(plan: RoundPlan) -> Released:
            start = time.perf_counter()
            bounded = mechanism.bound(self.teachers, self.layout)
            key = ReleaseKey(plan.session, plan.round)
            released = mechanism.release(bounded, ledger, key, os.urandom)
            self.release_seconds.append(time.perf_counter() - start)
            return released

        return release

    def measure(self) -> dict[str, float | int]:
        """Play all rounds; milliseconds and bytes of one client and round."""
        keys = {name: SigningKey.generate(os.urandom) for name in self.names}
        holders = {holder_name(name): SigningKey.generate(os.urandom) for name in self.names}
        server_key, (threshold, malicious) = SigningKey.generate(os.urandom), threshold_of(CLIENTS)
        with Transcript(self.folder / "transcript") as transcript, ExitStack() as opened:
            enrolment = Enrolment(
                session="benchmark",
                mode="ckks/threshold",
                server=server_key.public.hex(),
                holders={name: key.public.hex() for name, key in holders.items()},
                threshold=threshold,
                malicious=malicious,
                clients={name: key.public.hex() for name, key in keys.items()},
                preset=MK18_39.name,
                proxies=digest(b"proxies"),
                terms=digest(canonical({"benchmark": 1})),
            )
            wire = Wire(transcript)
            for name, key in holders.items():
                holder = ShareHolder(self.folder / name, enrolment, name, key)
                opened.callback(holder.close)
                wire.connect(name, Beside(holder.answer))
            clients = {}
            for name in self.names:
                ledger = Ledger(
                    self.folder / f"{name}.db", name, "patients", budget_epsilon=None, delta=1e-5
                )
                opened.callback(ledger.close)
                release = self.releaser(ledger, self.plan.mechanisms[name])
                clients[name] = Client(name, keys[name], enrolment, release)
            topology = Threshold(Server(server_key, enrolment), clients, wire)
            group = Group(name="all", participants=self.names, alphas=(1,) * CLIENTS)
            outcomes = []
            for number in range(ROUNDS):
                subset = np.arange(number * ROWS, (number + 1) * ROWS)
                plan = draft(
                    enrolment,
                    transcript,
                    round_number=number,
                    groups=[group],
                    layout=digest(b"layout"),
                    size=self.layout.size,
                    subset=subset,
                )
                outcomes.append(topology.play(plan))
        return self._figures(outcomes)

    def _figures(self, outcomes: list[Outcome]) -> dict[str, float | int]:
        protect = [s for o in outcomes for s in o.cost.protect.values()]
        release = statistics.median(self.release_seconds)
        upload = max(b for o in outcomes for b in o.cost.upload_bytes.values())
        fp32 = 4 * ROWS * CLASSES
        return {
            "clients": CLIENTS,
            "logits": ROWS * CLASSES,
            "rounds": ROUNDS,
            "release_ms": 1e3 * release,
            "encrypt_and_sign_ms": 1e3 * statistics.median(protect),
            "protection_ms_per_client_round": 1e3 * (release + statistics.median(protect)),
            "server_aggregate_ms": 1e3 * statistics.median(o.cost.aggregate for o in outcomes),
            "open_ms": 1e3 * statistics.median(o.cost.open for o in outcomes),
            "upload_bytes": upload,
            "fp32_bytes": fp32,
            "upload_x_fp32": upload / fp32,
        }


def main() -> None:
    """Print the figures, for a person or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        figures = Bench(Path(folder)).measure()
    if as_json:
        print(json.dumps(figures, indent=2))  # noqa: T201
        return
    for name, value in figures.items():
        print(f"{name:34s} {value:,.2f}")  # noqa: T201


if __name__ == "__main__":
    main()
