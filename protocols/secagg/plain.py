"""`plain`: no encryption."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from protocols.chain import canonical, digest
from protocols.envelope import identity, seal
from protocols.messages import Group, Opened, RoundPlan
from protocols.outcome import Costs, Outcome
from protocols.parties import Client, Server, check_opening, opening_of
from protocols.policy import SERVER
from protocols.presets import check_width, find_preset
from protocols.release import Released
from protocols.transport import Wire


class Plain:
    """The server sees every contribution: a baseline, and the attacks' positive control."""

    kind: ClassVar[str] = "plain"
    custody: ClassVar[str] = "none"

    def __init__(self, server: Server, clients: Mapping[str, Client], wire: Wire) -> None:
        self._server, self._clients, self._wire = server, clients, wire

    def play(self, plan: RoundPlan) -> Outcome:
        """Play one attempt of one round."""
        server, wire, costs = self._server, self._wire.renewed(), Costs(self._wire)

        # server → clients: the signed plan
        plan_blob = seal(plan, server.key)
        plan_id = identity(plan_blob)
        wire.send(SERVER, plan.participants, plan_blob)

        # clients: accept the plan
        accepted = {
            name: self._clients[name].accept_plan(wire.receive(name, SERVER))
            for name in plan.participants
        }

        openings = []
        for group in plan.groups:
            width = plan.width_of(group)
            total, uploads = np.zeros(width, np.int64), dict[str, str]()
            for name, alpha in zip(group.participants, group.alphas, strict=True):
                # client → server: its release, signed but in the clear
                client, own = self._clients[name], accepted[name]
                released = client.draw(own)
                with costs.timed(f"protect {name}"):
                    body = _in_clear(released, plan, group)
                    blob = client.contribute(own, group, body)
                wire.send(name, (SERVER,), blob)
                # server: adds α times the integers
                blob = wire.receive(SERVER, name)
                with costs.timed("aggregate"):
                    upload = server.accept_contribution(blob, plan, plan_id, group, name, 4 * width)
                    total += alpha * np.frombuffer(upload.body, "<i4").astype(np.int64)
                    uploads[name] = identity(blob)
            # server → group: exact integers, signed
            opened = Opened(group=group.name, attempt=plan.attempt, plan=plan_id)
            request = digest(canonical(list(uploads.values())))
            message = opening_of(plan, opened, uploads, request, total, sender=SERVER)
            opening = seal(message, server.key)
            wire.send(SERVER, group.participants, opening)
            for name in group.participants:
                self._clients[name].accept_opening(
                    wire.receive(name, SERVER), accepted[name], group
                )
            openings.append(check_opening(opening, plan, opened, server.enrolment))

        return costs.outcome(openings)


def _in_clear(released: Released, plan: RoundPlan, group: Group) -> bytes:
    """Released integers as little-endian int32, within the same limit as when encrypted."""
    if type(released) is not Released:
        raise TypeError("a contribution is a Released, which only a mechanism's release() makes")
    start, stop = plan.span_of(group)
    check_width(released.values, find_preset(plan.preset))
    return released.values[start:stop].astype("<i4").tobytes()
