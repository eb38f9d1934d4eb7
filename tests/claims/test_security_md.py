"""SECURITY.md says only what tests show: its form, its tests and its files are checked here."""

import ast
import math
import re
import runpy
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from protocols.presets import PRESETS
from protocols.promises import markdown
from protocols.rlwe import TABLE_128
from secure_natfl.audit.check_privacy import moduli_of
from secure_natfl.config import Privacy
from secure_natfl.site_state import relation_of
from secure_natfl.toml_config import load

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = Path(__file__).with_name("test_mutants.py")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PARTS = ("Statement", "Adversary", "Assumption", "Mechanism", "Tests")
OF_PRIVACY = {*range(2, 10), *range(34, 39)}
"""Claims about differential privacy: these have a sixth part, Mutants."""

PROMISE = re.compile(r"\*([^*]+)\*: (`[^`]+`(?:, `[^`]+`)*)(?:; |$)")
"""*words of the statement*: the planted defects that break what they say."""

NOT_RUN = re.compile(r"mark\.(skip|skipif|xfail|nightly)\b|pytest\.(skip|xfail|importorskip)\(")
FORBIDDEN = re.compile(r"compliant|fully private", re.IGNORECASE)


def claims(text: str) -> dict[int, dict[str, str]]:
    """Claim number → part → text, in the order of the file."""
    section = text.partition("\n## Claims\n")[2].partition("\n## ")[0]
    pieces = re.split(r"^### C(\d+)\. .+$", section, flags=re.MULTILINE)[1:]
    part = re.compile(r"^- \*\*(\w+):\*\* (.*(?:\n  .*)*)$", re.MULTILINE)
    return {
        int(number): {name: said.strip() for name, said in part.findall(body)}
        for number, body in zip(pieces[::2], pieces[1::2], strict=True)
    }


def faults(text: str) -> list[str]:
    """Everything that is wrong with the claims of a SECURITY.md."""
    found = claims(text)
    wrong = [] if list(found) == list(range(1, len(found) + 1)) else [f"numbers {list(found)}"]
    wrong += [] if found else ["there is no claim"]
    for number, parts in found.items():
        expected = (*PARTS, "Mutants") if number in OF_PRIVACY else PARTS
        if tuple(parts) != expected or not all(parts.values()):
            wrong.append(f"C{number} has the parts {list(parts)}")
            continue
        wrong += [f"C{number}: {fault}" for fault in _file_faults(parts["Mechanism"])]
        wrong += [f"C{number}: {fault}" for fault in _test_faults(parts["Tests"])]
        if number in OF_PRIVACY:
            wrong += [f"C{number}: {fault}" for fault in _mutant_faults(**parts)]
    return wrong + _unclaimed(found)


def _file_faults(mechanism: str) -> list[str]:
    named = re.findall(r"`([\w./]+\.py)`", mechanism)
    missing = [f"there is no file {name}" for name in named if not (ROOT / name).is_file()]
    return missing if named else ["no file is named"]


def _test_faults(tests: str) -> list[str]:
    named = re.findall(r"`(tests/[\w./]+\.py)::(\w+)`", tests)
    rest = re.sub(r"`tests/[\w./]+\.py::\w+`", "", tests).strip(" ,\n")
    wrong = [] if named and not rest else [f"{rest or 'nothing'!r} names no test"]
    for file, function in named:
        if not (ROOT / file).is_file():
            wrong.append(f"there is no file {file}")
        elif function not in _functions(file):
            wrong.append(f"{file} defines no test {function}")
        elif not _functions(file)[function]:
            wrong.append(f"{file}::{function} may be skipped or fail")
    return wrong


def _promises(mutants: str) -> dict[str, list[str]]:
    """Words of a statement → the planted defects that break it."""
    return {words: re.findall("`([^`]+)`", names) for words, names in PROMISE.findall(mutants)}


def _mutant_faults(Statement: str, Mutants: str, **others: str) -> list[str]:  # noqa: N803
    """Every sentence of the statement is quoted in part, and every quote has its defects."""
    found = _promises(Mutants)
    rest = PROMISE.sub("", Mutants).strip()
    wrong = [f"{rest!r} names no mutant"] if rest else []
    wrong += [f"{words!r} is not promised" for words in found if words not in Statement]
    wrong += [
        f"no mutant breaks {sentence!r}"
        for sentence in re.split(r"(?<=\.) ", Statement)
        if not any(words in sentence for words in found)
    ]
    named = {name for names in found.values() for name in names}
    return wrong + [f"there is no mutant {name!r}" for name in sorted(named - _planted())]


def table(heading: str) -> list[list[str]]:
    """The cells of all tables below a heading, without their first lines."""
    section = SECURITY.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    rules = [place for place, row in enumerate(rows) if set("".join(row)) == {"-"}]
    return [row for place, row in enumerate(rows) if not {place, place + 1} & set(rules)]


def _said(error: str) -> list[str]:
    """The fixed words of every `error` that our sources make, also where pydantic wraps them."""
    also = {"ConfigError": "ValueError", "LedgerError": "_refusal"}
    return [words for name, words in _made() if name in (error, also.get(error))]


@cache
def _made() -> list[tuple[str, str]]:
    """Every error that a source makes, by its name, with the words that are always in it."""
    files = (*ROOT.glob("protocols/**/*.py"), *ROOT.glob("secure_natfl/**/*.py"))
    calls = (
        node
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    )
    named = ((_called(call.func), call) for call in calls)
    return [(name, _words(call)) for name, call in named if name.endswith(("Error", "_refusal"))]


def _called(function: ast.expr) -> str:
    match function:
        case ast.Name(name) | ast.Attribute(attr=name):
            return name
    return ""


def _words(call: ast.Call) -> str:
    text = (node.value for node in ast.walk(call) if isinstance(node, ast.Constant))
    return " ".join(part for part in text if isinstance(part, str))


def _unclaimed(found: dict[int, dict[str, str]]) -> list[str]:
    """Planted defects that no claim names."""
    promises = [_promises(parts.get("Mutants", "")) for parts in found.values()]
    named = {name for each in promises for names in each.values() for name in names}
    return [f"no claim names the mutant {name!r}" for name in sorted(_planted() - named)]


@cache
def _planted() -> set[str]:
    """The names of all cases of test_mutants.py, which says of each that it is found."""
    return {case.name for case in runpy.run_path(str(MUTANTS))["CASES"]}


@cache
def _functions(file: str) -> dict[str, bool]:
    """Name of each test at the top of a module → whether nothing keeps it from running."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    runs = not any(
        isinstance(node, ast.Assign | ast.Expr) and NOT_RUN.search(ast.unparse(node))
        for node in tree.body
    )
    return {
        node.name: runs and not NOT_RUN.search(ast.unparse(node))
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_claim_is_whole_and_its_tests_exist_and_run() -> None:
    assert faults(SECURITY) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("### C2. ", "### C3. ", "numbers"),
        ("- **Adversary:** ", "- **Enemy:** ", "parts"),
        ("- **Assumption:** ", "\nAssumption: ", "parts"),
        ("`protocols/release.py`", "`protocols/relief.py`", "no file protocols/relief.py"),
        ("::test_nothing_is_made_by_hand", "::test_nothing_is_made", "defines no test"),
        ("tests/protocols/test_mechanisms.py::", "tests/protocols/test_m.py::", "no file tests/"),
        ("::test_two_hundred_kills", "::test_a_thousand_kills", "may be skipped"),
        (
            "`tests/secure_natfl/test_data_overlap.py::test_a_shared_smooth_shape_is_no_copy`",
            "`tests/secure_natfl/test_data_overlap.py::test_no_false_alarm_on_real_packs`",
            "may be skipped",
        ),
        (
            "`tests/secure_natfl/test_data_overlap.py::test_a_shared_smooth_shape_is_no_copy`",
            "`tests/secure_natfl/test_report_browser.py::test_page_prints`",
            "may be skipped",
        ),
        (
            "`tests/protocols/test_sampler.py::test_only_the",
            "it was tried, `test_only_the",
            "names",
        ),
        ("## Claims", "## Promises", "there is no claim"),
        ("- **Mutants:** *on disk", "- **Defects:** *on disk", "parts"),
        ("`noise before the charge`", "`noise after the charge`", "there is no mutant"),
        ("`noise before the charge`, ", "", "no claim names the mutant"),
        ("*is charged to δ*", "*is charged to nobody*", "is not promised"),
        ("Nothing is refunded.", "Everything is refunded.", "is not promised"),
        ("Nothing is refunded.", "Nothing is refunded. It is fast.", "no mutant breaks 'It is"),
        ("*on disk before its noise", "on disk before its noise", "names no mutant"),
    ],
)
def test_each_kind_of_fault_is_found(old: str, new: str, fault: str) -> None:
    changed = SECURITY.replace(old, new, 1)
    assert changed != SECURITY
    assert any(fault in found for found in faults(changed)), faults(changed)


def test_what_is_not_protected_is_said_after_the_claims() -> None:
    headings = re.findall(r"^## (.+)$", SECURITY, re.MULTILINE)
    assert headings == [
        "What each mode promises",
        "Whom to trust",
        "Claims",
        "What is not protected",
        "Safe use",
        "Cryptography",
        "Differential privacy",
        "Dependencies",
        "Threats",
        "What counts as a vulnerability",
        "Supported versions",
        "Verifying a release",
        "Reporting a vulnerability",
    ]


def test_the_tables_of_promises_are_those_that_the_code_states() -> None:
    """Word for word: `protocols.promises` is what `natfl check` and reports say, too."""
    assert markdown() in SECURITY


def test_every_safe_use_rule_names_an_error_that_is_raised_and_a_test_that_runs() -> None:
    rows = table("Safe use")
    assert len(rows) > 10
    for _, error, test in rows:
        named = re.fullmatch(r"`(\w+Error)`: \*(.+)\*", error)
        assert named is not None, error
        assert any(named[2] in said for said in _said(named[1])), error
        assert _test_faults(test) == []


def test_what_is_raised_is_found() -> None:
    assert any("no such privacy event" in said for said in _said("PrivacyError"))
    assert not any("no such privacy event" in said for said in _said("DataError"))


def test_the_table_of_parameters_is_that_of_the_presets() -> None:
    made = [
        [
            f"`{name}`",
            str(ring.degree),
            str(math.prod(moduli_of(ring)).bit_length()),
            str(TABLE_128[ring.degree]),
        ]
        for name, ring in PRESETS.items()
    ]
    assert [row for row in table("Cryptography") if len(row) == 4] == made


def test_the_table_of_mechanisms_has_each_with_the_relation_of_its_charges() -> None:
    kinds = get_args(get_args(Privacy)[0])
    names = [get_args(kind.model_fields["mechanism"].annotation)[0] for kind in kinds]
    assert len(names) == 4
    assert [row[:2] for row in table("Differential privacy")] == [
        [f"`{name}`", f"`{relation_of(load('smoke', [f'privacy.mechanism={name}']))}`"]
        for name in names
    ]


def test_every_claim_stands_against_a_threat() -> None:
    against: set[int] = set()
    for *_, named in table("Threats"):
        for first, last in re.findall(r"C(\d+)(?:–C(\d+))?", named):
            against |= set(range(int(first), int(last or first) + 1))
    assert against == set(claims(SECURITY))


def test_files_that_the_page_names_exist() -> None:
    paths = set(re.findall(r"`((?:protocols|attacks|secure_natfl|docs)/[\w./-]+)`", SECURITY))
    links = set(re.findall(r"\]\(([\w./-]+)\)", SECURITY))
    assert len(paths) > 30
    assert len(links) > 5
    assert [name for name in sorted(paths | links) if not (ROOT / name).exists()] == []


def test_no_document_promises_what_nobody_can_promise() -> None:
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/**/*.md")]
    assert len(pages) > 2
    assert [page.name for page in pages if FORBIDDEN.search(page.read_text("utf-8"))] == []
