"""How fast an audit log is verified: `python -m benchmarks.audit_log`. Prints JSON."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from protocols.audit_events import RoundLearned
from protocols.audit_log import AuditLog, Record, read_log
from protocols.chain import GENESIS, canonical, link

ENTRIES, REPEATS = 100_000, 5


def made(entries: int) -> bytes:
    """A log of that many records, each as the product writes them."""
    head, lines = GENESIS, []
    for number in range(entries):
        record = Record(
            seq=number,
            prev=head,
            utc="2026-01-01T00:00:00.000000Z",
            monotonic_ms=number,
            actor="server",
            body=RoundLearned(round=number, model=f"{number:064x}"),
        )
        lines.append(canonical(record.model_dump(mode="json")))
        head = link(head, lines[-1])
    return b"\n".join(lines) + b"\n"


def rates(data: bytes) -> dict[str, Any]:
    """Entries per second of processor time, each time: chain and tree, then every field too."""
    chained, parsed = [], []
    for _ in range(REPEATS):
        start = time.process_time()
        log = read_log(data)
        middle = time.process_time()
        count = sum(1 for _ in log.records())
        chained.append(round(count / (middle - start)))
        parsed.append(round(count / (time.process_time() - start)))
    return {"chain and tree": chained, "with every field": parsed}


def appends(count: int = 200) -> float:
    """Milliseconds of one durable append, wall clock."""
    with tempfile.TemporaryDirectory() as folder, AuditLog(Path(folder) / "audit.jsonl") as log:
        start = time.perf_counter()
        for number in range(count):
            log.append("server", RoundLearned(round=number, model="0" * 64))
        return round(1000 * (time.perf_counter() - start) / count, 2)


if __name__ == "__main__":
    data = made(ENTRIES)
    found = {
        "entries": ENTRIES,
        "bytes per entry": round(len(data) / ENTRIES),
        "entries per second": rates(data),
        "append, ms": appends(),
    }
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
