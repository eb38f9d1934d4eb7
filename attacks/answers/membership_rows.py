"""Rows of the attack table on membership: L2 with the plan's proxies, P1 with crafted ones."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from attacks.answers.crafted import crafted_proxies
from attacks.answers.laboratory import Bools, Candidates, Floats, MembershipLab
from attacks.answers.membership import Scored, Shadows, membership_scores
from attacks.auditing import Split
from attacks.leakage_bounds import OneRun
from attacks.rows import Budget, Measured, Row
from attacks.scores import auc, tpr_at_fpr
from attacks.threat import Capability

_DELTA: Final = 1e-5
_CONFIDENCE: Final = 0.95
_MANY: Final = 10_000  # non-members below which a rate of 0.1 % is too coarse
_TARGETED: Final = 8  # patients that crafted proxies are about
_PROBED: Final = 8  # sites that are timed first
_FEWEST_SHADOWS: Final = 24
_HELPS: Final = 0.05  # what crafting must promise on shadows, or honest proxies are asked
_FEW: Final = "few"
_ARMS: Final = ("clear", "clipped", "noised", "protected")
_SEES: Final = frozenset({Capability.PLANS, Capability.AGGREGATES})


@dataclass(frozen=True)
class _Membership:
    lab: MembershipLab
    shadows: int

    def __call__(self, arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        """A score for each site and candidate; other attacks than the chosen one are extra."""
        found, inside = _played(self.lab, self.shadows, arm, budget.targets, random)
        scores = found.scores[found.best]
        members = inside.ravel()
        areas = {f"AUC, {name}": auc(s[inside], s[~inside]) for name, s in found.scores.items()}
        return Measured(
            arm,
            scores.ravel(),
            {"another site's answers": np.roll(scores, 1, 0).ravel()},
            np.repeat(np.arange(len(inside)), inside.shape[1]),
            members,
            extra=_rates(scores[inside], scores[~inside])
            | {"ε lower bound (95 %)": epsilon_bound(scores, inside, random)}
            | areas,
        )


def _played(
    lab: MembershipLab, shadows: int, arm: str, targets: int, random: np.random.Generator
) -> tuple[Scored, Bools]:
    """Scores of one arm, and the truth [sites, P]."""
    mine = Shadows(*lab.halves(arm, shadows, random, shadow=True))
    answers, inside = lab.halves(arm, targets, random, shadow=False)
    return membership_scores(answers, lab.knowledge(arm), lab.candidates(), mine), inside


def _rates(members: Floats, others: Floats) -> dict[str, float]:
    rates = {"TPR at 1 % FPR": tpr_at_fpr(members, others, 0.01)}
    if len(others) >= _MANY:
        rates["TPR at 0.1 % FPR"] = tpr_at_fpr(members, others, 0.001)
    return rates


def epsilon_bound(scores: Floats, inside: Bools, random: np.random.Generator) -> float:
    """What the scores [sites, P] say of ε at least, at δ = 1e-5 and confidence 95 %.

    Each candidate was in each site by a fair coin of its own, so all of them are canaries of one
    run (Steinke, Nasr and Jagielski 2023); the threshold is chosen on one half.
    """
    order = random.permutation(scores.size)
    flat, members = scores.ravel()[order], inside.ravel()[order]
    method = OneRun()
    parts = Split().parts(
        flat[members],
        flat[~members],
        _CONFIDENCE,
        lambda counts: method.bound(counts, _DELTA, _CONFIDENCE),
    )
    return max(method.bound(part.counts, _DELTA, part.confidence) for part in parts)


def membership_row(lab: MembershipLab, shadows: int) -> Row:
    """L2. 1,400 candidates in all, such as 24 sites with 60: areas scatter by 0.41/√700."""
    return Row(
        "L2",
        "Membership of a record (LiRA, RMIA, Co-op LiRA, distilled shadows, regression)",
        "clear, clipped and noised: one client's answers; protected: what the run's coalition sees",
        _SEES,
        "area under the ROC curve, by the attack that is best on held-back shadows",
        "auc",
        margin=0.05,
        control_margin=0.1,
        arms=_ARMS,
        play=_Membership(lab, shadows),
    )


@dataclass(frozen=True)
class _Crafted:
    lab: MembershipLab
    shadows: int
    _pace: dict[str, float] = field(default_factory=dict)

    def __call__(self, arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        """How many of the other kind a target outdoes, with crafted and with honest proxies.

        The attacker crafts them only if its shadows say that it helps. Sites that answer crafted
        proxies are trained for this row alone, so there are as many as its time allows.
        """
        shadows, targets = self._afforded(arm, budget)
        candidates = self.lab.candidates()
        knowledge = self.lab.knowledge("clear" if arm == _FEW else arm)
        proxies = crafted_proxies(knowledge, candidates.features[:_TARGETED])
        crafted, honest = (
            self._targeted(arm, shadows, targets, random, asked) for asked in (proxies, None)
        )
        helps = crafted[0].rehearsed > honest[0].rehearsed + _HELPS
        chosen = crafted if helps else honest
        return Measured(
            arm,
            _placements(*chosen),
            {"honest proxies": _placements(*honest)},
            np.repeat(np.arange(targets), honest[1].shape[1]),
            extra={
                "AUC with crafted proxies": float(_placements(*crafted).mean()),
                "proxies were crafted": float(helps),
            },
        )

    def _afforded(self, arm: str, budget: Budget) -> tuple[int, int]:
        """Shadows and targets, fewer where two draws of them would take more than the time.

        The first arm measures how long a site takes; later ones are given the same sites.
        """
        if not self._pace:
            self.lab.candidates()  # what is built once is no site's time
            start = time.monotonic()
            shown = "clear" if arm == _FEW else arm
            self.lab.halves(shown, _PROBED, np.random.default_rng(0), shadow=True)
            self._pace["seconds"] = (time.monotonic() - start) / _PROBED
            self._pace["share"] = budget.seconds / (
                2 * self._pace["seconds"] * (self.shadows + budget.targets)
            )
        share = min(self._pace["share"], 1.0)
        return (
            min(max(round(share * self.shadows), _FEWEST_SHADOWS), self.shadows),
            min(max(round(share * budget.targets), _TARGETED), budget.targets),
        )

    def _targeted(
        self,
        arm: str,
        shadows: int,
        targets: int,
        random: np.random.Generator,
        proxies: Floats | None,
    ) -> tuple[Scored, Bools]:
        """Scores of the targeted candidates alone, and the truth.

        The arm `few` is `clear` with the first eight answers of the first round alone.
        """
        cut = (slice(1), slice(_TARGETED)) if arm == _FEW else (slice(None), slice(None))
        arm = "clear" if arm == _FEW else arm
        every, knowledge = self.lab.candidates(), self.lab.knowledge(arm)
        asked = knowledge.proxies if proxies is None else proxies
        own, known = self.lab.halves(arm, shadows, random, shadow=True, proxies=proxies)
        seen, truth = self.lab.halves(arm, targets, random, shadow=False, proxies=proxies)
        scored = membership_scores(
            seen[:, *cut],
            replace(knowledge, proxies=asked[cut]),
            Candidates(every.features[:_TARGETED], every.targets[:_TARGETED]),
            Shadows(own[:, *cut], known[:, :_TARGETED]),
        )
        return scored, truth[:, :_TARGETED]


def _placements(found: Scored, inside: Bools) -> Floats:
    """For each site and target, the share of the other kind on the right side; mean: the area.

    Ties count half, and a kind that is alone is at one half (DeLong, DeLong and Clarke-Pearson
    1988).
    """
    scores, members = found.scores[found.best].ravel(), inside.ravel()
    above = (np.sign(scores[:, None] - scores[None, :]) + 1) / 2
    apart = members[:, None] != members[None, :]
    wins = np.where(members[:, None], above, 1 - above)
    placed: Floats = np.where(apart, wins, 0).sum(1) / np.maximum(apart.sum(1), 1)
    return np.where(apart.any(1), placed, 0.5)


def crafted_row(lab: MembershipLab, shadows: int) -> Row:
    """P1. 88 sites: 8 targeted patients each, whose placements differ by about 0.4.

    Many honest proxies in the clear give the whole model away, and crafting adds nothing to that;
    so the control, `few`, sees eight clear answers, with crafted proxies one per target. The arms
    are those of a server that could ask what it likes; that clients refuse proxies which are not
    the signed plan's is shown by the protocol's own tests.
    """
    return Row(
        "P1",
        "Proxies crafted to tell of certain patients",
        "a malicious server chooses the images that are asked",
        _SEES,
        "area under the ROC curve of membership, over that with honest proxies",
        "gain",
        margin=0.05,
        control_margin=0.03,
        arms=(_FEW, "clear", "noised", "protected"),
        play=_Crafted(lab, shadows),
    )
