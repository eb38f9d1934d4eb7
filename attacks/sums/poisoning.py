"""P2: false answers of one client that spoil the central model.

Sources: FDLA (arXiv 2401.03685) and PCFDLA (arXiv 2407.18039), which exchange the scores of
classes. No clip is checked under encryption, so a malicious client may also send what is out of
range; what bounds it then is the headroom of the integers.
"""

from __future__ import annotations

import numpy as np

from attacks.answers.laboratory import Floats


def exchanged(answers: Floats, factor: float) -> Floats:
    """Answers [..., classes] that give each class's score to another, `factor` times as loud.

    The surest class gets the lowest score and so on, in the reverse of the honest order (PCFDLA):
    of all permutations of one row it is the farthest from the honest one.
    """
    order = answers.argsort(-1)
    turned = np.empty_like(answers)
    np.put_along_axis(turned, order, np.take_along_axis(answers, order[..., ::-1], -1), -1)
    return factor * turned
