"""`ckks` with custody `threshold`: one-time keys, of which t of n holders open only a sum."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import combinations
from typing import ClassVar

from protocols.envelope import authentic, identity, outline, seal
from protocols.errors import ProtocolError
from protocols.messages import (
    Contribution,
    Group,
    IntVector,
    KeyOpening,
    M,
    Opened,
    Opening,
    OpeningRequest,
    RoundPlan,
)
from protocols.multikey import MultiKeyPreset, multikey_preset
from protocols.multikey_ckks import MultiKeySum, protect
from protocols.outcome import Costs, Outcome
from protocols.parties import Accepted, Client, Server, check_opening, opening_of, reference_of
from protocols.policy import SERVER, Enrolment
from protocols.release import Released
from protocols.sealing import PUBLIC_BYTES, seal_to
from protocols.secagg.topology import Absent
from protocols.sharing import consistent, interpolate, unpack_share
from protocols.transport import Wire


class Threshold:
    """Key holders, the clients or independent bodies, each with a share of every one-time key.

    `wire` must be connected to each holder under its enrolled name.
    """

    kind: ClassVar[str] = "ckks"
    custody: ClassVar[str] = "threshold"

    def __init__(self, server: Server, clients: Mapping[str, Client], wire: Wire) -> None:
        self._server, self._clients, self._wire = server, clients, wire

    def play(self, plan: RoundPlan) -> Outcome:
        """Play one attempt of one round."""
        server, wire, costs = self._server, self._wire.renewed(), Costs(self._wire)
        enrolment, absent = server.enrolment, Absent()
        ring = multikey_preset(plan.preset)

        # server ↔ holders: sums that an earlier attempt asked for are finished first
        openings = dict(self._finished(plan, absent))

        # server → clients, holders: the signed plan, which binds all that follows
        plan_blob = seal(plan, server.key)
        plan_id = identity(plan_blob)
        wire.send(SERVER, (*plan.participants, *enrolment.holders), plan_blob)

        # holders → server → clients: a sealing key for this plan; earlier attempts are closed
        keys = dict[str, bytes]()
        for holder in enrolment.holder_order:
            with absent.noted(holder, ProtocolError):
                blob = wire.receive(SERVER, holder)
                key = server.accept_key(blob, plan, plan_id, holder, PUBLIC_BYTES)
                # One that cannot be sealed to would stop every client.
                seal_to(key.body, b"", holder)
                keys[holder] = blob
        for blob in keys.values():
            wire.send(SERVER, plan.participants, blob)

        # clients: accept the plan and the keys made for it
        accepted = dict[str, Accepted]()
        for name in plan.participants:
            with absent.noted(name):
                own = self._clients[name].accept_plan(wire.receive(name, SERVER))
                blobs = {holder: wire.receive(name, SERVER) for holder in keys}
                accepted[name] = self._clients[name].accept_keys(blobs, own, PUBLIC_BYTES)

        for group in (group for group in plan.groups if group.name not in openings):
            total, uploads = MultiKeySum(ring, plan.width_of(group)), dict[str, str]()
            for name in (name for name in group.participants if name in accepted):
                # client → server: its release under a key used this once, sealed shares of the key
                client, own = self._clients[name], accepted[name]
                client.demand_closed(own, group)
                released = client.draw(own)
                with costs.timed(f"protect {name}"):
                    messages = contribution(client, own, group, released)
                for message in messages:
                    wire.send(name, (SERVER,), message)
                # server: adds α times the ciphertext; → holders: each its share
                with absent.noted(name, ProtocolError), costs.timed("aggregate"):
                    blob, *shares = (wire.receive(SERVER, name) for _ in messages)
                    expected = ring.ciphertext_bytes(plan.width_of(group))
                    upload = server.accept_contribution(blob, plan, plan_id, group, name, expected)
                    total.add(upload.body, group.among([name]).total)
                    uploads[name] = identity(blob)
                    for holder, share in zip(keys, shares, strict=True):
                        wire.send(SERVER, (holder,), share)
            # server → holders: who is in the sum; holders → server: their shares of Σα·s
            with costs.timed("open"):
                request = server.request(plan, plan_id, group, uploads)
                openings[group.name] = self._opened(plan, request, total, absent)

        # server → groups: exact integers, signed
        for group in plan.groups:
            wire.send(SERVER, group.participants, openings[group.name])
            for name in (name for name in group.participants if name in accepted):
                with absent.noted(name):
                    blob = wire.receive(name, SERVER)
                    by = _opened_by(blob)
                    self._clients[name].accept_opening(blob, accepted[name], group, by)

        return costs.outcome(
            (check_opening(blob, plan, _opened_by(blob), enrolment) for blob in openings.values()),
            absent,
        )

    def _opened(
        self, plan: RoundPlan, request_blob: bytes, total: MultiKeySum, absent: Absent
    ) -> bytes:
        """Ask every holder, open with any t of the answers, sign the sum."""
        server, wire, enrolment = self._server, self._wire, self._server.enrolment
        request, ring = _request(request_blob), multikey_preset(plan.preset)
        wire.send(SERVER, enrolment.holder_order, request_blob)
        answers = dict[int, KeyOpening]()
        for number, holder in enumerate(enrolment.holder_order, 1):
            with absent.noted(holder, ProtocolError):
                blob = wire.receive(SERVER, holder)
                answers[number] = server.accept_key_opening(
                    blob, request, identity(request_blob), holder, ring.share_bytes
                )
        whole = plan.group(request.group)
        integers = open_with(total, answers, request, whole, ring, enrolment, absent)
        opened = Opened(group=request.group, attempt=request.attempt, plan=request.plan)
        message = opening_of(
            plan, opened, request.participants, identity(request_blob), integers, sender=SERVER
        )
        return seal(message, server.key)

    def _finished(self, plan: RoundPlan, absent: Absent) -> Iterator[tuple[str, bytes]]:
        """The round's sums that are open already, or whose holders still answer what was asked."""
        done = {message.group: blob for message, blob in self._own(Opening, plan.round)}
        yield from done.items()
        plans = {identity(blob): old for old, blob in self._own(RoundPlan, plan.round)}
        uploads = {
            identity(blob): message.body
            for message, blob in self._wire.transcript.recall(Contribution, plan.round)
        }
        # The latest first: an attempt is over once its holders are asked about an earlier one.
        for request, blob in reversed(list(self._own(OpeningRequest, plan.round))):
            if request.group in done:
                continue
            earlier = plans[request.plan]
            group = earlier.group(request.group).among(request.participants)
            total = MultiKeySum(multikey_preset(earlier.preset), earlier.width_of(group))
            for upload, alpha in zip(request.contributions, group.alphas, strict=True):
                total.add(uploads[upload], alpha)
            with absent.noted(f"attempt-{request.attempt}", ProtocolError):
                done[request.group] = self._opened(earlier, blob, total, absent)
                yield request.group, done[request.group]

    def _own(self, kind: type[M], round_number: int) -> Iterator[tuple[M, bytes]]:
        """What this server sent of one kind in a round; what others forged is recorded too."""
        public = self._server.key.public
        for _, blob in self._wire.transcript.recall(kind, round_number):
            with suppress(ProtocolError):
                yield authentic(blob, kind, sender=SERVER, verify_key=public), blob


def contribution(client: Client, own: Accepted, group: Group, released: Released) -> list[bytes]:
    """Client: its signed contribution to a group, then a sealed share of its key per holder."""
    part = protect(
        multikey_preset(own.plan.preset),
        released,
        own.plan.span_of(group),
        reference=reference_of(own.plan_id, group.name),
        heaviest=max(group.alphas),
        holders=len(client.enrolment.holders),
        threshold=client.enrolment.threshold,
    )
    blob = client.contribute(own, group, part.body)
    return [blob, *client.share_key(own, blob, group, part.shares)]


def open_with(
    total: MultiKeySum,
    answers: Mapping[int, KeyOpening],
    request: OpeningRequest,
    whole: Group,
    ring: MultiKeyPreset,
    enrolment: Enrolment,
    absent: Absent,
) -> IntVector:
    """Server: Σα·x as most of the answers have it, which are by holder number.

    Any t answers that fit give it. The polynomials a are public, so a liar can make its answer
    open a sum of its choice with t − 1 others' answers: the largest set that agrees counts, and
    if two are as large, none does. Of n ≥ t + 2f answers the f liars are always outvoted.
    Holders whose answer does not fit are noted in `absent`; ProtocolError if the sum stays shut.
    """
    shares, names = {}, dict(enumerate(enrolment.holder_order, 1))
    for number, answer in answers.items():
        with absent.noted(names[number], ProtocolError):
            shares[number] = unpack_share(ring, answer.body)
    reference = reference_of(request.plan, whole.name)
    alphas, heaviest = whole.among(request.participants).alphas, max(whole.alphas)
    sums = dict[frozenset[int], IntVector]()
    for chosen in combinations(shares, enrolment.threshold):
        if any(agreed.issuperset(chosen) for agreed in sums):
            continue
        through = {number: shares[number] for number in chosen}
        key_sum = interpolate(ring, through)
        if total.opens(key_sum, reference=reference, alphas=alphas, heaviest=heaviest):
            fits = (at for at in shares if consistent(ring, through, at, shares[at]))
            with suppress(ProtocolError):
                agreed = frozenset(fits)
                sums[agreed] = total.open(
                    key_sum, reference=reference, alphas=alphas, heaviest=heaviest
                )
        if len(shares) in map(len, sums):
            break
    most = max(map(len, sums), default=0)
    best = [agreed for agreed in sums if len(agreed) == most]
    if len(best) == 1:
        for number in shares.keys() - best[0]:
            absent[names[number]] = "its share is not of this sum"
        return sums[best[0]]
    raise ProtocolError(
        "the sum did not open",
        where=f"group {whole.name}, attempt {request.attempt}",
        why=f"{len(shares)} key shares came, {enrolment.threshold} that fit are needed"
        + (f"; {len(best)} different sums fit as well" if best else ""),
        fix="resume: the same sum is asked for again, then a new attempt is made",
    )


def _request(blob: bytes) -> OpeningRequest:
    message = outline(blob)
    assert isinstance(message, OpeningRequest)  # noqa: S101 - our own, just sealed or recalled
    return message


def _opened_by(blob: bytes) -> Opened:
    """The plan by which an opening says that it was made; the caller verifies the opening."""
    message = outline(blob)
    if not isinstance(message, Opening):
        raise ProtocolError("message is no opening", where=message.sender)
    return Opened(group=message.group, attempt=message.attempt, plan=message.plan)
