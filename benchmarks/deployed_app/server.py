# mypy: disable-error-code="untyped-decorator"
"""A deployed session whose rounds take turns with empty ones and with rounds of Flower's FedAvg."""

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from rich.console import Console

from benchmarks.deployed_party import EMPTY, Meter, burn
from benchmarks.round_work import Network
from secure_natfl.deploy.enrolled import Enrolled, read_enrolled
from secure_natfl.deploy.flower import FlowerExchange
from secure_natfl.deploy.party import PHASES, Absent, Phase
from secure_natfl.deploy.reporting import write_reports
from secure_natfl.deploy.server import Coordinator
from secure_natfl.systems.natimg_fl import NatImgFL

app = ServerApp()


class Timed(FedAvg):
    """Flower's own strategy with its defaults; notes when it has averaged."""

    averaged = 0.0

    def aggregate_train(self, *arguments: Any, **named: Any) -> Any:
        """Average the weights."""
        found = super().aggregate_train(*arguments, **named)
        self.averaged = time.perf_counter()
        return found


class InTurn:
    """The deployment's exchange; after each of its rounds an empty one, after every third FedAvg.

    A round of ours ends when the sites have answered the last of its questions. `seconds`: of each
    round of each app; of ours also the CPU seconds in which the server learned.
    """

    def __init__(self, grid: Grid, enrolled: Enrolled, meter: Meter) -> None:
        self._grid, self._parties, self._meter = grid, enrolled.parties, meter
        self._exchange = FlowerExchange(grid, enrolled)
        sites = len(enrolled.enrolment.clients)
        self._strategy = Timed(
            min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites
        )
        self._arrays = ArrayRecord(Network(classes=2).state_dict())
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._since = time.perf_counter()

    def ask(
        self, questions: Mapping[str, bytes], phase: Phase, deadline: float
    ) -> Mapping[str, bytes | Absent]:
        """See `secure_natfl.deploy.party.Exchange`."""
        found = self._exchange.ask(questions, phase, deadline)
        if any(isinstance(answer, Absent) for answer in found.values()):
            raise RuntimeError(f"somebody is absent in {phase}: {found}")
        if phase == "learn":
            learned = self._meter.taken()
            self._note("ours", self._since)
            self._empty(learned)
            if len(self.seconds["ours"]) % 3 == 0:
                self._fedavg()
            self._meter.taken()
            self._since = time.perf_counter()
        return found

    def _empty(self, learned: float) -> None:
        """As many questions as ours, one byte each; the learning takes as much work."""
        start = time.perf_counter()
        for phase in PHASES[1:-1]:
            found = self._exchange.ask(dict.fromkeys(self._parties, EMPTY), phase, 120.0)
            if any(answer != EMPTY for answer in found.values()):
                raise RuntimeError(f"no answer in {phase}: {found}")
            if phase == "open":
                burn(learned)
        self._note("empty", start)

    def _fedavg(self) -> None:
        """Train, average, evaluate."""
        start = time.perf_counter()
        result = self._strategy.start(self._grid, self._arrays, num_rounds=1)
        self._arrays = result.arrays
        self._note("fedavg", start)
        self.seconds["fedavg_training"].append(self._strategy.averaged - start)

    def _note(self, name: str, since: float) -> None:
        self.seconds[name].append(time.perf_counter() - since)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """The whole session."""
    folder, meter = Path(str(context.run_config["folder"])), Meter()
    meter.count(NatImgFL, "absorb")
    exchange = InTurn(grid, read_enrolled(folder), meter)
    try:
        with Coordinator(folder, exchange, Console(stderr=True)) as coordinator:
            coordinator.run(write_reports)
    finally:
        (folder / "seconds.json").write_text(json.dumps(exchange.seconds))
