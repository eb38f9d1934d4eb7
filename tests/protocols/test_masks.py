import dataclasses
import hashlib
import itertools
import json
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, pearsonr

import protocols.secagg.decryptor as topology_module
from protocols.envelope import kind_of, outline, seal
from protocols.errors import AbsentError, ProtocolError
from protocols.masks import Masking, mask_body, mask_sum, pair_stream, uniform
from protocols.messages import Contribution, MaskKey, MaskSeed, OpeningRequest
from protocols.policy import DECRYPTOR, SERVER
from protocols.residues import pack, unpack, weighted_sum
from protocols.rlwe import PK18_44
from protocols.sealing import SealingKey
from protocols.secagg import Decryptor
from protocols.transport import Beside, Wire

Q, N, FALSE_ALARM = PK18_44.prime, PK18_44.degree, 1e-6


class Keeping:
    """The decryptor topology; it keeps what clients and holder have in memory, for the tests."""

    def __init__(self, world, monkeypatch, wire=None):
        self.world, self.masks = world, {}
        keep = self.masks

        class Kept(Masking):
            def __init__(self, client, accepted):
                super().__init__(client, accepted)
                keep[client.name] = self

        monkeypatch.setattr(topology_module, "Masking", Kept)
        self.holder, wire = world.holder(), wire or world.wire
        self.secret, start = None, self.holder._start

        def kept(*arguments):
            public = start(*arguments)
            self.secret = self.holder._attempt.secrets["g0"]
            return public

        self.holder._start = kept
        wire.connect(DECRYPTOR, Beside(self.holder.answer))
        enrolment = world.enrolment()
        self.clients = world.clients(enrolment)
        self.topology = Decryptor(world.server(enrolment), self.clients, wire)

    def play(self, number=1, **changes):
        self.plan = self.world.plan(number, **changes)
        return self.topology.play(self.plan)

    def uploads(self):
        """The contributions of the last attempt, client → residues [blocks, 2, N]."""
        messages = self.world.transcript.recall(Contribution, self.plan.round)
        latest = [message for message, _ in messages if message.attempt == self.plan.attempt]
        return {message.sender: residues(message.body) for message in latest}

    def phases(self, blocks):
        return np.concatenate([self.secret._phase(pair) for pair in blocks])


def residues(body):
    return unpack(body, 44, (Q,))[0].reshape(-1, 2, N)


def body_of(blocks):
    return pack(blocks.astype(np.uint64), 44)


def evenness(values, low, high):
    """The p-value of chi-square with 256 equal bins."""
    return chisquare(np.histogram(values, 256, (low, high))[0]).pvalue


@pytest.fixture
def keeping(world, monkeypatch):
    return Keeping(world, monkeypatch)


@pytest.fixture
def long(new_world, monkeypatch):
    """Whole blocks: 5 × 4,096 integers."""
    return Keeping(new_world("long", size=5 * N), monkeypatch)


def test_the_stream_of_a_pair_is_what_the_docstring_says():
    seed, plan_id = bytes(range(32)), "ab" * 32
    label = json.dumps(["pairwise mask", plan_id, "g0"], separators=(",", ":")).encode()
    key = hashlib.sha256(label + seed).digest()
    blocks = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 - the blocks of CTR
    stream = b"".join(blocks.update(at.to_bytes(16, "big")) for at in range(2048))
    words = (int.from_bytes(stream[at : at + 8], "little") % 2**44 for at in range(0, 32768, 8))
    expected = [word for word in words if word < Q]
    assert uniform(Q, 4000, pair_stream(seed, plan_id, "g0")).tolist() == expected[:4000]
    others = [(seed, plan_id, "g1"), (seed, "cd" * 32, "g0"), (bytes(32), plan_id, "g0")]
    firsts = {int(uniform(Q, 1, pair_stream(*other))[0]) for other in others}
    assert len(firsts | {expected[0]}) == 4


def test_words_that_are_not_below_the_prime_are_skipped():
    words = [5, Q, 2**44 - 1, Q - 1, 2**63 + 7, Q + 3, 2**44 + 9, 1]
    stream = iter(np.array(words, "<u8").tobytes() + bytes(80))
    drawn = uniform(Q, 6, lambda count: bytes(itertools.islice(stream, count)))
    assert drawn.tolist() == [5, Q - 1, 7, 9, 1, 0]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_masked_bodies_add_up_to_the_unmasked_sum_to_the_bit(data):
    """60 draws of 3 to 6 clients and weights; each mask is divided by pow(α, −1, q) as well."""
    count = data.draw(st.integers(3, 6))
    alphas = data.draw(st.lists(st.integers(1, 21), min_size=count, max_size=count))
    draw = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    seeds = {pair: draw.bytes(32) for pair in itertools.combinations(range(count), 2)}
    plain, masked = [], []
    for at, alpha in enumerate(alphas):
        body = draw.integers(0, Q, 2 * N).astype(np.uint64)
        later = [pair_stream(seeds[at, other], "p", "g") for other in range(at + 1, count)]
        earlier = [pair_stream(seeds[other, at], "p", "g") for other in range(at)]
        mask = mask_sum(Q, 2 * N, later, earlier)
        inverse = pow(alpha, -1, Q)
        slowly = [(int(c) + inverse * int(m)) % Q for c, m in zip(body, mask, strict=True)]
        plain.append(pack(body, 44))
        masked.append(mask_body(PK18_44, plain[-1], mask, alpha))
        assert unpack(masked[-1], 44, (Q,))[0].tolist() == slowly
    assert weighted_sum(PK18_44, N, masked, alphas) == weighted_sum(PK18_44, N, plain, alphas)


def test_division_is_right_for_every_weight_that_a_preset_takes():
    mask = np.array([0, 1, 2, 126, 127, Q // 2, Q - 2, Q - 1], np.uint64)
    body = pack(np.zeros(8, np.uint64), 44)
    for alpha in range(1, PK18_44.largest_total + 1):
        expected = [int(m) * pow(alpha, -1, Q) % Q for m in mask]
        assert unpack(mask_body(PK18_44, body, mask, alpha), 44, (Q,))[0].tolist() == expected


@pytest.mark.parametrize("members", ["abc", "abcd", "abcde", "abcdef"])
def test_rounds_of_three_to_six_clients_with_random_weights_are_exact(keeping, world, members):
    draw = np.random.default_rng(len(members))
    for number in range(1, 4):
        alphas = tuple(int(alpha) for alpha in draw.integers(10, 21, len(members)))
        outcome = keeping.play(number, groups=world.groups(members, alphas=alphas))
        group = keeping.plan.groups[0]
        assert (outcome.aggregates["g0"].integers == world.total(group, number)).all()


def test_groups_have_masks_of_their_own(keeping, world):
    """Two disjoint spans of the same clients, and another group that shares two of them."""
    same = world.groups("abcd")[0]
    groups = [
        same.model_copy(update={"span": (0, 20)}),
        same.model_copy(update={"name": "g1", "span": (20, 30)}),
        world.groups("dcef")[0].model_copy(update={"name": "g2", "span": (30, 40)}),
    ]
    outcome = keeping.play(groups=groups)
    for group in groups:
        expected = world.total(group)[slice(*group.span)]
        assert (outcome.aggregates[group.name].integers == expected).all()
    assert keeping.masks["a"].names == ("b", "c", "d")
    assert keeping.masks["d"].names == ("a", "b", "c", "e", "f")
    first, second = (keeping.masks["a"]._streams("b", group) for group in groups[:2])
    drawn = [uniform(Q, 1000, *streams) for streams in (first, second)]
    assert not (drawn[0] == drawn[1]).any()


def test_a_single_upload_is_even_to_the_round_s_own_key(long, world):
    """20,480 phases of each of 4 clients in 256 bins; an upload without its mask is the control."""
    long.play()
    values = long.world.values
    for name, upload in long.uploads().items():
        phases = long.phases(upload)
        assert evenness(phases, -Q / 2, Q / 2) > FALSE_ALARM
        assert pearsonr(phases, values[name, 1]).pvalue > FALSE_ALARM
        for polynomial in (0, 1):
            assert evenness(upload[:, polynomial], 0, Q) > FALSE_ALARM
    bare = long.phases(unmasked(long, "b", long.masks["b"].names))
    assert evenness(bare, -Q / 2, Q / 2) < FALSE_ALARM
    assert (np.rint(bare / PK18_44.scale) == values["b", 1]).all()


def unmasked(kept, name, peers):
    """A client's upload without the masks that these peers of it know."""
    group, at = kept.plan.groups[0], kept.plan.groups[0].participants.index(name)
    streams = {
        peer: pair_stream(kept.masks[peer]._seeds[name], identity_of(kept), group.name)
        for peer in peers
    }
    later = [stream for peer, stream in streams.items() if group.participants.index(peer) > at]
    earlier = [stream for peer, stream in streams.items() if group.participants.index(peer) < at]
    upload = kept.uploads()[name]
    known = mask_sum(Q, upload.size, later, earlier)
    opposite = (np.uint64(Q) - known) % np.uint64(Q)
    return residues(mask_body(PK18_44, body_of(upload), opposite, group.alphas[at]))


def identity_of(kept):
    return kept.masks["a"].accepted.plan_id


def test_all_but_two_clients_and_the_decryptor_learn_the_sum_of_the_two_alone(long):
    """Of 17² combinations of two stripped uploads of 20,480 phases only multiples of (2, 3) open.

    The coalition is c, d, the server and the decryptor: all secrets but those of a and b.
    """
    world = long.world
    group = world.groups("abcd", alphas=(2, 3, 1, 4))
    long.play(groups=group)
    left = {name: long.phases(unmasked(long, name, "cd")) for name in "ab"}
    for name, phases in left.items():
        assert evenness(phases, -Q / 2, Q / 2) > FALSE_ALARM
        assert pearsonr(phases, world.values[name, 1]).pvalue > FALSE_ALARM
    opening = set()
    for first, second in itertools.product(range(-8, 9), repeat=2):
        phase = (first * left["a"] + second * left["b"] + Q // 2) % Q - Q // 2
        values = (phase + PK18_44.scale // 2) // PK18_44.scale
        if np.abs(values).max() <= 16 * PK18_44.value_limit:
            opening.add((first, second))
            parts = first * world.values["a", 1] + second * world.values["b", 1]
            assert (values == parts).all()
    assert opening == {(2 * k, 3 * k) for k in range(-2, 3)}


def test_another_set_or_other_weights_do_not_open(keeping, world):
    keeping.play()
    bodies = [body_of(upload) for upload in keeping.uploads().values()]
    assert (keeping.secret.open_sum(summed(bodies, (1, 2, 3, 4)), 40, 10)).any()
    for alphas in [(1, 2, 3, 5), (2, 2, 3, 4), (1, 1, 1, 1), (4, 3, 2, 1)]:
        with pytest.raises(ProtocolError, match="not one of honest"):
            keeping.secret.open_sum(summed(bodies, alphas), 40, sum(alphas))
    for missing in range(4):
        rest = [
            pair for at, pair in enumerate(zip(bodies, (1, 2, 3, 4), strict=True)) if at != missing
        ]
        with pytest.raises(ProtocolError, match="not one of honest"):
            keeping.secret.open_sum(summed(*zip(*rest, strict=True)), 40, 10)


def summed(bodies, alphas):
    return weighted_sum(PK18_44, 40, bodies, alphas)


def test_a_client_that_goes_before_its_contribution_means_a_new_attempt(keeping, world):
    def ended(plan):
        raise AbsentError("the site's process ended")

    keeping.clients["d"] = dataclasses.replace(keeping.clients["d"], release=ended)
    with pytest.raises(AbsentError):
        keeping.play()
    first, seeds = keeping.uploads(), dict(keeping.masks["a"]._seeds)
    bodies = [body_of(upload) for upload in first.values()]
    assert set(first) == set("abc")
    with pytest.raises(ProtocolError, match="not one of honest"):
        keeping.secret.open_sum(summed(bodies, (1, 2, 3)), 40, 6)
    keeping.masks.clear()
    outcome = keeping.play(groups=world.groups("abc"))
    assert outcome.aggregates["g0"].attempt == keeping.plan.attempt == 2
    assert (outcome.aggregates["g0"].integers == world.total(keeping.plan.groups[0])).all()
    assert set(seeds.values()).isdisjoint(keeping.masks["a"]._seeds.values())
    mixed = [body_of(keeping.uploads()["a"]), *bodies[1:]]
    with pytest.raises(ProtocolError, match="not one of honest"):
        keeping.secret.open_sum(summed(mixed, (1, 2, 3)), 40, 6)


class Denying(Wire):
    """A server that has all contributions of attempt 1 and says that a client dropped out."""

    def send(self, sender, receivers, blob):
        if kind_of(blob) is OpeningRequest and outline(blob).attempt == 1:
            raise AbsentError("a dropout, says the server")
        super().send(sender, receivers, blob)


def test_masks_do_not_help_against_an_active_server_with_the_decryptor_s_key(world, monkeypatch):
    """Their limit: an attempt's sum that was opened and denied, less the next attempt's."""
    keeping = Keeping(world, monkeypatch, Denying(world.transcript))
    with pytest.raises(AbsentError, match="says the server"):
        keeping.play()
    bodies = [body_of(upload) for upload in keeping.uploads().values()]
    denied = keeping.secret.open_sum(summed(bodies, (1, 2, 3, 4)), 40, 10)
    outcome = keeping.play(groups=world.groups("abc"))
    difference = denied - outcome.aggregates["g0"].integers
    assert (difference == 4 * world.values["d", 1]).all()


def test_a_wrong_seed_is_refused(keeping, monkeypatch):
    honest = topology_module.Masking.accept_seed

    def wrong(self, blob, name):
        honest(self, blob, name)
        if (name, self.client.name) == ("a", "c"):
            self._seeds[name] = bytes([self._seeds[name][0] ^ 1]) + self._seeds[name][1:]

    monkeypatch.setattr(topology_module.Masking, "accept_seed", wrong)
    with pytest.raises(ProtocolError, match="refused"):
        keeping.play()


class Lying(Wire):
    """The server's wire; what it relays of one kind is another message."""

    kind, lie = MaskKey, None

    def send(self, sender, receivers, blob):
        if sender == SERVER and kind_of(blob) is self.kind:
            blob = self.lie(blob)
        super().send(sender, receivers, blob)


def signed(key, **changes):
    return lambda blob: seal(outline(blob).model_copy(update=changes), key)


def by_sender(world, **changes):
    """The sender itself signs other fields: an insider whom the server helps."""
    return lambda blob: signed(world.keys[outline(blob).sender], **changes)(blob)


def flipped(world):
    def lie(blob):
        body = outline(blob).body
        return by_sender(world, body=body[:-1] + bytes([body[-1] ^ 1]))(blob)

    return lie


FORGED, PUBLIC = "signature does not verify", SealingKey().public
KEY_LIES = {
    "the server's own key": (FORGED, lambda w, old: signed(w.server_key, body=PUBLIC)),
    "the same key signed by the server": (FORGED, lambda w, old: signed(w.server_key)),
    "a client's own key": (FORGED, lambda w, old: signed(w.keys["f"], body=PUBLIC)),
    "a client's own name": (FORGED, lambda w, old: signed(w.keys["f"], sender="f")),
    "an earlier attempt's": ("or attempt", lambda w, old: lambda b: old[outline(b).sender]),
    "another plan's": ("another plan", lambda w, old: by_sender(w, plan="0" * 64)),
    "too short": ("length", lambda w, old: by_sender(w, body=bytes(1215))),
    "no key": ("not a sealing key", lambda w, old: by_sender(w, body=b"\xff" * 1216)),
}
SEED_LIES = {
    "the server's": (FORGED, lambda w, old: signed(w.server_key)),
    "a client's": (FORGED, lambda w, old: signed(w.keys["f"], body=bytes(1168))),
    "for another client": ("for another client", lambda w, old: by_sender(w, receiver="f")),
    "an earlier attempt's": ("or attempt", lambda w, old: lambda b: old[outline(b).sender]),
    "another plan's": ("another plan", lambda w, old: by_sender(w, plan="0" * 64)),
    "changed": ("do not open", lambda w, old: flipped(w)),
}


@pytest.mark.parametrize(("why", "lie"), KEY_LIES.values(), ids=KEY_LIES)
def test_a_server_that_replaces_a_mask_key_is_caught(world, monkeypatch, why, lie):
    relay(world, monkeypatch, MaskKey, why, lie)


@pytest.mark.parametrize(("why", "lie"), SEED_LIES.values(), ids=SEED_LIES)
def test_a_server_that_replaces_a_seed_is_caught(world, monkeypatch, why, lie):
    relay(world, monkeypatch, MaskSeed, why, lie)


def relay(world, monkeypatch, kind, why, lie):
    """An attempt that breaks off, for replays; then one with the lie, and nothing is sent."""
    wire = Lying(world.transcript)
    keeping = Keeping(world, monkeypatch, wire)
    wire.kind, wire.lie = Contribution, lambda blob: blob[:-1]
    with pytest.raises(ProtocolError):
        keeping.play()
    old = {message.sender: blob for message, blob in world.transcript.recall(kind, 1)}
    sent = [e for e in world.transcript.entries if e.kind == "contribution"]
    wire.kind, wire.lie = kind, lie(world, old)
    with pytest.raises(ProtocolError, match=why):
        keeping.play()
    assert [e for e in world.transcript.entries if e.kind == "contribution"] == sent


def test_a_seed_swapped_between_two_receivers_is_refused(keeping):
    keeping.play()
    a, b, c = (keeping.masks[name] for name in "abc")
    blob = a.send_seed("c")
    with pytest.raises(ProtocolError, match="for another client"):
        b.accept_seed(blob, "a")
    with pytest.raises(ProtocolError):
        c.accept_seed(blob, "b")
    moved = seal(outline(blob).model_copy(update={"receiver": "b"}), a.client.key)
    with pytest.raises(ProtocolError, match="do not open"):
        b.accept_seed(moved, "a")


def test_without_a_key_or_a_seed_nothing_is_made(keeping):
    keeping.play()
    masking = keeping.masks["b"]
    lone = Masking(masking.client, masking.accepted)
    with pytest.raises(ProtocolError, match="no sealing key"):
        lone.send_seed("c")
    with pytest.raises(ProtocolError, match="no mask seed"):
        lone.masked(bytes(PK18_44.ciphertext_bytes(40)), keeping.plan.groups[0])


def test_seeds_are_in_memory_alone(keeping, world):
    """12 seeds at their two ends; the transcript, the holder's folder and pickles have none."""
    keeping.play()
    seeds = [seed for masking in keeping.masks.values() for seed in masking._seeds.values()]
    assert len(seeds) == 12
    assert len(set(seeds)) == 6
    files = [path for path in world.folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert not any(seed in data for seed in seeds)
    with pytest.raises(ProtocolError, match="pickled"):
        pickle.dumps(Masking(keeping.clients["a"], keeping.masks["a"].accepted))


def test_a_group_that_is_open_needs_no_masks_again(keeping, world):
    keeping.play(groups=world.groups("abc", "def"))
    keeping.masks.clear()
    again = keeping.play(groups=world.groups("abc", "def"))
    assert keeping.masks == {}
    assert not {"mask-key", "mask-seed", "contribution"} & set(again.cost.sent_bytes)


def test_what_masks_cost_in_bytes(keeping, world):
    """Per client one key of 1,216 bytes to each peer, per pair one sealed seed, twice relayed."""
    sent = keeping.play().cost.sent_bytes
    frame = 600
    assert 4 * 4 * 1216 < sent["mask-key"] < 4 * 4 * (1216 + frame)
    assert 2 * 6 * 1168 < sent["mask-seed"] < 2 * 6 * (1168 + frame)
