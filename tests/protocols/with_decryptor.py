"""The receivers of the two modes with a decryptor, each where its message is awaited."""

from typing import Any

from at_work import KEY, OPENING, holder, party
from receiving import Live, Receiver

from protocols.decrypting import Decrypting
from protocols.envelope import identity, outline, seal
from protocols.masks import Masking
from protocols.messages import OpeningRequest
from protocols.parties import ring_of
from protocols.policy import DECRYPTOR, SERVER
from protocols.residues import weighted_sum
from protocols.rlwe import PK18_44
from protocols.secagg.ring import Member
from protocols.tenseal_ckks import PublicKey, encrypt


def decryptor(world: Any, make_released: Any, folder: Any) -> list[Receiver]:
    """Clients with masks, server and decryptor, one group's uploads on their way."""
    enrolment, one = world.enrolment(), world.holder()
    start = _begun(world, enrolment, one, make_released)
    plan, plan_id, key_blob, accepted, bodies = start
    group, client, began = plan.groups[0], world.clients(enrolment), Live(one, folder / "alone")
    uploads = [client[name].contribute(accepted[name], group, bodies[name]) for name in "abcd"]
    for upload in uploads:
        assert one.answer(upload) == []
    asked = Live(one, folder / "alone, asked")
    total = weighted_sum(PK18_44, plan.size, bodies.values(), group.alphas)
    request = seal(_request(plan, plan_id, uploads, total), world.server_key)
    (opening,) = one.answer(request)
    earlier, later = (Masking(client[name], accepted[name]) for name in "ab")
    earlier.accept_key(later.announce(), "b")
    mask_key, seed = earlier.announce(), earlier.send_seed("b")

    def keys(blob: bytes) -> None:
        found = client["a"].accept_keys(
            {DECRYPTOR: blob}, accepted["a"]._replace(keys={}), PK18_44.public_key_bytes
        )
        PublicKey(PK18_44, found.keys[DECRYPTOR].body)

    by, theirs = world.keys["a"], world.holder_key
    receivers = [
        party("client, public key", key_blob, theirs, KEY, keys),
        party(
            "client, decryptor's opening",
            opening,
            theirs,
            OPENING,
            lambda blob: client["a"].accept_opening(blob, accepted["a"], group),
        ),
        party("client, mask key", mask_key, by, {"body"}, lambda b: later.accept_key(b, "a")),
        party("client, mask seed", seed, by, (), lambda b: later.accept_seed(b, "a")),
        party(
            "server, refusal",
            one._refusal(),
            theirs,
            (),
            lambda b: world.server(enrolment).accept_key(b, plan, plan_id, DECRYPTOR, 0),
        ),
        holder("decryptor, contribution", began, uploads[0], by, {"body"}),
        holder("decryptor, request", asked, request, world.server_key, ()),
    ]
    receivers[3].state = lambda: dict(later._seeds)
    return receivers


def ring(world: Any, make_released: Any, folder: Any) -> list[Receiver]:
    """The second client of a ring, server and decryptor; the links on their way."""
    enrolment = world.enrolment(mode="ring/decryptor")
    (folder / "ring").mkdir()
    one = Decrypting(folder / "ring", enrolment, DECRYPTOR, world.holder_key)
    plan, plan_id, _, accepted, bodies = _begun(world, enrolment, one, make_released)
    group, clients = plan.groups[0], world.clients(enrolment)
    everybody = {name: Member(clients[name], accepted[name]) for name in "abcd"}
    for name, member in everybody.items():
        for other in everybody.keys() - {name}:
            everybody[other].accept_key(member.announce(), name)
    order, hops = ring_of(plan, group), [b""]
    for name in order:
        hops.append(everybody[name].send_hop(group, hops[-1], bodies[name]))
    everybody[order[0]].close(group, hops[-1])
    links = [everybody[name].link(group) for name in "abcd"]
    assert one.answer(links[0]) == []
    began = Live(one, folder / "in the ring")
    for link in links[1:]:
        assert one.answer(link) == []
    asked = Live(one, folder / "in the ring, asked")
    request = seal(_request(plan, plan_id, links, b""), world.server_key)
    second, first = everybody[order[1]], world.keys[order[0]]

    def linked(blob: bytes) -> None:
        size = PK18_44.ciphertext_bytes(plan.size)
        world.server(enrolment).accept_link(blob, plan, plan_id, group, order[0], size)

    free = {"received", "sent", "body"}
    return [
        party(
            "client, hop",
            hops[1],
            first,
            (),
            lambda blob: second.send_hop(group, blob, bodies[order[1]]),
        ),
        party("server, link", links["abcd".index(order[0])], first, free, linked),
        holder("decryptor, link", began, links[1], world.keys["b"], free),
        holder("decryptor, request in a ring", asked, request, world.server_key, ()),
    ]


def _begun(world: Any, enrolment: Any, one: Any, make_released: Any) -> tuple[Any, ...]:
    """A plan that a decryptor took, and what its clients encrypted under its key."""
    plan = world.plan(1, enrolment=enrolment)
    blob = seal(plan, world.server_key)
    (key_blob,) = one.answer(blob)
    public = PublicKey(PK18_44, outline(key_blob).body)
    accepted, bodies = {}, {}
    for name, client in world.clients(enrolment).items():
        if name in plan.participants:
            own = client.accept_plan(blob)
            size = PK18_44.public_key_bytes
            accepted[name] = client.accept_keys({DECRYPTOR: key_blob}, own, size)
            values = make_released(world.values[name, 1])
            bodies[name] = encrypt(public, values, (0, plan.size))
    return plan, identity(blob), key_blob, accepted, bodies


def _request(plan: Any, plan_id: str, collected: list[bytes], body: bytes) -> OpeningRequest:
    return OpeningRequest(
        **plan.stage._asdict(),
        sender=SERVER,
        plan=plan_id,
        group="g0",
        participants=plan.groups[0].participants,
        contributions=tuple(map(identity, collected)),
        body=body,
    )
