import io
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocols.envelope import seal
from protocols.errors import AbsentError, NatflError, ProtocolError, RunFolderError
from protocols.keyfile import signing_key
from protocols.messages import Refusal
from protocols.transport import Beside, Child, HolderProcess, read_frame, write_frame


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
    assert len(world.transcript.entries) == 0
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
    with HolderProcess(tmp_path / "holder") as process:
        assert len(process.verify_key) == 32
        assert not gone(process.pid)
    assert wait_until_gone(process.pid)


def test_a_child_ends_when_its_parent_is_killed(tmp_path):
    program = (
        "import sys, os, signal\n"
        "from pathlib import Path\n"
        "from protocols.transport import HolderProcess\n"
        "process = HolderProcess(Path(sys.argv[1]))\n"
        "print(process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "holder")]
    parent = subprocess.run(command, capture_output=True, text=True, check=False)
    assert parent.returncode == -9
    assert wait_until_gone(int(parent.stdout))


def test_a_party_that_has_gone_is_said_to_have_gone(tmp_path):
    with HolderProcess(tmp_path / "holder") as process:
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


def test_a_child_that_does_not_end_with_its_input_is_killed(tmp_path, monkeypatch):
    (tmp_path / "deaf.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    child = Child("deaf")
    wait = child._process.wait
    # The five seconds that it is given, shortened.
    child._process.wait = lambda timeout=None: wait(timeout and 0.1)
    child.close()
    assert child._process.returncode == -9
    assert gone(child.pid)


def test_a_party_of_this_process_answers_in_order_and_is_absent_without_an_answer():
    party = Beside(lambda blob: [blob, blob[::-1]])
    party.write(b"ab")
    party.write(b"cd")
    assert [party.read() for _ in range(4)] == [b"ab", b"ba", b"cd", b"dc"]
    with pytest.raises(AbsentError, match="no answer"):
        party.read()


def test_who_is_cut_off_neither_sends_nor_receives_and_what_was_sent_is_recorded(world):
    seen = []
    world.wire.connect("b", Beside(lambda blob: seen.append(blob) or [blob]))
    blob = seal(Refusal(session="study", round=1, attempt=1, sender="a"), world.keys["a"])
    world.wire.send("a", ("b", "c"), blob)
    world.wire.cut("b")
    world.wire.send("a", ("b", "c"), blob)
    world.wire.send("b", ("c",), blob)
    assert seen == [blob]
    assert [world.wire.receive("c", "a") for _ in range(2)] == [blob, blob]
    for receiver, sender in (("c", "b"), ("a", "b"), ("b", "a")):
        with pytest.raises(AbsentError, match="cut off"):
            world.wire.receive(receiver, sender)
    assert len(world.transcript.entries) == 3


def test_a_renewed_wire_forgets_what_a_broken_round_left_undelivered(world):
    blob = seal(Refusal(session="study", round=1, attempt=1, sender="a"), world.keys["a"])
    world.wire.send("a", ("b",), blob)
    with pytest.raises(AbsentError, match="no message"):
        world.wire.renewed().receive("b", "a")


def test_a_message_to_a_party_that_has_gone_is_recorded_and_its_answer_is_absent(world):
    with HolderProcess(world.folder / "holder") as process:
        world.wire.connect("b", process)
        os.kill(process.pid, 9)
        assert wait_until_gone(process.pid)
        blob = seal(Refusal(session="study", round=1, attempt=1, sender="a"), world.keys["a"])
        world.wire.send("a", ("b",), blob)
        with pytest.raises(AbsentError, match="party has gone"):
            world.wire.receive("a", "b")
    assert len(world.transcript.entries) == 1
