"""Every sum that a run will open: which phase it is of, and who takes part in it.

A round opens one sum per phase and group, one phase after the other; openings are numbered
round × phases + phase, and this number is what plans, ledgers and the audit log call a round.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols.chain import canonical, digest
from protocols.mechanisms import FurtherOutput, NoNoise, ShardTeachers, TrainedOutput
from protocols.messages import Group
from protocols.quantize import Layout
from secure_natfl.terms import Terms


@dataclass(frozen=True)
class Agreed:
    """One phase: its name, and the terms and layout of what every site sends in it.

    further: whether a phase before it in the round has sent something; where the training was
    under noise, this one is post-processing of it.
    """

    name: str
    terms: Terms
    layout: Layout
    further: bool = False

    def mechanism(self, site: str) -> NoNoise | ShardTeachers | TrainedOutput | FurtherOutput:
        """What stands between a site's vector of this phase and the encryption."""
        made = self.terms.mechanisms[site]
        if self.further and isinstance(made, TrainedOutput):
            return FurtherOutput(
                training=made.training, span=made.span, size=made.size, bits=made.bits
            )
        return made

    @property
    def described(self) -> list[list[str | int]]:
        """The layout as its digest in a plan states it."""
        return [[s.name, s.rows, s.columns] for s in self.layout.segments]


@dataclass(frozen=True)
class Schedule:
    """What all parties agreed on for all openings. cohorts: the sites of each round."""

    agreed: tuple[Agreed, ...]
    cohorts: tuple[tuple[str, ...], ...]

    @classmethod
    def single(cls, terms: Terms, layout: Layout, rounds: int) -> Schedule:
        """One sum per round and group, with all sites in it."""
        return cls((Agreed("answers", terms, layout),), (tuple(terms.alphas),) * rounds)

    @property
    def openings(self) -> int:
        """How many there are: rounds × phases."""
        return len(self.cohorts) * len(self.agreed)

    def at(self, opening: int) -> Agreed:
        """The phase that an opening is of."""
        return self.agreed[opening % len(self.agreed)]

    def first(self, opening: int) -> int:
        """The opening of the first phase of the same round."""
        return opening - opening % len(self.agreed)

    def cohort(self, opening: int) -> tuple[str, ...]:
        """Who takes part in an opening."""
        return self.cohorts[opening // len(self.agreed)]

    def groups(self, opening: int) -> list[Group]:
        """The groups of an opening's plan; a group that no site of the cohort is in is left out.

        Sums of one round that speak of the same updates are opened whole or not at all: a site in
        one of them and not in the next would be told by what they differ in.
        """
        terms, cohort = self.at(opening).terms, set(self.cohort(opening))
        found = {
            group: [site for site in sites if site in cohort]
            for group, sites in terms.groups.items()
        }
        return [
            Group(
                name=group,
                participants=tuple(sites),
                alphas=tuple(terms.alphas[site] for site in sites),
                least=terms.least[group] if len(self.agreed) == 1 else len(sites),
            )
            for group, sites in found.items()
            if sites
        ]

    def costly(self, site: str) -> set[int]:
        """The openings that a site takes part in and that its ledger is charged for."""
        return {
            opening
            for opening in range(self.openings)
            if site in self.cohort(opening)
            and not isinstance(self.at(opening).mechanism(site), FurtherOutput)
        }

    @property
    def digest(self) -> str:
        """What the enrolment and every plan carry: that of the terms, where one phase has all."""
        first = self.agreed[0].terms
        if len(self.agreed) == 1 and set(self.cohorts) == {tuple(first.alphas)}:
            return first.digest
        stated = {
            "phases": [[one.name, one.terms.digest, one.described] for one in self.agreed],
            "cohorts": [list(cohort) for cohort in self.cohorts],
        }
        return digest(canonical(stated))
