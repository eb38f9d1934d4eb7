"""Secure aggregation beside its peers: bytes, time, exactness, growth, a thousand clients.

`python -m benchmarks.aggregation --json` prints JSON and nothing else on standard output;
`--markdown` prints the tables of docs/results/aggregation.md. Peers are the real packages, each
step interleaved with ours in one process; install them with `pip install '.[bench]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.interleave import interleaved, quartiles
from benchmarks.ours import Ours
from benchmarks.peers import CLIENTS, LARGEST_TOTAL, SIZE, Peer, peers, workload
from benchmarks.rounds import random_rounds
from protocols import __version__
from protocols.multikey import MK18_49

ALPHAS = (1, 2, 3, 4, 4, 4, 4, 4)
ROWS, COLUMNS = 2000, 15
FP32_BYTES = 4 * SIZE
Figures = dict[str, Any]


def side_by_side(folder: Path, repeats: int) -> tuple[Figures, dict[str, Figures], dict[str, str]]:
    """Our default mode and every peer on the workload; also why a peer is missing."""
    ours = Ours(folder, ALPHAS, ROWS, COLUMNS)
    found, missing = peers(ALPHAS)
    values = workload(0)
    uploads = {peer.name: _all(peer, values) for peer in found}
    totals = {peer.name: peer.server(uploads[peer.name], ALPHAS) for peer in found}
    wanted = sum(alpha * vector for alpha, vector in zip(ALPHAS, values, strict=True))
    for peer in found:
        error = np.abs(peer.open(totals[peer.name], SIZE) - wanted).max()
        if error > peer.precision:
            raise RuntimeError(f"{peer.name} is wrong by {error:g}")
    sent = [ours.client(at) for at in range(CLIENTS)]
    total, request = ours.aggregate(one.contribution for one in sent)
    answers = ours.answers([one.shares for one in sent], request)
    if (ours.open(total, request, answers) != ours.expected()).any():
        raise RuntimeError("our sum is wrong")

    tasks: dict[str, Callable[[], object]] = {
        "ours client": lambda: ours.client(3),
        "ours server": lambda: ours.aggregate(one.contribution for one in sent),
        "ours open": lambda: ours.open(total, request, answers),
    }
    for peer in found:
        tasks |= _tasks(peer, values, uploads[peer.name], totals[peer.name])
    seconds = interleaved(tasks, repeats)
    table = {
        peer.name: _row(seconds, peer.name, max(map(len, uploads[peer.name])))
        | {"description": peer.description, "context_bytes": peer.context_bytes}
        for peer in found
    }
    upload = max(one.size for one in sent)
    own = _row(seconds, "ours", upload) | {
        "opening_bytes": max(map(len, answers)),
        "contribution_bytes": max(len(one.contribution) for one in sent),
        "share_bytes": [len(share) for share in sent[0].shares],
    }
    return own, table, missing


def _all(peer: Peer, values: Sequence[NDArray[np.float64]]) -> list[bytes]:
    return [peer.client(vector, at) for at, vector in enumerate(values)]


def _tasks(
    peer: Peer, values: Sequence[NDArray[np.float64]], uploads: list[bytes], total: bytes
) -> dict[str, Callable[[], object]]:
    return {
        f"{peer.name} client": lambda: peer.client(values[3], 3),
        f"{peer.name} server": lambda: peer.server(uploads, ALPHAS),
        f"{peer.name} open": lambda: peer.open(total, SIZE),
    }


def _row(seconds: Mapping[str, list[float]], name: str, upload: int) -> Figures:
    row: Figures = {"upload_bytes": upload, "upload_x_fp32": upload / FP32_BYTES}
    for step in ("client", "server", "open"):
        spread = quartiles(seconds[f"{name} {step}"])
        row[f"{step}_ms"] = [1e3 * spread.low, 1e3 * spread.median, 1e3 * spread.high]
    return row


def thousand(folder: Path) -> Figures:
    """Server work and memory for a thousand clients, their uploads read from disk one by one."""
    peaks = {}
    for count in (10, 1000):
        place = folder / str(count)
        place.mkdir()
        ours = Ours(place, (1,) * count, ROWS, COLUMNS, MK18_49)
        paths = [place / f"upload-{at}" for at in range(count)]
        sent = []
        for at, path in enumerate(paths):
            one = ours.client(at)
            path.write_bytes(one.contribution)
            sent.append(one.shares)
        start = time.perf_counter()
        total, request = ours.aggregate(path.read_bytes() for path in paths)
        seconds = time.perf_counter() - start
        answers = ours.answers(sent, request)
        start = time.perf_counter()
        opened = ours.open(total, request, answers)
        seconds += time.perf_counter() - start
        if (opened != ours.expected()).any():
            raise RuntimeError("the sum of a thousand is wrong")
        tracemalloc.start()
        again = ours.aggregate(path.read_bytes() for path in paths)
        ours.open(*again, answers)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return {
        "thousand_clients_seconds": seconds,
        "thousand_clients_extra_mib": (peaks[1000] - peaks[10]) / 2**20,
        "thousand_clients_upload_bytes": paths[0].stat().st_size + sum(map(len, sent[0])),
    }


def growth(folder: Path, repeats: int) -> dict[str, Figures]:
    """Least milliseconds over clients (server), rows and classes (client), with linear fits."""
    tasks: dict[str, Callable[[], object]] = {}
    for count in (4, 8, 12, 16, 20, 24, 28, 32):
        ours = Ours(_new(folder, f"clients-{count}"), (1,) * count, ROWS, COLUMNS)
        sent = [ours.client(at).contribution for at in range(count)]
        tasks[f"clients {count}"] = lambda o=ours, s=sent: o.aggregate(s)
    for rows in range(2048, 9 * 2048, 2048):
        ours = Ours(_new(folder, f"rows-{rows}"), ALPHAS, rows, COLUMNS)
        tasks[f"rows {rows}"] = lambda o=ours: o.client(3)
    for classes in (4, 8, 16, 24, 32, 40, 48, 56):
        ours = Ours(_new(folder, f"classes-{classes}"), ALPHAS, 2048, classes)
        tasks[f"classes {classes}"] = lambda o=ours: o.client(3)
    fits: dict[str, Figures] = {}
    for name, seconds in interleaved(tasks, repeats).items():
        kind, size = name.split()
        fit = fits.setdefault(kind, {"sizes": [], "ms": []})
        fit["sizes"].append(int(size))
        fit["ms"].append(1e3 * min(seconds))
    for fit in fits.values():
        slope, intercept = np.polyfit(fit["sizes"], fit["ms"], 1)
        fit |= {"ms_each": float(slope), "ms_fixed": float(intercept)}
        fit["r2"] = float(np.corrcoef(fit["sizes"], fit["ms"])[0, 1] ** 2)
    return fits


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def resnet18(upload: int) -> Figures:
    """Our upload against encrypting a whole ResNet-18 as NVFlare does."""
    try:
        from benchmarks.peers_nvflare import NvflarePeer, resnet18_bytes
    except ImportError:
        return {"wire_x_resnet18_nvflare": None}
    found = resnet18_bytes(NvflarePeer(ALPHAS))
    return {
        "wire_x_resnet18_nvflare": upload / found.ciphertext_bytes,
        "resnet18_nvflare_bytes": found.ciphertext_bytes,
    }


def measure(repeats: int, rounds: int) -> Figures:
    """All figures, the asked-for keys first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own, table, missing = side_by_side(_new(folder, "workload"), repeats)
        many = thousand(_new(folder, "thousand"))
        fits = growth(_new(folder, "growth"), repeats)
    exact = random_rounds(rounds)
    flare = table.get("NVFlare HE")
    return {
        "upload_x_fp32": own["upload_x_fp32"],
        "opening_x_fp32": own["opening_bytes"] / FP32_BYTES,
        "client_x_nvflare": flare and own["client_ms"][1] / flare["client_ms"][1],
        "server_x_nvflare": flare and own["server_ms"][1] / flare["server_ms"][1],
        "exact": exact["wrong"] == 0,
        **many,
        **resnet18(own["upload_bytes"]),
        "growth_r2": {kind: fit["r2"] for kind, fit in fits.items()},
        "rounds": exact,
        "growth": fits,
        "ours": own,
        "peers": table,
        "missing": missing,
        "workload": {
            "clients": CLIENTS,
            "numbers": SIZE,
            "alphas": ALPHAS,
            "largest_total": LARGEST_TOTAL,
            "fp32_bytes": FP32_BYTES,
            "repeats": repeats,
        },
        "machine": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "cores": os.cpu_count(),
            "version": __version__,
        },
    }


def main() -> None:
    """Measure, then print JSON or the document's tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each task, at least 5")
    parser.add_argument("--rounds", type=int, default=10_000, help="random rounds for exactness")
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error("medians are of at least 5 repeats")
    figures = measure(options.repeats, options.rounds)
    sys.stdout.write(json.dumps(figures, indent=2) if options.json else _markdown(figures))
    sys.stdout.write("\n")


def _markdown(figures: Figures) -> str:
    rows = [("**secure_natfl**, threshold", figures["ours"]), *figures["peers"].items()]
    lines = [
        "| | upload, bytes | × fp32 | client, ms | server (8 clients), ms | open, ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows:
        steps = [f"{m:.1f} ({a:.1f}–{b:.1f})" for a, m, b in map(row.get, _STEPS)]
        cells = [name, f"{row['upload_bytes']:,}", f"{row['upload_x_fp32']:.2f}", *steps]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| key | figure |", "|---|---|"]
    for key, value in figures.items():
        if isinstance(value, bool | int | float | None):
            shown = f"{value:.4g}" if isinstance(value, float) else value
            lines.append(f"| `{key}` | {shown} |")
    lines += ["", "| growth in | ms each | ms fixed | R² |", "|---|---|---|---|"]
    for kind, fit in figures["growth"].items():
        lines.append(f"| {kind} | {fit['ms_each']:.4g} | {fit['ms_fixed']:.3g} | {fit['r2']:.4f} |")
    return "\n".join(lines)


_STEPS = ("client_ms", "server_ms", "open_ms")


if __name__ == "__main__":
    main()
