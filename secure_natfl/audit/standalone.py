"""Verifies the folder that it lies in, or another: `python -I verify_evidence.py [FOLDER] [KEY]`.

It needs Python 3.11 and the package `cryptography`, and shares no line with the product. KEY is the
auditor's Ed25519 key in hexadecimal, from elsewhere; without it the key that the envelope names is
taken, and printed. Exit status: 0 what is signed holds together, 1 it does not, 2 no such folder.
"""

import hashlib
import json
import math
import re
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FILES = {
    "evidence.json",
    "evidence.schema.json",
    "evidence.html",
    "audit.jsonl",
    "checkpoints.jsonl",
    "enrolment.json",
    "verify_evidence.py",
}
TYPES = ("https://in-toto.io/Statement/v1", "urn:secure-natfl:evidence:1")
PAYLOAD = "application/vnd.in-toto+json"
KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
Json = Any


class Wrong(Exception):  # noqa: N818 - a verdict, not a fault
    """Something that was signed or recorded is not what it should be."""


def need(holds: bool, what: str) -> None:
    """Go on only if something holds."""
    if not holds:
        raise Wrong(what)


def sha(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def plain(value: Json) -> bytes:
    """Canonical JSON of a value without fractions (RFC 8785); names here are ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def signed(key: str, said: bytes, signature: bytes, what: str) -> None:
    """Ed25519 (RFC 8032)."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, said)
    except (InvalidSignature, ValueError):
        raise Wrong(f"{what}: the signature does not verify") from None


def envelope(folder: Path, pinned: str) -> Json:
    """The signed statement (DSSE), and that every file is the one it names."""
    data = (folder / "evidence.dsse.json").read_bytes()
    outer = json.loads(data)
    need(plain(outer) + b"\n" == data, "the envelope is not in its one encoding")
    need(set(outer) == {"payload", "payloadType", "signatures"}, "unknown envelope fields")
    payload = b64decode(outer["payload"], validate=True)
    statement = json.loads(payload)
    key = statement["predicate"]["auditor"]
    need(pinned in ("", key), "signed with another key than the one given")
    (one,) = outer["signatures"]
    need(one == {"keyid": sha(bytes.fromhex(key)), "sig": one["sig"]}, "another key is named")
    need(outer["payloadType"] == PAYLOAD, "the payload is of another type")
    said = b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)
    signed(key, said, b64decode(one["sig"], validate=True), "envelope")
    need((statement["_type"], statement["predicateType"]) == TYPES, "a statement of another type")
    stated = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    need(set(stated) == FILES, "the envelope is about other files")
    for name, expected in stated.items():
        need(sha((folder / name).read_bytes()) == expected, f"{name} is not the signed file")
    return statement


def chain(data: bytes) -> tuple[list[Json], list[bytes], str]:
    """Records, leaves of the tree, and the chain's last hash; noted torn lines are passed over."""
    need(data.endswith(b"\n"), "the log ends in a torn line")
    head, records, leaves, torn = "0" * 64, list[Json](), list[bytes](), list[bytes]()
    for line in data[:-1].split(b"\n"):
        try:
            record = json.loads(line)
            whole = isinstance(record, dict) and plain(record) == line and "prev" in record
        except ValueError:
            whole = False
        if not whole:
            torn.append(line)
            continue
        place = (record["prev"], record["seq"])
        need(place == (head, len(records)), f"record {len(records)} does not follow")
        if torn or record["body"]["event"] == "torn-line":
            joined = b"\n".join(torn)
            note = {"bytes": len(joined), "event": "torn-line", "sha256": sha(joined)}
            need(bool(torn) and record["body"] == note, f"record {len(records)} is no such note")
            torn = []
        records.append(record)
        leaves.append(hashlib.sha256(b"\0" + line).digest())
        head = sha(bytes.fromhex(head) + line)
    need(not torn, "the log ends in a torn line")
    return records, leaves, head


def root(leaves: list[bytes]) -> bytes:
    """The Merkle root (RFC 6962, section 2.1), by its definition."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:split]) + root(leaves[split:])).digest()


def checkpoints(data: bytes, records: list[Json], leaves: list[bytes]) -> None:
    """Signed by the server, co-signed by every client of a round, the end by all."""
    session = records[0]["body"]
    keys, by_round, end = session["clients"], dict[int, set[str]](), set[str]()
    for line in data.splitlines():
        one = json.loads(line)
        need(plain(one) == line, "a checkpoint is not in its one encoding")
        point = one["checkpoint"]
        body = {name: value for name, value in point.items() if name != "signature"}
        said = plain({"kind": "audit-checkpoint", **body})
        signed(session["server"], said, bytes.fromhex(point["signature"]), "checkpoint")
        need(point["session"] == session["session"], "a checkpoint of another session")
        need(0 < point["size"] <= len(leaves), "records at the end are missing")
        need(root(leaves[: point["size"]]).hex() == point["root"], "the log was made anew")
        names = set[str]()
        for other in one["cosignatures"]:
            seen = {"checkpoint": sha(plain(point)), "client": other["client"]}
            said = plain({"kind": "audit-cosignature", **seen})
            signed(keys[other["client"]], said, bytes.fromhex(other["signature"]), "co-signature")
            names.add(other["client"])
        for record in records[: point["size"]]:
            if record["body"]["event"] == "round-learned":
                by_round.setdefault(record["body"]["round"], set()).update(names)
        end = names if point["size"] == len(leaves) else end
    for record in records:
        if record["body"]["event"] == "round-opened":
            clients = {name for one in record["body"]["sums"] for name in one["participants"]}
            missing = clients - by_round.get(record["body"]["round"], set())
            need(not missing, f"round {record['body']['round']} is not co-signed")
    need(end == set(keys), "the end of the log is not co-signed by all")


def fits(value: Json, schema: Json, whole: Json) -> bool:
    """Whether a value is of the schema, in those words of JSON Schema that it uses."""
    if "$ref" in schema:
        return fits(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema:
        return any(fits(value, one, whole) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return bool(value in schema.get("enum", [schema.get("const")]))
    kinds = KINDS.get(schema.get("type", ""), (object,))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        return False
    if isinstance(value, dict):
        fields, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        rest = more if isinstance(more, dict) else {}
        known = more is not False or set(value) <= set(fields)
        inner = (fits(one, fields.get(name, rest), whole) for name, one in value.items())
        return known and set(schema.get("required", ())) <= set(value) and all(inner)
    if isinstance(value, list):
        enough = len(value) >= schema.get("minItems", 0)
        return enough and all(fits(one, schema.get("items", {}), whole) for one in value)
    if isinstance(value, str):
        long = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
        return long and re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        return bool(low <= value <= high)
    return True


def rounds(evidence: Json, records: list[Json]) -> None:
    """The evidence's rounds are the log's."""
    planned, opened, learned, costs = dict[int, Json](), dict[int, Json](), {}, dict[int, Json]()
    for record in records:
        body = record["body"]
        if body["event"] == "round-planned":
            planned[body["round"]] = record
        elif body["event"] == "round-opened":
            opened[body["round"]] = record
        elif body["event"] == "round-learned":
            learned[body["round"]] = body["model"]
        elif body["event"] == "charged":
            costs.setdefault(body["round"], {})[record["actor"]] = body["cost"]
    found = []
    for number in sorted(opened):
        plan, body = planned[number], opened[number]["body"]
        groups = {group["name"]: group for group in plan["body"]["groups"]}
        found.append(
            {
                "round": number,
                "planned_utc": plan["utc"],
                "opened_utc": opened[number]["utc"],
                "proxies": plan["body"]["proxies"],
                "sums": [summed(one, groups[one["group"]]) for one in body["sums"]],
                "absent": body["absent"],
                "costs": costs.get(number, {}),
                "model": learned[number],
                "transcript_entries": body["transcript_entries"],
                "transcript_head": body["transcript_head"],
            }
        )
    need(evidence["rounds"] == found, "the rounds are not those of the log")


def summed(one: Json, group: Json) -> Json:
    """What the evidence must say of one sum."""
    weights = dict(zip(group["participants"], group["alphas"], strict=True))
    included = [weights[name] for name in one["participants"]]
    return {
        "group": one["group"],
        "invited": group["participants"],
        "included": one["participants"],
        "alphas": group["alphas"],
        "effective": sum(included) ** 2 / sum(alpha * alpha for alpha in included),
        "attempt": one["attempt"],
        "aggregate": one["sha256"],
    }


def epsilon(rho: float, delta: float) -> float:
    """ε at δ of ρ-zCDP (Canonne, Kamath and Steinke 2020, Proposition 12), over many orders."""
    if rho in (0, math.inf):
        return rho
    orders = [1 + 0.0101 * (1e6 / 0.0101) ** (i / 999) for i in range(1000)]
    bounds = (
        a * rho + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in orders if a > 1.01
    )
    return float(max(0.0, min(bounds)))


def spending(evidence: Json) -> str:
    """ε of every site from the charges of its rounds, where they are zCDP."""
    account, worst = evidence["privacy"]["accounting"], 0.0
    for site in account["by_client"]:
        name = site["client"]
        costs = [one["costs"][name] for one in evidence["rounds"] if name in one["costs"]]
        need(len(costs) == site["charges"], f"{name} was charged for other rounds")
        events = [json.loads(cost) for cost in costs]
        if any("steps" in event for event in events):
            return "ε is of subsampled steps: recomputed by the product, not here"
        for field, part in (("epsilon", "rho"), ("epsilon_isolated", "rho_isolated")):
            again = epsilon(math.fsum(float(event[part]) for event in events), account["delta"])
            need(same(site[field], again), f"ε of {name} is not that of its charges")
        worst = max(worst, float(site["epsilon"]))
    need(same(account["epsilon"], worst), "ε is not that of the worst site")
    return f"ε = {worst:.6g} recomputed from the charges"


def same(stated: Json, again: float) -> bool:
    """Equal to a millionth, infinities alike."""
    value = float(stated)
    return value == again or abs(value - again) <= 1e-6 * max(1.0, again)


def clauses(evidence: Json) -> None:
    """Pointers resolve, statuses follow from what they find, and what is missing is missing."""
    for row in evidence["clauses"]:
        found = [stated(at(evidence, pointer)) for pointer in row["pointers"]]
        if row["kind"] == "operating" and evidence["simulated"]:
            allowed = {"not_applicable"}
        elif not any(found):
            allowed = {"operator_must_supply"}
        elif all(found) and evidence["verdict"] == "holds":
            allowed = {"evidence_present", "evidence_partial"}
        else:
            allowed = {"evidence_partial"}
        need(row["status"] in allowed, f"{row['framework']} {row['clause']}: another status")
    for pointer in evidence["missing"]:
        need(not stated(at(evidence, pointer)), f"{pointer} is not missing")


def at(document: Json, pointer: str) -> Json:
    """What a JSON pointer names (RFC 6901)."""
    need(pointer.startswith("/"), f"{pointer} is no pointer")
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        document = document[int(name)] if isinstance(document, list) else document[name]
    return document


def stated(value: Json) -> bool:
    """Not null, not empty, and in a table not null throughout."""
    if isinstance(value, dict):
        return any(map(stated, value.values()))
    return value is not None and value not in ("", [])


def verify(folder: Path, pinned: str) -> str:
    """All checks in their order; a sentence on what holds."""
    statement = envelope(folder, pinned)
    evidence = json.loads((folder / "evidence.json").read_bytes())
    schema = json.loads((folder / "evidence.schema.json").read_bytes())
    need(fits(evidence, schema, schema), "the evidence is not of its schema")
    facts = {"run": "run_id", "schema": "schema_version", "verdict": "verdict"}
    said = {name: evidence[field] for name, field in facts.items()}
    need({**said, "auditor": statement["predicate"]["auditor"]} == statement["predicate"], "facts")
    records, leaves, head = chain((folder / "audit.jsonl").read_bytes())
    log = evidence["log"]
    found = (len(records), head, root(leaves).hex())
    need((log["entries"], log["head"], log["root"]) == found, "another log is stated")
    checkpoints((folder / "checkpoints.jsonl").read_bytes(), records, leaves)
    session = records[0]["body"]
    keys = {one["client"]: one["public_key"] for one in evidence["participants"]}
    need(keys == session["clients"], "participants' keys are not those enrolled")
    flags = (evidence["run_id"], evidence["simulated"], evidence["seeded"])
    need(flags == (session["session"], session["simulated"], session["seeded"]), "other session")
    rounds(evidence, records)
    recomputed = spending(evidence)
    clauses(evidence)
    broken = [one["check"] for one in evidence["checks"] if one["outcome"] == "broken"]
    need((evidence["verdict"] == "broken") == bool(broken), "the verdict does not follow")
    need(not broken, f"the audit itself found broken: {', '.join(broken)}")
    said_by = statement["predicate"]["auditor"]
    return f"holds: {len(records)} records, {len(keys)} sites, {recomputed}; signed with {said_by}"


def main(arguments: list[str], out: Callable[[str], object] = sys.stdout.write) -> int:
    """Verify, say it in one line, and return the exit status."""
    folder = Path(arguments[0]) if arguments else Path(__file__).resolve().parent
    pinned = arguments[1] if len(arguments) > 1 else ""
    here = any((folder / name).exists() for name in ("evidence.dsse.json", "evidence.json"))
    if not here or len(arguments) > 2 or (pinned and not re.fullmatch("[0-9a-f]{64}", pinned)):
        out(f"unusable: {folder} holds no evidence, or the key has not 64 hexadecimal digits\n")
        return 2
    try:
        out(verify(folder, pinned) + "\n")
    except Wrong as reason:
        out(f"broken: {reason}\n")
        return 1
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        out(f"broken: missing or malformed, {type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
