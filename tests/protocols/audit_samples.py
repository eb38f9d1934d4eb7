"""A log of a made-up session with its checkpoints, for tests of the log and of its verifiers."""

import random
from dataclasses import dataclass, field
from pathlib import Path

from protocols.audit_events import (
    Charged,
    PlannedGroup,
    RoundLearned,
    RoundOpened,
    RoundPlanned,
    SessionClosed,
    SessionOpened,
    Sum,
)
from protocols.audit_log import AuditLog
from protocols.chain import SigningKey, canonical, digest
from protocols.checkpoints import CheckpointBook, Cosigned, sign_checkpoint

SITES = ("ash", "birch", "cedar")
COST = canonical(
    {
        "clamp": 0.0,
        "closeness": 0.0,
        "mechanism": "shard-teachers",
        "relation": "replace_one",
        "rho": 0.25,
        "rho_isolated": 0.5,
        "sampling": 0.0,
    }
).decode()


def key_of(name: str) -> SigningKey:
    """A key for tests: everybody can compute it."""
    return SigningKey(bytes.fromhex(digest(name.encode())))


@dataclass
class Session:
    """A session that is logged in a folder, with every party's checkpoints."""

    folder: Path
    rounds: int = 2
    sites: tuple[str, ...] = SITES
    checkpoints: list[Cosigned] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = AuditLog(self.folder / "audit.jsonl")

    @property
    def data(self) -> bytes:
        return (self.folder / "audit.jsonl").read_bytes()

    def play(self) -> "Session":
        self.open()
        for number in range(self.rounds):
            self.round(number)
        self.close()
        return self

    def open(self) -> None:
        keys = {name: key_of(name).public.hex() for name in self.sites}
        self.log.append(
            "server",
            SessionOpened(
                session="s1",
                version="0.1.0",
                config="c" * 64,
                enrolment="e" * 64,
                server=key_of("server").public.hex(),
                clients=keys,
                holders={f"{name}.holder": key for name, key in keys.items()},
                threshold=2,
                simulated=True,
                seeded=False,
            ),
        )

    def round(self, number: int) -> None:
        group = PlannedGroup(name="all", participants=self.sites, alphas=(1,) * len(self.sites))
        self.log.append("server", RoundPlanned(round=number, proxies=40, groups=(group,)))
        for site in self.sites:
            head = digest(f"{site} {number}".encode())
            self.log.append(
                site,
                Charged(
                    round=number,
                    cost=COST,
                    patients="p1",
                    seq=number + 1,
                    head=head,
                    signature="0" * 128,
                ),
            )
        one = Sum(group="all", attempt=1, participants=self.sites, sha256=f"{number:064x}")
        self.log.append(
            "server",
            RoundOpened(
                round=number,
                sums=(one,),
                absent=(),
                transcript_entries=10 * (number + 1),
                transcript_head=f"{number:064x}",
            ),
        )
        self.log.append("server", RoundLearned(round=number, model=f"{number + 7:064x}"))
        self.checkpoint(number)

    def close(self) -> None:
        self.log.append("server", SessionClosed(files={"report.json": "a" * 64}))
        self.checkpoint(self.rounds - 1)
        self.log.close()

    def checkpoint(self, number: int, sites: tuple[str, ...] | None = None) -> None:
        tree, last = self.log.tree, self.log.records[-1]
        point = sign_checkpoint(tree, "s1", number, last.utc, key_of("server"))
        signed = []
        for site in self.sites if sites is None else sites:
            book = self.book(site)
            old = book.last_size("s1")
            signed.append(book.cosign(point, tree.consistency(old, len(tree)) if old else []))
        self.checkpoints.append(Cosigned(checkpoint=point, cosignatures=tuple(signed)))

    def book(self, site: str) -> CheckpointBook:
        path = self.folder / f"{site}.checkpoints.jsonl"
        return CheckpointBook(path, site, key_of(site), key_of("server").public)


def lines_of(found: list[Cosigned]) -> bytes:
    """Checkpoints as they stand in a file."""
    return b"".join(canonical(one.model_dump(mode="json")) + b"\n" for one in found)


def edited(lines: list[bytes], how: str, draw: random.Random) -> list[bytes]:
    """The lines after one delete, insert (of a copy), swap or cut at the end, elsewhere equal."""
    changed, at = list(lines), draw.randrange(len(lines))
    if how == "delete":
        del changed[at]
    elif how == "insert":
        changed.insert(at, draw.choice(lines))
    elif how == "swap":
        other = draw.choice([place for place in range(len(lines)) if place != at])
        changed[at], changed[other] = changed[other], changed[at]
    else:
        changed = changed[:at]
    return changed
