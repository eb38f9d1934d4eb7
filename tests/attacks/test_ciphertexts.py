"""Rows on ciphertexts, keys, collusion and canaries, against the real protocols."""

import os
import time

import numpy as np
import pytest

from attacks.canaries import Group
from attacks.canary_row import canary_row, faint
from attacks.ciphertexts import Uploads, game_row, upload_scores
from attacks.cryptanalysis import from_integers
from attacks.key_rows import Opened, coalition_row, published_row, tampering_row
from attacks.pooling import Pool, Round
from attacks.rows import Budget
from attacks.scores import auc
from attacks.threat import ThreatError
from attacks.verdicts import Verdict, judge
from protocols.envelope import identity
from protocols.messages import RoundPlan
from protocols.multikey import MK18_39
from protocols.multikey_ckks import protect
from protocols.noise_plan import NoisePlan
from protocols.residues import unpack, weighted_sum
from protocols.rlwe import PK18_44
from protocols.slots import SLOTS18_140
from protocols.tenseal_ckks import PublicKey, RoundSecret, encrypt
from protocols.tenseal_slots import SlotsSecret
from protocols.transcript import NETWORK
from tests.attacks.test_cryptanalysis import Run, integers
from tests.attacks.test_tampered_key import GROUP, JUST, N, Study
from tests.protocols.conftest import World, released

ROWS, CLASSES = 1000, 4  # two blocks of integers, and one if half the rows are missing


@pytest.fixture
def random():
    return np.random.default_rng(3)


def verdicts(row, targets, random, arms=None):
    budget = Budget(targets, seconds=60)
    measured = {(row.id, arm): row.play(arm, budget, random) for arm in arms or row.arms}
    return {found.arm: found for found in judge([row], measured, random)}, measured


# C1.


class Wire:
    """Two sites of one task: answers that lean to one class, or to another with fewer rows."""

    def uploads(self, arm, count, random):
        world = random.random(count) < 0.5
        bodies, seconds = zip(*[self.upload(arm, which, random) for which in world], strict=True)
        return Uploads(bodies, np.array(seconds), world)

    def upload(self, arm, which, random):
        means = np.where(np.arange(CLASSES) == int(which), 9000, -3000)
        rows = ROWS // 2 if arm == "variable rows" and which else ROWS
        values = np.rint(means + 2000 * random.normal(size=(rows, CLASSES))).ravel("F")
        start = time.perf_counter()
        if arm == "plaintext":
            body = values.astype("<i4").tobytes()
        else:
            body = protect(
                MK18_39,
                released(values),
                (0, len(values)),
                reference=random.bytes(32),
                heaviest=1,
                holders=3,
                threshold=2,
            ).body
        return body, time.perf_counter() - start


def test_the_game_is_won_where_bytes_or_lengths_tell_and_not_on_real_uploads(random):
    row = game_row(Wire(), known=40)
    found, measured = verdicts(row, 80, random)
    assert found["variable rows"].verdict is Verdict.CONTROL
    clear = measured["C1", "plaintext"]
    assert auc(clear.scores[clear.members], clear.scores[~clear.members]) > 0.99
    sent = measured["C1", "protected"]
    area = auc(sent.scores[sent.members], sent.scores[~sent.members])
    assert abs(area - 0.5) < 5 * 0.41 / np.sqrt(30)
    assert found["plaintext"].verdict is Verdict.LEAKS
    # Keys come from the operating system: one game in forty is called a leak by chance.
    games = (verdicts(row, 80, random, ["protected"])[0]["protected"] for _ in range(3))
    assert any(game.verdict is not Verdict.LEAKS for game in games)


def test_randomness_that_is_used_twice_is_seen(random):
    """Each world's bodies share 64 of 400 random bytes, at places of their own."""
    marks = random.bytes(64), random.bytes(64)

    def made(count):
        world = random.random(count) < 0.5
        bodies = []
        for which in world:
            start = 8 * int(random.integers(0, 40))
            bodies.append(random.bytes(start) + marks[int(which)] + random.bytes(336 - start))
        return Uploads(bodies, np.ones(count), world)

    seen = made(60)
    scores = upload_scores(seen, made(60))
    assert auc(scores[seen.world], scores[~seen.world]) > 0.95


def test_too_few_known_uploads_are_refused(random):
    few = Uploads([b"a"] * 6, np.ones(6), np.arange(6) < 2)
    with pytest.raises(ThreatError, match="known world"):
        upload_scores(few, few)


# C2, C2b, C3, L3.


class Published:
    """Sums of the slots mode, read as numbers, and exact integers under a key of one's own."""

    def keys(self, arm, count, random):
        for _ in range(count):
            if arm == "slots":
                secret = SlotsSecret(SLOTS18_140)
                run = Run(secret, integers(random, 2, 8192), [1, 2])
                yield [run.published()], secret.coefficients()
                continue
            secret, alphas = RoundSecret(PK18_44), (1, 2)
            public = PublicKey(PK18_44, secret.public_body)
            vectors = [random.integers(-9000, 9001, N) for _ in alphas]
            bodies = [encrypt(public, released(one), (0, N)) for one in vectors]
            total = weighted_sum(PK18_44, N, bodies, alphas)
            residues = unpack(total, PK18_44.residue_bits, (PK18_44.prime,)).reshape(-1, 2, N)
            opened = secret.open_sum(total, N, 3)
            seen = from_integers(residues, PK18_44.prime, opened, PK18_44.scale)
            yield [seen], coefficients(secret)


def coefficients(secret):
    """The key itself: the phase of the ciphertext (0, 1)."""
    pair = np.zeros((2, N), np.uint64)
    pair[1, 0] = 1
    return secret._phase(pair)


def test_numbers_read_from_slots_give_the_key_and_exact_integers_do_not(random):
    found, measured = verdicts(published_row(Published()), 1, random)
    assert measured["C2", "slots"].scores.mean() == 1
    assert found["slots"].verdict is Verdict.CONTROL
    assert found["protected"].verdict is Verdict.NO_LEAK


def test_tampering_gives_the_decryptors_key_and_honest_uploads_do_not(
    tmp_path, monkeypatch, random
):
    class Tampering:
        def openings(self, arm, count, random):
            folder = tmp_path / arm
            folder.mkdir()
            study = Study(folder, monkeypatch, JUST if arm == "tampered" else 0)
            opened = study.topology.play(study.plan([GROUP])).aggregates["g0"].integers
            yield Opened(opened, study.values["a"], 1, JUST, N, study.key_coefficients())

    found, measured = verdicts(tampering_row(Tampering()), 1, random)
    assert measured["C2b", "tampered"].scores.mean() == 1
    assert found["tampered"].verdict is Verdict.CONTROL
    assert found["protected"].verdict is Verdict.NO_LEAK


def test_the_wire_shows_plain_contributions_and_no_shared_ones(tmp_path, random):
    class Wiretap:
        def coalitions(self, arm, count, random):
            (tmp_path / arm).mkdir()
            world = World(tmp_path / arm)
            if arm == "protected":
                enrolment = world.shared()
                topology = world.threshold(enrolment)
            else:
                topology, enrolment = world.plain()
            group = world.groups("abcd")[0]
            for number in range(1, 1 + count // 4):
                plan = world.plan(number, enrolment=enrolment, groups=[group])
                topology.play(plan)
                ((sent, blob),) = world.transcript.recall(RoundPlan, number)
                pool = Pool(
                    Round(enrolment, sent, identity(blob), group, world.transcript, {}), {NETWORK}
                )
                for name in "abcd":
                    yield pool, name, world.values[name, number]

    found, measured = verdicts(coalition_row(Wiretap()), 40, random)
    assert measured["C3", "all but one"].scores.mean() == 1
    assert measured["C3", "protected"].scores.sum() == 0
    assert found["protected"].verdict is not Verdict.LEAKS


def test_the_canary_row_refutes_a_tenth_of_the_noise_and_not_the_mechanism(random):
    figures = {"epsilon": 8.0, "delta": 1e-5, "rounds": 1, "clip_norm": 2.0, "bits": 30}
    made = NoisePlan.calibrate(
        alphas={"a": 1, "b": 2},
        groups={"a": "g", "b": "g"},
        colluders=1,
        dropouts=0,
        shards={"a": 1000, "b": 1},
        size=1000,
        **figures,
    )
    group = Group(mechanisms=made.mechanisms, victim="a", colluders=frozenset("b"))
    found, measured = verdicts(canary_row(group, os.urandom), 16, random)
    assert found["noise / 10"].verdict is Verdict.CONTROL
    # A bound below the claim is no evidence for it.
    assert found["protected"].verdict is Verdict.INCONCLUSIVE
    assert measured["L3", "protected"].scores.max() == 1
    assert measured["L3", "protected"].extra["ε at least, mean"] > 0
    claims = group.claim(1, 1e-5), faint(group).claim(1, 1e-5)
    assert claims[1].mu == pytest.approx(10 * claims[0].mu)
