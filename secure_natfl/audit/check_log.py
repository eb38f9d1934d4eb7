"""The audit log: its chain, its order, its checkpoints, the files it names."""

from __future__ import annotations

from itertools import pairwise

from protocols.audit_events import RoundLearned, RoundOpened, SessionClosed, SessionOpened
from protocols.audit_log import Log, Record
from protocols.chain import digest
from protocols.checkpoints import Cosigned, check_covered, read_checkpoints, verify_cosigned
from secure_natfl.audit.findings import Findings, demand
from secure_natfl.audit.reading import RunFiles, Story
from secure_natfl.audit.trail import CHECKPOINTS, ENROLMENT, LOG, digest_of
from secure_natfl.system_tables import NatImg


def check_log(files: RunFiles, log: Log, story: Story, findings: Findings) -> None:
    """All checks that the log alone, the checkpoints and the named files allow."""
    findings.check("log.chain", lambda: _chain(log, story))
    findings.check("log.order", lambda: _order(files, story))
    findings.check("log.enrolment", lambda: _enrolment(files, story))
    findings.check("log.configuration", lambda: _configuration(files, story))
    findings.check("log.files", lambda: _files(files, story))
    findings.check("log.models", lambda: _models(files, story))
    findings.check("checkpoints.server", lambda: _server(files, log, story))
    findings.check("checkpoints.kept", lambda: _kept(files, log, story))


def _chain(log: Log, story: Story) -> str:
    """The chain was verified on reading; here the end and the clock."""
    demand(not log.torn and log.ended, "the log ends in a torn line", where=LOG)
    moments = [record.utc for record in story.records]
    back = sum(after < before for before, after in pairwise(moments))
    said = f"{len(log.lines)} records, each bound to the one before"
    return said + (f"; the clock went back {back} time(s)" if back else "")


def _order(files: RunFiles, story: Story) -> str:
    first, last = story.session, story.records[-1].body
    demand(
        isinstance(last, SessionClosed),
        "the log is not closed",
        where=LOG,
        why="the run was cut short, or records at the end are missing",
    )
    again = sum(isinstance(record.body, SessionOpened) for record in story.records)
    demand(again == 1, "the log begins several sessions", where=LOG)
    rounds = range(files.config.openings)
    for number in rounds:
        places = _places(story.records, number)
        demand(
            places == sorted(places) and len(places) == 3,
            f"round {number} was not planned, opened and learned from in this order",
            where=LOG,
        )
    extra = set(story.opened()) - set(rounds)
    demand(not extra, f"rounds {sorted(extra)} are not of this run", where=LOG)
    return f"session {first.session}: {len(rounds)} rounds planned, opened, learned from, closed"


def _places(records: tuple[Record, ...], number: int) -> list[int]:
    """Where a round's first plan, last opening and first learning stand."""
    planned = [r.seq for r in records if r.body.event == "round-planned" and r.body.round == number]
    opened = [r.seq for r in records if isinstance(r.body, RoundOpened) and r.body.round == number]
    learned = [
        r.seq for r in records if isinstance(r.body, RoundLearned) and r.body.round == number
    ]
    return [*planned[:1], *opened[-1:], *learned[:1]]


def _enrolment(files: RunFiles, story: Story) -> str:
    enrolment, session = files.enrolment(), story.session
    demand(
        digest_of(enrolment) == session.enrolment,
        "the enrolment is not the one that the log began with",
        where=ENROLMENT,
    )
    same = (
        (session.server, session.clients) == (enrolment.server, enrolment.clients)
        and (session.holders, session.threshold) == (enrolment.holders, enrolment.threshold)
        and session.session == enrolment.session
    )
    demand(same, "the log's first record has other keys than the enrolment", where=LOG)
    return (
        f"{len(enrolment.clients)} clients, {enrolment.threshold} of "
        f"{len(enrolment.holders)} key holder(s) open, keys as enrolled"
    )


def _configuration(files: RunFiles, story: Story) -> str:
    identity = files.config.identity
    for name, stated in (
        ("run.json", files.stated.get("config_sha256")),
        (LOG, story.session.config),
        ("report.json", files.report().config_sha256),
    ):
        demand(stated == identity, "names another configuration than config.toml", where=name)
    return f"configuration {identity[:16]}… in run.json, log and report alike"


def _files(files: RunFiles, story: Story) -> str:
    closed = story.records[-1].body
    if not isinstance(closed, SessionClosed):
        demand(False, "no record of the run's files", where=LOG, why="the log is not closed")
        return ""
    for name, stated in closed.files.items():
        found = digest((files.path / name).read_bytes())
        demand(found == stated, "the file is not the one that was recorded", where=name)
    demand("report.json" in closed.files, "the report was not recorded", where=LOG)
    return f"{', '.join(sorted(closed.files))} are as they were recorded"


def _models(files: RunFiles, story: Story) -> str:
    step = "round" if isinstance(files.config.system, NatImg) else "opening"
    for number, body in story.learned().items():
        where = f"state/{step}-{number:03d}/central.safetensors"
        found = digest((files.path / where).read_bytes())
        demand(found == body.model, "the model is not the one that was recorded", where=where)
    return f"the central model after each of {len(story.learned())} rounds is as recorded"


def _server(files: RunFiles, log: Log, story: Story) -> str:
    found = read_checkpoints(files.path / CHECKPOINTS)
    return covered(log, story, found)


def covered(log: Log, story: Story, found: tuple[Cosigned, ...]) -> str:
    """All signatures hold, every round was co-signed by its clients, and the end by all.

    `natfl verify` runs it too, on the copies beside the evidence.
    """
    keys, by_round = story.keys, dict[int, set[str]]()
    for one in found:
        names = verify_cosigned(one, keys)
        demand(
            one.checkpoint.session == story.session.session,
            "a checkpoint of another session",
            where=CHECKPOINTS,
        )
        check_covered(log.tree, one.checkpoint)
        for record in story.records[: one.checkpoint.size]:
            if isinstance(record.body, RoundLearned):
                by_round.setdefault(record.body.round, set()).update(names)
    for number, body in story.opened().items():
        clients = {name for group in body.sums for name in group.participants}
        missing = clients - by_round.get(number, set())
        demand(not missing, f"round {number} is not co-signed by {', '.join(sorted(missing))}")
    size = max((one.checkpoint.size for one in found), default=0)
    tail = len(log.lines) - size
    demand(tail == 0, f"unanchored tail of {tail} record(s)", where=LOG)
    last = [one for one in found if one.checkpoint.size == size]
    signed = {cosignature.client for one in last for cosignature in one.cosignatures}
    absent = set(keys.clients) - signed
    demand(not absent, f"the end is not co-signed by {', '.join(sorted(absent))}")
    return f"{len(found)} checkpoints, signed by the server and co-signed by each round's clients"


def _kept(files: RunFiles, log: Log, story: Story) -> str:
    keys, session, count = story.keys, story.session.session, 0
    for site in keys.clients:
        path = files.sites / site / CHECKPOINTS
        demand(path.exists(), "the checkpoints that the site kept are missing", where=str(path))
        kept = [one for one in read_checkpoints(path) if one.checkpoint.session == session]
        demand(bool(kept), "the site kept no checkpoint of this session", where=str(path))
        for one in kept:
            names = verify_cosigned(one, keys)
            demand(names == (site,), "a checkpoint that another site kept", where=str(path))
            check_covered(log.tree, one.checkpoint)
            count += 1
    return f"{count} checkpoints kept by {len(keys.clients)} sites agree with the log"
