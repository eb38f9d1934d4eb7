"""`python -m secure_natfl.deploy.keep COMMAND...`: keep a party's process running.

A process that was killed, or that the server would not take yet, is started again after a pause;
one that ends with exit code 2 has told a person of a mistake, and stays ended. Where the keeper is
killed, what it keeps dies with it: nobody would know of it any more.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from typing import Final

MISTAKE: Final = 2
_PAUSES: Final = (1.0, 2.0, 5.0)
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


def keep(command: list[str]) -> int:
    """Run a command again and again; returns only when it ended with `MISTAKE`."""
    ended = 0
    while True:
        began = time.monotonic()
        done = subprocess.run(  # noqa: S603 - our own command line
            command, check=False, preexec_fn=_die_with_parent
        )
        code = done.returncode
        if code == MISTAKE:
            return MISTAKE
        ended = 0 if time.monotonic() - began > 60 else ended + 1
        time.sleep(_PAUSES[min(ended, len(_PAUSES) - 1)])


def _die_with_parent() -> None:
    """Asked of Linux in the child, before it becomes the command."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
