# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-call"
"""Seconds of each round of FedAvg in NVFlare's simulator; one JSON line at the end.

Set up for speed: a worker for every site that stays alive between rounds, the training script
within it, tensors sent as they are, and both intervals that the configuration has at 50 ms
(defaults: 0.5 s between two looks of the server, 2 s between two requests of a client).
"""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.job_config.base_fed_job import BaseFedJob
from nvflare.app_opt.pt.job_config.model import PTModel
from nvflare.client.config import ExchangeFormat
from nvflare.job_config.script_runner import ScriptRunner

from benchmarks.round_work import ROUNDS, SITES, Network

INTERVAL = 0.05


def main() -> None:
    """All rounds with as many threads as sites; a round lasts from one receipt to the next."""
    with tempfile.TemporaryDirectory() as name:
        folder, script = Path(name), Path(__file__).with_name("round_nvflare_client.py")
        stamps = folder / "stamps"
        stamps.mkdir()
        job = BaseFedJob(name="round", min_clients=SITES)
        job.to_server(PTModel(Network(), allow_numpy_conversion=False))
        # One round more: the last one's end is the next one's beginning.
        job.to_server(FedAvg(num_clients=SITES, num_rounds=ROUNDS + 1, task_check_period=INTERVAL))
        job.to_server({"server": {"task_request_interval": INTERVAL}})
        for site in range(SITES):
            runner = ScriptRunner(
                script=str(script),
                script_args=str(stamps),
                server_expected_format=ExchangeFormat.PYTORCH,
            )
            job.to(runner, f"site-{site + 1}")
        job.simulator_run(str(folder / "work"), threads=SITES, log_config="concise")
        times = [float(line) for line in (stamps / "0").read_text().split()]
    sys.stdout.write("\n" + json.dumps([b - a for a, b in pairwise(times)][:ROUNDS]) + "\n")


if __name__ == "__main__":
    main()
