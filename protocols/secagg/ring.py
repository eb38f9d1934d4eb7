"""`ring` with custody `decryptor`: the sum goes round among the clients and is opened once.

The cyclic aggregation of PPPML-HMI (Zhou et al., Computers in Biology and Medicine 2024) with its
holes closed as far as they can be. The first client, another one each round, adds α times its
ciphertext to a uniform mask over all residues of both polynomials; every next client adds α times
its own; the first one takes the mask off and signs the sum for the decryptor. Each hop is signed,
bound to plan, group and receiver, and sealed to the receiver's key of this attempt
(protocols.sealing).

In PPPML-HMI the mask is Gaussian in single precision: it is not uniform, so that a large value
shows through it, and a small one loses its last digits to it. There all work with one CKKS key,
hops are not signed, and the sum that is read is approximate. Here the mask hides every residue
perfectly and costs no digit, the key is the decryptor's and of one attempt, a hop that was changed
is found by whoever receives it, and the integers are exact.

What stays is the ring's own. The difference of what client i received and what it sent is α_i
times its ciphertext: its two neighbours, with the decryptor or who else has the attempt's key,
read client i. No other two do, the first client alone does not, and server and network see sealed
hops. The decryptor cannot recompute the sum, so an actively dishonest first client that has both
hops of client i can sign their difference as the sum, and has it opened without any key; against
that, and for dropouts, the other modes are better. A client that goes means a new attempt.
"""

import os
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from protocols.envelope import identity, seal
from protocols.errors import ProtocolError
from protocols.masks import Peer, uniform
from protocols.messages import Group, Hop, Link, Opened, RoundPlan
from protocols.outcome import Costs, Outcome
from protocols.parties import Accepted, Client, Server, check_opening, group_key, ring_of
from protocols.policy import DECRYPTOR, SERVER
from protocols.residues import WeightedSum, pack
from protocols.rlwe import preset
from protocols.sealing import OVERHEAD
from protocols.secagg.decryptor import introduce, waiting
from protocols.tenseal_ckks import PublicKey, encrypt
from protocols.transport import Wire


class Ring:
    """Clients add in turn; a process of its own holds the key of each attempt.

    `wire` must be connected to it under the name `decryptor`.
    """

    kind: ClassVar[str] = "ring"
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
        members = dict[str, Member]()
        for name in waiting(plan, opened):
            with costs.timed(f"protect {name}"):
                members[name] = Member(self._clients[name], accepted[name])
        introduce(members, wire, costs)

        for group in plan.groups:
            if group.name not in opened:
                # client → next client: the sum so far, which the first one masks, sealed
                order, hop = ring_of(plan, group), b""
                for name, following in zip(order, (*order[1:], order[0]), strict=True):
                    client, own = self._clients[name], accepted[name]
                    client.demand_closed(own, group)
                    released = client.draw(own)
                    with costs.timed(f"protect {name}"):
                        public_key = PublicKey(ring, group_key(own, DECRYPTOR, group))
                        body = encrypt(public_key, released, plan.span_of(group))
                        blob = members[name].send_hop(group, hop, body)
                    wire.send(name, (following,), blob)
                    hop = wire.receive(following, name)
                with costs.timed(f"protect {order[0]}"):
                    members[order[0]].close(group, hop)
                # clients → server → decryptor: what each received and sent; the first adds the sum
                uploads = self._links(plan, plan_id, group, members, costs)
                # server → decryptor: open this sum
                with costs.timed("open"):
                    wire.send(SERVER, (DECRYPTOR,), server.request(plan, plan_id, group, uploads))
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

    def _links(
        self,
        plan: RoundPlan,
        plan_id: str,
        group: Group,
        members: Mapping[str, "Member"],
        costs: Costs,
    ) -> dict[str, str]:
        """Each client's link, in the plan's order, relayed; client → its identity."""
        server, wire, uploads = self._server, self._wire, dict[str, str]()
        expected = preset(plan.preset).ciphertext_bytes(plan.width_of(group))
        for name in group.participants:
            with costs.timed(f"protect {name}"):
                blob = members[name].link(group)
            wire.send(name, (SERVER,), blob)
            blob = wire.receive(SERVER, name)
            with costs.timed("aggregate"):
                server.accept_link(blob, plan, plan_id, group, name, expected)
                uploads[name] = identity(blob)
            wire.send(SERVER, (DECRYPTOR,), blob)
        return uploads


class Member(Peer):
    """A client in the rings of one attempt: which hops it received and sent, and its masks."""

    def __init__(self, client: Client, accepted: Accepted) -> None:
        super().__init__(client, accepted)
        self._received, self._sent = dict[str, str](), dict[str, str]()
        self._masks, self._sums = dict[str, bytes](), dict[str, bytes]()

    def send_hop(self, group: Group, hop: bytes, body: bytes) -> bytes:
        """Client, to the next: α times its ciphertext `body` on top of the hop that it received.

        The first one has received none and begins with a fresh mask, of which it keeps the
        opposite.
        """
        order, name = ring_of(self.accepted.plan, group), self.client.name
        at = order.index(name)
        so_far = self._accept_hop(group, hop, order[at - 1]) if at else self._begin(group)
        total = self._sum(group)
        total.add(so_far, 1)
        total.add(body, group.among([name]).total)
        after = order[(at + 1) % len(order)]
        message = Hop(
            **self.accepted.plan.stage._asdict(),
            sender=name,
            plan=self.accepted.plan_id,
            group=group.name,
            receiver=after,
            body=self._seal_to(after, total.body(), "hop", group.name),
        )
        blob = seal(message, self.client.key)
        self._sent[group.name] = identity(blob)
        return blob

    def close(self, group: Group, hop: bytes) -> None:
        """First client: the sum, with its mask taken off what came back from the last one."""
        total = self._sum(group)
        total.add(self._accept_hop(group, hop, ring_of(self.accepted.plan, group)[-1]), 1)
        total.add(self._masks.pop(group.name), 1)
        self._sums[group.name] = total.body()

    def link(self, group: Group) -> bytes:
        """Client, to server and decryptor: its hops of this group, and the first one's sum."""
        if group.name not in self._received.keys() & self._sent.keys():
            raise ProtocolError("no hops to sign for", where=self.client.name)
        message = Link(
            **self.accepted.plan.stage._asdict(),
            sender=self.client.name,
            plan=self.accepted.plan_id,
            group=group.name,
            received=self._received[group.name],
            sent=self._sent[group.name],
            body=self._sums.get(group.name, b""),
        )
        return seal(message, self.client.key)

    def _begin(self, group: Group) -> bytes:
        """A uniform mask, packed as a body; its opposite is kept."""
        ring = preset(self.accepted.plan.preset)
        bits, prime = ring.residue_bits, np.uint64(ring.prime)
        mask = uniform(ring.prime, self._bytes(group) * 8 // bits, os.urandom)
        self._masks[group.name] = pack((prime - mask) % prime, bits)
        return pack(mask, bits)

    def _accept_hop(self, group: Group, hop: bytes, sender: str) -> bytes:
        """What the client before this one sealed to it, for this plan and group."""
        message = self._from(hop, Hop, sender, self._bytes(group) + OVERHEAD)
        if message.group != group.name:
            raise ProtocolError("hop is of another group", where=sender)
        opened = self._open(message, "hop", group.name)
        self._received[group.name] = identity(hop)
        return opened

    def _sum(self, group: Group) -> WeightedSum:
        plan = self.accepted.plan
        return WeightedSum(preset(plan.preset), plan.width_of(group))

    def _bytes(self, group: Group) -> int:
        plan = self.accepted.plan
        return preset(plan.preset).ciphertext_bytes(plan.width_of(group))
