"""C1: telling from uploads as they travel which of two data sets was sent.

A classifier sees bytes and where they stand, lengths, times, and repeats of earlier bytes. It is
taught with uploads that the attacker made itself, by the same program, and judged on others.
Nothing of the cipher is assumed, so an area of one half says that this classifier found nothing,
and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.rows import Budget, Measured, Row
from attacks.scores import Floats, auc
from attacks.threat import Capability, ThreatError

_WORD: Final = 8
_PARTS: Final = 32
_GRAIN: Final = 4 * _PARTS
_PENALTIES: Final = (0.001, 0.03, 1.0)
_FOLDS: Final = 5


@dataclass(frozen=True, eq=False)
class Uploads:
    """Uploads as the network sees them: bodies, and the seconds [uploads] until each was sent.

    world: bool[uploads], which of two data sets each carries; known for the attacker's own, the
    truth for others.
    """

    bodies: Sequence[bytes]
    seconds: Floats
    world: NDArray[np.bool_]


class CiphertextLab(Protocol):
    """Makes uploads of two data sets that differ as much as two of one task can.

    Arms: `variable rows` (encrypted, but as long as the data ask; the control), `plaintext`, and
    `protected`, as the run sends them.
    """

    def uploads(self, arm: str, count: int, random: np.random.Generator) -> Uploads:
        """Fresh uploads, each by a fair coin from one of the two data sets, under fresh keys."""


def upload_scores(seen: Uploads, taught: Uploads) -> Floats:
    """How much each upload seen looks like world true [uploads]; taught by others.

    Which looks count (lengths and times alone, or bytes too) and how far is chosen by
    cross-validation among the uploads of known world. ThreatError if one world has fewer than
    five.
    """
    if min(taught.world.sum(), (~taught.world).sum()) < _FOLDS:
        raise ThreatError(
            f"{len(taught.world)} uploads of known world",
            where="ciphertext game",
            why=f"each world is needed {_FOLDS} times at least",
            fix="give the attacker more uploads of its own",
        )
    folds, best = StratifiedKFold(_FOLDS), (-1.0, False, _PENALTIES[0])
    for with_bytes in (False, True):
        looks = _looks(taught, taught, with_bytes=with_bytes)
        for penalty in _PENALTIES:
            guesses = cross_val_predict(
                _classifier(penalty), looks, taught.world, cv=folds, method="decision_function"
            )
            area = auc(guesses[taught.world], guesses[~taught.world])
            best = max(best, (area, with_bytes, penalty), key=lambda one: one[0])
    _, with_bytes, penalty = best
    model = _classifier(penalty).fit(_looks(taught, taught, with_bytes=with_bytes), taught.world)
    return np.asarray(model.decision_function(_looks(seen, taught, with_bytes=with_bytes)))


def _classifier(penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=500))


def _looks(seen: Uploads, taught: Uploads, *, with_bytes: bool) -> Floats:
    """What is seen of each upload: [uploads, numbers]."""
    lengths = np.array([len(body) for body in seen.bodies], np.float64)
    plain = np.stack([lengths, np.log(np.maximum(seen.seconds, 1e-9))], -1)
    if not with_bytes:
        return plain
    counts = np.stack([np.bincount(np.frombuffer(b, np.uint8), minlength=256) for b in seen.bodies])
    shares = counts / np.maximum(lengths, 1)[:, None]
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(1)
    places = np.stack([_means_by_place(body) for body in seen.bodies])
    return np.column_stack([plain, shares, entropy, places, _repeats(seen, taught)])


def _means_by_place(body: bytes) -> Floats:
    """The mean byte in each of 32 parts of the body, apart by its place in a word of four."""
    length = max(-(-len(body) // _GRAIN), 1) * _GRAIN
    padded = np.frombuffer(body.ljust(length, b"\0"), np.uint8)
    means: Floats = padded.reshape(_PARTS, -1, 4).mean(1, dtype=np.float64)
    return means.ravel()


def _repeats(seen: Uploads, taught: Uploads) -> Floats:
    """How many 8-byte words of each upload recur in known uploads of each world, but in itself.

    Randomness that is used twice would show here.
    """
    uploads = Counter[bytes](), Counter[bytes]()
    for body, world in zip(taught.bodies, taught.world, strict=True):
        uploads[int(world)].update(_words(body))
    once = [frozenset(one) for one in uploads]
    twice = [frozenset(word for word, times in one.items() if times > 1) for one in uploads]
    own = taught.world if seen is taught else [None] * len(seen.bodies)
    counts = [
        [len(_words(body) & (twice if its == which else once)[which]) for which in (0, 1)]
        for body, its in zip(seen.bodies, own, strict=True)
    ]
    return np.log1p(np.array(counts, np.float64))


def _words(body: bytes) -> frozenset[bytes]:
    whole = len(body) // _WORD * _WORD
    return frozenset(body[start : start + _WORD] for start in range(0, whole, _WORD))


def game_row(lab: CiphertextLab, known: int = 200) -> Row:
    """C1. 1,400 uploads: areas scatter by 0.41/√700. known: uploads that the attacker makes."""

    def play(arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        taught = lab.uploads(arm, known, random)
        seen = lab.uploads(arm, budget.targets, random)
        scores = upload_scores(seen, taught)
        lengths = {len(body) for body in seen.bodies}
        return Measured(
            arm,
            scores,
            {},
            np.arange(len(scores)),
            seen.world,
            extra={"different lengths": float(len(lengths))},
        )

    return Row(
        "C1",
        "Which of two data sets an upload carries",
        "bytes, lengths and times of one client's uploads",
        frozenset({Capability.CONTRIBUTIONS}),
        "area under the ROC curve of a classifier",
        "auc",
        margin=0.05,
        control_margin=0.3,
        arms=("variable rows", "plaintext", "protected"),
        play=play,
        tier="fast",
    )
