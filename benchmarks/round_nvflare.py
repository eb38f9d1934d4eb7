# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-call"
"""Seconds of each round of FedAvg in NVFlare's simulator; one JSON line at the end."""

from __future__ import annotations

import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from nvflare.app_opt.pt.job_config.fed_avg import FedAvgJob
from nvflare.job_config.script_runner import ScriptRunner

from benchmarks.round_work import ROUNDS, SITES, network


def main() -> None:
    """All rounds with as many threads as sites; a round lasts from one receipt to the next."""
    with tempfile.TemporaryDirectory() as name:
        folder, script = Path(name), Path(__file__).with_name("round_nvflare_client.py")
        stamps = folder / "stamps"
        stamps.mkdir()
        # One round more: the last one's end is the next one's beginning.
        job = FedAvgJob(network(), n_clients=SITES, num_rounds=ROUNDS + 1, name="round")
        for site in range(SITES):
            runner = ScriptRunner(script=str(script), script_args=str(stamps))
            job.to(runner, f"site-{site + 1}")
        job.simulator_run(str(folder / "work"), threads=SITES, log_config="off")
        times = [float(line) for line in (stamps / "0").read_text().split()]
    sys.stdout.write("\n" + json.dumps([b - a for a, b in pairwise(times)][:ROUNDS]) + "\n")


if __name__ == "__main__":
    main()
