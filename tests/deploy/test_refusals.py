"""What a site refuses: each time the same signed no, one line in its own log, nothing changed."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from protocols.chain import SigningKey
from protocols.errors import ConfigError, ProtocolError, RunFolderError
from secure_natfl.cli import app
from secure_natfl.deploy import letter
from secure_natfl.deploy.agreement import agreement
from secure_natfl.deploy.demo import SITES
from secure_natfl.deploy.desk import VETO
from secure_natfl.deploy.enrolled import ENROLLED, Enrolled, read_enrolled
from secure_natfl.deploy.kit import own_keys
from secure_natfl.deploy.launch import start_link, start_node
from secure_natfl.deploy.letter import open_answer
from secure_natfl.deploy.site import SiteParty
from tests.deploy.questions import Asking

NAME = SITES[0]
OTHER = SigningKey(bytes(range(32)))
Digest = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def asking(fresh: Path) -> Asking:
    return Asking.of(fresh)


@pytest.fixture(scope="module")
def unmoved(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteParty]:
    """One site for all that is refused: nothing that it is asked may change it."""
    root = tmp_path_factory.mktemp("unmoved") / "k"
    shutil.copytree(kit, root)
    party = SiteParty(root / NAME)
    yield party
    party.close()


@pytest.fixture(scope="module")
def server(unmoved: SiteParty) -> Asking:
    return Asking.of(unmoved.folder.parent)


def _log(site: SiteParty) -> list[dict[str, str]]:
    path = site.folder / "refusals.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _foreign_session(asking: Asking) -> tuple[str, bytes]:
    return "meet", asking.ask("meet", (0, 0), NAME, [], session="another")


def _foreign_server(asking: Asking) -> tuple[str, bytes]:
    return "meet", asking.ask("meet", (0, 0), NAME, [], key=OTHER)


def _other_receiver(asking: Asking) -> tuple[str, bytes]:
    return "meet", asking.meet(SITES[1])


def _other_phase(asking: Asking) -> tuple[str, bytes]:
    return "plan", asking.meet(NAME)


def _wrong_hash(asking: Asking) -> tuple[str, bytes]:
    letter = bytearray(asking.meet(NAME))
    letter[-65] ^= 1
    return "meet", bytes(letter)


def _truncated(asking: Asking) -> tuple[str, bytes]:
    return "meet", asking.meet(NAME)[:-1]


def _other_list(asking: Asking) -> tuple[str, bytes]:
    return "meet", asking.ask("meet", (0, 0), NAME, [b"0" * 64])


def _wrong_round(asking: Asking) -> tuple[str, bytes]:
    return "plan", asking.ask("plan", (1, 1), NAME, [asking.sealed(0), b"", b""])


def _wrong_attempt(asking: Asking) -> tuple[str, bytes]:
    return "plan", asking.ask("plan", (0, 2), NAME, [asking.sealed(0), b"", b""])


def _unplanned(asking: Asking) -> tuple[str, bytes]:
    return "contribute", asking.ask("contribute", (0, 1), NAME, [asking.sealed(0), b"{}", b""])


def _lowered_floor(asking: Asking) -> tuple[str, bytes]:
    floors = asking.plan().floors.model_copy(update={"participants": 2})
    return "plan", asking.ask("plan", (0, 1), NAME, [asking.sealed(0, floors=floors), b"", b""])


@pytest.mark.parametrize(
    "wrong",
    [
        _foreign_session,
        _foreign_server,
        _other_receiver,
        _other_phase,
        _wrong_hash,
        _truncated,
        _other_list,
        _wrong_round,
        _wrong_attempt,
        _unplanned,
        _lowered_floor,
    ],
    ids=lambda wrong: wrong.__name__.strip("_"),
)
def test_a_question_that_does_not_hold_is_refused_and_changes_nothing(
    wrong, unmoved: SiteParty, server: Asking, digest_of: Digest
):
    phase, asked = wrong(server)
    before, lines = digest_of(unmoved.folder), len(_log(unmoved))
    for _ in range(2):
        assert _no(unmoved.handle(phase, asked), unmoved)
    assert digest_of(unmoved.folder) == before
    *_, last = _log(unmoved)
    assert (len(_log(unmoved)), last["phase"]) == (lines + 1, phase)


def test_no_byte_of_a_letter_can_be_changed(server):
    asked, key = server.meet(NAME), server.key.public
    assert letter.open_question(asked, server.enrolled.session, "meet", "server", NAME, key)
    for at in range(len(asked)):
        changed = bytearray(asked)
        changed[at] ^= 1 << at % 8
        with pytest.raises(ProtocolError):
            letter.open_question(
                bytes(changed), server.enrolled.session, "meet", "server", NAME, key
            )


def test_more_parts_than_a_letter_has_are_refused_when_the_list_is_made(server):
    with pytest.raises(ProtocolError, match="4097 parts, and 4096 at most"):
        server.ask("open", (0, 1), NAME, [b""] * 4097)
    config, seeds = server.agreement.config, server.agreement.seeds
    first = config.data.hospitals[0]
    many = [first.model_copy(update={"name": f"h{at}"}) for at in range(4096)]
    data = config.data.model_copy(update={"hospitals": many})
    with pytest.raises(ConfigError, match="4096 hospitals are too many for one deployed session"):
        agreement(config.model_copy(update={"data": data}), seeds)


def test_a_letter_over_the_size_limit_is_refused(unmoved, server, monkeypatch):
    asked = server.ask("meet", (0, 7), NAME, [server.enrolled.digest.encode()])
    monkeypatch.setattr(letter, "LIMIT", len(asked) - 1)
    assert _no(unmoved.handle("meet", asked), unmoved)
    assert "over the size limit" in _log(unmoved)[-1]["what"]


def _no(answer: bytes, site: SiteParty) -> bool:
    """The answer is the constant refusal, signed by the site."""
    found = letter._open(answer, site.key.public, "answer")
    return found.header.refused and found.parts == ()


def test_the_same_question_gets_the_same_bytes_and_another_one_none(site, asking, digest_of):
    asked = asking.meet(NAME)
    first = site.handle("meet", asked)
    assert not asking.refused(first, asked, NAME)
    before = digest_of(site.folder)
    assert site.handle("meet", asked) == first
    assert digest_of(site.folder) == before
    other = asking.ask("meet", (0, 0), NAME, [asking.enrolled.digest.encode(), b""])
    assert asking.refused(site.handle("meet", other), other, NAME)
    assert digest_of(site.folder) == before


def test_a_question_that_was_overtaken_is_refused(site, asking):
    later = asking.ask("plan", (0, 2), NAME, [asking.sealed(0, attempt=2), b"", b""])
    assert not asking.refused(site.handle("plan", later), later, NAME)
    earlier = asking.ask("plan", (0, 1), NAME, [asking.sealed(0, attempt=1), b"", b""])
    assert asking.refused(site.handle("plan", earlier), earlier, NAME)


def test_an_answer_is_of_its_question_and_of_its_sender(site, asking):
    asked, other = asking.meet(NAME), asking.ask("meet", (0, 1), NAME, [b"x"])
    answer = site.handle("meet", asked)
    enrolment = asking.enrolled.enrolment
    for question, sender in ((other, NAME), (asked, SITES[1])):
        with pytest.raises(ProtocolError):
            open_answer(answer, question, sender, enrolment.verify_key(sender))


def test_a_list_that_the_consortium_did_not_sign_starts_nobody(fresh: Path):
    folder = fresh / NAME
    enrolled = read_enrolled(folder)
    unsigned = enrolled.model_copy(update={"signature": "0" * 128})
    for other in (unsigned, enrolled.signed(OTHER)):
        (folder / ENROLLED).write_text(other.model_dump_json())
        with pytest.raises(ProtocolError, match="did not sign"):
            SiteParty(folder)
    changed = Enrolled.model_validate(enrolled.model_dump() | {"nonce": "0" * 32})
    (folder / ENROLLED).write_text(changed.model_dump_json())
    with pytest.raises(ProtocolError, match="did not sign"):
        SiteParty(folder)
    assert not (folder / "ledger.db").exists()


@pytest.mark.parametrize(
    "name", ["../north", "/etc/natfl", "", "a/b", "a\\b", ".hidden", "a b", "server", "consortium"]
)
def test_no_party_has_a_name_that_leads_to_another_folder(name, kit, tmp_path):
    keys, out = ["deploy", "keys"], ["--out", str(tmp_path / "kit")]
    source = str(kit / "consortium.toml")
    for given in (["--own", name], [source, "--holder", name]):
        if name or "--holder" in given:
            done = CliRunner().invoke(app, [*keys, *given, *out])
            assert isinstance(done.exception, ConfigError)
            assert "cannot be a party's name" in str(done.exception)
    table = json.loads(own_keys(tmp_path / "own" / "x").model_dump_json()) | {"name": name}
    (tmp_path / "public.json").write_text(json.dumps(table))
    done = CliRunner().invoke(app, [*keys, source, *out, "--public", str(tmp_path / "public.json")])
    assert isinstance(done.exception, ConfigError)
    assert {path.name for path in tmp_path.iterdir()} == {"own", "public.json"}


def test_keys_of_nobody_who_takes_part_are_refused(kit, tmp_path):
    """A misspelt name would leave the real one to keys that the consortium makes."""
    own_keys(tmp_path / "own" / "Nord")
    given = ["--public", str(tmp_path / "own" / "Nord" / "public.json")]
    source = str(kit / "consortium.toml")
    for more, why in ((given, "Nord takes no part"), (["--holder", NAME], f"{NAME} comes twice")):
        done = CliRunner().invoke(
            app, ["deploy", "keys", source, "--out", str(tmp_path / "kit"), *more]
        )
        assert why in str(done.exception)
    assert not (tmp_path / "kit").exists()


def test_a_folder_with_another_key_is_nobodys(fresh: Path):
    (fresh / NAME / "signing.key").write_bytes(bytes(32))
    with pytest.raises(ProtocolError, match="another key"):
        SiteParty(fresh / NAME)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"max_epsilon": 1.0}, "above 1"),
        ({"max_rounds": 1}, "more than 1"),
        ({"min_participants": 4}, "site's floor"),
        ({"proxies": ["0" * 64]}, "were not allowed"),
        ({"architectures": ["test_resnet18"]}, "were not allowed"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_what_the_sites_own_policy_forbids_is_refused(change, why, fresh, asking):
    path = fresh / NAME / "site.toml"

    table = tomllib.loads(path.read_text())
    table["policy"] |= change
    path.write_text(tomli_w.dumps(table))
    party = SiteParty(fresh / NAME)
    try:
        asked = asking.meet(NAME)
        assert asking.refused(party.handle("meet", asked), asked, NAME)
        assert why in _log(party)[-1]["what"]
    finally:
        party.close()
    assert not (fresh / NAME / "ledger.db").exists()


def test_a_veto_stops_a_site_at_the_next_message_and_its_removal_lets_it_go_on(site, asking):
    asked = asking.meet(NAME)
    (site.folder / VETO).touch()
    assert asking.refused(site.handle("meet", asked), asked, NAME)
    (site.folder / VETO).unlink()
    assert not asking.refused(site.handle("meet", asked), asked, NAME)


def test_a_veto_holds_back_the_answer_in_progress(site, asking, monkeypatch):
    answering, veto = site._holder.answer, site.folder / VETO

    def slowly(blob: bytes) -> list[bytes]:
        found = answering(blob)
        veto.touch()
        return found

    asked = asking.ask("plan", (0, 1), NAME, [asking.sealed(0), b"", b""])
    with monkeypatch.context() as patch:
        patch.setattr(site._holder, "answer", slowly)
        assert asking.refused(site.handle("plan", asked), asked, NAME)
    assert "a veto" in _log(site)[-1]["what"]
    veto.unlink()
    assert not asking.refused(site.handle("plan", asked), asked, NAME)


def test_a_disk_that_fails_is_told_on_this_side_alone(site, asking, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    asked = asking.meet(NAME)
    with monkeypatch.context() as patch:
        patch.setattr("secure_natfl.deploy.journal.write", full)
        with pytest.raises(RunFolderError):
            site.handle("meet", asked)
    assert "No space left" in _log(site)[-1]["what"]
    assert not asking.refused(site.handle("meet", asked), asked, NAME)


def test_one_process_works_in_a_folder(site):
    claim = (
        "import sys, pathlib; from protocols.durable import Claim; Claim(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", claim, str(site.folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert "another process is at work" in done.stderr


@pytest.mark.parametrize("address", ["::", "192.0.2.1", "server.example", "127.0.0.1.nip.io"])
def test_nothing_is_started_without_tls_off_this_machine(fresh, address):
    with pytest.raises(ConfigError, match="without TLS"):
        start_link(fresh / "server", address, 8443, insecure=True)
    with pytest.raises(ConfigError, match="without TLS"):
        start_node(fresh / NAME, f"{address}:8443", 9094, insecure=True)
    assert not (fresh / NAME / "processes.json").exists()
