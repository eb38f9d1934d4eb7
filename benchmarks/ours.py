"""The default mode's parties on the benchmark's workload, without disk and network between them.

Eight clients, five independent key holders of whom any three open, noise of ε = 8 on. Every step
is the one that a federation runs: signatures, hashes and parsing are in the times.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protocols import __version__
from protocols.chain import SigningKey, digest
from protocols.envelope import identity, outline, seal
from protocols.ledger import Ledger, ReleaseKey
from protocols.messages import Group, IntVector, KeyOpening, OpeningRequest, RoundPlan
from protocols.multikey import MK18_39, MultiKeyPreset
from protocols.multikey_ckks import MultiKeySum
from protocols.noise_plan import NoisePlan
from protocols.parties import Accepted, Client, Server, reference_of
from protocols.policy import SERVER, Enrolment, check_plan
from protocols.quantize import Layout, Segment
from protocols.release import Released
from protocols.sealing import PUBLIC_BYTES
from protocols.secagg.threshold import contribution, open_with
from protocols.secagg.topology import Absent
from protocols.share_holder import ShareHolder

HOLDERS, THRESHOLD = 5, 3
SHARDS = 20


@dataclass(frozen=True)
class Uploaded:
    """What one client sends: its contribution, and a sealed key share for each holder."""

    contribution: bytes
    shares: list[bytes]

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return len(self.contribution) + sum(map(len, self.shares))


class Ours:
    """All parties of one round with these weights, each client's release already drawn."""

    def __init__(
        self,
        folder: Path,
        alphas: Sequence[int],
        rows: int,
        columns: int,
        preset: MultiKeyPreset = MK18_39,
        *,
        distinct: int = 8,
    ) -> None:
        self.ring, self.folder, self.size = preset, folder, rows * columns
        self.names = tuple(f"client-{at:04d}" for at in range(len(alphas)))
        self.group = Group(name="all", participants=self.names, alphas=tuple(alphas))
        layout = Layout((Segment("logits", rows, columns),))
        self.releases = _releases(folder, alphas, layout, preset.bits, distinct)
        keys = {name: SigningKey.generate(os.urandom) for name in self.names}
        holder_keys = {f"holder-{at}": SigningKey.generate(os.urandom) for at in range(HOLDERS)}
        server_key = SigningKey.generate(os.urandom)
        self.enrolment = Enrolment(
            session="benchmark",
            mode="ckks/threshold",
            server=server_key.public.hex(),
            clients={name: key.public.hex() for name, key in keys.items()},
            holders={name: key.public.hex() for name, key in holder_keys.items()},
            threshold=THRESHOLD,
            preset=preset.name,
            proxies=digest(b"proxies"),
            terms=digest(b"terms"),
        )
        self.server = Server(server_key, self.enrolment)
        self.clients = {
            name: Client(name, keys[name], self.enrolment, self._release) for name in self.names
        }
        self.holders = {
            name: ShareHolder(_folder(folder / name), self.enrolment, name, key)
            for name, key in holder_keys.items()
        }
        self.begin()

    def begin(self) -> None:
        """Server and holders: a signed plan, and the holders' keys for it."""
        attempt = getattr(self, "plan", None)
        self.plan = RoundPlan(
            session="benchmark",
            round=1,
            attempt=1 + (attempt.attempt if attempt else 0),
            sender=SERVER,
            version=__version__,
            mode="ckks/threshold",
            proxies=self.enrolment.proxies,
            groups=(self.group,),
            preset=self.ring.name,
            layout=digest(b"layout"),
            size=self.size,
            terms=self.enrolment.terms,
            floors=self.enrolment.floors,
            holders=self.enrolment.holders_id,
            body=np.arange(2000, dtype="<u4").tobytes(),
        )
        self.plan_blob = seal(self.plan, self.server.key)
        self.plan_id = identity(self.plan_blob)
        self.keys = {
            name: holder.answer(self.plan_blob)[0] for name, holder in self.holders.items()
        }

    def accept(self, name: str) -> Accepted:
        """Client: check the plan and the holders' keys."""
        client = self.clients[name]
        own = client.accept_plan(self.plan_blob)
        return client.accept_keys(self.keys, own, PUBLIC_BYTES)

    def client(self, number: int) -> Uploaded:
        """Client: all that it does and sends in one round, after its release was drawn."""
        name = self.names[number]
        own = self.accept(name)
        first, *shares = contribution(
            self.clients[name], own, self.group, self.releases[number % len(self.releases)]
        )
        return Uploaded(first, shares)

    def aggregate(self, uploads: Iterable[bytes]) -> tuple[MultiKeySum, bytes]:
        """Server: check, weight and add every contribution, then ask for the sum."""
        check_plan(self.plan, self.enrolment)
        total, accepted = MultiKeySum(self.ring, self.size), dict[str, str]()
        expected = self.ring.ciphertext_bytes(self.size)
        weighted = zip(self.names, self.group.alphas, uploads, strict=True)
        for name, alpha, blob in weighted:
            upload = self.server.accept_contribution(
                blob, self.plan, self.plan_id, self.group, name, expected
            )
            total.add(upload.body, alpha)
            accepted[name] = identity(blob)
        return total, self.server.request(self.plan, self.plan_id, self.group, accepted)

    def answers(self, shares: Sequence[Sequence[bytes]], request: bytes) -> list[bytes]:
        """Holders: unseal each client's share, answer the request."""
        for at, holder in enumerate(self.holders.values()):
            for one in shares:
                holder.answer(one[at])
        return [holder.answer(request)[0] for holder in self.holders.values()]

    def open(self, total: MultiKeySum, request_blob: bytes, answers: Sequence[bytes]) -> IntVector:
        """Server: check the holders' answers and open the sum."""
        request = outline(request_blob)
        assert isinstance(request, OpeningRequest)  # noqa: S101 - our own
        checked = dict[int, KeyOpening]()
        for number, (name, blob) in enumerate(zip(self.holders, answers, strict=True), 1):
            checked[number] = self.server.accept_key_opening(
                blob, request, identity(request_blob), name, self.ring.share_bytes
            )
        return open_with(total, checked, request, self.group, self.ring, self.enrolment, Absent())

    def expected(self) -> IntVector:
        """Σα·x of the released integers, in the clear."""
        pool = self.releases
        return sum(
            (alpha * pool[at % len(pool)].values for at, alpha in enumerate(self.group.alphas)),
            np.zeros(self.size, np.int64),
        )

    def reference(self) -> bytes:
        """What the group's public polynomials are expanded from."""
        return reference_of(self.plan_id, self.group.name)

    def _release(self, plan: RoundPlan) -> Released:
        raise RuntimeError(f"releases are drawn beforehand (round {plan.round})")


def _releases(
    folder: Path, alphas: Sequence[int], layout: Layout, bits: int, distinct: int
) -> list[Released]:
    """A real release of up to `distinct` clients: teachers, clip, ledger, noise of ε = 8."""
    names = [str(at) for at in range(len(alphas))]
    plan = NoisePlan.calibrate(
        epsilon=8.0,
        delta=1e-5,
        rounds=1,
        alphas=dict(zip(names, alphas, strict=True)),
        groups=dict.fromkeys(names, "all"),
        colluders=1,
        dropouts=0,
        shards=dict.fromkeys(names, SHARDS),
        clip_norm=60.0,
        size=layout.size,
        bits=bits,
    )
    draw, releases = np.random.default_rng(0), []
    for name in names[:distinct]:
        mechanism = plan.mechanisms[name]
        with tempfile.TemporaryDirectory(dir=folder) as place:
            ledger = Ledger(
                Path(place) / "ledger.db", name, "patients", budget_epsilon=None, delta=1e-5
            )
            bounded = mechanism.bound(draw.normal(size=(SHARDS, layout.size)), layout)
            key = ReleaseKey("benchmark", 1)
            releases.append(mechanism.release(bounded, ledger, key, os.urandom))
            ledger.close()
    return releases


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
