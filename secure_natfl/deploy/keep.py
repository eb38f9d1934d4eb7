"""`python -m secure_natfl.deploy.keep COMMAND...`: keep a party's process running.

A process that was killed, or that the server would not take yet, is started again after a pause;
one that ends with exit code 2 has told a person of a mistake, and stays ended.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

MISTAKE: Final = 2
_PAUSES: Final = (1.0, 2.0, 5.0)


def keep(command: list[str]) -> int:
    """Run a command again and again; returns only when it ended with `MISTAKE`."""
    ended = 0
    while True:
        began = time.monotonic()
        code = subprocess.run(command, check=False).returncode  # noqa: S603 - our own command line
        if code == MISTAKE:
            return MISTAKE
        ended = 0 if time.monotonic() - began > 60 else ended + 1
        time.sleep(_PAUSES[min(ended, len(_PAUSES) - 1)])


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
