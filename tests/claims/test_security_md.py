"""SECURITY.md says only what tests show: its form, its tests and its files are checked here."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from protocols.promises import markdown

ROOT = Path(__file__).resolve().parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PARTS = ("Statement", "Adversary", "Assumption", "Mechanism", "Tests")
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
        if tuple(parts) != PARTS or not all(parts.values()):
            wrong.append(f"C{number} has the parts {list(parts)}")
            continue
        wrong += [f"C{number}: {fault}" for fault in _file_faults(parts["Mechanism"])]
        wrong += [f"C{number}: {fault}" for fault in _test_faults(parts["Tests"])]
    return wrong


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
        "Claims",
        "What is not protected",
        "Supported versions",
        "Reporting a vulnerability",
    ]


def test_the_tables_of_promises_are_those_that_the_code_states() -> None:
    """Word for word: `protocols.promises` is what `natfl check` and reports say, too."""
    assert markdown() in SECURITY


def test_no_document_promises_what_nobody_can_promise() -> None:
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/**/*.md")]
    assert len(pages) > 2
    assert [page.name for page in pages if FORBIDDEN.search(page.read_text("utf-8"))] == []
