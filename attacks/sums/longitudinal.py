"""A9: one client over many rounds: a patient who came between two of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from attacks.answers.laboratory import Floats, Knowledge
from attacks.answers.membership import signals
from attacks.answers.students import strength_of
from attacks.sums.laboratory import Admissions


def admission_scores(seen: Admissions, knowledge: Knowledge) -> Floats:
    """For each site [sites], how much more its answers know its candidate after than before.

    All rounds before make one student and all rounds after another (`attacks.answers.students`),
    so noise averages out over rounds; the change of the candidate's margin is taken against the
    other candidates' at the same site, which is how far the site has drifted anyway.
    """
    parts = seen.answers[:, : seen.before], seen.answers[:, seen.before :]
    asked = knowledge.proxies[: seen.before], knowledge.proxies[seen.before :]
    margins = []
    for answers, proxies in zip(parts, asked, strict=True):
        knows = replace(knowledge, proxies=proxies)
        strength = strength_of(answers[..., : knowledge.classes], proxies)
        margins.append(signals(answers, knows, seen.candidates, strength).margin)
    change = margins[1] - margins[0]
    own = np.diagonal(change)
    others = (change.sum(1) - own) / max(len(own) - 1, 1)
    spread = np.sqrt(((change - others[:, None]) ** 2).mean(1))
    scores: Floats = (own - others) / np.maximum(spread, np.finfo(float).tiny)
    return scores
