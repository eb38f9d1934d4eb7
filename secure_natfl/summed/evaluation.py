"""Scores of a system that learns from sums: at every hospital, and at every site's own test part.

A site's own model is scored on what its own patients gave: where sites differ in what they see, a
hospital's joint test part would ask a personalised model for what it was not made for.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from secure_natfl.evaluation import (
    TestPart,
    hospital_tests,
    probabilities,
    quick_auroc,
    quick_dice,
    scores,
    site_test,
)
from secure_natfl.federation import Federation, Site
from secure_natfl.report.model import Scores
from secure_natfl.systems.summed import SummedSystem


def central_scores(federation: Federation, system: SummedSystem) -> dict[str, Scores]:
    """Hospital → scores of the shared model there; empty where there is no shared model."""
    found = {}
    for hospital, part in hospital_tests(federation).items():
        network = system.central(federation.hospitals[hospital][0])
        if network is not None:
            found[hospital] = scores([probabilities(network, part)], part)
    return found


def site_scores(network: nn.Module, site: Site) -> Scores:
    """Of what a site uses, on its own test part."""
    part = site_test(site)
    return scores([probabilities(network, part)], part)


def curve(federation: Federation, system: SummedSystem) -> dict[str, Any]:
    """After a round: "auroc" and "dice", arm → hospital or site → figure."""
    found: dict[str, Any] = {"auroc": {}, "dice": {}}

    def note(arm: str, where: str, models: list[nn.Module], part: TestPart) -> None:
        said = [probabilities(model, part) for model in models]
        masks = part.examples.form == "mask"
        found["dice"].setdefault(arm, {})[where] = quick_dice(said, part) if masks else None
        found["auroc"].setdefault(arm, {})[where] = None if masks else quick_auroc(said, part)

    for hospital, part in hospital_tests(federation).items():
        sites = federation.hospitals[hospital]
        shared = system.central(sites[0])
        if shared is not None:
            note("central", hospital, [shared], part)
        note("personalised", hospital, [system.answering(site) for site in sites], part)
    for site in federation.sites:
        part, shared = site_test(site), system.central(site)
        if shared is not None:
            note(f"central at {site.name}", site.name, [shared], part)
        note(f"personalised at {site.name}", site.name, [system.answering(site)], part)
    return found
