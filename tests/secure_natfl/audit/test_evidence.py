"""What evidence, its page and the log say, and what they never say."""

import io
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from protocols.errors import ConfigError
from secure_natfl.audit.clauses import bool_of, counted, resolve
from secure_natfl.audit.conduct import Audited, audit
from secure_natfl.audit.evidence import Evidence
from secure_natfl.audit.statements import Operator
from secure_natfl.audit.trail import Trail
from secure_natfl.audit.verify import predicate_of, verify_evidence
from secure_natfl.config import Config
from secure_natfl.execute import execute
from tests.secure_natfl.audit.readers import ROOT, alone, exit_code

WORDS = re.compile(r"compliant|fully\s+private", re.IGNORECASE)
CANARY = "Zq7-Müller, Anna *1961-02-03"


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
