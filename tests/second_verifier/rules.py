"""Plan rules, written a second time: enrolment, floors, exactness, spans, attempts, subsets."""

import hashlib
import struct
from itertools import pairwise
from typing import Any

from presets import proved
from wire import RefusedError, canonical

Plan = dict[str, Any]


def plan(vector: dict[str, Any], document: dict[str, Any]) -> None:
    """What clients and holders demand of a plan on its own."""
    agreed, header = document["enrolments"][vector["enrolment"]], vector["plan"]["header"]
    demand(header["session"] == agreed["session"], "session")
    demand(header["sender"] == "server", "sender")
    demand(header["version"] == document["version"], "version")
    for field in ("mode", "proxies", "terms", "preset"):
        demand(header[field] == agreed[field], field)
    stated = [agreed["holders"], agreed["threshold"], agreed["malicious"]]
    demand(header["holders"] == hashlib.sha256(canonical(stated)).hexdigest(), "holders")
    asked = indices(vector["plan"])
    demand(len(set(asked)) == len(asked) > 0, "subset")
    for field in ("participants", "effective"):
        demand(header["floors"][field] >= agreed["floors"][field], "floor")
    names = [one["name"] for one in header["groups"]]
    demand(len(set(names)) == len(names), "names")
    taken: dict[str, list[tuple[int, int]]] = {}
    for one in header["groups"]:
        demand(set(one["participants"]) <= set(agreed["clients"]), "enrolled")
        demand(len(one["alphas"]) == len(one["participants"]), "pairing")
        demand(len(set(one["participants"])) == len(one["participants"]), "repeats")
        included(one, one["participants"], header["floors"])
        demand(proved(header["preset"], one["alphas"]), "exactness")
        start, stop = one["span"] or (0, header["size"])
        demand(0 <= start < stop <= header["size"], "span")
        for name in one["participants"]:
            taken.setdefault(name, []).append((start, stop))
    for spans in taken.values():
        demand(all(last[1] <= first[0] for last, first in pairwise(sorted(spans))), "span")


def included(group: dict[str, Any], names: list[str], floors: dict[str, Any]) -> None:
    """What a set of clients must be for their sum to be opened."""
    alphas = dict(zip(group["participants"], group["alphas"], strict=True))
    demand(all(name in alphas for name in names), "outside")
    demand(len(names) >= group["least"] and len(names) >= floors["participants"], "too few")
    demand(names == [name for name in group["participants"] if name in names], "order")
    weights = [alphas[name] for name in names]
    squares = sum(weight * weight for weight in weights)
    demand(sum(weights) ** 2 >= floors["effective"] * squares, "unbalanced")


def retry(new: Plan, earlier: Plan, opened: list[str]) -> None:
    """What a further attempt must repeat."""
    demand(new["header"]["attempt"] > earlier["header"]["attempt"], "attempt")
    demand(new["body"] == earlier["body"], "body")
    for field in ("size", "layout"):
        demand(new["header"][field] == earlier["header"][field], field)
    before, after = ({g["name"]: g for g in p["header"]["groups"]} for p in (earlier, new))
    demand(all(after.get(name) == before.get(name) for name in opened), "opened")


def subset(new: Plan, others: list[Plan]) -> None:
    """No proxy is asked in two rounds."""
    for other in others:
        if other["header"]["round"] != new["header"]["round"]:
            demand(not set(indices(new)) & set(indices(other)), "asked")


def indices(one: Plan) -> list[int]:
    """The proxies that a plan asks for."""
    body = bytes.fromhex(one["body"])
    demand(len(body) % 4 == 0, "subset")
    return [index for (index,) in struct.iter_unpack("<I", body)]


def demand(holds: bool, rule: str) -> None:
    """RefusedError if it does not hold."""
    if not holds:
        raise RefusedError(rule)
