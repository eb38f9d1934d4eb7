import io
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocols.envelope import seal
from protocols.errors import NatflError, ProtocolError, RunFolderError
from protocols.keyfile import signing_key
from protocols.messages import Refusal
from protocols.transport import Child, DecryptorProcess, read_frame, write_frame


def test_frames_come_back_in_order_and_the_end_is_none():
    stream = io.BytesIO()
    for blob in (b"one", b"", b"three"):
        write_frame(stream, blob)
    stream.seek(0)
    assert [read_frame(stream) for _ in range(4)] == [b"one", b"", b"three", None]


@pytest.mark.parametrize("data", [b"\1\0", struct.pack("<I", 9) + b"short", b"\xff" * 8])
def test_torn_and_over_long_frames_are_refused(data):
    with pytest.raises(ProtocolError, match="torn"):
        read_frame(io.BytesIO(data))


def test_a_frame_over_the_limit_is_refused_before_it_is_read():
    stream = io.BytesIO(struct.pack("<I", 101) + bytes(101))
    with pytest.raises(ProtocolError, match="limit"):
        read_frame(stream, limit=100)
    assert stream.tell() == 4


def test_messages_are_recorded_before_they_are_delivered_and_keep_their_order(world):
    blobs = [
        seal(Refusal(session="study", round=number, attempt=1, sender="a"), world.keys["a"])
        for number in range(3)
    ]
    for blob in blobs:
        world.wire.send("a", ("b", "c"), blob)
    assert [world.wire.receive("b", "a") for _ in blobs] == blobs
    assert [world.wire.receive("c", "a") for _ in blobs] == blobs
    assert [entry.round for entry in world.transcript.entries] == [0, 1, 2]
    assert world.wire.sent["a", "refusal"] == 2 * sum(map(len, blobs))
    with pytest.raises(ProtocolError, match="no message"):
        world.wire.receive("b", "a")


def test_bytes_that_are_no_message_are_neither_recorded_nor_delivered(world):
    with pytest.raises(NatflError):
        world.wire.send("a", ("b",), b"hello")
    assert world.transcript.entries == []
    with pytest.raises(ProtocolError, match="no message"):
        world.wire.receive("b", "a")


def gone(pid):
    """True once the process has ended (a zombie has ended too)."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def wait_until_gone(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return gone(pid)


def test_a_child_ends_with_its_pipe_and_leaves_no_process(tmp_path):
    with DecryptorProcess(tmp_path / "holder") as process:
        assert len(process.verify_key) == 32
        assert not gone(process.pid)
    assert wait_until_gone(process.pid)


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    program = (
        "import sys, os, signal\n"
        "from pathlib import Path\n"
        "from protocols.transport import DecryptorProcess\n"
        "process = DecryptorProcess(Path(sys.argv[1]))\n"
        "print(process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "holder")]
    parent = subprocess.run(command, capture_output=True, text=True, check=False)
    assert parent.returncode == -9
    assert wait_until_gone(int(parent.stdout))


def test_a_party_that_has_gone_is_said_to_have_gone(tmp_path):
    with DecryptorProcess(tmp_path / "holder") as process:
        os.kill(process.pid, 9)
        assert wait_until_gone(process.pid)
        with pytest.raises(ProtocolError, match="party has gone"):
            process.read()
        with pytest.raises(ProtocolError, match="party has gone"):
            process.write(bytes(1 << 20))


def test_a_signing_key_is_made_once_and_read_by_its_owner_alone(tmp_path):
    (tmp_path / "key.part").write_bytes(b"left by a crash")
    made = signing_key(tmp_path / "key", os.urandom)
    assert signing_key(tmp_path / "key", bytes).public == made.public
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(RunFolderError, match="cannot be read or made"):
        signing_key(tmp_path / "key" / "key", os.urandom)


def test_a_module_that_is_none_is_a_party_that_has_gone(capfd):
    with Child("protocols.no_such_party") as child, pytest.raises(ProtocolError, match="gone"):
        child.read()
    assert "no_such_party" in capfd.readouterr().err
