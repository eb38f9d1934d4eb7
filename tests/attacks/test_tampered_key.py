import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binom

import protocols.secagg.decryptor as topology_module
from attacks.cryptanalysis import KeyGuess
from attacks.tampered_key import largest_offset, open_body, read_key, tampered
from attacks.threat import ThreatError
from protocols.chain import SigningKey, digest
from protocols.decrypting import Decrypting
from protocols.envelope import kind_of, outline
from protocols.errors import ProtocolError
from protocols.ledger import ReleaseKey
from protocols.masks import Masking, mask_body, mask_sum
from protocols.mechanisms import Released
from protocols.messages import Contribution, Floors, Group, Opening, OpeningRequest
from protocols.parties import Client, Server
from protocols.policy import DECRYPTOR, Enrolment
from protocols.quantize import Layout, Segment
from protocols.residues import weighted_sum
from protocols.rlwe import PK18_44
from protocols.secagg import Decryptor, draft
from protocols.transcript import Transcript
from protocols.transport import Beside, Wire

N, Q, CLIP, FALSE_ALARM = PK18_44.degree, PK18_44.prime, 20_000, 1e-6
NAMES, SIZE = "abcdef", PK18_44.degree + 904


@dataclasses.dataclass(frozen=True)
class Tampering(Client):
    """An enrolled client that signs a tampered upload for the first group."""

    offset: int = 0

    def contribute(self, accepted, group, body):
        first = group.name == "g0"
        body = tampered(PK18_44, body, self.offset) if first else body
        return super().contribute(accepted, group, body)


class Study:
    """Real parties; `a` tampers. The holder's secret and the clients' masks are kept for checks."""

    def __init__(self, folder, monkeypatch, offset, wire=Wire):
        keys = {name: SigningKey(digest(name.encode()).encode()[:32]) for name in NAMES}
        server, holder = SigningKey(b"s" * 32), SigningKey(b"h" * 32)
        self.enrolment = Enrolment(
            session="study",
            mode="ckks/decryptor",
            server=server.public.hex(),
            holders={DECRYPTOR: holder.public.hex()},
            clients={name: key.public.hex() for name, key in keys.items()},
            preset=PK18_44.name,
            proxies=digest(b""),
            terms=digest(b""),
            floors=Floors(),
        )
        draw = np.random.default_rng(3)
        self.values = {name: draw.integers(-CLIP, CLIP + 1, SIZE) for name in NAMES}
        clients = {
            name: Client(name, key, self.enrolment, self.release(name))
            for name, key in keys.items()
        }
        a = clients["a"]
        clients["a"] = Tampering(a.name, a.key, a.enrolment, a.release, offset)
        self.transcript = Transcript(folder / "transcript")
        self.wire = wire(self.transcript)
        (folder / "holder").mkdir()
        self.holder = Decrypting(folder / "holder", self.enrolment, DECRYPTOR, holder)
        self.wire.connect(DECRYPTOR, Beside(self.answer))
        self.topology = Decryptor(Server(server, self.enrolment), clients, self.wire)
        self.masks, self.secrets = {}, {}
        self.keep_masks(monkeypatch)

    def release(self, name):
        def made(plan):
            released = object.__new__(Released)
            layout = Layout((Segment("logits", SIZE, 1),))
            key = ReleaseKey(plan.session, plan.round)
            fields = {"values": self.values[name], "layout": layout, "key": key}
            for field, value in fields.items():
                object.__setattr__(released, field, value)
            return released

        return made

    def answer(self, blob):
        answers = self.holder.answer(blob)
        if self.holder._attempt is not None:
            self.secrets |= self.holder._attempt.secrets
        return answers

    def keep_masks(self, monkeypatch):
        masks = self.masks

        class Kept(Masking):
            def __init__(self, client, accepted):
                super().__init__(client, accepted)
                masks[client.name] = self

        monkeypatch.setattr(topology_module, "Masking", Kept)

    def plan(self, groups):
        return draft(
            self.enrolment,
            self.transcript,
            round_number=1,
            groups=groups,
            layout=digest(b""),
            size=SIZE,
            subset=[1, 2, 3],
        )

    def uploads(self, group, attempt=1):
        messages = [message for message, _ in self.transcript.recall(Contribution, 1)]
        return {m.sender: m.body for m in messages if (m.group, m.attempt) == (group, attempt)}

    def key_coefficients(self, group="g0"):
        """The holder's key itself: the phase of the ciphertext (0, 1)."""
        pair = np.zeros((2, N), np.uint64)
        pair[1, 0] = 1
        return self.secrets[group]._phase(pair)


def group_of(members, alphas, name="g0", span=None):
    return Group(name=name, participants=tuple(members), alphas=alphas, span=span)


GROUP = group_of("abcd", (1, 2, 3, 2))
ROOM = largest_offset(PK18_44, 1, GROUP.total, GROUP.total * CLIP)
JUST = 2 * (GROUP.total - 1) * CLIP + 1


@pytest.fixture
def attacked(tmp_path, monkeypatch):
    """One round of four clients, the lightest of which tampers, and the key that it reads."""
    study = Study(tmp_path, monkeypatch, JUST)
    opened = study.topology.play(study.plan([GROUP])).aggregates["g0"].integers
    study.guess = read_key(opened, study.values["a"], 1, JUST, N)
    return study


@pytest.mark.parametrize("offset", [JUST, (JUST + ROOM) // 2, ROOM])
def test_one_opening_gives_the_whole_key_to_a_client(tmp_path, monkeypatch, offset):
    """4,096 of 4,096 coefficients, at weight 1 of 8; sum recomputed and bounds checked."""
    study = Study(tmp_path, monkeypatch, offset)
    opened = study.topology.play(study.plan([GROUP])).aggregates["g0"].integers
    guess = read_key(opened, study.values["a"], 1, offset, N)
    true = study.key_coefficients()
    assert set(np.unique(true)) == {-1, 0, 1}
    assert int((guess.coefficients == true).sum()) == 4096
    assert guess.checked == 1
    sums = sum(alpha * study.values[name] for name, alpha in zip("abcd", (1, 2, 3, 2), strict=True))
    assert (opened[:N] - sums[:N] == offset * true).all()
    assert (opened[N:] == sums[N:]).all()


def test_an_offset_beyond_the_bound_is_refused(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, 2 * ROOM)
    with pytest.raises(ProtocolError, match="refused"):
        study.topology.play(study.plan([GROUP]))
    assert "not one of honest" in (tmp_path / "holder/refusals.log").read_text()


def test_no_single_masked_upload_opens_with_the_key(attacked):
    """5,000 integers of each of 3 honest clients: as many are read as luck gives, one in 2^25
    each, and signs agree as coins do.
    """
    for name, upload in attacked.uploads("g0").items():
        if name != "a":
            values = attacked.values[name]
            read = open_body(PK18_44, upload, attacked.guess, SIZE)
            assert (read == values).sum() <= binom.isf(FALSE_ALARM, SIZE, PK18_44.scale / Q)
            agreed = (np.sign(read) == np.sign(values)).sum()
            low, high = binom.interval(1 - FALSE_ALARM, SIZE, 1 / 2)
            assert low <= agreed <= high


def test_without_their_masks_the_same_key_opens_every_upload(attacked):
    """The positive control: 5,000 of 5,000 integers of each of 3 honest clients."""
    order = GROUP.participants
    for at, name in list(enumerate(order))[1:]:
        mine, upload = attacked.masks[name], attacked.uploads("g0")[name]
        count = 2 * N * PK18_44.blocks(SIZE)
        masks = mask_sum(
            Q, count, mine._streams(mine.later, GROUP), mine._streams(mine.earlier, GROUP)
        )
        opposite = (np.uint64(Q) - masks) % np.uint64(Q)
        bare = mask_body(PK18_44, upload, opposite, GROUP.alphas[at])
        read = open_body(PK18_44, bare, attacked.guess, SIZE)
        assert (read == attacked.values[name]).all()


def test_the_key_reads_sums_as_the_holder_does(attacked):
    bodies = attacked.uploads("g0")
    total = weighted_sum(PK18_44, SIZE, bodies.values(), GROUP.alphas)
    read = open_body(PK18_44, total, attacked.guess, SIZE)
    assert (read == attacked.secrets["g0"].open_sum(total, SIZE, GROUP.total)).all()


class Silent(Wire):
    """A server that asks for no second group, and says that somebody dropped out."""

    lying = True

    def send(self, sender, receivers, blob):
        if self.lying and kind_of(blob) is OpeningRequest and outline(blob).group == "g1":
            raise ProtocolError("a dropout, says the server")
        super().send(sender, receivers, blob)


def test_the_key_of_one_group_reads_no_sum_of_another(tmp_path, monkeypatch):
    """With the key of g0 an active server is no step nearer to f's 904 integers, who is in g1.

    The control: one key for both groups would give it all of them, by the same steps.
    """
    study = Study(tmp_path, monkeypatch, JUST, Silent)
    first = GROUP.model_copy(update={"span": (0, N)})
    second = group_of("bcdef", (1, 1, 2, 1, 2), "g1", (N, SIZE))
    with pytest.raises(ProtocolError, match="says the server"):
        study.topology.play(study.plan([first, second]))
    opened = _openings(study)["g0"]
    guess = read_key(opened, study.values["a"], 1, JUST, N)
    bodies = study.uploads("g1")
    total = weighted_sum(PK18_44, SIZE - N, bodies.values(), second.alphas)
    assert (guess.coefficients == study.key_coefficients("g0")).all()
    others = KeyGuess(study.key_coefficients("g1").astype(np.int8), 1.0)
    study.wire.lying = False
    outcome = study.topology.play(study.plan([first, second.among("bcde")]))
    assert outcome.aggregates["g1"].attempt == 2
    found = {}
    for name, key in (("g0", guess), ("g1", others)):
        with_f = open_body(PK18_44, total, key, SIZE - N)
        difference = with_f - outcome.aggregates["g1"].integers
        found[name] = int((difference == 2 * study.values["f"][N:]).sum())
    assert found == {"g0": 0, "g1": SIZE - N}


def _openings(study):
    return {message.group: message.integers for message, _ in study.transcript.recall(Opening, 1)}


def test_without_room_or_a_whole_block_the_attack_says_so():
    with pytest.raises(ThreatError, match="leaves no room"):
        largest_offset(PK18_44, 1, 8, 8 * PK18_44.value_limit)
    with pytest.raises(ThreatError, match="not filled"):
        read_key(np.zeros(N - 1, np.int64), np.zeros(N, np.int64), 1, JUST, N)


def test_the_attack_reads_nothing_from_a_sum_without_the_tampering(tmp_path, monkeypatch):
    """Of 4,096 coefficients no more are right than the commonest value gives."""
    study = Study(tmp_path, monkeypatch, 0)
    opened = study.topology.play(study.plan([GROUP])).aggregates["g0"].integers
    guess = read_key(opened, study.values["a"], 1, JUST, N)
    right = (guess.coefficients == study.key_coefficients()).sum()
    assert right <= binom.isf(FALSE_ALARM, N, 1 / 3)


def test_importing_the_attack_imports_no_tenseal():
    program = "import sys, attacks.tampered_key; print('tenseal' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
