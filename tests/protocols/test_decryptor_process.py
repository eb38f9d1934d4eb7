"""The decryptor's process: killed, restarted, enrolled, and what its folder and its code hold."""

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from protocols.chain import canonical, digest
from protocols.envelope import kind_of, seal
from protocols.errors import ProtocolError, RunFolderError
from protocols.holder_process import serve
from protocols.keyfile import signing_key
from protocols.messages import Refusal, RoundKey
from protocols.policy import DECRYPTOR
from protocols.rlwe import PK18_44
from protocols.transport import HolderProcess, read_frame, write_frame
from tests.protocols.one_attempt import begin as begin

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from protocols import holder_process
    from protocols.envelope import kind_of
    from protocols.messages import Opening

    honest = holder_process.write_frame

    def killed(stream, blob):
        if len(blob) > 32 and kind_of(blob) is Opening:
            os.kill(os.getpid(), signal.SIGKILL)
        honest(stream, blob)

    holder_process.write_frame = killed
    holder_process.serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer, os.urandom)
"""


def test_killed_between_journal_and_answer_it_returns_the_same_opening(world, monkeypatch):
    folder = world.folder / "holder"
    script = world.folder / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    spawn = subprocess.Popen

    def popen(command, **options):
        return spawn([sys.executable, str(script), command[-1]], **options)

    with monkeypatch.context() as patch:
        patch.setattr("protocols.transport.subprocess.Popen", popen)
        dying = HolderProcess(folder)
    with dying:
        topology, enrolment = world.apart(dying)
        with pytest.raises(ProtocolError, match="party has gone"):
            topology.play(world.plan(enrolment=enrolment))
    journal = [
        json.loads(line) for line in (folder / "journal/index.jsonl").read_text().splitlines()
    ]
    promised = [line["sha256"] for line in journal if line["kind"] == "opening"]
    (request,) = [e for e in world.transcript.entries if e.kind == "opening-request"]
    with HolderProcess(folder) as process:
        assert process.verify_key == bytes.fromhex(enrolment.holders[DECRYPTOR])
        topology, _ = world.apart(process)
        # The very request again: the promised bytes. A new attempt: the same opening, no new sum.
        process.write(world.transcript.read(request))
        answer = process.read()
        outcome = topology.play(world.plan(enrolment=enrolment))
    assert [digest(answer)] == promised
    assert outcome.aggregates["g0"].attempt == 1
    assert (outcome.aggregates["g0"].integers == world.total(world.groups()[0])).all()


@pytest.mark.parametrize("after", ["round-plan", "round-key", "contribution"])
def test_killed_before_the_opening_a_new_attempt_with_stored_integers_succeeds(world, after):
    folder, killed = world.folder / "holder", []
    with HolderProcess(folder) as process:
        topology, enrolment = world.apart(process)
        send = world.wire.send

        def kill_then_send(sender, receivers, blob):
            if kind_of(blob).kind == after and not killed:
                os.kill(process.pid, 9)
                killed.append(process.pid)
            send(sender, receivers, blob)

        world.wire.send = kill_then_send
        with pytest.raises(ProtocolError, match="party has gone"):
            topology.play(world.plan(enrolment=enrolment))
        world.wire.send = send
    with HolderProcess(folder) as process:
        topology, _ = world.apart(process)
        outcome = topology.play(world.plan(enrolment=enrolment))
    assert outcome.aggregates["g0"].attempt == 2
    assert (outcome.aggregates["g0"].integers == world.total(world.groups()[0])).all()


def test_its_folder_holds_no_decryption_key_and_its_own_key_is_private(world, begin):
    attempt = begin()
    (secret,) = attempt.holder._attempt.secrets.values()
    uploads = attempt.uploads()
    attempt.send(uploads)
    attempt.opened(attempt.request(uploads))
    assert attempt.holder._attempt is None
    with HolderProcess(world.folder / "holder"):
        pass
    assert (world.folder / "holder/key").stat().st_mode & 0o777 == 0o600
    names = {path.name for path in (world.folder / "decryptor").iterdir()}
    assert names <= {"journal", "refusals.log"}
    written = b"".join(p.read_bytes() for p in world.folder.rglob("*") if p.is_file())
    ternary = _ternary(secret)
    for form in (ternary.astype("i1"), ternary.astype("<i8"), ternary % PK18_44.prime):
        assert form[:64].tobytes() not in written


def _ternary(secret):
    """The secret's coefficients: what c₀ = 0, c₁ = Δ'·1 decrypts to, read in this test alone."""
    one = np.zeros((2, PK18_44.degree), np.uint64)
    one[1, 0] = 1
    found = secret._phase(one)
    assert set(np.unique(found)) == {-1, 0, 1}
    return found


def test_one_folder_serves_one_process_and_one_session(world, capfd):
    folder = world.folder / "holder"
    with HolderProcess(folder) as process:
        with pytest.raises(ProtocolError, match="party has gone"):
            HolderProcess(folder)
        topology, enrolment = world.apart(process)
        topology.play(world.plan(enrolment=enrolment))
    assert "another key holder is at work" in capfd.readouterr().err
    with HolderProcess(folder) as process:
        process.enrol(enrolment.model_copy(update={"session": "other"}))
        with pytest.raises(ProtocolError, match="party has gone"):
            process.read()
    assert "enrolled for another session" in capfd.readouterr().err


def test_an_enrolment_that_cannot_be_read_ends_it_in_one_line(world, capfd):
    with HolderProcess(world.folder / "holder") as process:
        process.write(b'{"session": 3}')
        with pytest.raises(ProtocolError, match="party has gone"):
            process.read()
    error = capfd.readouterr().err
    assert "enrolment cannot be read" in error
    assert "Traceback" not in error


def test_serving_says_the_key_first_then_answers_until_its_input_ends(world):
    key = signing_key(world.folder / "key", os.urandom)
    enrolment = world.enrolment(key.public)
    plan = seal(world.plan(enrolment=enrolment), world.server_key)
    inward, outward = io.BytesIO(), io.BytesIO()
    for blob in (canonical(enrolment.model_dump(mode="json")), b"nonsense", plan):
        write_frame(inward, blob)
    inward.seek(0)
    serve(world.folder, inward, outward, os.urandom)
    outward.seek(0)
    public, refusal, round_key = (read_frame(outward) for _ in range(3))
    assert public == key.public
    assert (kind_of(refusal), kind_of(round_key)) == (Refusal, RoundKey)
    assert read_frame(outward) is None


def test_a_crash_while_it_was_enrolled_leaves_no_half_enrolment(world):
    (world.folder / "enrolment.part").write_bytes(b'{"clients"')
    key = signing_key(world.folder / "key", os.urandom)
    text = canonical(world.enrolment(key.public).model_dump(mode="json"))
    for _ in range(2):
        inward = io.BytesIO()
        write_frame(inward, text)
        inward.seek(0)
        serve(world.folder, inward, io.BytesIO(), os.urandom)
        assert (world.folder / "enrolment.json").read_bytes() == text


def test_serving_nobody_ends_at_once(world):
    outward = io.BytesIO()
    serve(world.folder, io.BytesIO(), outward, os.urandom)
    assert len(outward.getvalue()) == 4 + 32


def test_a_changed_journal_is_not_trusted(begin, world):
    begin()
    (blob,) = (world.folder / "decryptor/journal/messages").iterdir()
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(RunFolderError, match="changed"):
        world.holder()


def test_importing_the_decryptor_imports_no_torch():
    program = "import sys, protocols.decrypting; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_only_the_holder_uses_the_secret_and_nothing_is_called_decrypt():
    root = Path(__file__).parents[2]
    users = set()
    floors = ("protocols", "attacks", "secure_natfl")
    sources = [path for floor in floors for path in root.glob(f"{floor}/**/*.py")]
    for path in sources:
        text = path.read_text()
        assert "def decrypt" not in text
        # An attack may be handed a secret that a test's coalition has; it never makes one. A
        # laboratory of attacks makes keys of rounds that it plays for nobody.
        handed = "attacks" in path.parts and "RoundSecret" not in text
        handed |= "leakage" in path.parts
        if not handed and ("RoundSecret" in text or ".open_sum(" in text):
            users.add(path.name)
    assert users == {"decrypting.py", "tenseal_ckks.py"}
