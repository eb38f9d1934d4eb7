"""Writes logs.json: small audit logs with checkpoints, whole and damaged, and what to make of them.

`python tests/vectors/audit/make.py` from the repository's root. Keys are digests of the parties'
names and clocks run, so the texts differ from one making to the next; what is expected does not.
"""

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from protocols.audit_events import Refused
from protocols.audit_log import AuditLog, read_log
from protocols.chain import canonical, digest, link
from protocols.checkpoints import Cosigned, read_checkpoints
from protocols.errors import NatflError
from secure_natfl.audit.check_log import covered
from secure_natfl.audit.findings import demand
from secure_natfl.audit.reading import Story
from tests.protocols import audit_samples as samples

Vector = dict[str, Any]
FILE = Path(__file__).with_name("logs.json")


def judge(log: str, checkpoints: str) -> Vector:
    """What the product makes of a log and its checkpoints: head, root and size, or a refusal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoints.jsonl"
        path.write_bytes(checkpoints.encode())
        try:
            found = read_log(log.encode())
            demand(found.ended and not found.torn, "the log ends in a torn line")
            covered(found, Story(tuple(found.records())), read_checkpoints(path))
        except NatflError:
            return {"refused": True}
    return {"entries": len(found.lines), "head": found.head, "root": found.tree.root().hex()}


def session(rounds: int, sites: tuple[str, ...] = samples.SITES) -> Any:
    folder = Path(tempfile.mkdtemp())
    return samples.Session(folder, rounds=rounds, sites=sites).play()


def vector(name: str, data: bytes, found: list[Cosigned] | bytes) -> Vector:
    points = found if isinstance(found, bytes) else samples.lines_of(found)
    return {"name": name, "log": data.decode(), "checkpoints": points.decode()}


def whole() -> list[Vector]:
    """Logs that hold."""
    made = []
    for rounds in range(1, 7):
        one = session(rounds)
        made.append(vector(f"{rounds} rounds of three sites", one.data, one.checkpoints))
    for count in (1, 2, 5, 6):
        one = session(2, tuple(f"site{i}" for i in range(count)))
        made.append(vector(f"2 rounds of {count} sites", one.data, one.checkpoints))
    for cut in (2, 77, 150, 200, 201):
        one = torn(cut)
        made.append(vector(f"a line torn {cut} bytes before its end, noted", one[0], one[1]))
    return made


def torn(cut: int) -> tuple[bytes, list[Cosigned]]:
    """A session whose writer was killed in its last record, and that went on."""
    folder = Path(tempfile.mkdtemp())
    one = samples.Session(folder, rounds=2)
    one.open()
    one.round(0)
    path = folder / "audit.jsonl"
    one.log.append("server", Refused(round=1, error="Killed"))
    one.log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    one.log = AuditLog(path)
    one.round(1)
    one.close()
    return one.data, one.checkpoints


def rechained(lines: list[bytes]) -> bytes:
    """The chain made anew over changed records, as a server could."""
    head, out = "0" * 64, []
    for number, line in enumerate(lines):
        record = json.loads(line) | {"prev": head, "seq": number}
        out.append(canonical(record))
        head = link(head, out[-1])
    return b"\n".join(out) + b"\n"


def anew(lines: list[bytes], old: bytes, new: bytes) -> bytes:
    """The log with another text in place of one, chained anew."""
    changed = [line.replace(old, new) for line in lines]
    if changed == lines:
        raise ValueError(f"{old!r} does not occur")
    return rechained(changed)


def damaged() -> list[Vector]:
    """Logs and checkpoints that do not hold, each for one reason."""
    one, other, draw = session(1), session(1), random.Random(3)
    lines, points = one.data.splitlines(), one.checkpoints
    made = [
        vector("empty log", b"", points),
        vector("no final newline", one.data[:-1], points),
        vector("last record missing", b"\n".join(lines[:-1]) + b"\n", points),
        vector("checkpoints of another making", one.data, other.checkpoints),
        vector("no checkpoints", one.data, b""),
        vector("last checkpoint missing", one.data, points[:-1]),
        vector("no checkpoint of the end, first alone", one.data, points[:1]),
        vector("checkpoints are no JSON", one.data, b"{}\n"),
        vector("a space in a record", one.data.replace(b'"seq":3', b'"seq": 3'), points),
        vector(
            "records in another order",
            rechained([lines[0], *lines[2:3], lines[1], *lines[3:]]),
            points,
        ),
        vector(
            "a weight changed, chained anew",
            rechained([x.replace(b"[1,1,1]", b"[1,1,2]") for x in lines]),
            points,
        ),
        vector(
            "a sum changed, chained anew",
            rechained([x.replace(b'"attempt":1', b'"attempt":2') for x in lines]),
            points,
        ),
    ]
    for how in ("delete", "insert", "swap", "cut"):
        for number in range(2):
            edit = b"\n".join(samples.edited(lines, how, draw)) + b"\n"
            made.append(vector(f"{how} {number}", edit, points))
    for number in range(4):
        place = draw.randrange(len(one.data))
        byte = bytes([one.data[place] ^ 1])
        made.append(
            vector(f"bit {number} flipped", one.data[:place] + byte + one.data[place + 1 :], points)
        )
    first, *rest = points
    for signatures in (first.cosignatures[:2], first.cosignatures[:1], ()):
        fewer = first.model_copy(update={"cosignatures": signatures})
        name = f"round 0 co-signed by {len(signatures)}, nothing later"
        made.append(vector(name, *_only(one, fewer)))
    stranger = first.cosignatures[0].model_copy(update={"client": "zelkova"})
    forged = first.model_copy(update={"cosignatures": (*first.cosignatures, stranger)})
    made.append(vector("co-signed by a stranger", one.data, [forged, *rest]))
    root = first.checkpoint.model_copy(update={"root": digest(b"another")})
    made.append(
        vector("root changed", one.data, [first.model_copy(update={"checkpoint": root}), *rest])
    )
    return made


def _only(one: Any, first: Cosigned) -> tuple[bytes, list[Cosigned]]:
    """The session cut after its first round, with one checkpoint."""
    lines = one.data.splitlines(keepends=True)
    return b"".join(lines[: first.checkpoint.size]), [first]


def main() -> None:
    """Every text stands once, under a name; vectors refer to it."""
    texts: dict[str, str] = {}

    def named(text: str) -> str:
        name = f"text {digest(text.encode())[:16]}"
        texts[name] = text
        return name

    made = [
        {
            "name": one["name"],
            "log": named(one["log"]),
            "checkpoints": named(one["checkpoints"]),
            "expected": judge(one["log"], one["checkpoints"]),
        }
        for one in [*whole(), *damaged()]
    ]
    document = {"vectors": made, "texts": texts}
    FILE.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
