"""Release rules: what every client and the key holder demand of a plan before they act on it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from protocols import __version__
from protocols.chain import canonical, digest
from protocols.errors import ConfigError, ProtocolError
from protocols.messages import (
    Count,
    Digest,
    Floors,
    Group,
    Mode,
    Name,
    Positive,
    RoundPlan,
    StrictModel,
)
from protocols.presets import find_preset

SERVER: Final = "server"
DECRYPTOR: Final = "decryptor"
RESERVED: Final = frozenset({SERVER, DECRYPTOR, "network", "transcript"})


class Enrolment(StrictModel):
    """What all parties of a session agreed on before its first round; public.

    Verify keys are 32 bytes in hexadecimal. `holders` are the parties that open, any `threshold`
    of them, of whom up to `malicious` may break every rule; without encryption the server itself
    is the only one. `proxies` and `terms` are digests of the whole proxy set and of grid, clip
    and noise plan.
    """

    session: Name
    mode: Mode
    server: Digest
    clients: Annotated[dict[Name, Digest], Field(min_length=1)]
    holders: Annotated[dict[Name, Digest], Field(min_length=1)]
    threshold: Positive = 1
    malicious: Count = 0
    preset: Name
    proxies: Digest
    terms: Digest
    floors: Floors = Floors()

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if (RESERVED | set(self.holders)) & set(self.clients):
            raise ValueError(
                f"no client may be called {', '.join(sorted(RESERVED))}, or as a holder"
            )
        return self

    @model_validator(mode="after")
    def _keys_are_one_partys(self) -> Self:
        for role, keys in (("clients", self.clients), ("key holders", self.holders)):
            if len(set(keys.values())) < len(keys):
                raise ValueError(f"two {role} have one verify key")
        return self

    @model_validator(mode="after")
    def _custody_is_the_modes(self) -> Self:
        alone = {"ckks/decryptor": DECRYPTOR, "ring/decryptor": DECRYPTOR, "plain/none": SERVER}
        if self.mode in alone and set(self.holders) != {alone[self.mode]}:
            raise ValueError(f"{self.mode} is opened by the {alone[self.mode]} alone")
        if self.holders.get(SERVER, self.server) != self.server:
            raise ValueError("the server opens with another key than it signs with")
        if self.mode == "ckks/threshold":
            self._check_threshold()
        return self

    def _check_threshold(self) -> None:
        """Two sets of `threshold` holders share one that keeps the rules: 2t > n + f."""
        if SERVER in self.holders:
            raise ValueError("the server may hold no key share")
        if not 2 <= self.threshold <= len(self.holders):
            raise ValueError(f"a threshold of {self.threshold} with {len(self.holders)} holders")
        if 2 * self.threshold <= len(self.holders) + self.malicious:
            raise ValueError(
                f"{self.threshold} of {len(self.holders)} holders could open two sums of one round "
                f"with {self.malicious} malicious; the threshold must exceed half of their sum"
            )

    def verify_key(self, party: str) -> bytes:
        """The enrolled verify key of a party; ProtocolError for a stranger."""
        known = {**self.clients, **self.holders, SERVER: self.server}
        if party not in known:
            raise ProtocolError("party is not enrolled", where=party, fix="enrol it, start anew")
        return bytes.fromhex(known[party])

    @property
    def holders_id(self) -> str:
        """Digest of the holders, their keys and the threshold, as plans name them."""
        stated = [self.holders, self.threshold, self.malicious]
        return digest(canonical(stated))

    @property
    def holder_order(self) -> tuple[str, ...]:
        """The holders by name: the order in which their shares are numbered, from 1."""
        return tuple(sorted(self.holders))

    @property
    def opener(self) -> str:
        """Who signs an opening: the decryptor where there is one, else the server."""
        return DECRYPTOR if DECRYPTOR in self.holders else SERVER


def threshold_of(holders: int) -> tuple[int, int]:
    """The usual (t, f) for so many holders: f = ⌊(n−1)/3⌋ malicious, t = ⌊(n+f)/2⌋ + 1.

    Then t > (n+f)/2, so no two sums of a round open, and n − f ≥ t, so honest ones suffice.
    """
    malicious = (holders - 1) // 3
    return max((holders + malicious) // 2 + 1, 2), malicious


def holder_name(client: str) -> str:
    """The name of a client in its other role, as a key holder."""
    return f"{client}.holder"


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
    for field in ("mode", "proxies", "terms", "preset"):
        same = getattr(plan, field) == getattr(enrolment, field)
        _demand(same, plan, f"{field} differs from the enrolment")
    _demand(plan.holders == enrolment.holders_id, plan, "other key holders, or another threshold")
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


def check_included(plan: RoundPlan, group: Group, names: Sequence[str]) -> Group:
    """The part of a group whose contributions arrived, if that may be opened.

    Key holders run it on every request, the server before it asks: the names are in the plan's
    order, and the floors and the group's least number of contributions hold for them alone.
    """
    _demand(set(names) <= set(group.participants), plan, "a contribution from outside the group")
    enough = len(names) >= max(group.least, plan.floors.participants)
    _demand(enough, plan, f"too few contributions to group {group.name}")
    included = group.among(names)
    _demand(included.participants == tuple(names), plan, "contributions repeat or change places")
    balanced = effective(included.alphas) >= plan.floors.effective
    _demand(balanced, plan, f"too few effective contributors to group {group.name}")
    return included


def _check_groups(plan: RoundPlan, enrolment: Enrolment) -> None:
    names = [group.name for group in plan.groups]
    _demand(len(set(names)) == len(names), plan, "two groups of one name")
    _demand(set(plan.participants) <= set(enrolment.clients), plan, "a participant is not enrolled")
    preset = find_preset(plan.preset)
    for group in plan.groups:
        paired = len(group.alphas) == len(group.participants)
        _demand(paired, plan, f"group {group.name} needs one weight per participant")
        once = len(set(group.participants)) == len(group.participants)
        _demand(once, plan, f"a client is twice in group {group.name}")
        check_included(plan, group, group.participants)
        preset.prove(group.alphas)
    _check_spans(plan)


def _check_spans(plan: RoundPlan) -> None:
    """No number of a client enters two sums, and no sum is of nothing."""
    taken: dict[str, list[tuple[int, int]]] = {}
    for group in plan.groups:
        start, stop = plan.span_of(group)
        _demand(start < stop <= plan.size, plan, f"group {group.name} sums nothing, or too much")
        for name in group.participants:
            apart = all(stop <= first or last <= start for first, last in taken.get(name, []))
            _demand(apart, plan, "a client is summed twice")
            taken.setdefault(name, []).append((start, stop))


def _demand(holds: bool, plan: RoundPlan, rule: str) -> None:
    if not holds:
        raise ProtocolError(
            "plan refused",
            where=f"round {plan.round}, attempt {plan.attempt}",
            why=rule,
            fix="plan the round anew within the enrolment and the floors",
        )
