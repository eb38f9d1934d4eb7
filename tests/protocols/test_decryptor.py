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
from protocols.envelope import identity, kind_of, outline, seal
from protocols.errors import ProtocolError, RunFolderError
from protocols.holder_process import serve
from protocols.keyfile import signing_key
from protocols.messages import OpeningRequest, Refusal, RoundKey
from protocols.policy import DECRYPTOR, SERVER
from protocols.residues import pack, weighted_sum
from protocols.rlwe import PK18_44
from protocols.tenseal_ckks import PublicKey, encrypt
from protocols.transport import HolderProcess, read_frame, write_frame


class Attempt:
    """The messages of one attempt as honest parties make them, to be bent by each test."""

    def __init__(self, world, holder, plan, make_released):
        self.world, self.holder, self.plan = world, holder, plan
        self.plan_blob = seal(plan, world.server_key)
        self.plan_id = identity(self.plan_blob)
        self.key_blob, *self.stored = holder.answer(self.plan_blob)
        assert kind_of(self.key_blob) is RoundKey
        self.public = PublicKey(PK18_44, outline(self.key_blob).body)
        self.clients = world.clients(world.enrolment())
        self.make_released = make_released

    def upload(self, name, number=None, **changes):
        values = self.world.values[name, number or self.plan.round]
        made = self.make_released(values, round_number=self.plan.round)
        body = encrypt(self.public, made, (0, self.plan.size))
        blob = self.clients[name].contribute(self.accepted(name), self.plan.groups[0], body)
        if not changes:
            return blob
        return seal(outline(blob).model_copy(update=changes), self.world.keys[name])

    def accepted(self, name):
        return self.clients[name].accept_plan(self.plan_blob)

    def uploads(self):
        return [self.upload(name) for name in self.plan.participants]

    def request(self, uploads, alphas=None, **changes):
        group = self.plan.groups[0]
        bodies = [outline(blob).body for blob in uploads]
        made = OpeningRequest(
            **self.plan.stage._asdict(),
            sender=SERVER,
            plan=self.plan_id,
            group=group.name,
            participants=group.participants,
            contributions=tuple(identity(blob) for blob in uploads),
            body=weighted_sum(PK18_44, self.plan.size, bodies, alphas or group.alphas),
        )
        return seal(made.model_copy(update=changes), self.world.server_key)

    def send(self, blobs):
        for blob in blobs:
            assert self.holder.answer(blob) == []

    def opened(self, request):
        """The integers that the holder returns for a request; None for its refusal."""
        (answer,) = self.holder.answer(request)
        message = outline(answer)
        if isinstance(message, Refusal):
            assert answer == self.refusal()
            return None
        return message.integers

    def refusal(self):
        (answer,) = self.holder.answer(b"nothing")
        return answer


@pytest.fixture
def begin(world, make_released):
    """Begin an attempt at a new or the given holder."""

    def start(holder=None, number=1, **changes):
        holder = holder or world.holder()
        past = holder._plans.get(number)
        plan = world.plan(number, **changes)
        plan = plan.model_copy(update={"attempt": past.attempt + 1 if past else 1})
        return Attempt(world, holder, plan, make_released)

    return start


def test_an_honest_attempt_opens_the_weighted_sum(begin, world):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    assert (attempt.opened(attempt.request(uploads)) == world.total(attempt.plan.groups[0])).all()


def test_a_tampered_byte_anywhere_in_an_upload_leaves_it_out(begin, world):
    attempt = begin()
    uploads = attempt.uploads()
    draw = np.random.default_rng(8)
    for place in [0, 5, 6, 8, 12, *draw.integers(0, len(uploads[0]), 60), len(uploads[0]) - 1]:
        changed = bytearray(uploads[0])
        changed[place] ^= 1 << int(draw.integers(0, 8))
        assert attempt.holder.answer(bytes(changed)) in ([], [attempt.refusal()])
        assert attempt.holder._attempt.uploads == []
    attempt.send(uploads)
    assert (attempt.opened(attempt.request(uploads)) == world.total(attempt.plan.groups[0])).all()


@pytest.mark.parametrize(
    "change",
    [
        {"sender": "b"},
        {"sender": "f"},
        {"round": 2},
        {"attempt": 2},
        {"session": "other"},
        {"plan": "0" * 64},
        {"group": "g1"},
        {"body": b""},
        {"body": bytes(100)},
        {"body": b"\xff" * PK18_44.ciphertext_bytes(40)},
    ],
)
def test_signed_uploads_that_do_not_belong_here_are_left_out(begin, change):
    attempt = begin()
    attempt.send([attempt.upload("a", **change)])
    assert attempt.holder._attempt.uploads == []
    assert attempt.opened(attempt.request(attempt.uploads())) is None


def test_replayed_duplicated_and_reordered_uploads_are_left_out(begin):
    first = begin()
    old = first.uploads()
    attempt = begin(first.holder)
    fresh = attempt.uploads()
    attempt.send([*old, fresh[1], fresh[0], fresh[0], *old, fresh[1], fresh[3]])
    assert attempt.holder._attempt.uploads == [identity(fresh[0]), identity(fresh[1])]
    attempt.send([fresh[2], fresh[3], fresh[3]])
    assert attempt.holder._attempt.uploads == [identity(blob) for blob in fresh]
    swapped = [fresh[1], fresh[0], *fresh[2:]]
    assert attempt.opened(attempt.request(swapped)) is None


@pytest.mark.parametrize(
    "case", ["one client", "other weights", "one left out", "one twice", "zero"]
)
def test_a_server_that_asks_for_another_sum_is_refused_and_the_key_is_gone(begin, case):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    bodies = [outline(blob).body for blob in uploads]
    lie = {
        "one client": (bodies[:1], [1]),
        "other weights": (bodies, [1, 1, 1, 1]),
        "one left out": (bodies[1:], [2, 3, 4]),
        "one twice": ([*bodies, bodies[0]], [1, 2, 3, 4, 1]),
        "zero": ([], []),
    }[case]
    body = weighted_sum(PK18_44, attempt.plan.size, *lie)
    assert attempt.opened(attempt.request(uploads, body=body)) is None
    # One request per group and attempt: there is no second guess, not even an honest one.
    assert attempt.holder._attempt is None
    assert attempt.opened(attempt.request(uploads)) is None


def test_fewer_uploads_than_participants_open_nothing(begin):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads[:3])
    shorter = attempt.request(uploads[:3], alphas=(1, 2, 3))
    assert attempt.opened(shorter) is None


@pytest.mark.parametrize(
    "change", [{"plan": "0" * 64}, {"attempt": 2}, {"round": 2}, {"group": "g1"}]
)
def test_a_request_of_another_stage_plan_or_group_is_refused(begin, change):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    assert attempt.opened(attempt.request(uploads, **change)) is None


def test_the_same_request_gets_the_same_opening_and_another_one_nothing(begin, world):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    request = attempt.request(uploads)
    once = attempt.holder.answer(request)
    assert attempt.holder.answer(request) == once
    again = world.holder()
    assert again.answer(request) == once
    assert again.answer(attempt.request(uploads[::-1])) == [attempt.refusal()]


def test_an_opened_group_is_returned_to_a_new_attempt_and_never_summed_again(begin, world):
    first = begin()
    uploads = first.uploads()
    first.send(uploads)
    (opening,) = first.holder.answer(first.request(uploads))
    # The same group: its stored opening comes with the key; new uploads for it are left out.
    retry = begin(first.holder)
    assert retry.stored == [opening]
    (past,) = outline(retry.key_blob).opened
    assert (past.group, past.attempt, past.plan) == ("g0", 1, first.plan_id)
    fresh = retry.uploads()
    retry.send(fresh)
    assert retry.opened(retry.request(fresh)) is None
    # Another set, other weights, or the same clients under another name: no key at all.
    for groups in (
        world.groups("abc"),
        world.groups("abcde"),
        world.groups("abcd", alphas=(2, 2, 2, 2)),
        [world.groups("abcd")[0].model_copy(update={"name": "again"})],
    ):
        blob = seal(
            world.plan(
                groups=groups,
            ).model_copy(update={"attempt": 9}),
            world.server_key,
        )
        assert first.holder.answer(blob) == [first.refusal()]


def test_a_new_attempt_closes_the_one_before(begin, world):
    first = begin()
    uploads = first.uploads()
    first.send(uploads)
    second = begin(first.holder, groups=world.groups("abc"))
    assert first.opened(first.request(uploads)) is None
    third = begin(first.holder)
    assert third.plan.attempt == 3
    assert first.holder.answer(first.plan_blob) == [first.refusal()]
    assert first.holder.answer(second.plan_blob) == [first.refusal()]


def test_feigned_dropouts_never_give_two_sums_of_one_round(begin, world):
    """Every pair of participant sets of six clients: the second differing set gets no opening."""
    first = begin(groups=world.groups("abcdef", alphas=(1,) * 6))
    uploads = first.uploads()
    first.send(uploads)
    assert first.opened(first.request(uploads)) is not None
    for number in range(1 << 6):
        members = "".join(name for at, name in enumerate("abcdef") if number >> at & 1)
        if len(members) < 3 or members == "abcdef":
            continue
        groups = world.groups(members, alphas=(1,) * 6)
        plan = world.plan(groups=groups).model_copy(update={"attempt": 2})
        assert first.holder.answer(seal(plan, world.server_key)) == [first.refusal()]
    log = (world.folder / "decryptor/refusals.log").read_text().splitlines()
    assert sum("opened group g0 was changed" in line for line in log) == 41


def test_proxies_of_an_earlier_round_are_not_asked_again(begin, world):
    first = begin()
    repeated = world.plan(2, subset=[15, 99])
    assert first.holder.answer(seal(repeated, world.server_key)) == [first.refusal()]
    assert begin(first.holder, number=2).plan.round == 2


def test_plans_that_break_the_floors_or_are_not_the_servers_get_one_constant_refusal(begin, world):
    first = begin()
    plan = world.plan(2)
    floors = plan.floors.model_copy(update={"participants": 2})
    lone = plan.groups[0].model_copy(update={"alphas": (60, 1, 1, 1)})
    blobs = [
        seal(plan, world.keys["a"]),
        seal(plan.model_copy(update={"floors": floors}), world.server_key),
        seal(plan.model_copy(update={"groups": (lone,)}), world.server_key),
        seal(plan.model_copy(update={"session": "other"}), world.server_key),
        b"",
        bytes(1000),
    ]
    answers = [first.holder.answer(blob) for blob in blobs]
    assert answers == [[first.refusal()]] * len(blobs)
    # A refused plan changes nothing: the attempt before it is still open.
    uploads = first.uploads()
    first.send(uploads)
    assert first.opened(first.request(uploads)) is not None
    log = (world.folder / "decryptor/refusals.log").read_text()
    assert "participant floor was lowered" in log
    assert "signature" in log


def test_a_dishonest_clients_noise_opens_nothing(begin):
    """Signed, reduced and of the right length: the sum is refused, for it is out of bounds."""
    attempt = begin()
    draw = np.random.default_rng(9)
    noise = draw.integers(0, PK18_44.prime, 2 * PK18_44.degree).astype(np.uint64)
    uploads = [attempt.upload("a", body=pack(noise, 44)), *attempt.uploads()[1:]]
    attempt.send(uploads)
    assert attempt.opened(attempt.request(uploads)) is None
    assert attempt.holder._attempt is None


def test_uploads_of_zeros_add_up_to_no_ciphertext_and_are_refused(begin, world):
    """SEAL raises on c₁ = 0 in its own words; the answer is the one refusal."""
    attempt = begin()
    zeros = bytes(PK18_44.ciphertext_bytes(world.size))
    uploads = [attempt.upload(name, body=zeros) for name in "abcd"]
    attempt.send(uploads)
    assert attempt.opened(attempt.request(uploads)) is None


def test_six_hundred_mutants_signed_by_insiders_neither_crash_the_holder_nor_move_it(begin, world):
    """All parties' own messages, changed and signed again: refused, and the state as before."""
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    request = attempt.request(uploads)
    sources = [
        (attempt.plan_blob, world.server_key),
        (uploads[0], world.keys["a"]),
        (attempt.key_blob, world.holder_key),
    ]
    draw = np.random.default_rng(10)
    for number in range(600):
        blob, key = sources[number % len(sources)]
        unsigned = bytearray(blob[:-64])
        for _ in range(int(draw.integers(1, 4))):
            unsigned[draw.integers(0, min(len(unsigned), 400))] = draw.integers(0, 256)
        mutant = bytes(unsigned) + key.sign(bytes(unsigned))
        if mutant == blob:
            continue
        assert attempt.holder.answer(mutant) in ([], [attempt.refusal()])
        assert attempt.holder._attempt.uploads == [identity(upload) for upload in uploads]
    assert (attempt.opened(request) == world.total(attempt.plan.groups[0])).all()


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
