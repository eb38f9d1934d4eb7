"""What a site answers and the server does not believe: the site is left out, nothing is kept."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from protocols.audit_events import Charged
from protocols.chain import SigningKey, canonical, digest
from protocols.errors import ProtocolError
from protocols.messages import Contribution, KeyShare
from protocols.secagg.topology import Absent as LeftOut
from secure_natfl.deploy import letter
from secure_natfl.deploy.demo import SITES
from secure_natfl.deploy.loopback import Beside
from secure_natfl.deploy.party import Absent, Phase
from secure_natfl.deploy.server import Coordinator
from secure_natfl.deploy.site import SiteParty

NAME, *OTHERS = SITES
STRANGER = SigningKey(bytes(range(32)))
Answers = dict[str, bytes | Absent]


class Lying(Beside):
    """Sites of this process, of whom one's answers are changed on the way to the server."""

    def __init__(self, sites: Mapping[str, SiteParty]) -> None:
        super().__init__(sites)
        self.key = sites[NAME].key
        self.lie: Callable[[Answers, bytes], bytes] | None = None
        self.phase: Phase = "meet"

    def ask(self, questions: Mapping[str, bytes], phase: Phase, deadline: float) -> Answers:
        found = dict(super().ask(questions, phase, deadline))
        if self.lie and phase == self.phase:
            found[NAME] = self.lie(found, questions[NAME])
        return found


@pytest.fixture(scope="module")
def federation(
    kit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Coordinator, Lying]]:
    """A server and three sites in one process; no lie may change what they have on disk."""
    root = tmp_path_factory.mktemp("lies") / "k"
    shutil.copytree(kit, root)
    sites = {name: SiteParty(root / name) for name in SITES}
    exchange = Lying(sites)
    with Coordinator(root / "server", exchange, Console(file=StringIO())) as server:
        yield server, exchange
    for site in sites.values():
        site.close()


def _resigned(blob: bytes, key: SigningKey, **changes: object) -> bytes:
    """A letter with another header, signed by `key`."""
    known = letter._open(blob, key.public, "answer")
    return letter._seal(known.header.model_copy(update=changes), known.parts, key)


def _meet(server: Coordinator, text: bytes = b"") -> tuple[dict[str, tuple[bytes, ...]], LeftOut]:
    left_out = LeftOut()
    own = [server.enrolled.digest.encode(), *([text] if text else [])]
    return server.post.ask("meet", (0, 0), dict.fromkeys(SITES, own), left_out), left_out


REPLIES: dict[str, tuple[Callable[..., bytes], str]] = {
    "truncated": (lambda a, q, k: a[NAME][:-1], "truncated"),
    "longer": (lambda a, q, k: a[NAME] + b"0", "verify"),
    "another hash": (lambda a, q, k: _resigned(a[NAME], k, sha256=digest(b"other")), "parts"),
    "another size": (lambda a, q, k: _resigned(a[NAME], k, sizes=(1,)), "truncated"),
    "another round": (lambda a, q, k: _resigned(a[NAME], k, round=1), "round or attempt"),
    "another attempt": (lambda a, q, k: _resigned(a[NAME], k, attempt=1), "round or attempt"),
    "another session": (lambda a, q, k: _resigned(a[NAME], k, session="other"), "session"),
    "another phase": (lambda a, q, k: _resigned(a[NAME], k, phase="plan"), "session or phase"),
    "a question's": (lambda a, q, k: _resigned(a[NAME], k, about="0" * 64), "another question"),
    "another site's": (lambda a, q, k: a[OTHERS[0]], "verify"),
    "a question": (lambda a, q, k: q, "verify"),
    "a stranger's": (
        lambda a, q, k: letter._seal(
            letter._open(a[NAME], k.public, "answer").header, (), STRANGER
        ),
        "verify",
    ),
    "no letter": (lambda a, q, k: b"{}", "shorter"),
    "a refusal": (
        lambda a, q, k: letter.refusal(q, "s", "meet", NAME, k),
        "session or phase",
    ),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_does_not_hold_counts_as_none(name, federation, digest_of) -> None:
    server, exchange = federation
    wrong, why = REPLIES[name]
    _meet(server)
    before = digest_of(server.folder.path.parents[1])
    exchange.lie, exchange.phase = lambda a, q: wrong(a, q, exchange.key), "meet"
    answers, left_out = _meet(server)
    assert sorted(answers) == sorted(OTHERS)
    assert list(left_out) == [NAME]
    assert why in left_out[NAME]
    assert digest_of(server.folder.path.parents[1]) == before
    exchange.lie = None
    assert sorted(_meet(server)[0]) == sorted(SITES)


def test_a_reply_over_the_size_limit_counts_as_none(federation, monkeypatch) -> None:
    server, exchange = federation
    own = server.enrolled.digest.encode()
    answers = exchange.ask({NAME: b""}, "plan", 1.0)
    monkeypatch.setattr(letter, "LIMIT", len(answers[NAME]) - 1)
    with pytest.raises(ProtocolError, match="over the size limit"):
        letter.open_answer(answers[NAME], own, NAME, exchange.key.public)


def test_a_reply_to_an_earlier_question_is_not_taken_for_one_to_the_next(federation) -> None:
    server, exchange = federation
    kept: list[bytes] = []
    exchange.phase, exchange.lie = "meet", lambda a, q: kept.append(a[NAME]) or a[NAME]
    _meet(server)
    exchange.lie = lambda a, q: kept[0]
    _, left_out = _meet(server, b"more")
    assert "another question" in left_out[NAME]
    exchange.lie = None


def _parts(blob: bytes, name: str, server: Coordinator) -> tuple[bytes, ...]:
    key = server.enrolled.enrolment.verify_key(name)
    return letter._open(blob, key, "answer").parts


CONTENTS: dict[str, Callable[[list[bytes], list[bytes], list[bytes]], list[bytes]]] = {
    "too few messages": lambda own, other, old: own[:-1],
    "too many messages": lambda own, other, old: [*own, own[-1]],
    "a truncated contribution": lambda own, other, old: [own[0], own[1][:-1], *own[2:]],
    "another site's contribution": lambda own, other, old: [own[0], other[1], *own[2:]],
    "an earlier attempt's contribution": lambda own, other, old: [*own[:1], *old[1:]],
    "a share in the place of a contribution": lambda own, other, old: [own[0], *own[2:], own[1]],
    "shares of the wrong holders": lambda own, other, old: [*own[:2], *own[:1:-1]],
    "another site's shares": lambda own, other, old: [*own[:2], *other[2:]],
    "an earlier attempt's shares": lambda own, other, old: [*own[:2], *old[2:]],
}


def _charge(blob: bytes, **changes: object) -> bytes:
    return canonical(json.loads(blob) | changes)


def _costing(blob: bytes, **changes: object) -> bytes:
    event = json.loads(json.loads(blob)["cost"])
    return _charge(blob, cost=canonical(event | changes).decode())


CHARGES: dict[str, Callable[[bytes], bytes]] = {
    "a cost that is no JSON": lambda own: _charge(own, cost="{x}"),
    "a cost that nests": lambda own: _charge(own, cost='{"a":' + "[" * 900 + "}"),
    "a figure beyond all numbers": lambda own: _charge(
        own, cost=json.loads(own)["cost"].replace('"rho":0', '"rho":' + "9" * 500)
    ),
    "a cost of another mechanism": lambda own: _costing(own, mechanism="none"),
    "a mechanism that is no name": lambda own: _costing(own, mechanism=["dp-sgd"]),
    "a cost with more than an event": lambda own: _costing(own, note="x"),
    "a smaller cost": lambda own: _costing(own, noise_multiplier=1e6),
    "more steps than anybody composes": lambda own: _costing(own, steps=10**15),
    "a round outside the session": lambda own: _charge(own, round=7),
    "a later round behind a true one": lambda own: own + b"\n" + _charge(own, round=1),
    "a round twice": lambda own: own + b"\n" + own,
    "more than anybody reads": lambda own: own + b"\n" * (1 << 20),
    "no signature of its own": lambda own: _charge(own, signature="0" * 128),
}


def _untrue(change: Callable[[bytes], bytes]) -> Callable[..., list[bytes]]:
    return lambda own, other, old: [change(own[0]), *own[1:]]


def test_a_letter_that_holds_and_says_what_is_wrong_leaves_its_site_out(federation) -> None:
    """Signed by the site itself; nothing of it is recorded, added or asked to be opened."""
    server, exchange = federation
    seen: list[list[bytes]] = []
    exchange.phase = "contribute"

    def telling(wrong: Callable[..., list[bytes]]) -> Callable[[Answers, bytes], bytes]:
        def lie(answers: Answers, asked: bytes) -> bytes:
            own, other = (list(_parts(answers[n], n, server)) for n in (NAME, OTHERS[0]))
            seen.append(own)
            parts = tuple(wrong(own, other, seen[0]))
            header = letter._open(answers[NAME], exchange.key.public, "answer").header
            sizes, sha256 = tuple(map(len, parts)), digest(b"".join(parts))
            changed = header.model_copy(update={"sizes": sizes, "sha256": sha256})
            return letter._seal(changed, parts, exchange.key)

        return lie

    # One honest attempt that nobody hears of, so that there is one to repeat.
    untrue = [_untrue(change) for change in CHARGES.values()]
    wrongs = (lambda own, other, old: [], *untrue, *CONTENTS.values())
    for number, wrong in enumerate(wrongs, 1):
        exchange.lie = telling(wrong)
        with pytest.raises(ProtocolError, match="too few"):
            server._attempt(0)
        kinds = (Contribution.kind, KeyShare.kind)
        said = [e for e in server.transcript.entries if e.kind in kinds and e.attempt == number]
        assert NAME not in {entry.sender for entry in said}
        assert {entry.sender for entry in said} == set(OTHERS)
        if number <= 1 + len(untrue):
            charged = [a for a, body in server.minutes.records if isinstance(body, Charged)]
            assert sorted(charged) == sorted(OTHERS)
    exchange.lie = None
    played = server._attempt(0)
    assert len(played.openings) == 1
    assert not played.absent
    for name in SITES:
        assert len(exchange._parties[name]._work.ledger.lines()) == 1
