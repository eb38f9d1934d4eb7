"""A site of a deployed federation: the client, and its own key holder where sites hold the keys."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from pydantic import ValidationError

from protocols.chain import SigningKey, canonical
from protocols.checkpoints import Checkpoint, CheckpointBook
from protocols.envelope import outline
from protocols.errors import ProtocolError
from protocols.ledger_heads import (
    Head,
    HeadBook,
    KeptHead,
    check_heads,
    check_own_head,
    parse_kept,
)
from protocols.messages import Opened, Opening, RoundPlan
from protocols.parties import Accepted, Client
from protocols.policy import SERVER, holder_name
from protocols.release import Released
from protocols.sealing import PUBLIC_BYTES
from protocols.secagg.threshold import contribution
from protocols.share_holder import ShareHolder
from secure_natfl.deploy.agreement import agreed
from secure_natfl.deploy.desk import Answering, Desk
from secure_natfl.deploy.letter import Letter
from secure_natfl.deploy.party import Phase
from secure_natfl.deploy.site_file import read_site_file
from secure_natfl.deploy.standing import charges
from secure_natfl.deploy.training import SiteTraining
from secure_natfl.site_state import secret


class SiteParty(Desk):
    """A site in its folder, which is named as the site; a `Party` of the exchange.

    Its images are loaded with the first question that needs them. Live keys of its key holder are
    in this process's memory and nowhere else: after a restart an attempt that was not opened
    needs a new one, in which the stored integers are encrypted anew.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder.name, folder)
        enrolment = self.enrolled.enrolment
        own = read_site_file(folder, self.name, self.enrolled.config)
        self._agreed, self._policy = agreed(self.enrolled), own.policy
        self._own = own
        self._client = Client(self.name, self.key, enrolment, self._release)
        self._keys = {name: bytes.fromhex(key) for name, key in enrolment.clients.items()}
        self._holder: ShareHolder | None = None
        holder = holder_name(self.name)
        if holder in enrolment.holders:
            key = SigningKey(secret(folder, "holder", os.urandom))
            self._holder = ShareHolder(folder / "holder", enrolment, holder, key)

    def close(self) -> None:
        """Destroy the live key, close ledger and journals, let go of the folder."""
        if self._holder is not None:
            self._holder.close()
        if "_work" in self.__dict__:
            self._work.close()
        super().close()

    @cached_property
    def _work(self) -> SiteTraining:
        return SiteTraining(self.folder, self.enrolled.session, self._own, self._agreed)

    def _release(self, plan: RoundPlan) -> Released:
        return self._work.release(plan)

    @property
    def _heads(self) -> HeadBook:
        return HeadBook(self.folder / "heads.jsonl", self.name, self.key, self._keys)

    @property
    def _checkpoints(self) -> CheckpointBook:
        path = self.folder / "checkpoints.jsonl"
        return CheckpointBook(path, self.name, self.key, self._keys_of_server)

    @property
    def _keys_of_server(self) -> bytes:
        return self.enrolled.enrolment.verify_key(SERVER)

    def _enrolled_key(self) -> str | None:
        return self.enrolled.enrolment.clients.get(self.name)

    def _answers(self) -> Mapping[Phase, Answering]:
        return {
            "meet": self._meet,
            "plan": self._plan,
            "contribute": self._contribute,
            "open": self._open,
            "learn": self._learn,
            "close": self._end,
        }

    def _meet(self, asked: Letter) -> Sequence[bytes]:
        """Agree on the list and the site's policy; hand out what it keeps of others' ledgers."""
        super()._meet(asked)
        self._policy.check_terms(self.name, self._agreed)
        kept = {one.head.site: one for one in self._heads.kept}
        return [_lines(kept.values())]

    def _plan(self, asked: Letter) -> Sequence[bytes]:
        """Accept a plan; the ledger must be the one that others saw. The key holder's answer."""
        blob, copies, latest = _parts(asked, 3)
        plan = self._accept(blob, asked).plan
        self._demand_latest(latest)
        kept = [parse_kept(line) for line in copies.splitlines()]
        mine = [one for one in kept if one.head.site == self.name]
        check_heads(self._work.ledger, mine, self.key.public, self._keys)
        self._policy.check_plan(plan, self.name)
        return [] if self._holder is None else self._holder.answer(blob)

    def _contribute(self, asked: Letter) -> Sequence[bytes]:
        """Charge, train, store, encrypt: the contribution to each group, and shares of its key."""
        self._demand_planned(asked)
        blob, stated, latest, *keys = _at_least(asked, 3)
        accepted = self._accept(blob, asked)
        self._demand_latest(latest)
        groups, holders = _stated(stated)
        if len(holders) != len(keys):
            raise ProtocolError("not one key per holder", where=self.name)
        named = dict(zip(holders, keys, strict=True))
        accepted = self._client.accept_keys(named, accepted, PUBLIC_BYTES)
        found: list[bytes] = []
        for group in accepted.plan.groups_of(self.name):
            if group.name in groups:
                self._client.demand_closed(accepted, group)
                released = self._client.draw(accepted)
                found += contribution(self._client, accepted, group, released)
        return [self._charges(), *found]

    def _open(self, asked: Letter) -> Sequence[bytes]:
        """As a key holder: shares, then the requests that they open."""
        if self._holder is None:
            raise ProtocolError("this site holds no key", where=self.name)
        return [found for blob in asked.parts for found in self._holder.answer(blob)]

    def _learn(self, asked: Letter) -> Sequence[bytes]:
        """Check the sums, co-sign the log, keep others' ledger heads, take up the central model."""
        blob, central, checkpoint, proofs, heads, *openings = _at_least(asked, 5)
        accepted = self._accept(blob, asked, any_attempt=True)
        self._check_openings(accepted, openings)
        for line in heads.splitlines():
            self._keep(line)
        signed = self._cosign(checkpoint, proofs)
        standing = self._work.learn(accepted.plan, central)
        return [signed, standing.model_dump_json().encode(), self._charges()]

    def _end(self, asked: Letter) -> Sequence[bytes]:
        """Co-sign the end of the log."""
        checkpoint, proofs = _parts(asked, 2)
        return [self._cosign(checkpoint, proofs)]

    def _accept(self, blob: bytes, asked: Letter, *, any_attempt: bool = False) -> Accepted:
        """The plan in a letter, if it is of the letter's place."""
        self._policy.check_terms(self.name, self._agreed)
        accepted = self._client.accept_plan(blob)
        place = (accepted.plan.round, accepted.plan.attempt)
        if place != asked.header.place and not (any_attempt and place[0] == asked.header.round):
            raise ProtocolError("the plan is of another round or attempt", where=self.name)
        return accepted

    def _check_openings(self, accepted: Accepted, openings: Sequence[bytes]) -> None:
        """One signed sum for each of this site's groups."""
        groups = {group.name: group for group in accepted.plan.groups_of(self.name)}
        for blob in openings:
            message = outline(blob)
            if not isinstance(message, Opening) or message.group not in groups:
                raise ProtocolError("this is no sum of this site's groups", where=self.name)
            by = Opened(group=message.group, attempt=message.attempt, plan=message.plan)
            self._client.accept_opening(blob, accepted, groups.pop(message.group), by)
        if groups:
            raise ProtocolError("a sum is missing", where=", ".join(groups))

    def _demand_latest(self, line: bytes) -> None:
        """The ledger goes on from what this site last told the server of it, if anything."""
        if line:
            # Copies that others kept are handed out once in a session, and may be older.
            check_own_head(self._work.ledger, self._head(line), self.key.public, SERVER)

    def _head(self, line: bytes) -> Head:
        """A ledger head in bytes that came from outside."""
        try:
            return Head.model_validate_json(line)
        except ValidationError as error:
            raise ProtocolError("this is no ledger head", where=self.name) from error

    def _keep(self, line: bytes) -> None:
        """Another site's signed ledger head."""
        head = self._head(line)
        if head.site != self.name:
            self._heads.keep(head)

    def _cosign(self, checkpoint: bytes, proofs: bytes) -> bytes:
        """Co-sign where the log stands, once it is shown to continue what was kept."""
        try:
            shown = Checkpoint.model_validate_json(checkpoint)
            known: dict[str, list[str]] = json.loads(proofs)
            book = self._checkpoints
            proof = [
                bytes.fromhex(one) for one in known.get(str(book.last_size(shown.session)), [])
            ]
        except (ValueError, AttributeError, TypeError) as error:
            raise ProtocolError("a checkpoint cannot be read", where=self.name) from error
        if shown.session != self.enrolled.session:
            raise ProtocolError("a checkpoint of another session", where=self.name)
        return canonical(book.cosign(shown, proof).model_dump(mode="json"))

    def _charges(self) -> bytes:
        return charges(self._work.ledger, self.enrolled.session, self.key)


def _parts(asked: Letter, count: int) -> tuple[bytes, ...]:
    if len(asked.parts) != count:
        raise ProtocolError(f"{len(asked.parts)} parts, not {count}", where=asked.header.phase)
    return asked.parts


def _at_least(asked: Letter, count: int) -> tuple[bytes, ...]:
    if len(asked.parts) < count:
        raise ProtocolError(f"{len(asked.parts)} parts are too few", where=asked.header.phase)
    return asked.parts


def _stated(blob: bytes) -> tuple[set[str], list[str]]:
    """Which groups are still shut, and whose keys follow, in order."""
    with suppress(ValueError, KeyError, TypeError):
        stated = json.loads(blob)
        return set(stated["groups"]), list(stated["holders"])
    raise ProtocolError("groups and holders cannot be read", where="contribute")


def _lines(kept: Iterable[KeptHead]) -> bytes:
    return b"\n".join(canonical(one.model_dump()) for one in kept)
