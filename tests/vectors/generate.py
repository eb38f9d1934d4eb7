"""Write the protocol's test vectors: `python tests/vectors/generate.py [--check]`.

The files are a function of the source alone, so a second run gives the same bytes. `--check`
writes nothing and says which files and vectors differ from what the source gives.
"""

import json
import sys
from pathlib import Path
from typing import Any

import envelopes
import plans
import primitives
import rings
import sums

from protocols.chain import digest

LONG = 200
FOLDER = Path(__file__).parent
ABOUT = (
    "Test vectors of the protocol. 'expected' gives the result, or the step or rule that refuses; "
    "'source' says who decides it. Long bytes are base64, in 'blobs' where they repeat. "
    "Keys and seeds are for tests only."
)


def files() -> dict[str, bytes]:
    """File names and their bytes."""
    made: dict[str, dict[str, Any]] = {
        "envelopes.json": envelopes.document(),
        "plans.json": plans.document(),
        "primitives.json": {"vectors": primitives.vectors()},
        "sums.json": _with_blobs(rings.vectors() + sums.vectors()),
    }
    return {name: _text({"about": ABOUT, **document}) for name, document in made.items()}


def differences(made: dict[str, bytes]) -> list[str]:
    """One line for each file or vector that is not as it should be."""
    lines = []
    for name, text in made.items():
        path = FOLDER / name
        there = path.read_bytes() if path.exists() else b""
        if there == text:
            continue
        lines.append(f"{name}: differs")
        before, after = _by_name(there), _by_name(text)
        for vector in sorted(before.keys() | after.keys()):
            if before.get(vector) != after.get(vector):
                what = "changed" if vector in before and vector in after else "new"
                lines.append(f"  {vector}: {what if vector in after else 'gone'}")
    return lines


def main(arguments: list[str]) -> int:
    """Write the files, or compare them; 0 if all is well."""
    made = files()
    if arguments == ["--check"]:
        lines = differences(made)
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        return 1 if lines else 0
    for name, text in made.items():
        (FOLDER / name).write_bytes(text)
        sys.stdout.write(f"{name}: {len(_by_name(text))} vectors, {len(text)} bytes\n")
    return 0


def _with_blobs(vectors: list[dict[str, Any]]) -> dict[str, Any]:
    """Long texts once, under the first digits of their digest, and vectors that name them."""
    blobs: dict[str, str] = {}

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [named(inner) for inner in value]
        if not isinstance(value, str) or len(value) < LONG:
            return value
        name = f"blob:{digest(value.encode())[:16]}"
        blobs[name] = value
        return name

    return {"vectors": named(vectors), "blobs": blobs}


def _text(document: dict[str, Any]) -> bytes:
    head = {key: value for key, value in document.items() if key != "vectors"}
    names = [vector["name"] for vector in document["vectors"]]
    if len(set(names)) != len(names):
        raise AssertionError(f"two vectors of one name: {[n for n in names if names.count(n) > 1]}")
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    vectors = ",\n  ".join(json.dumps(vector) for vector in document["vectors"])
    return ("{" + ",\n ".join([*lines, f'"vectors": [\n  {vectors}\n ]']) + "}\n").encode()


def _by_name(text: bytes) -> dict[str, Any]:
    try:
        return {vector["name"]: vector for vector in json.loads(text)["vectors"]}
    except (ValueError, KeyError):
        return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
