"""A round over an exchange: plan, contribute, open. The server's side of `ckks/threshold`.

Clients and holders run the very steps of `protocols.secagg.threshold`, each at its own end; here
the messages of many travel as one letter per party and phase, and whoever does not answer is left
out. What arrives is verified before it enters the transcript.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from protocols.chain import canonical
from protocols.envelope import authentic, identity, outline, seal, unseal
from protocols.errors import AbsentError, ProtocolError
from protocols.messages import (
    Contribution,
    Group,
    KeyOpening,
    KeyShare,
    M,
    Opened,
    Opening,
    OpeningRequest,
    RoundPlan,
)
from protocols.multikey import multikey_preset
from protocols.multikey_ckks import MultiKeySum
from protocols.parties import Server, check_opening, opening_of
from protocols.policy import SERVER, check_included
from protocols.sealing import PUBLIC_BYTES, seal_to
from protocols.secagg.threshold import open_with
from protocols.secagg.topology import Absent
from protocols.transcript import Transcript
from secure_natfl.deploy.post import Post

Letters = dict[str, tuple[bytes, ...]]


@dataclass(frozen=True)
class Played:
    """A round's signed sums, group → opening; who was left out."""

    openings: Mapping[str, bytes]
    absent: Mapping[str, str]


@dataclass(frozen=True)
class Rounds:
    """Plays attempts of rounds; `transcript` has all that the server sent and received.

    charged: takes what a client says of its ledger, before anything else of its answer counts;
    ProtocolError for what cannot be.
    """

    server: Server
    transcript: Transcript
    post: Post
    charged: Callable[[str, bytes], None]

    def play(
        self, plan: RoundPlan, copies: Mapping[str, bytes], heads: Mapping[str, bytes]
    ) -> Played:
        """One attempt. Of a client's ledger, copies: what others kept; heads: what it last said.

        ProtocolError where too few took part for a sum to be opened; a new attempt may be made.
        """
        absent = Absent()
        openings = dict(self.finished(plan.round, absent))
        if all(group.name in openings for group in plan.groups):
            return Played(openings, absent)
        blob, enrolment = seal(plan, self.server.key), self.server.enrolment
        self._record(blob, SERVER, (*plan.participants, *enrolment.holder_order))
        hosts = dict.fromkeys((*plan.participants, *map(self._host, enrolment.holder_order)))
        accepted = self.post.ask(
            "plan",
            _place(plan),
            {
                p: [blob, *([copies.get(p, b""), heads.get(p, b"")] * (p in enrolment.clients))]
                for p in hosts
            },
            absent,
        )
        keys = self._keys(plan, identity(blob), accepted, absent)
        present = [name for name in plan.participants if name in accepted]
        for key in keys.values():
            self._record(key, SERVER, present)
        shut = [group for group in plan.groups if group.name not in openings]
        for group in shut:
            # Nobody trains for a sum that cannot be opened.
            check_included(plan, group, [n for n in group.participants if n in present])
        stated = canonical({"groups": [group.name for group in shut], "holders": list(keys)})
        answers = self.post.ask(
            "contribute",
            _place(plan),
            {name: [blob, stated, heads.get(name, b""), *keys.values()] for name in present},
            absent,
        )
        uploads = self._uploads(plan, identity(blob), shut, answers, list(keys), absent)
        requests = [
            self.server.request(plan, identity(blob), group, uploads.get(group.name, {}))
            for group in shut
        ]
        openings |= self._opened(plan, requests, absent)
        return Played(openings, absent)

    def finished(self, round_number: int, absent: Absent) -> Iterator[tuple[str, bytes]]:
        """The round's sums that are open already, or whose holders still answer what was asked."""
        done = {message.group: blob for message, blob in self._own(Opening, round_number)}
        yield from done.items()
        plans = {identity(blob): old for old, blob in self._own(RoundPlan, round_number)}
        asked: dict[str, list[bytes]] = defaultdict(list)
        for request, blob in self._own(OpeningRequest, round_number):
            asked[request.plan].append(blob)
        # The latest first: an attempt is over once its holders are asked about a later one.
        for plan_id, requests in reversed(asked.items()):
            if all(_read(blob, OpeningRequest).group in done for blob in requests):
                continue
            with absent.noted(f"attempt-{plans[plan_id].attempt}", ProtocolError):
                found = self._opened(plans[plan_id], requests, absent)
                done |= found
                yield from found.items()

    def _keys(
        self, plan: RoundPlan, plan_id: str, answers: Letters, absent: Absent
    ) -> dict[str, bytes]:
        """The holders' keys for this plan."""
        keys: dict[str, bytes] = {}
        for holder in self.server.enrolment.holder_order:
            if self._host(holder) in answers:
                with absent.noted(holder, ProtocolError):
                    (blob,) = _exactly(answers[self._host(holder)], 1, holder)
                    key = self.server.accept_key(blob, plan, plan_id, holder, PUBLIC_BYTES)
                    # One that cannot be sealed to would stop every client.
                    seal_to(key.body, b"", holder)
                    self._record(blob, holder, (SERVER,))
                    keys[holder] = blob
        return keys

    def _uploads(
        self,
        plan: RoundPlan,
        plan_id: str,
        shut: Sequence[Group],
        answers: Letters,
        holders: Sequence[str],
        absent: Absent,
    ) -> dict[str, dict[str, str]]:
        """Group → client → its upload's identity; uploads and key shares are in the transcript."""
        found: dict[str, dict[str, str]] = {group.name: {} for group in shut}
        each = 1 + len(holders)
        for name, (charges, *messages) in ((n, parts) for n, parts in answers.items() if parts):
            with absent.noted(name, ProtocolError):
                self.charged(name, charges)
                own = [group for group in shut if name in group.participants]
                _exactly(messages, each * len(own), name)
                for i, group in enumerate(own):
                    blob, *shares = messages[i * each : (i + 1) * each]
                    expected = multikey_preset(plan.preset).ciphertext_bytes(plan.width_of(group))
                    self.server.accept_contribution(blob, plan, plan_id, group, name, expected)
                    for holder, share in zip(holders, shares, strict=True):
                        self._check_share(share, plan, name, holder, identity(blob))
                    self._record(blob, name, (SERVER,))
                    for share in shares:
                        self._record(share, name, (SERVER,))
                    found[group.name][name] = identity(blob)
        ordered = plan.participants
        return {g: {n: ids[n] for n in ordered if n in ids} for g, ids in found.items()}

    def _check_share(
        self, blob: bytes, plan: RoundPlan, client: str, holder: str, upload: str
    ) -> None:
        """A sealed share is this client's, for this holder and upload; what is in it, none sees."""
        key = self.server.enrolment.verify_key(client)
        share = unseal(blob, KeyShare, plan.stage, sender=client, verify_key=key)
        if (share.holder, share.contribution) != (holder, upload):
            raise ProtocolError("a key share is of another holder or upload", where=client)

    def _opened(
        self, plan: RoundPlan, requests: Sequence[bytes], absent: Absent
    ) -> dict[str, bytes]:
        """Ask every holder for its shares of the requested sums; open them, and sign.

        What is sent is made from the transcript alone, so that a server that died sends the same.
        """
        shares = self._shares(plan)
        order = self.server.enrolment.holder_order
        letters: dict[str, list[bytes]] = {}
        for holder in order:
            for share in shares[holder]:
                self._record(share, SERVER, (holder,))
            letters[self._host(holder)] = [*shares[holder], *requests]
        for blob in requests:
            self._record(blob, SERVER, order)
        answers = self.post.ask("open", _place(plan), letters, absent)
        found = {}
        for at, blob in enumerate(requests):
            opening = self._open_one(plan, blob, answers, at, absent)
            self._record(
                opening, SERVER, plan.group(_read(blob, OpeningRequest).group).participants
            )
            found[_read(opening, Opening).group] = opening
        return found

    def _open_one(
        self, plan: RoundPlan, blob: bytes, answers: Letters, at: int, absent: Absent
    ) -> bytes:
        request, enrolment = _read(blob, OpeningRequest), self.server.enrolment
        ring, got = multikey_preset(plan.preset), dict[int, KeyOpening]()
        for number, holder in enumerate(enrolment.holder_order, 1):
            parts = answers.get(self._host(holder), ())
            if len(parts) > at:
                with absent.noted(holder, ProtocolError):
                    got[number] = self.server.accept_key_opening(
                        parts[at], request, identity(blob), holder, ring.share_bytes
                    )
                    self._record(parts[at], holder, (SERVER,))
        whole = plan.group(request.group)
        total = self._total(plan, request)
        integers = open_with(total, got, request, whole, ring, enrolment, absent)
        opened = Opened(group=request.group, attempt=request.attempt, plan=request.plan)
        message = opening_of(
            plan, opened, request.participants, identity(blob), integers, sender=SERVER
        )
        sealed = seal(message, self.server.key)
        check_opening(sealed, plan, opened, enrolment)
        return sealed

    def _total(self, plan: RoundPlan, request: OpeningRequest) -> MultiKeySum:
        """The weighted sum of the uploads that a request names, one at a time in memory."""
        group = plan.group(request.group).among(request.participants)
        total = MultiKeySum(multikey_preset(plan.preset), plan.width_of(group))
        wanted = dict(zip(request.contributions, group.alphas, strict=True))
        for message, blob in self.transcript.recall(Contribution, plan.round):
            if identity(blob) in wanted:
                total.add(message.body, wanted.pop(identity(blob)))
        if wanted:
            raise AbsentError("an upload is missing from the transcript", where=request.group)
        return total

    def _shares(self, plan: RoundPlan) -> dict[str, list[bytes]]:
        """Holder → the sealed key shares of this attempt, in the plan's order."""
        found: dict[str, dict[tuple[str, str], bytes]] = defaultdict(dict)
        for message, blob in self.transcript.recall(KeyShare, plan.round):
            if message.attempt == plan.attempt:
                found[message.holder][message.group, message.sender] = blob
        places = [(group.name, name) for group in plan.groups for name in group.participants]
        return {
            holder: [found[holder][place] for place in places if place in found[holder]]
            for holder in self.server.enrolment.holder_order
        }

    def _host(self, holder: str) -> str:
        """The party that answers for a key holder: the client whose role it is, or itself."""
        client = holder.removesuffix(".holder")
        return client if client in self.server.enrolment.clients else holder

    def _record(self, blob: bytes, sender: str, receivers: Sequence[str]) -> None:
        self.transcript.append(blob, sender, receivers)

    def _own(self, kind: type[M], round_number: int) -> Iterator[tuple[M, bytes]]:
        """What this server sent of one kind in a round."""
        public = self.server.key.public
        for _, blob in self.transcript.recall(kind, round_number):
            with suppress(ProtocolError):
                yield authentic(blob, kind, sender=SERVER, verify_key=public), blob


def _read(blob: bytes, kind: type[M]) -> M:
    """A message that was verified before."""
    message = outline(blob)
    if not isinstance(message, kind):
        raise ProtocolError(f"this is no {kind.kind}")
    return message


def _exactly(parts: Sequence[bytes], count: int, where: str) -> Sequence[bytes]:
    if len(parts) != count:
        raise ProtocolError(f"{len(parts)} messages where {count} are due", where=where)
    return parts


def _place(plan: RoundPlan) -> tuple[int, int]:
    return plan.round, plan.attempt
