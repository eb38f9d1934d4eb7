"""Secure aggregation: one function per topology plays the whole protocol of one round.

Both give the same integers and the same SHA-256: what differs is who could have seen more.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from protocols import __version__
from protocols.chain import canonical, digest
from protocols.envelope import identity, seal
from protocols.mechanisms import Released
from protocols.messages import Floors, Group, Opened, RoundPlan
from protocols.outcome import Costs, Outcome
from protocols.parties import Accepted, Client, Server, check_opening, opening_of
from protocols.policy import DECRYPTOR, SERVER, Enrolment, check_plan
from protocols.residues import WeightedSum
from protocols.rlwe import Preset, preset
from protocols.tenseal_ckks import PublicKey, check_width, encrypt
from protocols.transcript import Transcript
from protocols.transport import Wire


class Topology(Protocol):
    """Who encrypts, who adds and who opens. A system does not know which one it runs on."""

    kind: ClassVar[str]
    custody: ClassVar[str]

    def play(self, plan: RoundPlan) -> Outcome:
        """Play one attempt of one round; ProtocolError if a party refuses."""


def draft(
    enrolment: Enrolment,
    transcript: Transcript,
    *,
    round_number: int,
    groups: Sequence[Group],
    layout: str,
    size: int,
    subset: ArrayLike,
    floors: Floors | None = None,
) -> RoundPlan:
    """The server's plan for a round, checked; the attempt follows those in the transcript.

    `layout` is the digest of the layout, `size` its integers, `subset` the proxy indices. A
    resumed round calls it again and so gets the next attempt.
    """
    plans = (e for e in transcript.entries if (e.kind, e.round) == (RoundPlan.kind, round_number))
    plan = RoundPlan(
        session=enrolment.session,
        round=round_number,
        attempt=1 + max((entry.attempt for entry in plans), default=0),
        sender=SERVER,
        version=__version__,
        proxies=enrolment.proxies,
        groups=tuple(groups),
        preset=enrolment.preset,
        layout=layout,
        size=size,
        terms=enrolment.terms,
        floors=floors or enrolment.floors,
        holder=enrolment.holder_id,
        body=np.asarray(subset, "<u4").tobytes(),
    )
    check_plan(plan, enrolment)
    return plan


class Decryptor:
    """`ckks` with custody `decryptor`: a process of its own holds the key of each attempt.

    `wire` must be connected to it under the name `decryptor`.
    """

    kind: ClassVar[str] = "ckks"
    custody: ClassVar[str] = "decryptor"

    def __init__(self, server: Server, clients: Mapping[str, Client], wire: Wire) -> None:
        self._server, self._clients, self._wire = server, clients, wire

    def play(self, plan: RoundPlan) -> Outcome:
        """Play one attempt of one round."""
        server, wire, costs = self._server, self._wire.renewed(), Costs(self._wire)
        ring = preset(plan.preset)

        # server → clients, decryptor: the signed plan, which binds all that follows
        plan_blob = seal(plan, server.key)
        plan_id = identity(plan_blob)
        wire.send(SERVER, (*plan.participants, DECRYPTOR), plan_blob)

        # decryptor → server → clients: a key for this plan; the sums that were opened before
        key_blob = wire.receive(SERVER, DECRYPTOR)
        past = server.accept_key(key_blob, plan, plan_id).opened
        opened = {one.group: one for one in past}
        openings = {name: wire.receive(SERVER, DECRYPTOR) for name in opened}
        wire.send(SERVER, plan.participants, key_blob)

        for group in plan.groups:
            total, uploads = WeightedSum(ring, plan.size), dict[str, str]()
            accepted = dict[str, Accepted]()
            for name, alpha in zip(group.participants, group.alphas, strict=True):
                # client: accepts the plan and the key made for it
                client = self._clients[name]
                accepted[name] = client.accept_plan(wire.receive(name, SERVER))
                round_key = client.accept_key(wire.receive(name, SERVER), accepted[name])
                if group.name in opened:
                    continue
                # client → server: its release, encrypted under the attempt's key
                released = client.draw(accepted[name])
                with costs.timed(f"protect {name}"):
                    body = encrypt(PublicKey(ring, round_key.body), released)
                    blob = client.contribute(accepted[name], body)
                wire.send(name, (SERVER,), blob)
                # server: adds α times the ciphertext; → decryptor: the upload as it came
                blob = wire.receive(SERVER, name)
                with costs.timed("aggregate"):
                    upload = server.accept_contribution(
                        blob, plan, plan_id, name, ring.ciphertext_bytes(plan.size)
                    )
                    total.add(upload.body, alpha)
                    uploads[name] = identity(blob)
                wire.send(SERVER, (DECRYPTOR,), blob)
            if group.name not in opened:
                # server → decryptor: open this sum; it is recomputed from the uploads first
                with costs.timed("open"):
                    request = server.request(plan, plan_id, group, uploads, total.body())
                    wire.send(SERVER, (DECRYPTOR,), request)
                    openings[group.name] = wire.receive(SERVER, DECRYPTOR)
                opened[group.name] = Opened(group=group.name, attempt=plan.attempt, plan=plan_id)
            # decryptor → server → group: exact integers, signed
            wire.send(SERVER, group.participants, openings[group.name])
            for name in group.participants:
                self._clients[name].accept_opening(
                    wire.receive(name, SERVER), accepted[name], past, sender=DECRYPTOR
                )

        return costs.outcome(
            check_opening(openings[name], plan, one, server.enrolment, sender=DECRYPTOR)
            for name, one in opened.items()
        )


class Plain:
    """`plain`: the server sees every contribution. A baseline, and the attacks' positive control.

    The enrolment's `holder` is the server's own key, for it is the server that opens.
    """

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

        openings = []
        for group in plan.groups:
            total, uploads = np.zeros(plan.size, np.int64), list[str]()
            accepted = dict[str, Accepted]()
            for name, alpha in zip(group.participants, group.alphas, strict=True):
                # client → server: its release, signed but in the clear
                client = self._clients[name]
                accepted[name] = client.accept_plan(wire.receive(name, SERVER))
                released = client.draw(accepted[name])
                with costs.timed(f"protect {name}"):
                    body = _in_clear(released, preset(plan.preset))
                    blob = client.contribute(accepted[name], body)
                wire.send(name, (SERVER,), blob)
                # server: adds α times the integers
                blob = wire.receive(SERVER, name)
                with costs.timed("aggregate"):
                    upload = server.accept_contribution(blob, plan, plan_id, name, 4 * plan.size)
                    total += alpha * np.frombuffer(upload.body, "<i4").astype(np.int64)
                    uploads.append(identity(blob))
            # server → group: exact integers, signed
            opened = Opened(group=group.name, attempt=plan.attempt, plan=plan_id)
            request = digest(canonical(uploads))
            opening = seal(opening_of(plan, opened, request, total, sender=SERVER), server.key)
            wire.send(SERVER, group.participants, opening)
            for name in group.participants:
                self._clients[name].accept_opening(
                    wire.receive(name, SERVER), accepted[name], sender=SERVER
                )
            openings.append(check_opening(opening, plan, opened, server.enrolment, sender=SERVER))

        return costs.outcome(openings)


def _in_clear(released: Released, ring: Preset) -> bytes:
    """Released integers as little-endian int32, within the same limit as when encrypted."""
    if type(released) is not Released:
        raise TypeError("a contribution is a Released, which only a mechanism's release() makes")
    check_width(released.values, ring)
    return released.values.astype("<i4").tobytes()
