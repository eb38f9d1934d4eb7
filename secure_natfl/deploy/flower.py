"""The exchange over Flower: one message per party and phase; needs the extra `flower`.

Flower authenticates machines and carries bytes. Whose letter it is, and whether it answers the
question that was asked, is verified by the caller, as on every exchange; a missing answer and an
error in its place both count as a dropout. Questions are pulled for more often than Flower's own
`send_and_receive` does, which waits three seconds between two looks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from httpx import HTTPError
from rich.console import Console

from protocols.errors import NatflError
from secure_natfl.deploy.enrolled import Enrolled, read_enrolled
from secure_natfl.deploy.launch import COORDINATOR, LOG, OUTCOME
from secure_natfl.deploy.letter import LIMIT
from secure_natfl.deploy.party import Absent, Phase
from secure_natfl.deploy.processes import record
from secure_natfl.deploy.reporting import write_reports
from secure_natfl.deploy.server import Coordinator
from secure_natfl.run_folder import write

CHUNK: Final = 1 << 22

_POLL: Final = 0.2
_LOOK: Final = 1.0


class FlowerExchange:
    """Parties behind registered SuperNodes, found by the node keys of the enrolment list."""

    def __init__(self, grid: Grid, enrolled: Enrolled) -> None:
        self._grid = grid
        self._keys = {key: party for party, key in enrolled.nodes.items()}

    def ask(
        self, questions: Mapping[str, bytes], phase: Phase, deadline: float
    ) -> Mapping[str, bytes | Absent]:
        """See `party.Exchange`; a party whose machine is away is waited for, up to the deadline."""
        until = time.monotonic() + deadline
        found: dict[str, bytes | Absent] = {}
        waiting, sent = dict(questions), dict[str, str]()
        looked = 0.0
        while time.monotonic() < until and len(found) < len(questions):
            # A SuperLink that is too busy is asked again: the same question gets the same answer.
            with suppress(HTTPError):
                if waiting and time.monotonic() - looked > _LOOK:
                    looked = time.monotonic()
                    sent |= self._push(waiting, phase, until - looked)
                for party, blob in self._pull(sent):
                    found[party] = blob
            time.sleep(_POLL)
        late = (party for party in questions if party not in found)
        return found | {
            party: Absent("its machine is away" if party in waiting else "no answer in time")
            for party in late
        }

    def _push(self, waiting: dict[str, bytes], phase: Phase, left: float) -> dict[str, str]:
        """Send what can be sent; message id → party. Who is away stays in `waiting`."""
        nodes = self._nodes()
        parties = [party for party in waiting if party in nodes]
        if not parties:
            return {}
        messages = [
            Message(
                _record(waiting[party], phase, left),
                dst_node_id=nodes[party],
                message_type="query",
                ttl=left + 60.0,
            )
            for party in parties
        ]
        sent = {}
        for party, number in zip(parties, self._grid.push_messages(messages), strict=False):
            if number:
                sent[number] = party
                del waiting[party]
        return sent

    def _pull(self, sent: dict[str, str]) -> Iterable[tuple[str, bytes | Absent]]:
        if not sent:
            return
        for message in self._grid.pull_messages(list(sent)):
            party = sent.pop(message.metadata.reply_to_message_id, None)
            if party is not None:
                yield party, _blob(message)

    def _nodes(self) -> dict[str, int]:
        """Party → the number of its machine, of those that are online now."""
        grid: Any = self._grid
        found = {}
        for node in grid.get_nodes():
            with suppress(ValueError):
                party = self._keys.get(_openssh(node.public_key))
                if party is not None and node.status == "online":
                    found[party] = node.node_id
        return found


def _record(body: bytes, phase: Phase, left: float) -> RecordDict:
    chunks = [body[at : at + CHUNK] for at in range(0, len(body), CHUNK)]
    letter = ConfigRecord({"phase": phase, "deadline": left, "chunks": chunks})
    return RecordDict({"letter": letter})


def _blob(message: Message) -> bytes | Absent:
    """The bytes of a reply; anything else is no answer."""
    if message.has_error():
        return Absent(f"its machine reports an error ({message.error.code})")
    record = message.content.get("letter")
    chunks = record.get("chunks") if isinstance(record, ConfigRecord) else None
    if not isinstance(chunks, list) or not all(isinstance(one, bytes) for one in chunks):
        return Absent("its reply has another shape")
    if sum(map(len, chunks)) > LIMIT:
        return Absent("its reply is over the size limit")
    return b"".join(chunks)


def _openssh(pem: bytes) -> str:
    key = load_pem_public_key(pem)
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


app = ServerApp()


@app.main()  # type: ignore[untyped-decorator, unused-ignore]
def main(grid: Grid, context: Context) -> None:
    """Coordinate the session of the folder that the run names; its outcome is left there."""
    folder = Path(str(context.run_config["folder"]))
    record(folder, COORDINATOR, os.getpid())
    try:
        exchange = FlowerExchange(grid, read_enrolled(folder))
        with (
            (folder / LOG).open("a", encoding="utf-8") as log,
            Coordinator(folder, exchange, Console(file=log, width=120)) as coordinator,
        ):
            report = coordinator.run(write_reports)
        write(folder / OUTCOME, f"report {report}\n".encode())
    except NatflError as error:
        write(folder / OUTCOME, f"error {error}\n".encode())
    except Exception as error:
        write(folder / OUTCOME, f"error {type(error).__name__}, see superlink.log\n".encode())
        raise
