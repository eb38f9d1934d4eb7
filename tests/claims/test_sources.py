"""What SECURITY.md claims of the sources as a whole, read from their syntax trees."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_natfl.seeds import Seeds

ROOT = Path(__file__).resolve().parents[2]
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for floor in ("protocols", "attacks", "secure_natfl")
    for path in sorted((ROOT / floor).rglob("*.py"))
}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"torch.load", "eval", "exec", "compile", "pickle.load", "pickle.loads"}


def called(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a source with the dotted text of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def unsafe(tree: ast.AST) -> list[str]:
    """Imports, calls and arguments that could turn bytes or text into running code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [n.name for n in node.names if n.name.split(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{name.name}" for name in node.names]
            found += [f for f in full if f.split(".")[0] in UNSAFE_MODULES or f in UNSAFE_CALLS]
    for name, call in called(tree):
        found += [name] if name in UNSAFE_CALLS else []
        found += [
            "allow_pickle"
            for keyword in call.keywords
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
        ]
    return found


def test_no_source_can_unpickle_or_run_text_as_code() -> None:
    assert len(TREES) > 50
    assert {path: bad for path, tree in TREES.items() if (bad := unsafe(tree))} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "eval('1')",
    ],
)
def test_what_is_unsafe_would_be_seen(text: str) -> None:
    assert unsafe(ast.parse(text))


def test_seal_loads_only_blobs_that_were_built_here() -> None:
    """One function calls SEAL's loader; all that call it hand over `_ciphertext_blob(...)`."""
    tree = TREES["protocols/tenseal_ckks.py"]
    loaders = [name for name, _ in called(tree) if name.endswith(".load")]
    assert loaders == ["target.load"]
    blobs = [ast.unparse(call.args[2]) for name, call in called(tree) if name == "_load"]
    assert set(blobs) == {"blob"}
    made = [
        ast.unparse(node.value.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "blob"
        and isinstance(node.value, ast.Call)
    ]
    assert made == ["_ciphertext_blob"] * len(blobs)
    assert len(blobs) == 3


def test_protective_randomness_is_the_operating_systems_unless_a_seed_is_set() -> None:
    assert Seeds(bytes(32), seeded=False).protective(os.urandom, "noise", "a", 0) is os.urandom
    study = Seeds.of_study(1)
    one, other = (study.protective(os.urandom, "noise", "a", 0)(32) for _ in range(2))
    assert study.seeded
    assert one == other != study.protective(os.urandom, "noise", "a", 1)(32)


def test_whoever_asks_for_protective_randomness_hands_in_the_operating_systems() -> None:
    sources = {path: tree for path, tree in TREES.items() if path.startswith("secure_natfl/")}
    handed = [
        ast.unparse(call.args[0])
        for tree in sources.values()
        for name, call in called(tree)
        if name.endswith(".protective")
    ]
    assert len(handed) >= 2
    assert set(handed) == {"os.urandom"}
    users = {
        path
        for path, tree in TREES.items()
        for name, _ in called(tree)
        if name.split(".")[-1] == "seeded_random"
    }
    # A laboratory of attacks plays rounds that nobody receives.
    laboratory = {path for path in users if path.startswith("secure_natfl/leakage/")}
    assert users - laboratory == {"secure_natfl/seeds.py"}
