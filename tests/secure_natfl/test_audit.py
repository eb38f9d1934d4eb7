"""`natfl audit` and `natfl verify` on a real run: what holds, and every way to break it."""

import io
import json
import re
import runpy
import shutil
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from protocols.chain import SigningKey, canonical, link
from protocols.checkpoints import read_checkpoints, sign_checkpoint
from protocols.errors import ConfigError, NatflError
from protocols.merkle import Tree, leaf_hash
from secure_natfl.audit.clauses import bool_of, counted, resolve
from secure_natfl.audit.conduct import Audited, audit
from secure_natfl.audit.envelope import seal_statement
from secure_natfl.audit.evidence import Evidence
from secure_natfl.audit.statements import Operator
from secure_natfl.audit.trail import Trail
from secure_natfl.audit.verify import SUBJECTS, predicate_of, verify_evidence
from secure_natfl.cli import app
from secure_natfl.config import Config
from secure_natfl.execute import execute
from secure_natfl.run import Run

ROOT = Path(__file__).resolve().parents[2]
ALONE = runpy.run_path(str(ROOT / "secure_natfl" / "audit" / "standalone.py"))
WORDS = re.compile(r"compliant|fully\s+private", re.IGNORECASE)
CANARY = "Zq7-Müller, Anna *1961-02-03"


@pytest.fixture(scope="module")
def run(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of three sites and two rounds, with noise and shared keys."""
    folder = tmp_path_factory.mktemp("audited") / "D"
    config = tiny("run.seed=system", "run.baselines=false", "privacy.mechanism=shard-teachers")
    execute(config, folder, "natfl run tiny", Console(file=io.StringIO()))
    return folder


@pytest.fixture(scope="module")
def done(run: Path) -> Audited:
    return audit(run)


@pytest.fixture
def copy(run: Path, done: Audited, tmp_path: Path) -> Path:
    """The run and its evidence, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "D", symlinks=True))


def outcomes(path: Path) -> dict[str, str]:
    return {one.check: one.said for one in audit(path).findings.broken}


def alone(folder: Path, key: str = "") -> int:
    said: list[str] = []
    return int(ALONE["main"]([str(folder), *([key] if key else [])], said.append))


def exit_code(*arguments: str) -> int:
    """Of the command line, where a refusal is what `main` turns into exit code 2."""
    result = CliRunner().invoke(app, list(arguments))
    return 2 if isinstance(result.exception, NatflError) else result.exit_code


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document, indent=2))


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


def replace_in(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = (path / name).read_bytes()
        assert old in data
        (path / name).write_bytes(data.replace(old, new))

    return change


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


def leaf_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaf_paths(inner, (*path, name))
    else:
        yield path


def other(value: Any) -> Any:
    """Another value of the same kind where there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return "stated" if value is None else ["stated"]


def with_leaf(document: Any, path: tuple[Any, ...], value: Any) -> bytes:
    changed = json.loads(json.dumps(document))
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()


def mutated(copy: Path, step: int) -> tuple[int, list[tuple[Any, ...]]]:
    """Every step-th leaf of the evidence changed: how many, and which any verifier let pass."""
    file = copy / "evidence" / "evidence.json"
    document = json.loads(file.read_bytes())
    paths, missed = list(leaf_paths(document))[::step], []
    for path in paths:
        value = document
        for name in path:
            value = value[name]
        file.write_bytes(with_leaf(document, path, other(value)))
        if not verify_evidence(copy).findings.broken or alone(copy / "evidence") != 1:
            missed.append(path)
    return len(paths), missed


def test_a_changed_leaf_of_the_evidence_is_detected(copy: Path) -> None:
    count, missed = mutated(copy, 25)
    assert count >= 40
    assert missed == []


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_every_changed_leaf_of_the_evidence_is_detected(copy: Path) -> None:
    count, missed = mutated(copy, 1)
    assert count >= 1000
    assert missed == []


def resigned(folder: Path, key: SigningKey) -> None:
    """The folder as it is, signed by whoever holds `key`."""
    made = {name: (folder / name).read_bytes() for name in SUBJECTS}
    document = json.loads(made["evidence.json"])
    said = {"run": "run_id", "schema": "schema_version", "verdict": "verdict"}
    predicate = {name: document[field] for name, field in said.items()}
    (folder / "evidence.dsse.json").write_bytes(seal_statement(made, predicate, key))


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_both_verifiers_agree_on_every_changed_leaf_that_is_signed_anew(copy: Path) -> None:
    """An auditor may lie about what the log does not show; about rounds and gaps it cannot."""
    file = copy / "evidence" / "evidence.json"
    document, key = json.loads(file.read_bytes()), SigningKey(b"a" * 32)
    passed = set()
    for path in leaf_paths(document):
        value = document
        for name in path:
            value = value[name]
        file.write_bytes(with_leaf(document, path, other(value)))
        resigned(copy / "evidence", key)
        try:
            found = bool(verify_evidence(copy).findings.broken)
        except ConfigError:
            assert path == ("schema_version",)
            found = True
        assert (alone(copy / "evidence") == 1) == found, path
        passed |= set() if found else {path[0]}
    caught = {"rounds", "missing", "run_id", "simulated", "seeded", "verdict", "schema_version"}
    assert not caught & passed


@pytest.mark.parametrize(
    "path",
    [
        ("rounds", 0, "sums", 0, "aggregate"),
        ("rounds", 1, "sums", 0, "effective"),
        ("rounds", 0, "costs", "children-1"),
        ("rounds", 0, "model"),
        ("participants", 0, "public_key"),
        ("privacy", "accounting", "epsilon"),
        ("privacy", "accounting", "by_client", 1, "epsilon_isolated"),
        ("log", "entries"),
        ("log", "root"),
        ("clauses", 0, "status"),
        ("clauses", 0, "pointers", 0),
        ("missing", 0),
        ("simulated",),
        ("seeded",),
    ],
)
def test_an_auditor_cannot_sign_what_the_log_does_not_say(
    copy: Path, path: tuple[Any, ...]
) -> None:
    file = copy / "evidence" / "evidence.json"
    document = json.loads(file.read_bytes())
    value = document
    for name in path:
        value = value[name]
    said = {"missing": "/rounds", "clauses": "not_applicable"}.get(str(path[0]), other(value))
    file.write_bytes(with_leaf(document, path, said))
    resigned(copy / "evidence", SigningKey(b"a" * 32))
    assert verify_evidence(copy).findings.broken
    assert alone(copy / "evidence") == 1


def test_evidence_signed_by_another_needs_the_key_to_be_known(copy: Path, done: Audited) -> None:
    resigned(copy / "evidence", SigningKey(b"b" * 32))
    assert verify_evidence(copy).auditor == SigningKey(b"b" * 32).public.hex()
    (broken, *_) = verify_evidence(copy, done.auditor).findings.broken
    assert "another key" in broken.said
    assert alone(copy / "evidence", done.auditor) == 1


def test_exit_codes(copy: Path, tmp_path: Path, done: Audited) -> None:
    evidence = copy / "evidence"
    assert exit_code("verify", str(copy), "--key", done.auditor) == 0
    assert exit_code("verify", str(evidence), "--json") == 0
    assert exit_code("verify", str(tmp_path / "nowhere")) == alone(tmp_path / "nowhere") == 2
    assert exit_code("verify", str(copy), "--key", "abc") == alone(evidence, "abc") == 2
    assert exit_code("audit", str(tmp_path)) == 2
    (evidence / "audit.jsonl").unlink()
    assert exit_code("verify", str(copy)) == alone(evidence) == 1
    (evidence / "evidence.dsse.json").write_text("{")
    assert exit_code("verify", str(copy)) == alone(evidence) == 1
    (copy / "audit.jsonl").write_bytes(b"")
    assert exit_code("audit", str(copy)) == 1


def test_the_operators_statements_are_taken_up_and_what_is_missing_is_said(copy: Path) -> None:
    (copy / "operator.toml").write_text(
        '[study]\npurpose = "triage of chest images"\ncontrollers = ["Hospital A"]\n'
        '[sites.children-1]\norganisation = "Hospital A"\n[retention]\nlogs_until = "2030-01-01"\n'
    )
    evidence = audit(copy).evidence
    assert evidence is not None
    assert evidence.study.purpose == "triage of chest images"
    assert evidence.participants[0].organisation == "Hospital A"
    assert "/study/purpose" not in evidence.missing
    assert {"/study/dpia_ref", "/participants/1/organisation"} <= set(evidence.missing)
    assert verify_evidence(copy).findings.broken == ()
    assert alone(copy / "evidence") == 0


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[study]\npurpos = "x"\nadvice = 1\n', ("study.purpos", "study.advice")),
        ("[identifiability]\nmax_risk = 2\n", ("identifiability.max_risk",)),
        ("[[incidents]]\nkind = 'x'\n", ("incidents.0.action",)),
        ("[study\n", ("operator.toml",)),
        ("[sites.elsewhere]\n", ("sites.elsewhere",)),
    ],
)
def test_an_operator_file_with_mistakes_is_an_unusable_call(
    copy: Path, text: str, names: tuple[str, ...]
) -> None:
    (copy / "operator.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        audit(copy)
    assert all(name in str(caught.value) for name in names)
    assert exit_code("audit", str(copy)) == 2


def test_evidence_of_another_schema_is_named(copy: Path) -> None:
    edit(copy / "evidence" / "evidence.json", lambda one: one.update(schema_version="0"))
    assert verify_evidence(copy).findings.broken
    resigned(copy / "evidence", SigningKey(b"a" * 32))
    with pytest.raises(ConfigError, match="evidence of schema 0, this version reads 1"):
        verify_evidence(copy)


def test_clauses_point_to_something_and_unread_ones_are_not_counted(done: Audited) -> None:
    evidence = done.evidence
    assert evidence is not None
    document = evidence.model_dump(mode="json")
    frameworks = {row.framework.split()[0] for row in evidence.clauses}
    assert frameworks == {"NIST", "EDPB", "GDPR", "HIPAA", "EU", "ISO/IEC", "GMLP"}
    for row in evidence.clauses:
        found = [bool_of(resolve(document, pointer)) for pointer in row.pointers]
        assert row.status != "evidence_present" or all(found)
        assert row.kind != "operating" or row.status == "not_applicable"
        assert row.text_checked_on is None
    assert all(not count for count in counted(evidence.clauses).values())
    read = evidence.clauses[0].model_copy(update={"text_checked_on": "2026-11-01"})
    assert counted((read, *evidence.clauses[1:]))["design"] == {read.status: 1}


def test_a_pointer_to_nothing_is_an_error(done: Audited) -> None:
    assert done.evidence is not None
    document = done.evidence.model_dump(mode="json")
    for pointer in ("/nowhere", "/rounds/99", "/tool/name/x", "/rounds/first"):
        with pytest.raises(KeyError, match="points to nothing"):
            resolve(document, pointer)


@pytest.mark.usefixtures("done")
def test_the_schema_describes_the_evidence(run: Path) -> None:
    schema = json.loads((run / "evidence" / "evidence.schema.json").read_bytes())
    document = json.loads((run / "evidence" / "evidence.json").read_bytes())
    assert set(schema["properties"]) == set(document) == set(Evidence.model_fields)
    assert schema["additionalProperties"] is False
    assert predicate_of(Evidence.model_validate_json((run / "evidence/evidence.json").read_bytes()))


@pytest.mark.usefixtures("done")
def test_no_page_or_text_of_the_audit_says_more_than_it_can(run: Path) -> None:
    written = [*(run / "evidence").iterdir(), run / "report.html"]
    sources = [*(ROOT / "secure_natfl").rglob("*.py"), *(ROOT / "secure_natfl").rglob("*.toml")]
    templates = list((ROOT / "secure_natfl" / "report" / "templates").iterdir())
    assert len(templates) >= 5
    for file in (*written, *sources, *templates, *(ROOT / "docs").rglob("*.md")):
        assert WORDS.findall(file.read_text("utf-8")) == [], file
    assert WORDS.search("It is GDPR-compliant and fully private.")


@pytest.mark.usefixtures("done")
def test_the_page_is_one_file_with_its_landmarks(run: Path) -> None:
    page = (run / "evidence" / "evidence.html").read_text("utf-8")
    assert "What cannot be verified from outside" in page
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(re.findall(rf"<{landmark}[ >]", page)) == 1


@pytest.mark.nightly
def test_nothing_private_of_a_run_is_in_log_or_evidence(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    """Canaries in every field of the data that is private: patients, file names, folders."""
    rng, folder = np.random.default_rng(1), tmp_path / "Zq7-archive"
    folder.mkdir()
    np.savez(
        folder / "Zq7-export.npz",
        images=rng.integers(0, 256, (150, 32, 32), dtype=np.uint8),
        labels=np.arange(150) % 2,
        class_names=np.array(["no finding", "finding"]),
        group=np.array([f"{CANARY} {number // 2}" for number in range(150)]),
    )
    config = tiny(f"data.root={folder}", "run.seed=system", "run.baselines=false")
    hospital = {
        **config.data.hospitals[0].model_dump(include={"name", "sites", "architectures"}),
        "kind": "npz",
        "path": "Zq7-export.npz",
        "unit": "patient",
    }
    document = config.model_dump(mode="json")
    document["data"]["hospitals"] = [hospital]
    document["ledger"]["folder"] = str(tmp_path / "sites")
    execute(
        Config.model_validate(document, strict=False),
        tmp_path / "D",
        "natfl run",
        Console(file=io.StringIO()),
    )
    assert audit(tmp_path / "D").findings.broken == ()
    named = ("audit.jsonl", "checkpoints.jsonl", "enrolment.json")
    written = [*(tmp_path / "D" / name for name in named), *(tmp_path / "D" / "evidence").iterdir()]
    canaries = (b"Zq7-", "Müller".encode(), b"M\\u00fcller", b"1961-02-03")
    for file in written:
        data = file.read_bytes()
        assert [one for one in canaries if one in data] == [], file


def ended_in_errors(path: Path, config: Config, count: int) -> str:
    """The log after so many errors that carry a patient's name, each through the trail's end."""
    kinds = (ValueError, KeyError, OSError, RuntimeError, ConfigError)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        with pytest.raises(kind), Trail(config, path):
            raise kind(f"{CANARY} in /data/{CANARY}.png")
    text = (path / "audit.jsonl").read_text("utf-8")
    assert text.count('"refused"') == count
    return text


def hits(text: str) -> list[str]:
    return [one for one in ("Zq7-", "Müller", "1961-02-03", ".png", "/data") if one in text]


def test_errors_are_logged_without_what_they_say(copy: Path, tiny: Callable[..., Config]) -> None:
    config = tiny("run.seed=system", "run.baselines=false", "privacy.mechanism=shard-teachers")
    assert hits(ended_in_errors(copy, config, 20)) == []
    assert hits(CANARY)


@pytest.mark.nightly
def test_five_hundred_errors_are_logged_without_what_they_say(
    copy: Path, tiny: Callable[..., Config]
) -> None:
    config = tiny("run.seed=system", "run.baselines=false", "privacy.mechanism=shard-teachers")
    assert hits(ended_in_errors(copy, config, 500)) == []


def test_the_guide_shows_every_key_of_an_operator_file() -> None:
    guide = (ROOT / "docs" / "guides" / "audit.md").read_text("utf-8")
    shown = re.search(r"```toml\n(.*?)```", guide, re.DOTALL)
    assert shown is not None
    stated = tomllib.loads(shown[1])
    found = Operator.model_validate(stated, strict=False).model_dump()
    assert set(stated) == set(found)
    for name, table in found.items():
        inner = table[0] if isinstance(table, tuple) else table
        inner = inner["hospital-a"] if name == "sites" else inner
        assert None not in inner.values(), name


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
