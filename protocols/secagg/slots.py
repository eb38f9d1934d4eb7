"""`slots`: CKKS as federated learning commonly uses it. For studies and positive controls only.

One secret key is every client's; numbers lie in slots; whoever reads a sum publishes floats. From
two such sums a curious server has the key (`attacks.cryptanalysis`), and any one client that
helps the server has it from the start. No plan of a federation that means to protect anybody may
name this mode.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from protocols.envelope import authentic, identity, seal
from protocols.errors import PrivacyError
from protocols.messages import (
    Group,
    IntVector,
    Opened,
    OpeningRequest,
    Reading,
    RoundKey,
    RoundPlan,
)
from protocols.outcome import Costs, Outcome
from protocols.parties import Accepted, Client, Server, check_opening, check_reading, opening_of
from protocols.policy import SERVER, holder_name
from protocols.release import Released
from protocols.slots import SlotsPreset
from protocols.tenseal_slots import SlotsSecret, SlotsSum, Weight
from protocols.transport import Wire

Weighting = Literal["client", "slot", "ciphertext"]
"""One integer per client, a weight per slot in the clear, or a weight that the client encrypts."""


class Slots:
    """The group's first client reads the sum; all clients could, and any of them every upload.

    `secret` is the key that all clients share. PrivacyError unless `unsafe`.
    """

    kind: ClassVar[str] = "slots"
    custody: ClassVar[str] = "shared"

    def __init__(
        self,
        server: Server,
        clients: Mapping[str, Client],
        wire: Wire,
        secret: SlotsSecret,
        *,
        unsafe: bool = False,
        weighting: Weighting = "client",
    ) -> None:
        if not unsafe:
            raise PrivacyError(
                "slots mode protects nobody",
                why="its published sums give the key away, and any client can read every upload",
                fix='take kind "ckks", or say unsafe = true in a study that is to show this',
            )
        self._server, self._clients, self._wire = server, clients, wire
        self._secret, self._weighting = secret, weighting

    def play(self, plan: RoundPlan) -> Outcome:
        """Play one attempt of one round."""
        server, wire, costs = self._server, self._wire.renewed(), Costs(self._wire)
        ring = self._secret.preset

        # server → clients: the signed plan
        plan_blob = seal(plan, server.key)
        plan_id = identity(plan_blob)
        wire.send(SERVER, plan.participants, plan_blob)
        accepted = {
            name: self._clients[name].accept_plan(wire.receive(name, SERVER))
            for name in plan.participants
        }

        openings = []
        for group in plan.groups:
            width, reader = plan.width_of(group), group.participants[0]
            # reader → server: what it needs to multiply ciphertexts, if it has to
            wire.send(reader, (SERVER,), self._public(accepted[reader], reader))
            key = server.accept_key(
                wire.receive(SERVER, reader), plan, plan_id, holder_name(reader), self._key_bytes()
            )
            total, uploads = SlotsSum(ring, width, key.body or None), dict[str, str]()
            for name in group.participants:
                # client → server: its release, encrypted under everybody's key
                client, own = self._clients[name], accepted[name]
                released = client.draw(own)
                with costs.timed(f"protect {name}"):
                    blob = client.contribute(own, group, self._upload(plan, group, name, released))
                wire.send(name, (SERVER,), blob)
                # server: multiplies by the weight and adds
                blob = wire.receive(SERVER, name)
                with costs.timed("aggregate"):
                    upload = server.accept_contribution(
                        blob, plan, plan_id, group, name, self._upload_bytes(width)
                    )
                    values = upload.body[: ring.upload_bytes(width)]
                    total.add(values, self._weight(upload.body, group.among([name]), width))
                    uploads[name] = identity(blob)
            # server → reader: the sum; reader → server: approximate real numbers, the leak
            with costs.timed("open"):
                request = server.request(plan, plan_id, group, uploads, total.body())
                wire.send(SERVER, (reader,), request)
                reading = self._read(wire.receive(reader, SERVER), reader, width)
                wire.send(reader, (SERVER,), reading)
                floats = check_reading(
                    wire.receive(SERVER, reader),
                    plan,
                    plan_id,
                    group,
                    server.enrolment,
                    identity(request),
                )
            # server → group: the nearest integers, signed
            opened = Opened(group=group.name, attempt=plan.attempt, plan=plan_id)
            integers: IntVector = np.rint(floats).astype(np.int64)
            message = opening_of(plan, opened, uploads, identity(request), integers, sender=SERVER)
            opening = seal(message, server.key)
            wire.send(SERVER, group.participants, opening)
            for name in group.participants:
                blob = wire.receive(name, SERVER)
                self._clients[name].accept_opening(blob, accepted[name], group)
            openings.append(check_opening(opening, plan, opened, server.enrolment))

        return costs.outcome(openings)

    def _public(self, own: Accepted, reader: str) -> bytes:
        encrypted = self._weighting == "ciphertext"
        message = RoundKey(
            **own.plan.stage._asdict(),
            sender=holder_name(reader),
            plan=own.plan_id,
            opened=(),
            body=self._secret.relin_key() if encrypted else b"",
        )
        return seal(message, self._clients[reader].key)

    def _upload(self, plan: RoundPlan, group: Group, name: str, released: Released) -> bytes:
        """The encrypted part of a release; where weights are encrypted too, these after it."""
        if type(released) is not Released:
            raise TypeError(
                "a contribution is a Released, which only a mechanism's release() makes"
            )
        start, stop = plan.span_of(group)
        body = self._secret.encrypt(released.values[start:stop])
        if self._weighting == "ciphertext":
            weights = np.full(stop - start, group.among([name]).total)
            body += self._secret.encrypt_weights(weights)
        return body

    def _weight(self, body: bytes, single: Group, width: int) -> Weight:
        if self._weighting == "ciphertext":
            return body[self._secret.preset.upload_bytes(width) :]
        return single.total if self._weighting == "client" else np.full(width, float(single.total))

    def _read(self, blob: bytes, reader: str, width: int) -> bytes:
        """Reader: reads the sum that the server asks it for and tells everybody."""
        client = self._clients[reader]
        key = client.enrolment.verify_key(SERVER)
        request = authentic(blob, OpeningRequest, sender=SERVER, verify_key=key)
        floats = self._secret.read_sum(request.body, width)
        message = Reading(
            **request.stage._asdict(),
            sender=holder_name(reader),
            plan=request.plan,
            group=request.group,
            request=identity(blob),
            body=floats.astype("<f8").tobytes(),
        )
        return seal(message, client.key)

    def _upload_bytes(self, width: int) -> int:
        parts = 2 if self._weighting == "ciphertext" else 1
        return parts * self._secret.preset.upload_bytes(width)

    def _key_bytes(self) -> int:
        preset: SlotsPreset = self._secret.preset
        return preset.relin_bytes if self._weighting == "ciphertext" else 0
