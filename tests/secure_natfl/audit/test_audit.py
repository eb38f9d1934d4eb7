"""`natfl audit` on a real run: what holds, and every damage that it names."""

import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from protocols.chain import SigningKey, canonical, link
from protocols.checkpoints import read_checkpoints, sign_checkpoint
from protocols.errors import ConfigError
from protocols.merkle import Tree, leaf_hash
from secure_natfl.audit.conduct import Audited, audit
from secure_natfl.audit.verify import SUBJECTS, verify_evidence
from secure_natfl.config import Config
from secure_natfl.execute import execute
from secure_natfl.run import Run
from tests.secure_natfl.audit.readers import alone, edit, outcomes, replace_in


def test_an_honest_run_holds_and_all_three_verifiers_agree(run: Path, done: Audited) -> None:
    assert done.findings.broken == ()
    assert {one.check for one in done.findings.found if one.outcome == "unchecked"} == {
        "attacks.table"
    }
    assert len(done.findings.found) >= 24
    for key in (None, done.auditor):
        assert verify_evidence(run, key).findings.broken == ()
    assert alone(run / "evidence") == alone(run / "evidence", done.auditor) == 0
    assert {file.name for file in (run / "evidence").iterdir()} == {*SUBJECTS, "evidence.dsse.json"}


def test_an_audit_changes_nothing_but_the_evidence(copy: Path) -> None:
    def files() -> dict[str, bytes]:
        found = (p for p in copy.rglob("*") if p.is_file() and "evidence" not in p.parts)
        return {str(path): path.read_bytes() for path in found}

    before = files()
    audit(copy)
    assert files() == before


def swap_keys(path: Path) -> None:
    def change(document: Any) -> None:
        keys = document["clients"]
        keys["children-1"], keys["children-2"] = keys["children-2"], keys["children-1"]

    edit(path / "enrolment.json", change)


def lower_epsilon(path: Path) -> None:
    def change(report: Any) -> None:
        report["privacy"]["epsilon"] = 1.0
        for client in report["clients"]:
            client["epsilon"] = 1.0

    edit(path / "report.json", change)


def drop_round(path: Path) -> None:
    """A site forgets a charge: it puts back the ledger with one line less."""
    file = path / "sites" / "children-1" / "ledger.db"
    with sqlite3.connect(file) as database:
        database.execute("DROP TRIGGER lines_DELETE")
        database.execute("DROP TRIGGER attached_DELETE")
        database.execute("DELETE FROM attached WHERE number = 2")
        database.execute("DELETE FROM lines WHERE number = 2")
    database.close()


def last_blob(path: Path) -> Path:
    *_, line = (path / "transcript" / "index.jsonl").read_text().splitlines()
    return path / "transcript" / "messages" / json.loads(line)["sha256"]


def truncate(name: str, lines: int) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        kept = (path / name).read_bytes().splitlines(keepends=True)[:-lines]
        (path / name).write_bytes(b"".join(kept))

    return cut


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def flip_model(path: Path) -> None:
    file = path / "state" / "round-000" / "central.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "log cut": (truncate("audit.jsonl", 1), "log.order", "not closed"),
    "log missing": (remove("audit.jsonl"), "log.read", "No such file"),
    "log changed": (
        replace_in("audit.jsonl", b'"proxies":40', b'"proxies":39'),
        "log.read",
        "does not follow",
    ),
    "report missing": (remove("report.json"), "report.read", "No such file"),
    "report says less": (lower_epsilon, "privacy.epsilon", "the ledger's events give"),
    "configuration": (
        replace_in("config.toml", b"distill_epochs = 1", b"distill_epochs = 2"),
        "log.configuration",
        "another configuration",
    ),
    "keys swapped": (swap_keys, "log.enrolment", "not the one"),
    "ledger missing": (remove("sites/children-2/ledger.db"), "ledger.children-2", "missing"),
    "ledger shortened": (drop_round, "ledger.children-1", "the ledger charges rounds [0]"),
    "model changed": (flip_model, "log.models", "not the one that was recorded"),
    "checkpoint missing": (truncate("checkpoints.jsonl", 1), "checkpoints.server", "unanchored"),
    "kept checkpoints missing": (
        remove("sites/children-3/checkpoints.jsonl"),
        "checkpoints.kept",
        "are missing",
    ),
    "message changed": (
        lambda path: last_blob(path).write_bytes(last_blob(path).read_bytes()[:-1] + b"!"),
        "transcript.signatures",
        "were changed",
    ),
    "transcript cut": (truncate("transcript/index.jsonl", 4), "transcript.log", "was cut"),
    "attacks malformed": (
        lambda path: ((path / "attacks").mkdir(), (path / "attacks/attacks.json").write_text("{")),
        "attacks.table",
        "malformed",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_is_broken_and_named(copy: Path, name: str) -> None:
    damage, check, says = DAMAGE[name]
    damage(copy)
    found = outcomes(copy)
    assert says in found.get(check, ""), found


def test_a_log_that_the_server_makes_anew_is_broken(copy: Path) -> None:
    """It has its own key and every file of the run folder, but not what the sites sign and keep."""
    head, lines = "0" * 64, []
    for line in (copy / "audit.jsonl").read_bytes().splitlines():
        record = json.loads(line.replace(b'"proxies":40', b'"proxies":20')) | {"prev": head}
        lines.append(canonical(record))
        head = link(head, lines[-1])
    (copy / "audit.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    key = SigningKey((copy / "server" / "signing.key").read_bytes())
    points = []
    for one in read_checkpoints(copy / "checkpoints.jsonl"):
        old = one.checkpoint
        part = Tree([leaf_hash(line) for line in lines[: old.size]])
        made = sign_checkpoint(part, old.session, old.round, old.utc, key)
        new = one.model_copy(update={"checkpoint": made})
        points.append(canonical(new.model_dump(mode="json")))
    (copy / "checkpoints.jsonl").write_bytes(b"\n".join(points) + b"\n")
    found = outcomes(copy)
    assert "does not verify" in found["checkpoints.server"]
    assert "changed, or made anew" in found["checkpoints.kept"]
    assert "logged" in found["policy.plans"] or "asked another number" in found["policy.plans"]


def rows(*found: tuple[str, str, float | None], promise: str = "kept") -> str:
    arms = [{"arm": arm, "verdict": verdict, "why": "", "p": p} for arm, verdict, p in found]
    criteria = {"id": "G1", "metric": "ssim", "margin": 0.1, "arms": [a for a, _, _ in found]}
    criteria["promise"] = promise
    return json.dumps({"rows": [{"criteria": criteria, "arms": arms}]})


@pytest.mark.parametrize(
    ("table", "broken"),
    [
        (rows(("clear", "CONTROL", 0.0), ("protected", "NO LEAK DETECTED", 0.7)), False),
        (rows(("clear", "CONTROL", 0.0), ("protected", "LEAKS", 0.02)), False),
        (rows(("clear", "CONTROL", 0.0), ("protected", "LEAKS", 1e-6)), True),
        (rows(("clear", "CONTROL", 0.0), ("noised", "LEAKS", 1e-6)), False),
        (rows(("clear", "CONTROL", 0.0), ("protected", "LEAKS", 1e-6), promise=""), False),
        (
            rows(*[("protected", "LEAKS", None)] * 2, ("protected", "INCONCLUSIVE", None)),
            True,
        ),
        (json.dumps([{"id": "x", "verdict": "LEAKS", "promised": True, "error_rate": 0}]), True),
        (json.dumps({"rows": []}), True),
    ],
)
def test_a_leak_breaks_a_promise_beyond_its_error_rate(
    tmp_path: Path, table: str, broken: bool
) -> None:
    from secure_natfl.audit.attack_table import check_attacks
    from secure_natfl.audit.findings import Findings

    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "attacks.json").write_text(table)
    findings = Findings()
    found, said = check_attacks(tmp_path, findings)
    assert bool(findings.broken) == broken, said
    assert all(row.id in ("G1", "x") for row in found)


def test_a_run_that_another_version_made_is_an_unusable_call(copy: Path) -> None:
    damage = replace_in("audit.jsonl", b'"version":"0.1.0"', b'"version":"0.0.9"')
    damage(copy)
    first, *_ = (copy / "audit.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "audit.jsonl").write_bytes(first)
    with pytest.raises(ConfigError, match=r"made by version 0\.0\.9"):
        audit(copy)


@pytest.mark.nightly
def test_a_run_that_was_interrupted_and_taken_up_again_holds(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops after the second round's sums were opened, and its log is torn there too."""
    config = tiny("run.seed=system", "run.baselines=false")
    console, learn = Console(file=io.StringIO()), Run._learn

    def interrupted(self: Run, number: int, *rest: Any) -> dict[str, float]:
        if number:
            raise KeyboardInterrupt
        return learn(self, number, *rest)

    monkeypatch.setattr(Run, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(config, tmp_path / "D", "natfl run", console)
    monkeypatch.setattr(Run, "_learn", learn)
    assert "report.read" in outcomes(tmp_path / "D")
    with (tmp_path / "D" / "audit.jsonl").open("ab") as file:
        file.write(b'{"actor":"server","body":{"ev')
    execute(config, tmp_path / "D", "natfl run", console, resume=True)
    done = audit(tmp_path / "D")
    assert done.findings.broken == ()
    assert done.evidence is not None
    assert (done.evidence.log.refusals, done.evidence.log.torn_lines) == (1, 1)
    assert [one.attempt for one in done.evidence.rounds[1].sums] == [1]
    assert verify_evidence(tmp_path / "D").findings.broken == ()
    assert alone(tmp_path / "D" / "evidence") == 0
