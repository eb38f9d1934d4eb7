"""A party whose every answer ends in an error that says what no log may."""

import logging
import sys
import warnings
from pathlib import Path

from protocols.errors import NatflError
from secure_natfl.deploy.serve import serve
from secure_natfl.observe.logs import log_structured

CANARY = "Zq7-canary-Wanda-Example-1961"


def error_paths() -> list[Exception]:
    """Five hundred errors that say what no log may: in what, where, why, fix, or all of it."""
    found: list[Exception] = []
    for number in range(125):
        text = f"{CANARY}-{number}"
        found += [
            NatflError(text, where=text, why=text, fix=text),
            ValueError(text, {"patient": text}),
            OSError(2, text, f"/data/{text}.dcm"),
            KeyError(text),
        ]
    return found


class Failing:
    """A `Party` in all but its answers."""

    name = "failing"

    def __init__(self) -> None:
        self._errors = iter(error_paths())

    def handle(self, phase: str, body: bytes) -> bytes:
        error = next(self._errors)
        logging.getLogger("pydicom").warning("cannot read %s", error)
        warnings.warn(str(error), stacklevel=1)
        raise error

    def close(self) -> None:
        pass


if __name__ == "__main__":
    log_structured()
    warnings.simplefilter("always")
    serve(Failing(), Path(sys.argv[1]))
