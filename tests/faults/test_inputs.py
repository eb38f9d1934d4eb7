"""R11, R12, R13: bytes from a hostile network, ciphertexts from a hostile client, bad settings."""

import os
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.ours import Ours
from protocols.chain import SigningKey
from protocols.envelope import authentic, identity, kind_of, outline, seal
from protocols.errors import ConfigError, NatflError, ProtocolError
from protocols.messages import KINDS, Contribution
from protocols.multikey_ckks import MultiKeySum, protect
from protocols.residues import pack
from secure_natfl.toml_config import load


@pytest.fixture(scope="module")
def round_of_three(tmp_path_factory) -> Ours:
    return Ours(tmp_path_factory.mktemp("ours"), (1, 1, 1), rows=40, columns=2)


def mutants(honest: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Bits, cuts, joins, lengths that lie, other kinds' codes, and noise."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        blob = bytearray(honest[int(draw.integers(len(honest)))])
        kind, at = int(draw.integers(6)), int(draw.integers(len(blob)))
        if kind == 0:
            blob[at] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            del blob[at:]
        elif kind == 2:
            blob[at:at] = honest[int(draw.integers(len(honest)))][: int(draw.integers(200))]
        elif kind == 3:
            struct.pack_into("<I", blob, 7 + 4 * int(draw.integers(2)), int(draw.integers(2**32)))
        elif kind == 4:
            blob[5 + int(draw.integers(2))] = int(draw.integers(256))
        else:
            blob = bytearray(draw.bytes(int(draw.integers(400))))
        yield bytes(blob)


def received(made: Ours, blob: bytes) -> bool:
    """Whether any receiver, for any kind that it may await, believes the blob."""
    try:
        kind_of(blob)
        outline(blob)
    except NatflError:
        return False
    senders = {**made.enrolment.clients, "server": made.enrolment.server}
    for kind in KINDS:
        for sender in ("client-0000", "server"):
            try:
                authentic(blob, kind, sender=sender, verify_key=bytes.fromhex(senders[sender]))
            except NatflError:
                continue
            return True
    return False


def fuzz(made: Ours, count: int) -> int:
    """How many mutants were believed; nothing but our errors, no hang, no memory."""
    one = made.client(0)
    honest = [made.plan_blob, one.contribution, *one.shares, *made.keys.values()]
    assert received(made, made.plan_blob)
    assert received(made, one.contribution)
    believed, slowest = 0, 0.0
    with at_most_more_memory(256 << 20):
        for blob in mutants(honest, count, seed=11):
            start = time.perf_counter()
            believed += blob not in honest and received(made, blob)
            slowest = max(slowest, time.perf_counter() - start)
    assert slowest < 1
    return believed


@contextmanager
def at_most_more_memory(count: int) -> Iterator[None]:
    """The system gives this process no more than so many further bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_r11_ten_thousand_envelopes_from_nobody_are_not_believed(round_of_three) -> None:
    assert fuzz(round_of_three, 10_000) == 0


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_r11_a_million_envelopes_from_nobody_are_not_believed(round_of_three) -> None:
    assert fuzz(round_of_three, 1_000_000) == 0


def ciphertexts(made: Ours, count: int, seed: int) -> tuple[int, int]:
    """(believed of those changed on the way, refused of those that a client itself signed)."""
    blob, draw = made.client(1).contribution, np.random.default_rng(seed)
    expected, key = made.ring.ciphertext_bytes(made.size), made.clients["client-0001"].key
    body, believed, refused = outline(blob).body, 0, 0

    def take(sent: bytes) -> None:
        arguments = (made.plan, made.plan_id, made.group, "client-0001", expected)
        upload = made.server.accept_contribution(sent, *arguments)
        MultiKeySum(made.ring, made.size).add(upload.body, 1)

    take(blob)
    for number in range(count):
        at = len(blob) - len(body) - 64 + int(draw.integers(len(body)))
        changed = blob[:at] + bytes([blob[at] ^ (1 << int(draw.integers(8)))]) + blob[at + 1 :]
        try:
            take(changed)
            believed += 1
        except ProtocolError:
            pass
        if number % 10:
            continue
        own = (body[:-1], body + b"\0", b"", os.urandom(len(body)), b"\xff" * len(body))
        message = outline(blob).model_copy(update={"body": own[number // 10 % 5]})
        assert isinstance(message, Contribution)
        try:
            take(seal(message, key))
        except ProtocolError:
            refused += 1
    return believed, refused


def test_r12_changed_ciphertexts_are_not_added(round_of_three) -> None:
    """What an insider signs itself may be added where it is in range: then the sum is its own."""
    believed, refused = ciphertexts(round_of_three, 2_000, seed=12)
    assert believed == 0
    assert refused >= 120


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_r12_a_hundred_thousand_changed_ciphertexts_are_not_added(round_of_three) -> None:
    assert ciphertexts(round_of_three, 100_000, seed=13)[0] == 0


def opened(made: Ours, body: Callable[[bytes], bytes]) -> NDArray[np.int64]:
    """The sum of three, of whom the last signs a changed body, and shares of its true key."""
    name, sent = made.names[2], [made.client(0), made.client(1)]
    client, own, group = made.clients[name], made.accept(name), made.group
    part = protect(
        made.ring,
        made.releases[2],
        (0, made.size),
        reference=made.reference(),
        heaviest=1,
        holders=len(made.holders),
        threshold=made.enrolment.threshold,
    )
    blob = client.contribute(own, group, body(part.body))
    shares = [*client.share_key(own, blob, group, part.shares)]
    total, request = made.aggregate([one.contribution for one in sent] + [blob])
    return made.open(total, request, made.answers([*(one.shares for one in sent), shares], request))


def test_r12_a_signed_lie_opens_to_nothing_and_names_no_other(tmp_path) -> None:
    """One contribution of noise in a sum of three: the bounds of an honest sum do not hold."""
    for name in ("honest", "lied"):
        (tmp_path / name).mkdir()
    honest = Ours(tmp_path / "honest", (1, 1, 1), rows=40, columns=2)
    assert (opened(honest, lambda body: body) == honest.expected()).all()
    lied = Ours(tmp_path / "lied", (1, 1, 1), rows=40, columns=2)
    draw, ring = np.random.default_rng(12), lied.ring
    places = ring.blocks(lied.size) * ring.degree
    noise = draw.integers(ring.wire_limit, size=(1, places), dtype=np.uint64)
    with pytest.raises(ProtocolError, match="open") as refused:
        opened(lied, lambda body: pack(noise, ring.wire_bits))
    assert not any(name in str(refused.value) for name in lied.names)


NUMBERS = ("-1", "nan", "inf", "-inf", '"many"', "[]", "{}")
WHOLE = (*NUMBERS, "0", "1.5", "true")
NAMES = ('"../x"', '"A B"', '""', '"x/y"', "3", "[]")
BAD = {
    "system.rounds": WHOLE,
    "system.local_epochs": (*NUMBERS, "1.5"),
    "data.size": (*WHOLE, "15", "513", "1000000"),
    "data.channels": ("0", "2", "4", '"rgb"'),
    "data.test_fraction": (*NUMBERS, "0", "1", "1.01"),
    "data.folds": ("-1", "1", "nan", "[]"),
    "data.hospitals": ("[]", "{}", '"all"', "3", '[{kind = "phantom"}]', '[{kind = "zip"}]'),
    "proxies.images": WHOLE,
    "proxies.per_round": WHOLE,
    "proxies.kind": ('"pickle"', "3", "[]"),
    "models.pretrain_epochs": (*NUMBERS, "0.5"),
    "models.batch": (*WHOLE, "3"),
    "privacy.epsilon": (*NUMBERS, "0", "true"),
    "privacy.delta": (*NUMBERS, "0", "1", "2"),
    "privacy.shards": (*WHOLE, "1"),
    "privacy.clip": (*NUMBERS, "0"),
    "privacy.colluders": (*NUMBERS, "0", "1.5"),
    "privacy.dropouts": (*NUMBERS, "0.5"),
    "privacy.mechanism": ('"none of these"', "3", "[]"),
    "aggregation.kind": ('"he"', "1", "[]"),
    "aggregation.custody": ('"server"', '"shared"', "1"),
    "aggregation.min_participants": (*WHOLE, "2"),
    "aggregation.min_effective": (*NUMBERS, "1.9"),
    "ledger.budget_epsilon": (*NUMBERS, "0"),
    "run.name": NAMES,
    "run.seed": ("-1", "1.5", '"often"', "[]"),
    "run.baselines": ('"maybe"', "2", "[]"),
    "speed.threads": ("-1", "1.5", '"all"', "[]"),
}
CASES = [(key, value) for key, values in BAD.items() for value in values]


def test_r13_bad_settings_are_one_line_that_names_the_key() -> None:
    assert len(CASES) >= 150
    for key, value in CASES:
        with pytest.raises(ConfigError) as refused:
            load("smoke", [f"{key}={value}"])
        line = str(refused.value)
        assert key.split(".")[0] in line, (key, value, line)
        assert "\n" not in line, (key, value)


def test_r13_a_key_of_another_length_is_no_key() -> None:
    for length in (0, 1, 31, 33, 64):
        with pytest.raises(ProtocolError, match="signing key"):
            SigningKey(bytes(length))


def test_r13_weights_that_are_none_are_not_added(round_of_three) -> None:
    body = outline(round_of_three.client(0).contribution).body
    assert identity(round_of_three.plan_blob)
    for alpha in (0, -1, 2**40):
        with pytest.raises(ProtocolError):
            MultiKeySum(round_of_three.ring, round_of_three.size).add(body, alpha)
