"""Who can learn what from a run, said plainly: the report's words, all in one place."""

from __future__ import annotations

from protocols.coalition import Coalition
from protocols.promises import PROMISES, Promise
from protocols.training_plan import TrainingPlan
from secure_natfl.config import Config, NoNoise, ShardTeachers
from secure_natfl.report.model import Exposure, UncoveredRelease
from secure_natfl.system_tables import NatImg
from secure_natfl.terms import Terms


def exposure(config: Config, terms: Terms) -> tuple[Exposure, ...]:
    """One row per adversary, from the weakest to the strongest."""
    promise, answers = PROMISES[config.mode], isinstance(config.system, NatImg)
    if hides_from_server(promise):
        return (*_observers(terms, answers=answers), *_encrypted(promise, terms))
    return (*_observers(terms, answers=answers), *_readable(promise, terms))


def hides_from_server(promise: Promise) -> bool:
    """Whether a server by itself learns no more than sums, in a group of three."""
    return not promise.exposes(Coalition(("a", "b", "c"), server=True, threshold=2))


def _noise(terms: Terms) -> str:
    if terms.noise_plan is None:
        return "no noise covers it (ε = ∞)"
    if isinstance(terms.noise_plan, TrainingPlan):
        return f"ε = {terms.noise_plan.epsilon:.3g}, whoever colludes"
    return (
        f"ε = {terms.noise_plan.epsilon:.3g} with {terms.noise_plan.colluders} colluding client(s)"
    )


def _own_share(terms: Terms) -> str:
    if terms.noise_plan is None:
        return "no noise at all: ε = ∞"
    if isinstance(terms.noise_plan, TrainingPlan):
        return f"the noise of the site's own training: ε = {terms.noise_plan.epsilon:.3g}"
    return f"only the site's own noise share: ε = {terms.noise_plan.epsilon_isolated:.3g}"


def _observers(terms: Terms, *, answers: bool) -> tuple[Exposure, ...]:
    noise, said = _noise(terms), "answers" if answers else "updates"
    trained = isinstance(terms.noise_plan, TrainingPlan)
    shares = "each site's training noise" if trained else "the other sites' noise shares"
    return (
        Exposure(
            party="Anyone who receives the central model or a published aggregate",
            learns=f"each group's weighted sum of {said}, and what is computed from it",
            protection=noise,
            remains="what that ε allows; traits common to a whole hospital are not protected",
        ),
        Exposure(
            party="Another hospital of the same group",
            learns="its group's aggregate, from which it can take off its own part",
            protection=f"{shares}: {noise}",
            remains="what that ε allows; three sites are required for the sum to hide a part"
            if trained
            else "two sites would hide nothing from each other; three are required",
        ),
    )


def _encrypted(promise: Promise, terms: Terms) -> tuple[Exposure, ...]:
    own = _own_share(terms)
    return (
        Exposure(
            party="Network",
            learns="what is encrypted or sealed, signed plans, sums, sizes, times, participation",
            protection="encryption under keys made for one attempt; signatures",
            remains="sums, sizes, times, who takes part; a simulation has no transport encryption",
        ),
        Exposure(
            party="Server",
            learns="what the network sees, α, and the opened sums",
            protection=f"contributions are {promise.opened}",
            remains="the sums, under their noise",
        ),
        Exposure(
            party="Those who pool what they have",
            learns=f"a site's contribution as it was sent, if {promise.hidden_unless}",
            protection=f"one relies on {promise.trust}",
            remains=own,
        ),
        Exposure(
            party="Those who break the rules",
            learns=promise.malicious,
            protection="signatures and hash chains; what is said to be undetected has none",
            remains=own,
        ),
    )


def _readable(promise: Promise, terms: Terms) -> tuple[Exposure, ...]:
    own = _own_share(terms)
    return (
        Exposure(
            party="Network and server",
            learns="every site's contribution as it was sent",
            protection="none but the noise that the site itself added: contributions are "
            f"{promise.opened}",
            remains=own,
        ),
        Exposure(
            party="Those who break the rules",
            learns=promise.malicious,
            protection="signatures; what is said to be undetected has none",
            remains=own,
        ),
    )


def uncovered(config: Config) -> tuple[UncoveredRelease, ...]:
    """Every release of the run that no noise covers."""
    found = [
        UncoveredRelease(
            what="number of training patients (or images) of each site",
            seen_by="all parties",
            why="declared in public: α, shard room, the mean of a step and the check of δ depend "
            "on it",
        ),
        UncoveredRelease(
            what="site names, groups, architectures, class lists, participation",
            seen_by="all parties",
            why="part of the signed plan and of the enrolment",
        ),
        UncoveredRelease(
            what="scores of models on private test images, learning curves and training losses; "
            "numbers of training and test images; whether a site has one class only",
            seen_by="whoever reads this report",
            why="computed without noise; in a real federation each site decides what it shares",
        ),
        UncoveredRelease(
            what="message sizes and times",
            seen_by="network, server",
            why="sizes depend on the plan alone; times may depend on how much data a site has",
        ),
    ]
    if isinstance(config.privacy, NoNoise):
        found.insert(
            0,
            UncoveredRelease(
                what="the released aggregates themselves",
                seen_by="all parties",
                why='privacy.mechanism = "none": they are exact',
            ),
        )
    return tuple(found)


def not_covered(config: Config) -> tuple[str, ...]:
    """What the privacy figure does not speak of."""
    said = [
        "the choice of hyper-parameters, which no budget was charged for",
        "the split into training and test part, which is taken as given",
        "the same person in two hospitals, who is charged at each of them",
        "the figures on private test images in this report",
        "timing and other side channels",
    ]
    if isinstance(config.privacy, ShardTeachers):
        said.append(
            "a patient replaced under another identifier, who may touch two shards (twice the "
            "sensitivity)"
        )
    if config.seeded:
        said.insert(0, "anyone who knows the seed of this run")
    return tuple(said)
