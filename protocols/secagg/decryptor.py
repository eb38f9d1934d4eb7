"""`ckks` with custody `decryptor`: TenSEAL public keys, one independent holder, pairwise masks.

The masks (protocols.masks) leave the decryptor a sum that it can open and no contribution that it
could. They say nothing of a decryptor that joins an actively dishonest server: it can open one
attempt's sum, deny it, and open that of a second attempt without one client.
"""

from collections.abc import Collection, Mapping
from typing import ClassVar

from protocols.envelope import identity, seal
from protocols.masks import Masking, Peer
from protocols.messages import Opened, RoundPlan
from protocols.outcome import Costs, Outcome
from protocols.parties import Accepted, Client, Server, check_opening, group_key
from protocols.policy import DECRYPTOR, SERVER
from protocols.residues import WeightedSum
from protocols.rlwe import preset
from protocols.tenseal_ckks import PublicKey, encrypt
from protocols.transport import Wire


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

        # decryptor → server → clients: a key per group; the sums that were opened before
        key_blob, key_bytes = (
            wire.receive(SERVER, DECRYPTOR),
            ring.public_key_bytes * len(plan.groups),
        )
        key = server.accept_key(key_blob, plan, plan_id, DECRYPTOR, key_bytes)
        opened = {one.group: one for one in key.opened}
        openings = {name: wire.receive(SERVER, DECRYPTOR) for name in opened}
        wire.send(SERVER, plan.participants, key_blob)

        # clients: accept the plan and the keys made for it
        accepted = dict[str, Accepted]()
        for name in plan.participants:
            own = self._clients[name].accept_plan(wire.receive(name, SERVER))
            blobs = {DECRYPTOR: wire.receive(name, SERVER)}
            accepted[name] = self._clients[name].accept_keys(blobs, own, key_bytes)

        # client → server → its peers: a sealing key for this attempt
        masks = dict[str, Masking]()
        for name in waiting(plan, opened):
            with costs.timed(f"protect {name}"):
                masks[name] = Masking(self._clients[name], accepted[name])
        introduce(masks, wire, costs)

        # of each pair the earlier client → server → the later one: the seed of their masks, sealed
        for name, own_masks in masks.items():
            for later in own_masks.later:
                with costs.timed(f"protect {name}"):
                    blob = own_masks.send_seed(later)
                wire.send(name, (SERVER,), blob)
                wire.send(SERVER, (later,), wire.receive(SERVER, name))
                with costs.timed(f"protect {later}"):
                    masks[later].accept_seed(wire.receive(later, SERVER), name)

        for group in plan.groups:
            if group.name not in opened:
                width = plan.width_of(group)
                total, uploads = WeightedSum(ring, width), dict[str, str]()
                for name, alpha in zip(group.participants, group.alphas, strict=True):
                    # client → server: its release, encrypted under the attempt's key, and masked
                    client, own = self._clients[name], accepted[name]
                    client.demand_closed(own, group)
                    released = client.draw(own)
                    with costs.timed(f"protect {name}"):
                        public_key = PublicKey(ring, group_key(own, DECRYPTOR, group))
                        body = encrypt(public_key, released, plan.span_of(group))
                        blob = client.contribute(own, group, masks[name].masked(body, group))
                    wire.send(name, (SERVER,), blob)
                    # server: adds α times the ciphertext; → decryptor: the upload as it came
                    blob = wire.receive(SERVER, name)
                    with costs.timed("aggregate"):
                        upload = server.accept_contribution(
                            blob, plan, plan_id, group, name, ring.ciphertext_bytes(width)
                        )
                        total.add(upload.body, alpha)
                        uploads[name] = identity(blob)
                    wire.send(SERVER, (DECRYPTOR,), blob)
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
                    wire.receive(name, SERVER), accepted[name], group, opened[group.name]
                )

        return costs.outcome(
            check_opening(openings[name], plan, one, server.enrolment)
            for name, one in opened.items()
        )


def waiting(plan: RoundPlan, opened: Collection[str]) -> tuple[str, ...]:
    """The clients of groups that are not open yet, in the plan's order."""
    shut = (group for group in plan.groups if group.name not in opened)
    names = {name for group in shut for name in group.participants}
    return tuple(name for name in plan.participants if name in names)


def introduce(peers: Mapping[str, Peer], wire: Wire, costs: Costs) -> None:
    """Each client's sealing key goes by way of the server to its peers, who check it."""
    for name, peer in peers.items():
        with costs.timed(f"protect {name}"):
            blob = peer.announce()
        wire.send(name, (SERVER,), blob)
        wire.send(SERVER, peer.names, wire.receive(SERVER, name))
    for name, peer in peers.items():
        for other in peer.names:
            blob = wire.receive(name, SERVER)
            with costs.timed(f"protect {name}"):
                peer.accept_key(blob, other)
