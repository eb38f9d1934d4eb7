"""All rows that can be played on a run, each bound to a laboratory on its own systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from attacks.answers.table import SHADOWS, answer_rows
from attacks.canary_row import canary_row
from attacks.ciphertexts import game_row
from attacks.gradients.laboratory import Shared
from attacks.gradients.table import gradient_rows
from attacks.key_rows import coalition_row, published_row, tampering_row
from attacks.rows import Row, Tier
from attacks.sums.table import sum_rows
from protocols.errors import ConfigError
from protocols.noise_plan import NoisePlan
from protocols.sampler import seeded_random
from secure_natfl.leakage.answer_lab import RunAnswers
from secure_natfl.leakage.attacked import AnswersRun, AttackedRun, SumsRun
from secure_natfl.leakage.canary_group import canary_group
from secure_natfl.leakage.coalition_lab import RunCoalitions
from secure_natfl.leakage.gradient_lab import gradient_lab
from secure_natfl.leakage.key_lab import RunKeys
from secure_natfl.leakage.over_epsilon import over_epsilon_rows
from secure_natfl.leakage.poisoning_lab import RunSumLab
from secure_natfl.leakage.record import NotTested
from secure_natfl.leakage.releases import Releases
from secure_natfl.leakage.upload_lab import RunUploads

_FAST_SHADOWS: Final = 48
_FAST_UPLOADS: Final = 60


def all_rows(run: AttackedRun, tier: Tier) -> tuple[tuple[Row, ...], tuple[NotTested, ...]]:
    """Every row of this run in the order of play, and what it has no part for.

    Cheap rows come first, and last those that train many sites (L1, A1): a short time touches
    every floor, and the same command goes on with the rest.
    """
    rows: list[Row] = []
    without: list[NotTested] = []
    families: list[Callable[[], Sequence[Row]]] = [
        lambda: _ciphertexts(run, tier),
        lambda: _canaries(run),
        lambda: _gradients(run, tier),
    ]
    if isinstance(run, AnswersRun):
        families.append(lambda: _answers(run, tier))
    for family in families:
        try:
            rows += family()
        except ConfigError as error:
            without.append(NotTested(what=error.where, why=error.what))
    if isinstance(run, SumsRun):
        without += _not_of_sums(run)
        if run.sends_updates and any(row.id == "G1" for row in rows):
            without += _not_of_updates(run)
    order = {name: at for at, name in enumerate(_FIRST)}
    return tuple(sorted(rows, key=lambda row: order.get(row.id, len(order)))), tuple(without)


_FIRST: Final = ("C2", "C2b", "L3", "G2", "C1", "G1", "G4", "G5a", "L1", "A1")


def _ciphertexts(run: AttackedRun, tier: Tier) -> Sequence[Row]:
    """C1, C2, C2b and C3 with the weights of the run's first group."""
    name, sites = next(iter(run.terms.groups.items()))
    del name
    alphas, preset = tuple(run.terms.alphas[site] for site in sites), run.terms.preset
    releases, plan = Releases.of(run), run.terms.noise_plan
    colluders = plan.colluders if isinstance(plan, NoisePlan) else 1
    keys = RunKeys(run.config.mode, preset, alphas, releases)
    uploads = RunUploads(run.config.mode, preset, max(alphas), releases)
    return (
        published_row(keys),
        tampering_row(keys),
        game_row(uploads, _FAST_UPLOADS) if tier == "fast" else game_row(uploads),
        coalition_row(RunCoalitions(run.config.mode, preset, alphas, colluders, releases)),
    )


def _canaries(run: AttackedRun) -> Sequence[Row]:
    """L3; its noise is a study's, so that the row repeats."""
    noise = seeded_random(f"{run.folder.nonce} canaries".encode())
    return (canary_row(canary_group(run), noise),)


def _gradients(run: AttackedRun, tier: Tier) -> Sequence[Row]:
    lab = gradient_lab(run, tier)
    rows = gradient_rows(lab)
    if lab.shared is None:
        return rows
    return [replace(row, view=f"{row.view}; protected: {_said(lab.shared)}") for row in rows]


def _said(shared: Shared) -> str:
    """What the coalition sees of updates, in words."""
    each = f"of {shared.images} images in {shared.steps * shared.passes} local steps"
    noise = f", noise {shared.site_noise:.3g} of a site's clip" if shared.site_noise else ""
    if shared.record_noise:
        noise = f", noise {shared.record_noise:.3g} of an image's clip, averaged over all steps"
    if shared.sites == 1:
        return f"one site's update {each}{noise}"
    return f"the sum of {shared.sites} sites' updates, each {each}{noise}"


def _not_of_sums(run: SumsRun) -> Sequence[NotTested]:
    """The rows that need NatIMG-FL's answers."""
    kind = run.config.system.kind
    asks = "its sites answer no public image"
    if not run.sends_updates:
        asks = f"sites like those of {kind} are not played yet"
    return (
        NotTested(what="L1, L1e, L2, L4 to L6, P1: what answers to public images tell", why=asks),
        NotTested(
            what="A1, A9, A12, P2: differences of sums, probing and poisoning",
            why="they are played on answers alone; what opens a second sum is the same as there",
        ),
    )


def _not_of_updates(run: SumsRun) -> Sequence[NotTested]:
    """What the rows on updates leave out."""
    kind = run.config.system.kind
    return (
        NotTested(
            what=f"the network, optimiser and compression of {kind} itself",
            why="G1 to G5 attack updates of networks that are easier to read, by plain SGD",
        ),
        NotTested(
            what="membership and label shares of a site in the sums of all rounds",
            why="no row follows updates over rounds",
        ),
    )


def _answers(run: AnswersRun, tier: Tier) -> Sequence[Row]:
    """The first round alone in the fast tier: a minute trains no more."""
    lab = RunAnswers(run, 1 if tier == "fast" else len(run.plans))
    shadows = _FAST_SHADOWS if tier == "fast" else SHADOWS
    return (
        *answer_rows(lab, shadows),
        *sum_rows(RunSumLab(lab)),
        *over_epsilon_rows(run, RunAnswers(run, 1), _FAST_SHADOWS),
    )
