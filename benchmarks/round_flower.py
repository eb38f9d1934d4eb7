# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-call,untyped-decorator"
"""Seconds of each round of FedAvg in Flower's simulation runtime; one JSON line at the end."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import pairwise
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.round_work import IMAGES, ROUNDS, SITES, Network, train

STAMPS: list[float] = []
client = ClientApp()
server = ServerApp()


class Timed(FedAvg):
    """Flower's own strategy; a moment is noted when a round begins."""

    def configure_train(self, *arguments: Any, **named: Any) -> Any:
        """Begin a round."""
        STAMPS.append(time.perf_counter())
        return super().configure_train(*arguments, **named)


@client.train()
def fit(message: Message, context: Context) -> Message:
    """Load the weights, train an epoch, send them back."""
    model = Network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train(model, int(context.node_config["partition-id"]))
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": IMAGES}),
    }
    return Message(content=RecordDict(content), reply_to=message)


@server.main()
def main(grid: Grid, _: Context) -> None:
    """All rounds, without evaluation."""
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=SITES)
    strategy.start(grid, ArrayRecord(Network().state_dict()), num_rounds=ROUNDS)
    STAMPS.append(time.perf_counter())


if __name__ == "__main__":
    os.environ.setdefault("RAY_DISABLE_DOCKER_CPU_WARNING", "1")
    run_simulation(server, client, SITES, backend_config={"client_resources": {"num_cpus": 1}})
    sys.stdout.write("\n" + json.dumps([b - a for a, b in pairwise(STAMPS)]) + "\n")
