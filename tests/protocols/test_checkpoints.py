"""Checkpoints: a server that makes its log anew cannot have it signed, nor reach what was kept."""

from pathlib import Path
from typing import Any

import pytest

from protocols.audit_events import Refused
from protocols.audit_log import AuditLog, read_log
from protocols.checkpoints import (
    Cosigned,
    Keys,
    append_line,
    check_covered,
    read_checkpoints,
    sign_checkpoint,
    verify_cosigned,
)
from protocols.errors import ProtocolError, RunFolderError
from tests.protocols import audit_samples as samples

key_of = samples.key_of
KEYS = Keys(key_of("server").public, {name: key_of(name).public for name in samples.SITES})


@pytest.fixture
def session(tmp_path: Path) -> Any:
    return samples.Session(tmp_path).play()


def anew(folder: Path, rounds: int = 2) -> Any:
    """The server writes another log of the same session, with nobody else's help."""
    folder.mkdir()
    made = samples.Session(folder, rounds=rounds)
    made.open()
    made.log.append("server", Refused(round=0, error="Another"))
    made.rounds = rounds
    for number in range(rounds):
        made.round(number)
    made.close()
    return made


def test_honest_checkpoints_verify_and_cover(session: Any) -> None:
    log = read_log(session.data)
    for one in session.checkpoints:
        assert verify_cosigned(one, KEYS) == samples.SITES
        check_covered(log.tree, one.checkpoint)
    assert [one.checkpoint.size for one in session.checkpoints] == [7, 13, 14]


@pytest.mark.parametrize("site", samples.SITES)
def test_a_log_made_anew_meets_what_any_one_site_kept(
    session: Any, tmp_path: Path, site: str
) -> None:
    forged = read_log(anew(tmp_path / "anew").data)
    for one in read_checkpoints(tmp_path / f"{site}.checkpoints.jsonl"):
        assert verify_cosigned(one, KEYS) == (site,)
        with pytest.raises(ProtocolError, match="changed, or made anew"):
            check_covered(forged.tree, one.checkpoint)


def test_no_site_cosigns_a_log_made_anew(session: Any, tmp_path: Path) -> None:
    tree = anew(tmp_path / "anew", rounds=3).log.tree
    point = sign_checkpoint(tree, "s1", 2, session.log.records[-1].utc, key_of("server"))
    for site in samples.SITES:
        book = session.book(site)
        before = (tmp_path / f"{site}.checkpoints.jsonl").read_bytes()
        for proof in (tree.consistency(book.last_size("s1"), len(tree)), [], [b"\0" * 32]):
            with pytest.raises(ProtocolError, match="consistency is not proved"):
                book.cosign(point, proof)
        assert (tmp_path / f"{site}.checkpoints.jsonl").read_bytes() == before


def test_no_site_cosigns_a_log_cut_back(session: Any) -> None:
    tree = read_log(b"".join(session.data.splitlines(keepends=True)[:9])).tree
    point = sign_checkpoint(tree, "s1", 1, session.log.records[-1].utc, key_of("server"))
    with pytest.raises(ProtocolError, match="consistency is not proved"):
        session.book("ash").cosign(point, [])


def test_a_site_takes_up_its_book_again(session: Any, tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl") as log:
        log.append("server", Refused(round=1, error="KeyError"))
        tree, utc = log.tree, log.records[-1].utc
    point = sign_checkpoint(tree, "s1", 1, utc, key_of("server"))
    session.book("ash").cosign(point, tree.consistency(14, 15))
    other = sign_checkpoint(tree, "s2", 0, utc, key_of("server"))
    assert session.book("ash").last_size("s2") == 0
    session.book("ash").cosign(other, [])
    assert [o.checkpoint.size for o in read_checkpoints(tmp_path / "ash.checkpoints.jsonl")] == [
        *(7, 13, 14),
        *(15, 15),
    ]


@pytest.mark.parametrize(
    "change", [{"size": 6}, {"root": "0" * 64}, {"round": 9}, {"session": "t"}]
)
def test_a_changed_checkpoint_does_not_verify(session: Any, change: dict[str, Any]) -> None:
    one = session.checkpoints[0]
    false = one.model_copy(update={"checkpoint": one.checkpoint.model_copy(update=change)})
    with pytest.raises(ProtocolError, match="does not verify"):
        verify_cosigned(false, KEYS)
    with pytest.raises(ProtocolError, match="does not verify"):
        session.book("ash").cosign(false.checkpoint, [])


def test_cosignatures_are_their_clients_own(session: Any) -> None:
    one = session.checkpoints[0]
    first, second, *_ = one.cosignatures
    swapped = second.model_copy(update={"client": first.client})
    with pytest.raises(ProtocolError, match="does not verify"):
        verify_cosigned(one.model_copy(update={"cosignatures": (swapped,)}), KEYS)
    stranger = first.model_copy(update={"client": "zelkova"})
    with pytest.raises(ProtocolError, match="not enrolled"):
        verify_cosigned(one.model_copy(update={"cosignatures": (stranger,)}), KEYS)


def test_a_line_that_a_crash_cut_off_goes_and_any_other_damage_is_refused(
    session: Any, tmp_path: Path
) -> None:
    path = tmp_path / "points.jsonl"
    for one in session.checkpoints:
        append_line(path, one)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert read_checkpoints(path) == tuple(session.checkpoints[:2])
    append_line(path, session.checkpoints[2])
    assert path.read_bytes() == whole
    for damaged in (b"nonsense\n" + whole, whole.replace(b'"round":', b'"round": ')):
        path.write_bytes(damaged)
        with pytest.raises(RunFolderError, match="cannot be read"):
            read_checkpoints(path)


def test_a_book_that_cannot_be_written_is_said(session: Any, tmp_path: Path) -> None:
    one: Cosigned = session.checkpoints[0]
    with pytest.raises(RunFolderError, match="cannot be read or written"):
        append_line(tmp_path / "nowhere" / "points.jsonl", one)
