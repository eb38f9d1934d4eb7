"""Record and play: with what mechanisms put out held fixed, nothing else that is sent may differ.

Recorded: a round over real mechanisms and ledgers, on one data set. Played: the same round on a
neighbouring one, in which every teacher of one client answers otherwise. The ledger is the seam
that holds the releases fixed: the recorded integers are stored in the played site's ledger, so
that the mechanism runs as always and hands them out. Then what every client sends is compared:
order, receivers, kinds, headers and lengths exactly; contents exactly where randomness can be held
fixed (plain, and one-time keys, errors and shares of the threshold mode through `os.urandom`), and
modulo it where it cannot (TenSEAL's and HPKE's own generators). Source of the method: Cebere et
al. 2026 (arXiv 2602.17454).
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import protocols.multikey_ckks
import protocols.parties
from protocols.chain import digest
from protocols.envelope import outline
from protocols.ledger import Ledger, ReleaseKey
from protocols.mechanisms import Released, ShardTeachers
from protocols.messages import Contribution, RoundPlan
from protocols.noise_plan import NoisePlan
from protocols.outcome import Outcome
from protocols.parties import Client
from protocols.quantize import Layout, Segment
from protocols.rlwe import PK18_44
from protocols.sampler import seeded_random
from protocols.transcript import Entry, Transcript

SIZE, SITES, ROUNDS = 5000, "abcd", 2
LAYOUT = Layout((Segment("logits", SIZE, 1),))
# The one field of a header that names the content of another message (a key share of its upload).
CONTENT = {"contribution"}


def noise_plan() -> NoisePlan:
    return NoisePlan.calibrate(
        epsilon=4.0,
        delta=1e-5,
        rounds=ROUNDS,
        alphas=dict.fromkeys(SITES, 1),
        groups=dict.fromkeys(SITES, "g0"),
        colluders=1,
        dropouts=0,
        shards=dict.fromkeys(SITES, 5),
        clip_norm=4.0,
        size=SIZE,
    )


def data(neighbour: bool) -> dict[str, np.ndarray]:
    """Teachers of each site; the neighbour's client `a` answers otherwise, and as far as it can."""
    draw = np.random.default_rng(8)
    teachers = {site: draw.normal(0, 0.1, (5, SIZE)) for site in SITES}
    if neighbour:
        teachers["a"] = np.zeros((5, SIZE))
        teachers["a"][3, 17] = 1e6
    return teachers


class Hospital:
    """A site's release: its teachers, its mechanism, its ledger, the operating system's noise."""

    def __init__(self, mechanism: ShardTeachers, teachers: np.ndarray, path: Path, site: str):
        self.mechanism, self.teachers = mechanism, teachers
        self.ledger = Ledger(path, site, "patients", budget_epsilon=4.0, delta=1e-5)
        self.released: dict[ReleaseKey, np.ndarray] = {}

    def hold(self, recorded: Mapping[ReleaseKey, np.ndarray]) -> None:
        """Store what was recorded, as if it had been drawn here."""
        for key, values in recorded.items():
            self.ledger.charge(key, self.mechanism.event())
            self.ledger.store(key, values)

    def release(self, plan: RoundPlan) -> Released:
        key = ReleaseKey(plan.session, plan.round)
        bounded = self.mechanism.bound(self.teachers, LAYOUT)
        made = self.mechanism.release(bounded, self.ledger, key, os.urandom)
        self.released[key] = made.values
        return made


class Play:
    """One run of two rounds of a mode over `hospitals`, all messages in a transcript."""

    def __init__(self, world: Any, mode: str, hospitals: Mapping[str, Hospital]) -> None:
        self.world, self.hospitals, self.outcomes = world, hospitals, list[Outcome]()
        topology, enrolment = self._topology(mode)
        for number in range(ROUNDS):
            groups = world.groups(SITES, alphas=(1, 1, 1, 1))
            plan = world.plan(number, enrolment=enrolment, groups=groups)
            self.outcomes.append(topology.play(plan))

    def _topology(self, mode: str) -> tuple[Any, Any]:
        if mode == "plain":
            made, enrolment = self.world.plain()
        elif mode == "decryptor":
            made, enrolment = self.world.beside(), self.world.enrolment()
        else:
            enrolment = self.world.shared()
            made = self.world.threshold(enrolment)
        made._clients = {
            name: Client(name, client.key, enrolment, self.hospitals[name].release)
            for name, client in made._clients.items()
            if name in self.hospitals
        }
        return made, enrolment

    def sent(self) -> list[Entry]:
        """What clients sent, in order."""
        entries = self.world.transcript.entries
        return [entry for entry in entries if entry.sender in self.hospitals]

    def message(self, entry: Entry) -> tuple[dict[str, Any], bytes]:
        """Header and content of a message; the header without what names contents."""
        transcript: Transcript = self.world.transcript
        message = outline(transcript.read(entry))
        return {k: v for k, v in message.model_dump().items() if k not in CONTENT}, message.body

    def contributions(self) -> list[tuple[str, bytes]]:
        kinds = [entry for entry in self.sent() if entry.kind == Contribution.kind]
        return [(entry.sender, self.message(entry)[1]) for entry in kinds]

    def charges(self) -> dict[str, list[dict[str, Any]]]:
        return {name: hospital.ledger.lines() for name, hospital in self.hospitals.items()}


@pytest.fixture
def play(new_world: Callable[..., Any]) -> Callable[..., Play]:
    def made(mode: str, neighbour: bool, recorded: Play | None = None) -> Play:
        world = new_world(f"{mode}-{neighbour}-{recorded is not None}", size=SIZE)
        if recorded:
            for keys in ("server_key", "holder_key", "keys", "holder_keys"):
                setattr(world, keys, getattr(recorded.world, keys))
        plan, teachers = noise_plan(), data(neighbour)
        hospitals = {
            site: Hospital(plan.mechanisms[site], teachers[site], world.folder / f"{site}.db", site)
            for site in SITES
        }
        for site, hospital in hospitals.items() if recorded else ():
            hospital.hold(recorded.hospitals[site].released)
        return Play(world, mode, hospitals)

    return made


def outside(entry: Entry) -> tuple[Any, ...]:
    """What the network sees of a message without its content."""
    at = entry.round, entry.attempt
    return entry.sender, entry.receivers, entry.kind, entry.bytes, at


def assert_alike(one: Play, two: Play) -> None:
    assert len(one.sent()) == len(two.sent()) >= ROUNDS * len(SITES)
    for first, second in zip(one.sent(), two.sent(), strict=True):
        assert outside(first) == outside(second)
        (header, body), (other_header, other_body) = one.message(first), two.message(second)
        assert header == other_header
        assert len(body) == len(other_body)


@pytest.mark.parametrize("mode", ["plain", "decryptor", "threshold"])
def test_all_that_clients_send_is_alike_on_neighbours(mode: str, play: Any) -> None:
    """4 clients, 2 rounds of 5,000 integers: order, kinds, headers, lengths, and the ledgers."""
    recorded = play(mode, neighbour=False)
    played = play(mode, neighbour=True, recorded=recorded)
    assert_alike(recorded, played)
    assert recorded.charges() == played.charges()
    for one, two in zip(recorded.outcomes, played.outcomes, strict=True):
        assert one.aggregates["g0"].sha256 == two.aggregates["g0"].sha256
        assert one.absent == two.absent == {}


def test_plain_contents_are_the_releases_and_nothing_else(play: Any) -> None:
    recorded = play("plain", neighbour=False)
    played = play("plain", neighbour=True, recorded=recorded)
    assert recorded.contributions() == played.contributions()


def test_ciphertexts_and_key_shares_are_alike_to_the_byte(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clients' draws from one stream; sealing, whose generator is OpenSSL's, left out.

    4 clients, 2 rounds: 8 contributions and the 48 key shares inside their seals.
    """
    recorded, runs, shares = play("threshold", neighbour=False), [], list[bytes]()
    sealed, split = protocols.parties.seal_to, protocols.multikey_ckks.split

    def seen(public: bytes, content: bytes, *context: str) -> bytes:
        shares.append(content)
        return sealed(public, content, *context)

    monkeypatch.setattr(protocols.parties, "seal_to", seen)
    for neighbour in (False, True):
        shares.clear()
        stream = seeded_random(b"held")
        with monkeypatch.context() as held:
            held.setattr(os, "urandom", stream)
            held.setattr(protocols.multikey_ckks, "split", partial(split, random=stream))
            run = play("threshold", neighbour=neighbour, recorded=recorded)
        runs.append((run.contributions(), list(shares)))
    assert runs[0] == runs[1]
    assert (len(runs[0][0]), len(runs[0][1])) == (8, 48)
    assert recorded.contributions() != runs[0][0]


def test_without_holding_the_releases_contents_do_differ(play: Any) -> None:
    """The control: the same comparison sees noise that is drawn again."""
    one, two = (play("plain", neighbour=neighbour) for neighbour in (False, True))
    assert one.contributions() != two.contributions()


class Talkative(Hospital):
    """The mutant: leaves out trailing zeros, and so tells by length what it knows."""

    def release(self, plan: RoundPlan) -> Released:
        made = super().release(plan)
        return made if self.teachers.max() < 1e5 else _shorter(made)


def _shorter(made: Released) -> Released:
    short = object.__new__(Released)
    for name, value in {"values": made.values[:-1], "layout": made.layout, "key": made.key}.items():
        object.__setattr__(short, name, value)
    return short


@pytest.mark.parametrize("mode", ["plain", "decryptor", "threshold"])
def test_a_length_that_depends_on_the_data_does_not_pass(
    mode: str, play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "Hospital", Talkative)
    recorded = play(mode, neighbour=False)
    with pytest.raises(Exception, match="another size than the plan"):
        play(mode, neighbour=True, recorded=recorded)


def test_neighbours_differ_where_it_matters() -> None:
    one, two = (data(neighbour)["a"] for neighbour in (False, True))
    mechanism = noise_plan().mechanisms["a"]
    sums = [mechanism.bound(teachers, LAYOUT).values for teachers in (one, two)]
    assert (sums[0] != sums[1]).sum() > SIZE / 2
    assert digest(sums[0].tobytes()) != digest(sums[1].tobytes())
    assert mechanism.limit <= PK18_44.value_limit
