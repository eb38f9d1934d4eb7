"""Sums opened a second time, from the contributions and key shares that travelled."""

from __future__ import annotations

import numpy as np

from protocols.messages import Group, IntVector, Opening, RoundPlan
from protocols.multikey import multikey_preset
from protocols.multikey_ckks import MultiKeySum
from protocols.secagg.threshold import open_with
from protocols.secagg.topology import Absent
from secure_natfl.audit.findings import demand
from secure_natfl.audit.traffic import Traffic


def recomputed(traffic: Traffic) -> str:
    """Every opening of custody `threshold` or `plain`; BrokenError where integers differ."""
    for opening, _ in traffic.openings:
        plan = traffic.plans[opening.plan]
        group = plan.group(opening.group).among(opening.participants)
        again = _again(traffic, plan, group, opening)
        demand(
            bool(np.array_equal(again, opening.integers)),
            f"the sum of group {opening.group}, round {opening.round}, is another",
            why="contributions and weights give different integers",
        )
    return f"{len(traffic.openings)} sums opened a second time: the same integers"


def _again(traffic: Traffic, plan: RoundPlan, group: Group, opening: Opening) -> IntVector:
    """Σα·x from the contributions that the opening is of."""
    if plan.mode == "plain/none":
        total = np.zeros(plan.width_of(group), np.int64)
        for name, alpha in zip(group.participants, group.alphas, strict=True):
            (body,) = (
                one.body
                for one in traffic.contributions.values()
                if (one.sender, one.plan, one.group) == (name, opening.plan, group.name)
            )
            total += alpha * np.frombuffer(body, "<i4").astype(np.int64)
        return total
    ring, request = multikey_preset(plan.preset), traffic.requests[opening.request]
    demand(request.participants == opening.participants, "an opening of others than requested")
    summed = MultiKeySum(ring, plan.width_of(group))
    for upload, alpha in zip(request.contributions, group.alphas, strict=True):
        summed.add(traffic.contributions[upload].body, alpha)
    numbers = {name: at for at, name in enumerate(traffic.enrolment.holder_order, 1)}
    answers = {numbers[name]: one for name, one in traffic.answers[opening.request].items()}
    whole = plan.group(opening.group)
    return open_with(summed, answers, request, whole, ring, traffic.enrolment, Absent())
