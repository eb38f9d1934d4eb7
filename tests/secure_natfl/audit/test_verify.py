"""Evidence that was changed or signed by another, and the verifiers that agree on it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocols.chain import SigningKey
from protocols.errors import ConfigError
from secure_natfl.audit.conduct import Audited
from secure_natfl.audit.envelope import seal_statement
from secure_natfl.audit.verify import SUBJECTS, verify_evidence
from tests.secure_natfl.audit.readers import alone, edit, exit_code


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


def test_evidence_of_another_schema_is_named(copy: Path) -> None:
    edit(copy / "evidence" / "evidence.json", lambda one: one.update(schema_version="0"))
    assert verify_evidence(copy).findings.broken
    resigned(copy / "evidence", SigningKey(b"a" * 32))
    with pytest.raises(ConfigError, match="evidence of schema 0, this version reads 1"):
        verify_evidence(copy)
