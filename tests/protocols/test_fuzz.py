"""Mutated messages against the real receivers: nothing but our errors, nothing of it believed.

Nine in ten mutants are signed again by the insider who sent the original, so they get as far as
header and body. What is accepted may differ from the original only in the fields that `free`
names: those that the sender is free to choose. A second verifier, which shares no code with the
package, judges each frame, header and plan as well.
"""

import importlib.util
import json
import re
import struct
import subprocess
import sys
from base64 import b64decode
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from protocols.chain import canonical
from protocols.envelope import identity, kind_of, seal, unseal
from protocols.errors import NatflError
from protocols.messages import KINDS, Refusal, Stage
from protocols.residues import unpack
from protocols.rlwe import PK18_44

TESTS = Path(__file__).parents[1]
DEFAULT, NIGHTLY = 1_000, 50_000


def beside(folder: Path, *names: str) -> list[Any]:
    """Modules that stand beside the tests, outside every package."""
    sys.path.insert(0, str(folder))
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(folder))


(cast,) = beside(TESTS / "vectors", "cast")
(wire, *_) = beside(TESTS / "second_verifier", "wire", "rules")
mutants, receiving, at_work, with_decryptor = beside(
    Path(__file__).parent, "mutants", "receiving", "at_work", "with_decryptor"
)

STEPS = {
    "frame": ("shorter than", "unknown magic", "another kind"),
    "length": ("size limit", "the preset's", "truncated"),
    "signature": ("signature does not verify",),
    "header": ("canonical form of its kind",),
    "sender": ("another sender",),
    "stage": ("another session",),
}


# All kinds at the envelope: the second verifier must stop at the very same step.


def envelopes() -> list[tuple[Any, dict[str, Any]]]:
    document = json.loads((TESTS / "vectors/envelopes.json").read_bytes())
    honest = {
        vector["awaits"]: b64decode(vector["message"])
        for vector in document["vectors"]
        if vector["name"].endswith(": honest")
    }
    assert honest.keys() == {kind.kind for kind in KINDS}
    keys = {kind: cast.KEYS[document["awaits"][kind]["sender"]] for kind in honest}
    return [
        (receiving.signed(blob, keys[kind]), document["awaits"][kind])
        for kind, blob in honest.items()
    ]


def _steps(count: int, seed: int) -> Counter[str]:
    """Both receivers on so many mutants of every kind; how often each step refused."""
    known = envelopes()
    supply = mutants.Mutants([original for original, _ in known], seed)
    steps: Counter[str] = Counter()
    for number in range(count):
        original, awaits = known[number % len(known)]
        sort, blob = supply.of(original)
        kind = kind_of(original.blob)
        try:
            message = unseal(
                blob,
                kind,
                Stage(awaits["session"], awaits["round"], awaits["attempt"]),
                sender=awaits["sender"],
                verify_key=bytes.fromhex(awaits["verify_key"]),
                body_bytes=awaits["body_bytes"],
            )
            first = identity(blob)
            assert seal(message, cast.KEYS[awaits["sender"]]) == blob
        except NatflError as error:
            first = next(
                step for step, words in STEPS.items() if any(w in str(error) for w in words)
            )
        try:
            second = wire.receive(blob, kind.kind, awaits)
        except wire.RefusedError as error:
            second = {"canonical form": "header"}.get(str(error), str(error))
        assert first == second, (kind.kind, sort, blob[:2000])
        steps[first if first in STEPS else "accepted"] += 1
    assert supply.unsigned <= 0.1 * supply.made
    return steps


def test_a_thousand_mutants_of_all_kinds_stop_at_the_same_step_of_two_receivers():
    steps = _steps(DEFAULT, 1)
    assert {*steps} == {*STEPS, "accepted"}
    assert steps["header"] > DEFAULT / 4
    sys.stdout.write(f"{dict(steps)}\n")


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_fifty_thousand_mutants_of_all_kinds_stop_at_the_same_step():
    steps = _steps(NIGHTLY, 2)
    assert {*steps} == {*STEPS, "accepted"}
    sys.stdout.write(f"{dict(steps)}\n")


# The parties themselves.


@pytest.fixture
def threshold(world, new_shared, tmp_path):
    return at_work.threshold(world, new_shared, tmp_path)


@pytest.fixture
def decryptor(new_world, make_released, tmp_path):
    """The modes with a decryptor."""
    folder = tmp_path / "lives"
    folder.mkdir()
    made = with_decryptor.decryptor(new_world("masks"), make_released, folder)
    return made + with_decryptor.ring(new_world("ring"), make_released, folder)


def test_every_original_is_accepted_and_every_kind_has_a_receiver(threshold, decryptor):
    for receiver in accepting([*threshold, *decryptor]):
        receiver.take(receiver.original.blob)
        receiver.renew()
    assert {kind_of(one.original.blob) for one in [*threshold, *decryptor]} == {*KINDS}


def accepting(receivers):
    return [one for one in receivers if kind_of(one.original.blob) is not Refusal]


def test_a_thousand_mutants_at_the_parties_of_threshold_mode(threshold):
    receiving.run(threshold, DEFAULT, 3)


def test_five_hundred_mutants_of_plans_and_requests_are_judged_as_by_the_second_verifier(threshold):
    judged = [receiver for receiver in threshold if receiver.second is not None]
    assert len(judged) == 3
    receiving.run(judged, DEFAULT // 2, 7)


def test_a_thousand_mutants_at_the_parties_of_both_decryptor_modes(decryptor):
    receiving.run(accepting(decryptor), DEFAULT, 4)


def test_three_hundred_mutants_of_a_refusal_are_never_an_answer(decryptor):
    (refused,) = (one for one in decryptor if kind_of(one.original.blob) is Refusal)
    supply = mutants.Mutants([refused.original], 5)
    for _ in range(300):
        with pytest.raises(NatflError):
            refused.take(supply.of(refused.original)[1])


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_fifty_thousand_mutants_at_the_parties_of_all_modes(threshold, decryptor):
    receiving.run([*threshold, *accepting(decryptor)], NIGHTLY, 6)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_two_hundred_thousand_inputs_led_by_coverage_break_no_envelope(tmp_path):
    """libFuzzer through atheris, from one honest message of each kind."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install atheris")
    for at, (original, _) in enumerate(envelopes()):
        text = canonical({**original.header, "sender": "a"})
        split = len(text).to_bytes(3, "little")
        (tmp_path / str(at)).write_bytes(bytes([at]) + split + text + original.body)
    program = [sys.executable, str(Path(__file__).parent / "covered.py"), "200000", str(tmp_path)]
    result = subprocess.run([*program, "1"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "Done 200000 runs" in result.stderr
    sys.stdout.write(re.findall(r"#200000\tDONE.*", result.stderr)[0] + "\n")


# TenSEAL's own format is never read: bodies that crash its parser or its use.


def protobuf(sizes: list[int], ciphertexts: list[bytes]) -> bytes:
    """A CKKS vector as TenSEAL writes it: sizes (field 1), ciphertexts (2), scale (3)."""
    packed = b"".join(bytes([n & 127 | 128, n >> 7 & 127]) for n in sizes)
    parts = [b"\x0a" + bytes([len(packed)]) + packed] if packed else []
    parts += [b"\x12" + bytes([len(one)]) + one for one in ciphertexts]
    return b"".join(parts) + b"\x19" + struct.pack("<d", 2.0**40)


CRAFTED = {
    "no sizes": protobuf([], [bytes(100)]),
    "no ciphertext": protobuf([4], []),
    "sizes beyond the slots": protobuf([5000], [bytes(100)]),
}


def padded(body: bytes, length: int) -> bytes:
    """The same at the length that is awaited: repeated, then cut."""
    return (body * (length // len(body) + 1))[:length]


def test_crafted_bodies_of_every_kind_never_reach_tenseal_at_server_client_or_share_holder():
    """In a process that cannot import tenseal, and so cannot call it."""
    program = [sys.executable, str(Path(__file__).parent / "without_tenseal.py")]
    bodies = json.dumps({name: body.hex() for name, body in CRAFTED.items()})
    result = subprocess.run(
        [*program, str(TESTS / "vectors"), bodies], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{2 * len(CRAFTED) * len(KINDS)} messages, tenseal not imported\n"


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_bodies_are_refused_by_the_decryptor_for_their_length(decryptor, name):
    by_name = {receiver.name: receiver for receiver in decryptor}
    for awaited, words in {
        "decryptor, contribution": "body length is not the preset's",
        "decryptor, link": "body length is not the preset's",
        "decryptor, request": "sum is not that of the contributions",
        "decryptor, request in a ring": "links do not close the ring",
    }.items():
        receiver = by_name[awaited]
        live = receiver.take.__self__
        blob = receiver.original.framed(receiver.original.text, CRAFTED[name])
        with pytest.raises(NatflError):
            receiver.take(blob)
        assert words in (live.holder._journal.folder.parent / "refusals.log").read_text()
        receiver.renew()
    for awaited in ("client, public key", "client, hop"):
        receiver = by_name[awaited]
        with pytest.raises(NatflError, match="body length is not the preset's"):
            receiver.take(receiver.original.framed(receiver.original.text, CRAFTED[name]))


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_bodies_at_the_awaited_length_are_residues_to_the_decryptor(decryptor, name):
    """TenSEAL is not asked to parse them: they are below the modulus, or refused."""
    (receiver,) = (one for one in decryptor if one.name == "decryptor, contribution")
    body = padded(CRAFTED[name], len(receiver.original.body))
    try:
        unpack(body, PK18_44.residue_bits, (PK18_44.prime,))
    except NatflError:
        with pytest.raises(NatflError):
            receiver.take(receiver.original.framed(receiver.original.text, body))
    else:
        receiver.take(receiver.original.framed(receiver.original.text, body))
