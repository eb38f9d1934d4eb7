"""Which rows attack a promise of the run's own, and which only measure what nobody promised.

A guarantee for one patient says nothing of what is true of a whole site: its case mix, its model,
its answers. Rows on these say what leaks; their LEAKS breaks no promise.
"""

from __future__ import annotations

from typing import Final

from protocols.messages import Mode
from protocols.promises import PROMISES
from secure_natfl.exposure import hides_from_server

_CIPHERTEXTS: Final = "single contributions stay shut to who opens nothing"
_NO_GRADIENTS: Final = "no gradient leaves a site"
_UPDATES: Final = "single updates stay shut to who opens nothing"

_BY_ROW: Final = {
    "C1": _CIPHERTEXTS,
    "C2": _CIPHERTEXTS,
    "C2b": _CIPHERTEXTS,
    "C3": _CIPHERTEXTS,
    "L3": "ε is no smaller than what is stated",
    "G1": _NO_GRADIENTS,
    "G1i": _NO_GRADIENTS,
    "G2": _NO_GRADIENTS,
    "G3": _NO_GRADIENTS,
    "G3i": _NO_GRADIENTS,
    "G4": _NO_GRADIENTS,
    "G5a": _NO_GRADIENTS,
    "G5b": _NO_GRADIENTS,
}


def promise_of(row: str, mode: Mode, *, updates: bool = False) -> str:
    """What a LEAKS of this row's own arm would break in a run of this mode; "" for nothing.

    updates: whether what the run adds up are updates of weights.
    """
    promise = _BY_ROW.get(row, "")
    if updates and promise == _NO_GRADIENTS:
        promise = _UPDATES
    if promise in (_CIPHERTEXTS, _UPDATES) and not hides_from_server(PROMISES[mode]):
        return ""
    return promise
