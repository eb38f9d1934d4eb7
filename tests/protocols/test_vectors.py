"""The vectors in tests/vectors: they regenerate, a second verifier agrees, the receivers too."""

import json
import re
import subprocess
import sys
from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from protocols.chain import canonical, verify
from protocols.envelope import identity, unseal
from protocols.errors import NatflError
from protocols.messages import KINDS, RoundPlan, Stage
from protocols.multikey import multikey_preset
from protocols.multikey_ckks import MultiKeySum
from protocols.policy import Enrolment, check_included, check_plan, check_retry, check_subset
from protocols.residues import unpack
from protocols.sharing import expand, weighted_share

TESTS = Path(__file__).parents[1]
FOLDER = TESTS / "vectors"
FILES = ("envelopes", "plans", "primitives", "sums")

# Steps and rules by what the error says: (type of error, words of it).
SAID = {
    "frame": "shorter than|unknown magic|another kind",
    "length": "size limit|the preset's|truncated|another length|length or weight",
    "signature": "signature does not verify",
    "header": "canonical form",
    "canonical form": "canonical form|canonical JSON form",
    "sender": "another sender|not the server's",
    "stage": "another session",
    "residue": "not below its modulus",
    "weight": "length or weight|weights are not the plan's",
    "opening bound": "not one of honest contributions",
    "session": "another session",
    "version": "version 9.9",
    "mode": "mode differs",
    "proxies": "proxies differs",
    "terms": "terms differs",
    "preset": "preset differs",
    "holders": "other key holders",
    "subset": "proxies repeat|whole numbers",
    "floor": "was lowered",
    "names": "two groups of one name",
    "enrolled": "not enrolled",
    "pairing": "one weight per participant",
    "repeats": "twice in group",
    "too few": "too few contributions",
    "unbalanced": "too few effective",
    "exactness": "no exact sum",
    "span": "summed twice|sums nothing, or too much",
    "attempt": "attempt is not new",
    "body": "body differs",
    "size": "size differs",
    "layout": "layout differs",
    "opened": "was changed",
    "asked": "were asked",
    "outside": "from outside the group",
    "order": "repeat or change places",
}

# Between protocols' packages and the verifier stands this hook.
ALONE = """
import runpy, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("protocols", "attacks", "secure_natfl", "numpy", "pydantic"):
            raise AssertionError(f"the second verifier imports {name}")

sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def load(name):
    document = json.loads((FOLDER / f"{name}.json").read_bytes())
    blobs = document.get("blobs", {})

    def named(value):
        if isinstance(value, dict):
            return {key: named(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [named(inner) for inner in value]
        return blobs.get(value, value) if isinstance(value, str) else value

    return document, [named(vector) for vector in document["vectors"]]


def judged(folder):
    program = [sys.executable, "-c", ALONE, str(TESTS / "second_verifier"), str(folder)]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


def check(vector, act):
    """`act` gives what is expected, or fails at the expected step; the error is one of ours."""
    expected = vector["expected"]
    step = expected.get("step", expected.get("rule"))
    if step is None:
        return act() or {"accepted": True}
    with pytest.raises(NatflError, match=SAID[step]):
        act()
    return expected


def test_the_files_are_what_the_source_gives_byte_for_byte():
    program = [sys.executable, str(FOLDER / "generate.py"), "--check"]
    result = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout + result.stderr


def test_vectors_are_many_named_sourced_and_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 1_500_000
    refused, sections = defaultdict(set), set()
    for name in FILES:
        _, vectors = load(name)
        assert len({vector["name"] for vector in vectors}) == len(vectors)
        for vector in vectors:
            assert re.search("[^:]+: .*(RFC|FIPS|section)", vector["source"])
            sections |= set(re.findall(r"protocol\.md section (\d+)", vector["source"]))
            kind = vector.get("awaits")
            refused[kind] |= {vector["name"]} if "step" in vector["expected"] else set()
    assert all(len(refused[kind.kind]) >= 40 for kind in KINDS)
    page = (TESTS.parent / "docs/protocol.md").read_text(encoding="utf-8")
    assert sections == {"1", "2", "3", "4", "5", "7", "8", "10"}
    assert all(f"\n## {section}. " in page for section in sections)


def test_a_second_verifier_that_imports_nothing_of_protocols_agrees_on_all():
    result = judged(FOLDER)
    count = sum(len(load(name)[1]) for name in FILES)
    assert result.stdout == f"{count} vectors, 0 disagreements\n", result.stdout + result.stderr
    assert result.returncode == 0
    assert count >= 900


def test_the_second_verifier_notices_a_changed_vector_of_every_sort(tmp_path):
    """One vector of each check and outcome gets another expectation: each is reported."""
    altered = []
    for name in FILES:
        document, _ = load(name)
        seen = set()
        for vector in document["vectors"]:
            expected = vector["expected"]
            sort = (vector.get("check", vector.get("awaits")), *expected, *expected.values())[:2]
            if sort in seen:
                continue
            seen.add(sort)
            vector["expected"] = {"step": "none"} if "step" not in expected else {"accepted": True}
            altered.append(vector["name"])
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    result = judged(tmp_path)
    assert result.returncode == 1
    assert len(altered) >= 40
    assert f" {len(altered)} disagreements" in result.stdout
    assert all(f": {name}: " in result.stdout for name in altered)


@pytest.mark.parametrize("kind", KINDS)
def test_envelopes_are_taken_or_refused_at_the_stated_step(kind):
    document, vectors = load("envelopes")
    awaits = document["awaits"][kind.kind]
    steps = Counter()
    for vector in (one for one in vectors if one["awaits"] == kind.kind):
        message = b64decode(vector["message"])

        def act(message=message):
            unseal(
                message,
                kind,
                Stage(awaits["session"], awaits["round"], awaits["attempt"]),
                sender=awaits["sender"],
                verify_key=bytes.fromhex(awaits["verify_key"]),
                body_bytes=awaits["body_bytes"],
            )
            return {"identity": identity(message)}

        assert check(vector, act) == vector["expected"], vector["name"]
        steps[vector["expected"].get("step", "accepted")] += 1
    stated = {"accepted", "frame", "length", "signature", "header", "canonical form", "sender"}
    assert steps.keys() == {*stated, "stage"}


def test_plans_are_taken_or_refused_by_the_stated_rule():
    document, vectors = load("plans")
    agreed = {
        mode: Enrolment.model_validate_json(json.dumps(one))
        for mode, one in document["enrolments"].items()
    }

    def plan(given):
        made = RoundPlan.model_validate_json(canonical(given["header"]))
        return made.model_copy(update={"body": bytes.fromhex(given["body"])})

    acts = {
        "plan": lambda v: check_plan(plan(v["plan"]), agreed[v["enrolment"]]),
        "retry": lambda v: check_retry(plan(v["plan"]), plan(v["earlier"]), v["opened"]),
        "subset": lambda v: check_subset(plan(v["plan"]), map(plan, v["others"])),
    }

    def included(v):
        asked = plan(v["plan"])
        check_included(asked, asked.group(v["group"]), v["names"])

    acts["included"] = included
    for vector in vectors:
        assert check(vector, lambda v=vector: acts[v["check"]](v)) == vector["expected"]


def opening(v):
    ring, size = multikey_preset(v["preset"]), v["size"]
    total = MultiKeySum(ring, size)
    for body, alpha in zip(v["bodies"], v["added"], strict=True):
        total.add(b64decode(body), alpha)
    keys = [expand(bytes.fromhex(seed), ring) for seed in v["keys"]]
    moduli = np.array(ring.primes, np.uint64)[:, None]
    key_sum = sum(np.uint64(a) * key for a, key in zip(v["alphas"], keys, strict=True)) % moduli
    integers = total.open(
        key_sum,
        reference=bytes.fromhex(v["reference"]),
        alphas=v["alphas"],
        heaviest=v["heaviest"],
    )
    return {"integers": b64encode(integers.astype("<i4").tobytes()).decode()}


def share(v):
    shares = map(b64decode, v["shares"])
    total = weighted_share(multikey_preset(v["preset"]), shares, v["alphas"])
    return {"share": b64encode(total).decode()}


def unpacked(v):
    values = unpack(bytes.fromhex(v["body"]), v["bits"], (v["modulus"],))[0]
    return {"values": values.tolist()}


def signature(v):
    verify(*(bytes.fromhex(v[field]) for field in ("public", "message", "signature")))


def number(v):
    return {"text": canonical(float(np.frombuffer(bytes.fromhex(v["double"]), ">f8")[0])).decode()}


def test_sums_shares_residues_and_signatures_are_taken_or_refused_at_the_stated_step():
    """What is honest comes out right here too; the generator made it with these functions."""
    acts = {
        "opening": opening,
        "weighted share": share,
        "unpack": unpacked,
        "signature": signature,
        "number": number,
    }
    judged = Counter()
    for vector in load("sums")[1] + load("primitives")[1]:
        if vector["check"] in acts:
            act = acts[vector["check"]]
            assert check(vector, lambda v=vector, act=act: act(v)) == vector["expected"]
            judged[vector["check"]] += 1
    assert judged.keys() == acts.keys()
    assert min(judged.values()) >= 10


def test_vectors_of_openings_sit_on_both_sides_of_every_bound():
    told = [(v["name"], "integers" in v["expected"]) for v in load("sums")[1]]
    for preset in ("mk18-39", "mk18-49"):
        limit = multikey_preset(preset).value_limit
        errors = [taken for name, taken in told if f"{preset}, error " in name]
        integers = dict(part for part in told if f"{preset}, integer " in part[0])
        assert {*errors} == {True, False}
        assert integers[f"opening: {preset}, integer {limit}"]
        assert not integers[f"opening: {preset}, integer {limit + 1}"]


def test_refusals_that_are_not_the_protocols_do_not_count_as_agreement():
    """The table of steps names words of the protocol's own errors, and each is in use."""
    used = {
        vector["expected"].get("step", vector["expected"].get("rule"))
        for name in FILES
        for vector in load(name)[1]
    }
    assert used - {None} == SAID.keys()
