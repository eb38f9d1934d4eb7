"""Release rules: what every client and the key holder demand of a plan before they act on it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from protocols import __version__
from protocols.chain import digest
from protocols.errors import ConfigError, ProtocolError
from protocols.messages import (
    Digest,
    Floors,
    Group,
    Name,
    RoundPlan,
    StrictModel,
)
from protocols.rlwe import preset

SERVER: Final = "server"
DECRYPTOR: Final = "decryptor"
RESERVED: Final = frozenset({SERVER, DECRYPTOR, "network", "transcript"})


class Enrolment(StrictModel):
    """What all parties of a session agreed on before its first round; public.

    Verify keys are 32 bytes in hexadecimal. `holder` is the key of the party that opens: the
    decryptor, or the server itself where nothing is encrypted. `proxies` and `terms` are digests
    of the whole proxy set and of grid, clip and noise plan.
    """

    session: Name
    server: Digest
    holder: Digest
    clients: Annotated[dict[Name, Digest], Field(min_length=1)]
    preset: Name
    proxies: Digest
    terms: Digest
    floors: Floors = Floors()

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if RESERVED & set(self.clients):
            raise ValueError(f"no client may be called {', '.join(sorted(RESERVED))}")
        return self

    def verify_key(self, party: str) -> bytes:
        """The enrolled verify key of a party; ProtocolError for a stranger."""
        known = {**self.clients, SERVER: self.server, DECRYPTOR: self.holder}
        if party not in known:
            raise ProtocolError("party is not enrolled", where=party, fix="enrol it, start anew")
        return bytes.fromhex(known[party])

    @property
    def holder_id(self) -> str:
        """Digest of the holder's verify key, as plans name it."""
        return digest(bytes.fromhex(self.holder))


def effective(alphas: Sequence[int]) -> float:
    """Effective number of contributors (Σα)²/Σα² (Kish 1965): n for equal weights, 1 for one."""
    return float(sum(alphas) ** 2 / sum(alpha * alpha for alpha in alphas))


def cap(alphas: Mapping[str, int], floors: Floors) -> dict[str, int]:
    """Lower the largest weights, one step at a time, until the group meets its floors.

    Who plans a round runs it on each group. ConfigError if there are too few participants.
    """
    capped = dict(alphas)
    if len(capped) < floors.participants or len(capped) < floors.effective:
        raise ConfigError(
            f"{len(capped)} participants in a group",
            where="plan",
            why=f"the floors are {floors.participants} participants and {floors.effective:g} "
            "effective contributors",
            fix="merge groups, or wait for more clients",
        )
    while effective(tuple(capped.values())) < floors.effective:
        heaviest = max(capped.values())
        capped = {name: min(alpha, heaviest - 1) for name, alpha in capped.items()}
    return capped


def check_plan(plan: RoundPlan, enrolment: Enrolment) -> None:
    """Return if the plan keeps to the enrolment, the floors and the preset's proof.

    Clients run it before they contribute, the key holder before it makes a key. Raises
    ProtocolError (or the preset's ConfigError) that says which rule is broken.

    The floor on effective contributors is Kish's figure per group. The stricter
    Σα²/α_k² of each client belongs to noise shares that ignore α; here every share is divided
    by its own α, so that what the others' noise hides of a client does not depend on it.
    """
    _demand(plan.stage.session == enrolment.session, plan, "another session")
    _demand(plan.sender == SERVER, plan, "not the server's")
    _demand(plan.version == __version__, plan, f"version {plan.version}, here {__version__}")
    for field in ("proxies", "terms", "preset"):
        same = getattr(plan, field) == getattr(enrolment, field)
        _demand(same, plan, f"{field} differs from the enrolment")
    _demand(plan.holder == enrolment.holder_id, plan, "another key holder")
    _demand(len(plan.body) % 4 == 0, plan, "proxy indices are no whole numbers")
    indices = plan.subset.tolist()
    _demand(bool(indices) and len(set(indices)) == len(indices), plan, "proxies repeat, or none")
    floors, least = plan.floors, enrolment.floors
    _demand(floors.participants >= least.participants, plan, "participant floor was lowered")
    _demand(floors.effective >= least.effective, plan, "floor on effective weights was lowered")
    _check_groups(plan, enrolment)


def check_retry(plan: RoundPlan, earlier: RoundPlan, opened: Sequence[str]) -> None:
    """Return if a new attempt asks for the same logits and repeats every opened group unchanged.

    The key holder runs it against the round's first plan and the groups opened since. A group
    that is opened stays as it was, so nobody in it can enter a second sum.
    """
    _demand(plan.attempt > earlier.attempt, plan, "attempt is not new")
    for field in ("body", "size", "layout"):
        same = getattr(plan, field) == getattr(earlier, field)
        _demand(same, plan, f"{field} differs from the attempt before")
    before = {group.name: group for group in earlier.groups}
    now = {group.name: group for group in plan.groups}
    for name in opened:
        _demand(now.get(name) == before.get(name), plan, f"opened group {name} was changed")


def check_subset(plan: RoundPlan, others: Iterable[RoundPlan]) -> None:
    """Return if no other round of the session asked for one of these proxies.

    The key holder runs it: two sums over the same proxies could be averaged or subtracted.
    """
    asked = set(plan.subset.tolist())
    for other in others:
        apart = other.round == plan.round or asked.isdisjoint(other.subset.tolist())
        _demand(apart, plan, f"proxies were asked in round {other.round}")


def _check_groups(plan: RoundPlan, enrolment: Enrolment) -> None:
    names = [group.name for group in plan.groups]
    _demand(len(set(names)) == len(names), plan, "two groups of one name")
    parties = plan.participants
    _demand(len(set(parties)) == len(parties), plan, "a client is summed twice")
    _demand(set(parties) <= set(enrolment.clients), plan, "a participant is not enrolled")
    for group in plan.groups:
        _check_floors(group, plan)
        preset(plan.preset).prove(group.total)


def _check_floors(group: Group, plan: RoundPlan) -> None:
    paired = len(group.alphas) == len(group.participants)
    _demand(paired, plan, f"group {group.name} needs one weight per participant")
    enough = len(group.participants) >= plan.floors.participants
    _demand(enough, plan, f"group {group.name} has too few participants")
    balanced = effective(group.alphas) >= plan.floors.effective
    _demand(balanced, plan, f"group {group.name} has too few effective contributors")


def _demand(holds: bool, plan: RoundPlan, rule: str) -> None:
    if not holds:
        raise ProtocolError(
            "plan refused",
            where=f"round {plan.round}, attempt {plan.attempt}",
            why=rule,
            fix="plan the round anew within the enrolment and the floors",
        )
