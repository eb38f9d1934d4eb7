"""What reads a run and its evidence: audit, lone verifier, command line; and small edits."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from protocols.errors import NatflError
from secure_natfl.audit.conduct import audit
from secure_natfl.cli import app

ROOT = Path(__file__).resolve().parents[3]
ALONE = runpy.run_path(str(ROOT / "secure_natfl" / "audit" / "standalone.py"))


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


def replace_in(name: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = (path / name).read_bytes()
        assert old in data
        (path / name).write_bytes(data.replace(old, new))

    return change
