"""The server of `benchmarks.scale`, in a process of its own whose memory can be told apart.

It speaks frames over standard input and output (protocols.transport): it is told who takes part,
says its plan, relays the holders' keys, then takes in one client after the other and forgets what
it has added; at the end it asks for the sum, opens it, and says what that cost.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from protocols.chain import SigningKey, canonical, digest
from protocols.envelope import identity, outline, seal
from protocols.errors import ProtocolError
from protocols.messages import Group, KeyOpening, OpeningRequest
from protocols.multikey import multikey_preset
from protocols.multikey_ckks import MultiKeySum
from protocols.parties import Server
from protocols.policy import SERVER, Enrolment
from protocols.sealing import PUBLIC_BYTES
from protocols.secagg.threshold import open_with
from protocols.secagg.topology import Absent, draft
from protocols.transcript import Transcript
from protocols.transport import read_frame, write_frame


def serve(inward: IO[bytes], outward: IO[bytes], folder: Path) -> None:
    """Play the server's part of one round, everything recorded as a run records it."""

    def take() -> bytes:
        blob = read_frame(inward)
        if blob is None:
            raise ProtocolError("the benchmark has gone", where="pipe")
        return blob

    told: dict[str, Any] = json.loads(take())
    enrolment = Enrolment.model_validate_json(json.dumps(told["enrolment"]))
    server = Server(SigningKey(bytes.fromhex(told["key"])), enrolment)
    group = Group.model_validate_json(json.dumps(told["group"]))
    ring, holders = multikey_preset(enrolment.preset), enrolment.holder_order
    with Transcript(folder) as transcript:
        plan = draft(
            enrolment,
            transcript,
            round_number=2,
            groups=[group],
            layout=digest(b"layout"),
            size=told["size"],
            subset=told["first"] + np.arange(told["rows"]),
        )
        plan_blob = seal(plan, server.key)
        plan_id = identity(plan_blob)
        transcript.append(plan_blob, SERVER, (*plan.participants, *holders))
        write_frame(outward, plan_blob)
        for holder in holders:
            blob = take()
            server.accept_key(blob, plan, plan_id, holder, PUBLIC_BYTES)
            transcript.append(blob, holder, (SERVER,))
        busy, total, uploads = 0.0, MultiKeySum(ring, plan.size), dict[str, str]()
        expected = ring.ciphertext_bytes(plan.size)
        for name in group.participants:
            blob, *shares = (take() for _ in range(1 + len(holders)))
            start = time.perf_counter()
            transcript.append(blob, name, (SERVER,))
            upload = server.accept_contribution(blob, plan, plan_id, group, name, expected)
            total.add(upload.body, group.among([name]).total)
            uploads[name] = identity(blob)
            for holder, share in zip(holders, shares, strict=True):
                transcript.append(share, name, (SERVER,))
                transcript.append(share, SERVER, (holder,))
                write_frame(outward, share)
            busy += time.perf_counter() - start
        start = time.perf_counter()
        request_blob = server.request(plan, plan_id, group, uploads)
        transcript.append(request_blob, SERVER, holders)
        busy += time.perf_counter() - start
        write_frame(outward, request_blob)
        answers = [take() for _ in holders]
        start = time.perf_counter()
        request = outline(request_blob)
        assert isinstance(request, OpeningRequest)  # noqa: S101 - our own
        checked = dict[int, KeyOpening]()
        for number, (holder, blob) in enumerate(zip(holders, answers, strict=True), 1):
            transcript.append(blob, holder, (SERVER,))
            checked[number] = server.accept_key_opening(
                blob, request, identity(request_blob), holder, ring.share_bytes
            )
        integers = open_with(total, checked, request, group, ring, enrolment, Absent())
        opening = time.perf_counter() - start
        busy += opening
        used = resource.getrusage(resource.RUSAGE_SELF)
        said = {
            "sha256": digest(integers.astype("<i8").tobytes()),
            "seconds": busy,
            "open_seconds": opening,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "peak_mib": peak_mib(),
            "entries": len(transcript.entries),
        }
    write_frame(outward, canonical({name: str(value) for name, value in said.items()}))


def peak_mib() -> float:
    """The most memory that this program had, from Linux; a process's own figure begins lower.

    What `getrusage` says would include what the parent had before it started this program.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Frames on standard input and output, nothing else on them."""
    outward = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as name:
        serve(sys.stdin.buffer, outward, Path(name) / "transcript")


if __name__ == "__main__":
    main()
