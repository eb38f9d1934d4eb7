"""A second verifier of the protocol's test vectors: `python tests/second_verifier [FOLDER]`.

It shares no line with the package `protocols` and needs `cryptography` alone. It prints the
number of vectors and each one on which it disagrees; the exit status is 0 if there is none.
"""

import hashlib
import json
import struct
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arithmetic
import rules
import wire

Vector = dict[str, Any]


def number(v: Vector) -> Vector:
    return {"text": wire.number(struct.unpack(">d", bytes.fromhex(v["double"]))[0])}


def signature(v: Vector) -> None:
    wire.verify(v["public"], bytes.fromhex(v["message"]), bytes.fromhex(v["signature"]))


def reference(v: Vector) -> Vector:
    stated = wire.canonical(["reference", v["plan"], v["group"]])
    return {"reference": hashlib.sha256(stated).hexdigest()}


def chain(v: Vector) -> Vector:
    line = bytes.fromhex(v["previous"]) + bytes.fromhex(v["line"])
    return {"head": hashlib.sha256(line).hexdigest()}


def pack(v: Vector) -> Vector:
    return {"body": arithmetic.pack(v["values"], v["bits"]).hex()}


def unpack(v: Vector) -> Vector:
    return {"values": arithmetic.unpack(bytes.fromhex(v["body"]), v["bits"], v["modulus"])}


def included(v: Vector) -> None:
    header = v["plan"]["header"]
    (group,) = (one for one in header["groups"] if one["name"] == v["group"])
    rules.included(group, v["names"], header["floors"])


CHECKS: dict[str, Callable[[Vector], Vector | None]] = {
    "number": number,
    "canonical": lambda v: {"bytes": wire.canonical(v["value"]).hex()},
    "signature": signature,
    "reference": reference,
    "chain": chain,
    "pack": pack,
    "unpack": unpack,
    "transform": arithmetic.transform,
    "expansion": arithmetic.expansion,
    "contribution": arithmetic.contribution,
    "split": arithmetic.split,
    "weighted share": arithmetic.weighted_share,
    "interpolate": arithmetic.interpolate,
    "opening": arithmetic.opening,
    "public sum": arithmetic.public_sum,
    "included": included,
    "retry": lambda v: rules.retry(v["plan"], v["earlier"], v["opened"]),
    "subset": lambda v: rules.subset(v["plan"], v["others"]),
}


def outcome(vector: Vector, document: dict[str, Any]) -> Vector:
    """What this verifier makes of a vector, in the words of its `expected`."""
    refusal = "rule" if "enrolments" in document else "step"
    try:
        if "awaits" in vector:
            kind = vector["awaits"]
            message = b64decode(vector["message"])
            return {"identity": wire.receive(message, kind, document["awaits"][kind])}
        if vector["check"] == "plan":
            rules.plan(vector, document)
            return {"accepted": True}
        return CHECKS[vector["check"]](vector) or {"accepted": True}
    except wire.RefusedError as step:
        return {refusal: str(step)}


def named(value: Any, blobs: dict[str, str]) -> Any:
    """The vector with its long texts in place."""
    if isinstance(value, dict):
        return {key: named(inner, blobs) for key, inner in value.items()}
    if isinstance(value, list):
        return [named(inner, blobs) for inner in value]
    return blobs.get(value, value) if isinstance(value, str) else value


def main(folder: Path) -> int:
    """Judge every vector of every file."""
    count, wrong = 0, []
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_bytes())
        for vector in document["vectors"]:
            found = outcome(named(vector, document.get("blobs", {})), document)
            if found != named(vector["expected"], document.get("blobs", {})):
                wrong.append(f"{path.name}: {vector['name']}: {str(found)[:200]}\n")
            count += 1
    sys.stdout.write("".join(wrong) + f"{count} vectors, {len(wrong)} disagreements\n")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    given = sys.argv[1:] or [str(Path(__file__).parents[1] / "vectors")]
    sys.exit(main(Path(given[0])))
