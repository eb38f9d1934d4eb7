"""Whether the server has admitted a party's machine, as that machine's Flower says in its log."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

from protocols.errors import RunFolderError
from secure_natfl.deploy.processes import running

SUPERNODE_LOG: Final = "supernode.log"
PATIENCE: Final = 120.0
_ADMITTED: Final = "SuperNode ID:"
_ENDED: Final = "Exit Code:"
_COLOURS: Final = re.compile(r"\x1b\[\d*m")


def await_admission(folder: Path, since: int = 0, patience: float = PATIENCE) -> None:
    """Return once the SuperNode of a party's folder was admitted; it is never ended here.

    since: where its log stood before it was started. RunFolderError where it was turned away, its
    keeper ended, or `patience` seconds went by: the server may not be up yet.
    """
    log, until = folder / SUPERNODE_LOG, time.monotonic() + patience
    while True:
        alive = "supernode" in running(folder)
        said = _COLOURS.sub("", log.read_bytes()[since:].decode(errors="replace"))
        if _ADMITTED in said:
            return
        if _ENDED in said or not alive or time.monotonic() > until:
            raise RunFolderError(
                "the server has not admitted this machine",
                where=str(log),
                why=_reason(said),
                fix="it goes on trying until `natfl deploy stop`, and a server that is not up yet "
                "will admit it; else have its operator compare address, certificates and node.pub"
                if alive
                else "look into the log, then give the same command again",
            )
        time.sleep(0.2)


def _reason(said: str) -> str:
    """What Flower gives as the reason of its end, else the last that it said."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    ends = [at for at, line in enumerate(lines) if _ENDED in line]
    if ends:
        return " ".join(lines[ends[-1] + 1 : ends[-1] + 3])
    return lines[-1] if lines else "nothing was said in time"
