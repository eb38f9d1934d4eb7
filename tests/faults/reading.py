"""How a party reads each kind of append-only file: the number of its whole lines."""

from collections.abc import Callable
from pathlib import Path

from protocols.audit_log import AuditLog
from protocols.checkpoints import read_checkpoints
from protocols.ledger_heads import HeadBook
from protocols.transcript import TORN, Transcript
from tests.faults.federation import Federation


def read_index(path: Path) -> int:
    with Transcript(path.parent) as transcript:
        return sum(entry.kind != TORN for entry in transcript.entries)


def read_audit(path: Path) -> int:
    with AuditLog(path) as log:
        return sum(record.actor != "log" for record in log.records)


def read_heads(made: Federation, name: str) -> Callable[[Path], int]:
    public = {site: key.public for site, key in made.keys.items()}
    return lambda path: len(HeadBook(path, name, made.keys[name], public).kept)


def appended(made: Federation) -> dict[Path, Callable[[Path], int]]:
    """Every kind of append-only file, and how a party reads it."""
    return {
        made.folder / "transcript" / "index.jsonl": read_index,
        made.folder / "holders" / "a.holder" / "journal" / "index.jsonl": read_index,
        made.folder / "audit.jsonl": read_audit,
        made.folder / "sites" / "a" / "checkpoints.jsonl": lambda p: len(read_checkpoints(p)),
        made.folder / "sites" / "b" / "heads.jsonl": read_heads(made, "b"),
    }
