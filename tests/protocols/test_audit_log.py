"""The log: one encoding, a chain that shows every change, a torn end that is kept."""

import json
import random
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from protocols.audit_events import Event, Refused, SessionResumed
from protocols.audit_log import AuditLog, Log, Record, read_log
from protocols.chain import canonical
from protocols.checkpoints import check_covered
from protocols.errors import NatflError, ProtocolError, RunFolderError
from tests.protocols import audit_samples as samples

KINDS = ("delete", "insert", "swap", "cut")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return samples.Session(tmp_path_factory.mktemp("log")).play()


@pytest.fixture(scope="module")
def two_hundred(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A log of 200 records, the last checkpoint over all of them."""
    made = samples.Session(tmp_path_factory.mktemp("long"), rounds=33).play()
    assert len(made.log.records) == 200
    return made


def audited(data: bytes, session: Any) -> Log:
    """What an auditor with the co-signed checkpoints makes of a log; an error is a finding."""
    log = read_log(data)
    if log.torn or not log.ended:
        raise RunFolderError("torn")
    for one in session.checkpoints:
        check_covered(log.tree, one.checkpoint)
    if len(log.lines) != session.checkpoints[-1].checkpoint.size:
        raise RunFolderError("unanchored tail")
    list(log.records())
    return log


def detected(data: bytes, session: Any) -> bool:
    try:
        audited(data, session)
    except NatflError:
        return True
    return False


def test_lines_are_canonical_and_read_back(session: Any) -> None:
    log = audited(session.data, session)
    assert list(log.records()) == session.log.records
    assert [canonical(json.loads(line)) for line in log.lines] == list(log.lines)
    assert (log.head, log.tree.root()) == (session.log.head, session.log.tree.root())


def test_a_log_is_taken_up_where_it_ended(session: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(session.data)
    with AuditLog(path) as log:
        log.append("server", SessionResumed(version="0.1.0"))
    again = read_log(path.read_bytes())
    assert again.lines[:-1] == read_log(session.data).lines
    assert path.read_bytes().startswith(session.data)


@pytest.mark.parametrize("cut", [1, 2, 5, 60, 300])
def test_a_torn_end_is_kept_flagged_and_written_past(
    session: Any, tmp_path: Path, cut: int
) -> None:
    path, torn = tmp_path / "audit.jsonl", session.data[:-cut]
    path.write_bytes(torn)
    found = read_log(torn)
    assert not found.ended
    assert bool(found.torn) == (cut > 1)
    with AuditLog(path) as log:
        log.append("server", SessionResumed(version="0.1.0"))
        kinds = [record.body.event for record in log.records]
    assert kinds[-2:] == (["torn-line"] if cut > 1 else ["session-closed"]) + ["session-resumed"]
    assert path.read_bytes().startswith(torn)
    with AuditLog(path) as log:
        assert [record.body.event for record in log.records] == kinds


def test_a_torn_line_that_is_changed_later_is_found(session: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(session.data[:-40])
    AuditLog(path).close()
    whole = path.read_bytes()
    place = len(session.data) - 50
    path.write_bytes(whole[:place] + b"#" + whole[place + 1 :])
    with pytest.raises(RunFolderError, match="does not follow"):
        read_log(path.read_bytes())


def changes(session: Any, step: int) -> tuple[int, list[int]]:
    """Every step-th byte changed to another: how many, and which went unnoticed."""
    data, draw, missed = session.data, random.Random(11), []
    places = range(0, len(data), step)
    for place in places:
        other = bytes([data[place] ^ draw.randrange(1, 256)])
        if not detected(data[:place] + other + data[place + 1 :], session):
            missed.append(place)
    return len(places), missed


def test_a_changed_byte_is_detected(two_hundred: Any) -> None:
    count, missed = changes(two_hundred, 151)
    assert count > 400
    assert missed == []


@pytest.mark.nightly
def test_every_changed_byte_of_200_records_is_detected(two_hundred: Any) -> None:
    count, missed = changes(two_hundred, 1)
    assert count >= 50_000
    assert missed == []


def edits(session: Any, count: int) -> tuple[int, list[str]]:
    """Deletes, inserts, swaps and cuts of whole lines, each a real change; what went unnoticed."""
    lines, draw, missed = session.data.splitlines(keepends=True), random.Random(13), []
    for _, how in zip(range(count), cycle(KINDS), strict=False):
        changed = samples.edited(lines, how, draw)
        assert changed != lines
        if not detected(b"".join(changed), session):
            missed.append(how)
    return count, missed


def test_edited_lines_are_detected(two_hundred: Any) -> None:
    assert edits(two_hundred, 200) == (200, [])


@pytest.mark.nightly
def test_a_thousand_edits_are_detected(two_hundred: Any) -> None:
    assert edits(two_hundred, 1000) == (1000, [])


def test_lines_written_after_the_last_checkpoint_are_named(session: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(session.data)
    with AuditLog(path) as log:
        log.append("server", Refused(round=1, error="KeyError"))
    assert detected(path.read_bytes(), session)


def test_a_log_cut_to_an_earlier_checkpoint_needs_the_later_one(session: Any) -> None:
    first = session.checkpoints[0].checkpoint
    cut = b"".join(session.data.splitlines(keepends=True)[: first.size])
    check_covered(read_log(cut).tree, first)
    with pytest.raises(ProtocolError, match="at its end are missing"):
        check_covered(read_log(cut).tree, session.checkpoints[-1].checkpoint)


def leaves(kind: Any) -> set[Any]:
    """The types that the fields of an event are made of."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = kind.model_fields.values()
        return set().union(*(leaves_of(one.annotation, one.metadata) for one in fields))
    return leaves_of(kind, ())


def leaves_of(kind: Any, metadata: Any) -> set[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return leaves(kind)
    inner = [one for one in get_args(kind) if one is not Ellipsis]
    if getattr(kind, "__metadata__", None):
        return {(inner[0], True)}
    if not inner:
        return {(kind, bool(metadata))}
    if all(isinstance(one, str) for one in inner):
        return set()
    return set().union(*(leaves_of(one, ()) for one in inner))


def test_no_event_has_room_for_free_text_or_a_fraction() -> None:
    union = get_args(Event)[0]
    for event in get_args(union):
        for kind, bounded in leaves(event):
            assert kind in (str, int, bool), event
            assert kind is bool or bounded, (event, kind)


@pytest.mark.parametrize("text", ["a b", "x" * 129, "patient/7", "", "é"])
def test_an_error_is_recorded_by_its_kind_alone(text: str) -> None:
    with pytest.raises(ValueError, match="error"):
        Refused(round=0, error=text)


def test_a_record_of_another_version_is_refused(session: Any) -> None:
    line = session.data.splitlines()[0]
    unknown = json.loads(line)
    unknown["body"]["event"] = "session-widened"
    data = canonical(unknown) + b"\n"
    with pytest.raises(RunFolderError, match="no record of this version"):
        list(read_log(data).records())
    spaced = line.replace(b'"actor":"server"', b'"actor":"server" ')
    with pytest.raises(RunFolderError, match="not in its one encoding"):
        list(read_log(spaced + b"\n").records())
    assert Record.model_validate_json(line) == session.log.records[0]
