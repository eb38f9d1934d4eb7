"""L5: a copy of a site's model from its answers alone (AdaMSA, Wan et al., arXiv 2606.08252)."""

from __future__ import annotations

import numpy as np

from attacks.answers.laboratory import Floats, Knowledge
from attacks.answers.students import students


def stolen_words(answers: Floats, knowledge: Knowledge, features: Floats) -> Floats:
    """What each site's copy says of its own test images, given as features [sites, m, d].

    answers [sites, rounds, rows, columns] of all rounds together. Returns logits [sites, m,
    classes].
    """
    pooled = features.reshape(-1, features.shape[-1])
    said = students(answers, knowledge, pooled)
    own = np.arange(len(answers))
    shaped = said.reshape(len(answers), *features.shape[:2], knowledge.classes)
    words: Floats = shaped[own, own]
    return words


def agreement(said: Floats, words: Floats, *, multi_label: bool) -> Floats:
    """How often two models decide alike: logits [sites, m, classes] of both → [sites].

    The most probable class, or each class by itself where a record may have several.
    """
    if multi_label:
        alike = ((said > 0) == (words > 0)).mean(-1)
    else:
        alike = said.argmax(-1) == words.argmax(-1)
    share: Floats = alike.mean(-1, dtype=np.float64)
    return share
