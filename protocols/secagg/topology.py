"""What all topologies have in common: the server's plan, and one function that plays a round."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike

from protocols import __version__
from protocols.errors import AbsentError, ProtocolError
from protocols.messages import Floors, Group, RoundPlan
from protocols.outcome import Outcome
from protocols.policy import SERVER, Enrolment, check_plan
from protocols.transcript import Transcript


class Topology(Protocol):
    """Who encrypts, who adds and who opens. A system does not know which one it runs on."""

    kind: ClassVar[str]
    custody: ClassVar[str]

    def play(self, plan: RoundPlan) -> Outcome:
        """Play one attempt of one round; ProtocolError if a party refuses."""


def draft(
    enrolment: Enrolment,
    transcript: Transcript,
    *,
    round_number: int,
    groups: Sequence[Group],
    layout: str,
    size: int,
    subset: ArrayLike,
    floors: Floors | None = None,
) -> RoundPlan:
    """The server's plan for a round, checked; the attempt follows those in the transcript.

    `layout` is the digest of the layout, `size` its integers, `subset` the proxy indices. A
    resumed round calls it again and so gets the next attempt.
    """
    of_round = transcript.entries.of_round(round_number)
    plans = (entry for entry in of_round if entry.kind == RoundPlan.kind)
    plan = RoundPlan(
        session=enrolment.session,
        round=round_number,
        attempt=1 + max((entry.attempt for entry in plans), default=0),
        sender=SERVER,
        version=__version__,
        proxies=enrolment.proxies,
        groups=tuple(groups),
        preset=enrolment.preset,
        layout=layout,
        size=size,
        terms=enrolment.terms,
        floors=floors or enrolment.floors,
        mode=enrolment.mode,
        holders=enrolment.holders_id,
        body=np.asarray(subset, "<u4").tobytes(),
    )
    check_plan(plan, enrolment)
    return plan


class Absent(dict[str, str]):
    """Who was left out of an attempt, and why: party → the reason."""

    @contextmanager
    def noted(self, party: str, but: type[ProtocolError] = AbsentError) -> Iterator[None]:
        """Note the party if the block raises `but`, and go on after the block."""
        try:
            yield
        except but as error:
            self[party] = str(error)
