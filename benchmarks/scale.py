"""A round of the default mode with a thousand clients: seconds, server memory, and what follows.

`python -m benchmarks.scale --clients 1000 --json`. The server is a process of its own; clients and
key holders are simulated beside it, one client after the other, each doing all that a client does:
plan and keys checked, its release encrypted, signed and shared. Sizes are those of a federation
with 2,000 proxies and 15 numbers each. From runs of several sizes a straight line is fitted, from
which `model` says what a larger federation over wide-area links would take.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.ours import HOLDERS, Ours
from protocols.chain import canonical, digest
from protocols.envelope import identity, outline
from protocols.messages import RoundPlan
from protocols.multikey import MK18_49
from protocols.transport import Child

ROWS, COLUMNS = 2000, 15
Figures = dict[str, Any]

LINKS: Final = {
    "site_up_mbit_s": 20.0,
    "site_down_mbit_s": 50.0,
    "server_mbit_s": 1000.0,
    "round_trip_s": 0.08,
    "round_trips": 4,
    "headers": 1.05,
}
"""Assumed, not measured: a hospital's line, a server's, and the way between them."""


def play(clients: int, rows: int = ROWS, columns: int = COLUMNS) -> Figures:
    """One round with so many clients; RuntimeError if the sum is not the exact one."""
    with tempfile.TemporaryDirectory() as name:
        made = Ours(Path(name), (1,) * clients, rows, columns, MK18_49)
        start, busy = time.perf_counter(), time.process_time()
        with Child("benchmarks.scale_server") as server:
            said = _round(made, server, rows)
        seconds = time.perf_counter() - start
        if said["sha256"] != digest(made.expected().astype("<i8").tobytes()):
            raise RuntimeError("the sum is wrong")
    return {
        "clients": clients,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - busy + float(said["cpu_seconds"]),
        "server_seconds": float(said["seconds"]),
        "server_cpu_seconds": float(said["cpu_seconds"]),
        "server_peak_mib": float(said["peak_mib"]),
        "upload_bytes": int(said["upload_bytes"]),
        "client_seconds": float(said["client_seconds"]),
        "share_bytes": int(said["share_bytes"]),
        "open_seconds": float(said["open_seconds"]),
        "slowest_acknowledgement_s": float(said["slowest"]),
    }


def _round(made: Ours, server: Child, rows: int) -> dict[str, str]:
    """Everybody but the server; what the server says at the end, and what was seen of it.

    It is the session's second round: making the parties began the first.
    """
    told = {
        "enrolment": made.enrolment.model_dump(mode="json"),
        "key": made.server.key.private_bytes().hex(),
        "group": made.group.model_dump(mode="json"),
        "size": made.size,
        "rows": rows,
        "first": int(made.plan.subset.max()) + 1,
    }
    server.write(canonical(told))
    made.plan_blob = server.read()
    plan = outline(made.plan_blob)
    if not isinstance(plan, RoundPlan):
        raise TypeError("the server sent no plan")
    made.plan, made.plan_id = plan, identity(made.plan_blob)
    made.keys = {name: one.answer(made.plan_blob)[0] for name, one in made.holders.items()}
    for blob in made.keys.values():
        server.write(blob)
    busy, waits, upload, shares = 0.0, list[float](), 0, 0
    for number in range(len(made.names)):
        start = time.process_time()
        sent = made.client(number)
        busy += time.process_time() - start
        upload, shares = max(upload, sent.size), max(shares, sum(map(len, sent.shares)))
        start = time.perf_counter()
        for blob in (sent.contribution, *sent.shares):
            server.write(blob)
        relayed = [server.read() for _ in made.holders]
        waits.append(time.perf_counter() - start)
        for holder, share in zip(made.holders.values(), relayed, strict=True):
            holder.answer(share)
    request = server.read()
    for holder in made.holders.values():
        server.write(holder.answer(request)[0])
    said: dict[str, str] = json.loads(server.read())
    return said | {
        "client_seconds": str(busy / len(made.names)),
        "upload_bytes": str(upload),
        "share_bytes": str(shares),
        "slowest": str(max(waits)),
    }


def measure(clients: int) -> Figures:
    """Runs of 10 clients up to `clients`, the memory between them, the line through their times."""
    sizes = sorted({10, max(clients // 10, 11), max(clients // 3, 12), clients})
    runs = [play(size) for size in sizes]
    few, many = runs[0], runs[-1]
    counts = [run["clients"] for run in runs]
    # Time at work, since the machine may have other work too.
    times = [run["server_cpu_seconds"] for run in runs]
    # Fitted without the largest, which it then has to foretell.
    slope, fixed = np.polyfit(counts[:-1], times[:-1], 1)
    return {
        "clients": clients,
        "seconds": many["seconds"],
        "cpu_seconds": many["cpu_seconds"],
        "server_extra_mib": many["server_peak_mib"] - few["server_peak_mib"],
        "server_seconds_per_client": float(slope),
        "server_seconds_foretold": float(fixed + slope * clients),
        "server_cpu_seconds": many["server_cpu_seconds"],
        "runs": runs,
        "model": [model(count, float(slope), many) for count in (10, 100, 1000, 10_000)],
        "links": LINKS,
        "machine": {"cores": os.cpu_count(), "python": sys.version.split()[0]},
    }


def model(clients: int, per_client: float, run: Figures) -> Figures:
    """Seconds of a round's protocol over wide-area links; training is not in them.

    All sites work and send at once; the server's line is shared by all; its checking overlaps
    with receiving; shares go on to the holders over the same line. A request names every
    contribution in a header of at most 256 KiB, so there are groups of at most a thousand.
    """
    upload = run["upload_bytes"] * LINKS["headers"]
    site = upload * 8e-6 / LINKS["site_up_mbit_s"]
    forwarded = run["share_bytes"] * LINKS["headers"]
    through = clients * (upload + forwarded) * 8e-6 / LINKS["server_mbit_s"]
    work = clients * per_client
    trips = LINKS["round_trips"] * LINKS["round_trip_s"]
    opening = -(-clients // 1000) * run["open_seconds"]
    return {
        "clients": clients,
        "groups": -(-clients // 1000),
        "site_s": run["client_seconds"] + site,
        "server_line_s": through,
        "server_work_s": work,
        "round_s": trips + run["client_seconds"] + site + max(through, work) + opening,
        "server_received_gb": clients * upload / 1e9,
        "holder_received_mb": clients * forwarded / HOLDERS / 1e6,
    }


def main() -> None:
    """Measure, then print JSON, or one line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000, help="of the largest run, at least 30")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    figures = measure(max(options.clients, 30))
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    for run in figures["runs"]:
        sys.stdout.write(
            f"{run['clients']:5d} clients  {run['seconds']:7.1f} s in all  "
            f"{run['server_seconds']:6.2f} s at the server  {run['server_peak_mib']:6.1f} MiB\n"
        )


if __name__ == "__main__":
    main()
