"""The transcript: every signature, every plan against policy, every sum against its contributions.

What the parties checked during the run is checked again from the bytes that travelled; where no
key of a decryptor is in it, sums are opened a second time from contributions and key shares.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

from protocols.chain import GENESIS, canonical, link
from protocols.messages import (
    Contribution,
    Hop,
    KeyShare,
    Link,
    MaskSeed,
    Message,
    Mode,
    Opened,
    RoundPlan,
)
from protocols.multikey import multikey_preset
from protocols.parties import check_opening
from protocols.policy import (
    DECRYPTOR,
    SERVER,
    Enrolment,
    check_included,
    check_plan,
    check_retry,
    check_subset,
)
from protocols.rlwe import preset
from protocols.transcript import Transcript
from secure_natfl.audit.findings import Findings, demand
from secure_natfl.audit.reading import Story
from secure_natfl.audit.recompute import recomputed
from secure_natfl.audit.traffic import Traffic, read_traffic

_COMMON: Final = {"round-plan", "opening", "contribution"}
_HELD: Final = {"round-key", "opening-request", "refusal"}
_KINDS: Final[dict[Mode, set[str]]] = {
    "ckks/threshold": _COMMON | _HELD | {"key-share", "key-opening"},
    "ckks/decryptor": _COMMON | _HELD | {"mask-key", "mask-seed"},
    "ring/decryptor": _COMMON - {"contribution"} | _HELD | {"mask-key", "hop", "link"},
    "plain/none": _COMMON,
    "slots/shared": _COMMON | _HELD | {"reading"},
}
"""The messages that a mode needs; any other would carry what its promise does not speak of."""


def check_rounds(
    transcript: Transcript, enrolment: Enrolment, story: Story, findings: Findings
) -> Traffic:
    """All checks on the transcript; returns what was in it."""
    traffic = Traffic(enrolment)
    findings.check("transcript.signatures", lambda: read_traffic(transcript, traffic))
    findings.check("transcript.log", lambda: _heads(transcript, story))
    findings.check("transcript.promise", lambda: _promise(traffic))
    findings.check("policy.plans", lambda: _plans(traffic, story))
    findings.check("policy.sums", lambda: _sums(traffic, story))
    if enrolment.mode in ("ckks/threshold", "plain/none"):
        findings.check("sums.recomputed", lambda: recomputed(traffic))
    else:
        findings.unchecked(
            "sums.recomputed",
            f"in {enrolment.mode} a sum is opened with a key that nobody else has; that it is the "
            "right one rests on the opener's signature",
        )
    return traffic


def _heads(transcript: Transcript, story: Story) -> str:
    """Where the log says that the transcript stood, it did; and nothing came after the end."""
    heads = [GENESIS]
    for entry in transcript.entries:
        heads.append(link(heads[-1], canonical(entry.model_dump(mode="json"))))
    opened = story.opened()
    for number, body in opened.items():
        stood = body.transcript_entries
        demand(stood < len(heads), f"the transcript was cut after round {number}")
        demand(
            heads[stood] == body.transcript_head,
            f"the transcript is not the one of round {number}",
            why="lines were changed, or it was made anew",
        )
    last = max((body.transcript_entries for body in opened.values()), default=0)
    extra = len(transcript.entries) - last
    demand(extra == 0, f"{extra} transcript line(s) after the last logged round")
    return f"{len(transcript.entries)} lines, as the log says after each of {len(opened)} rounds"


def _promise(traffic: Traffic) -> str:
    """Only the mode's kinds of message, only to whom they are for, and only in encrypted form."""
    enrolment = traffic.enrolment
    kinds = Counter(message.kind for message, _ in traffic.messages)
    strange = set(kinds) - _KINDS[enrolment.mode]
    demand(not strange, f"messages of kind {', '.join(sorted(strange))} in {enrolment.mode}")
    for message, receivers in traffic.messages:
        allowed = _may_see(message, enrolment)
        others = set(receivers) - allowed
        demand(
            not others,
            f"a {message.kind} of {message.sender} went to {', '.join(sorted(others))}",
            why=f"in {enrolment.mode} it is for {', '.join(sorted(allowed))}",
        )
        if isinstance(message, Contribution):
            _check_width(message, traffic)
    return f"{len(traffic.messages)} messages of the kinds of {enrolment.mode}, to those meant"


def _may_see(message: Message, enrolment: Enrolment) -> set[str]:
    """Whom a message is for, relays by the server included."""
    if isinstance(message, KeyShare):
        return {SERVER, message.holder}
    if isinstance(message, MaskSeed | Hop):
        return {SERVER, message.receiver}
    if isinstance(message, Contribution | Link):
        return {SERVER, DECRYPTOR} & {SERVER, *enrolment.holders}
    return {SERVER, *enrolment.clients, *enrolment.holders}


def _check_width(message: Contribution, traffic: Traffic) -> None:
    """A contribution is as long as its preset says, so it cannot carry anything besides."""
    plan = traffic.plans[message.plan]
    width = plan.width_of(plan.group(message.group))
    expected = {
        "ckks/threshold": lambda: multikey_preset(plan.preset).ciphertext_bytes(width),
        "ckks/decryptor": lambda: preset(plan.preset).ciphertext_bytes(width),
        "plain/none": lambda: 4 * width,
    }.get(plan.mode)
    fits = expected is None or len(message.body) == expected()
    demand(fits, f"a contribution of {message.sender} has another length than its preset's")


def _plans(traffic: Traffic, story: Story) -> str:
    """Every plan keeps to the enrolment and the floors, and is the one that was logged."""
    by_round: dict[int, list[RoundPlan]] = defaultdict(list)
    for plan in traffic.plans.values():
        check_plan(plan, traffic.enrolment)
        check_subset(plan, traffic.plans.values())
        by_round[plan.round].append(plan)
    for number, plans in by_round.items():
        first, *retries = sorted(plans, key=lambda plan: plan.attempt)
        for retry in retries:
            before = (one for one, _ in traffic.openings if one.round == number)
            check_retry(retry, first, [o.group for o in before if o.attempt < retry.attempt])
        logged = story.planned()[number]
        groups = [(group.name, group.participants, group.alphas) for group in first.groups]
        stated = [(group.name, group.participants, group.alphas) for group in logged.groups]
        demand(groups == stated, f"round {number} was not played with the logged weights")
        demand(len(first.subset) == logged.proxies, f"round {number} asked another number")
    return (
        f"{len(traffic.plans)} plans within enrolment and floors ("
        f"{traffic.enrolment.floors.participants} participants, "
        f"{traffic.enrolment.floors.effective:g} effective), no image asked in two rounds"
    )


def _sums(traffic: Traffic, story: Story) -> str:
    """One sum per group and round, of enough contributions, signed, and the one that was logged."""
    found: dict[tuple[int, str], set[tuple[tuple[str, ...], str]]] = defaultdict(set)
    for opening, blob in traffic.openings:
        plan = traffic.plans[opening.plan]
        by = Opened(group=opening.group, attempt=opening.attempt, plan=opening.plan)
        check_opening(blob, plan, by, traffic.enrolment)
        check_included(plan, plan.group(opening.group), opening.participants)
        found[opening.round, opening.group].add((opening.participants, opening.sha256))
    logged = {
        (number, one.group): {(one.participants, one.sha256)}
        for number, body in story.opened().items()
        for one in body.sums
    }
    for (number, group), sums in found.items():
        demand(len(sums) == 1, f"{len(sums)} sums of group {group} were opened in round {number}")
    demand(dict(found) == logged, "the sums in the transcript are not those in the log")
    return f"{len(found)} sums, one per group and round, signed by the {traffic.enrolment.opener}"
