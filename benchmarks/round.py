"""A whole round beside Flower's and NVFlare's simulators: same model, data, epochs and machine.

`python -m benchmarks.round --json --peers /path/to/python`, where that interpreter has the peers
(`pip install '.[bench]' 'flwr[simulation]'`). All train one epoch at four sites. The peers send
weights in the clear and average them; we release noisy answers under ε = 8, encrypt, add and open
them with every ledger, journal and transcript on disk, then distil the central model. As many
sites train at once as there are cores, with one thread each, here and in the simulators. Seconds
are those of a round in a running federation; the first round counts for nobody.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.ratio import named, ratio, spread
from benchmarks.round_work import BATCH, CLASSES, ROUNDS, SIDE, SITES, Network, train
from protocols.chain import SigningKey, digest
from protocols.ledger import Ledger, ReleaseKey
from protocols.messages import Group, RoundPlan
from protocols.multikey import MK18_39
from protocols.noise_plan import NoisePlan
from protocols.parties import Client, Server
from protocols.policy import Enrolment, holder_name, threshold_of
from protocols.quantize import Layout, Segment
from protocols.release import Released
from protocols.secagg import Threshold, draft
from protocols.share_holder import ShareHolder
from protocols.transcript import Transcript
from protocols.transport import Beside, Wire

PROXIES, SHARDS = 400, 2
REPEATS = 2
NAMES = tuple(f"site-{at}" for at in range(SITES))
PEERS = {"flower_sim": "benchmarks.round_flower", "nvflare_sim": "benchmarks.round_nvflare"}


class Ours:
    """Sites, server and key holders of one session on one disk."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        torch.set_num_threads(1)
        self.layout = Layout((Segment("logits", PROXIES, CLASSES),))
        draw = torch.Generator().manual_seed(99)
        self.proxies = torch.randn(ROUNDS, PROXIES, 1, SIDE, SIDE, generator=draw)
        self.models, self.central = {name: Network() for name in NAMES}, Network()
        self.workers = opened.enter_context(ThreadPoolExecutor(os.cpu_count()))
        self.said: dict[str, np.ndarray] = {}
        self.plan = NoisePlan.calibrate(
            epsilon=8.0,
            delta=1e-5,
            rounds=ROUNDS,
            alphas=dict.fromkeys(NAMES, 1),
            groups=dict.fromkeys(NAMES, "all"),
            colluders=1,
            dropouts=0,
            shards=dict.fromkeys(NAMES, SHARDS),
            clip_norm=60.0,
            size=self.layout.size,
            bits=MK18_39.bits,
        )
        keys = {name: SigningKey.generate(os.urandom) for name in NAMES}
        holders = {holder_name(name): SigningKey.generate(os.urandom) for name in NAMES}
        server_key, (threshold, malicious) = SigningKey.generate(os.urandom), threshold_of(SITES)
        self.enrolment = Enrolment(
            session="benchmark",
            mode="ckks/threshold",
            server=server_key.public.hex(),
            holders={name: key.public.hex() for name, key in holders.items()},
            threshold=threshold,
            malicious=malicious,
            clients={name: key.public.hex() for name, key in keys.items()},
            preset=MK18_39.name,
            proxies=digest(b"proxies"),
            terms=digest(b"terms"),
        )
        self.transcript = opened.enter_context(Transcript(folder / "transcript"))
        wire, clients = Wire(self.transcript), {}
        for name, key in holders.items():
            holder = ShareHolder(folder / name, self.enrolment, name, key)
            opened.callback(holder.close)
            wire.connect(name, Beside(holder.answer))
        for name in NAMES:
            path = folder / f"{name}.db"
            ledger = Ledger(path, name, "patients", budget_epsilon=None, delta=1e-5)
            opened.callback(ledger.close)
            clients[name] = Client(name, keys[name], self.enrolment, self._releaser(name, ledger))
        self.topology = Threshold(Server(server_key, self.enrolment), clients, wire)

    def round(self, number: int) -> None:
        """Train at every site, release, add, open, distil."""
        answers = self.workers.map(self._speak, range(SITES), [number] * SITES)
        self.said = dict(zip(NAMES, answers, strict=True))
        plan = draft(
            self.enrolment,
            self.transcript,
            round_number=number,
            groups=[Group(name="all", participants=NAMES, alphas=(1,) * SITES)],
            layout=digest(b"layout"),
            size=self.layout.size,
            subset=np.arange(number * PROXIES, (number + 1) * PROXIES),
        )
        total = self.topology.play(plan).aggregates["all"].integers
        grid = self.plan.mechanisms[NAMES[0]].grid
        mean = grid.dequantise(total).reshape(PROXIES, CLASSES) / (SITES * SHARDS)
        self._distil(number, torch.from_numpy(mean).float())

    def _speak(self, site: int, number: int) -> np.ndarray:
        """Train a site's model, then ask it about the round's proxies: [PROXIES·CLASSES]."""
        model = self.models[NAMES[site]]
        train(model, site)
        with torch.no_grad():
            said = [model(batch) for batch in self.proxies[number].split(BATCH)]
        return torch.cat(said).double().numpy().ravel()

    def _releaser(self, name: str, ledger: Ledger) -> Callable[[RoundPlan], Released]:
        mechanism = self.plan.mechanisms[name]

        def release(plan: RoundPlan) -> Released:
            bounded = mechanism.bound(np.stack([self.said[name]] * SHARDS), self.layout)
            key = ReleaseKey(plan.session, plan.round)
            return mechanism.release(bounded, ledger, key, os.urandom)

        return release

    def _distil(self, number: int, mean: torch.Tensor) -> None:
        """One epoch of the central model on what came back."""
        optimiser = torch.optim.SGD(self.central.parameters(), lr=0.01)
        for asked, said in zip(self.proxies[number].split(BATCH), mean.split(BATCH), strict=True):
            optimiser.zero_grad()
            nn.functional.mse_loss(self.central(asked), said).backward()
            optimiser.step()


def ours() -> list[float]:
    """Seconds of each round."""
    seconds = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        made = Ours(Path(name), opened)
        for number in range(ROUNDS):
            start = time.perf_counter()
            made.round(number)
            seconds.append(time.perf_counter() - start)
    return seconds


def peer(python: str, module: str, limit: float) -> list[float] | str:
    """Seconds of each round of a peer, or why there are none."""
    command = [python, "-m", module]
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter that the user named
            command, env=_environment(), capture_output=True, text=True, timeout=limit, check=True
        )
        return [float(one) for one in json.loads(done.stdout.strip().splitlines()[-1])]
    except subprocess.TimeoutExpired:
        return f"not done within {limit:g} s"
    except subprocess.CalledProcessError as error:
        return (error.stderr.strip().splitlines() or ["no word"])[-1]
    except (OSError, ValueError, IndexError) as error:
        return str(error)


def measure(python: str, limit: float) -> dict[str, Any]:
    """Ratios of medians with intervals, and quartiles; a peer that did not run is None, and why.

    All take turns, REPEATS times, each time in processes of their own.
    """
    seconds: dict[str, list[float]] = {"ours": []} | {name: [] for name in PEERS}
    missing: dict[str, str] = {}
    for _ in range(REPEATS):
        seconds["ours"] += ours()[1:]
        for name, module in PEERS.items():
            found = peer(python, module, limit) if name not in missing else []
            if isinstance(found, str):
                missing[name] = found
            else:
                seconds[name] += found[1:]
    figures: dict[str, Any] = {}
    for name in PEERS:
        played = name not in missing
        stated = ratio(seconds["ours"], seconds[name]) if played else None
        figures |= named(f"round_x_{name}", stated)
    return figures | {
        "seconds": {name: spread(each) for name, each in seconds.items() if name not in missing},
        "missing": missing,
        "sites": SITES,
        "rounds": len(seconds["ours"]),
        "cores": os.cpu_count(),
    }


def deployed(python: str) -> dict[str, Any]:
    """What `benchmarks.deployed` finds with that interpreter."""
    command = [python, "-m", "benchmarks.deployed", "--json"]
    done = subprocess.run(  # noqa: S603 - the interpreter that the user named
        command, env=_environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return {"deployed": found} | {k: v for k, v in found.items() if k.startswith("deployed_")}


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}


def main() -> None:
    """Measure, then print JSON, or the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--peers", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--limit", type=float, default=900, help="seconds for each peer")
    parser.add_argument("--simulators", action="store_true", help="leave the deployed round out")
    options = parser.parse_args()
    figures = measure(options.peers, options.limit)
    if not options.simulators:
        figures |= deployed(options.peers)
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    for name, (low, median, high) in figures["seconds"].items():
        sys.stdout.write(f"{name:14s} {median:8.3f} s a round ({low:.3f} to {high:.3f})\n")


if __name__ == "__main__":
    main()
