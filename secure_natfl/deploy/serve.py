"""A party's process: `python -m secure_natfl.deploy.serve FOLDER`.

It waits on a Unix socket in its own folder and answers one question after the other. It may be
killed at any moment: what it must not forget is on its disk before it answers. Images, models and
live keys are here; what carries questions from the network is another process, which has none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Final

from protocols.errors import NatflError, ProtocolError
from protocols.transport import read_frame, write_frame
from secure_natfl.deploy.letter import LIMIT
from secure_natfl.deploy.party import Party
from secure_natfl.deploy.site_file import SITE_FILE
from secure_natfl.observe.logs import log_structured

SOCKET: Final = "party.sock"
_PATIENCE: Final = 60.0
_LOGGER: Final = logging.getLogger(__name__)


def open_party(folder: Path) -> Party:
    """The site or key holder whose folder this is: a site has a `site.toml`."""
    if (folder / SITE_FILE).exists():
        from secure_natfl.deploy.site import SiteParty

        return SiteParty(folder)
    from secure_natfl.deploy.holder import HolderParty

    return HolderParty(folder.name, folder)


def serve(party: Party, path: Path) -> None:
    """Answer questions until the process ends."""
    with listening(path) as server:
        while True:
            connection, _ = server.accept()
            # Whoever asked may have gone away; the answer is in the journal.
            with connection, contextlib.suppress(OSError, ProtocolError):
                connection.settimeout(_PATIENCE)
                _answer(party, connection)


def listening(path: Path) -> socket.socket:
    """A socket that its owner alone may connect to; one left by a killed process is replaced."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        server.bind(str(path))
    finally:
        os.umask(before)
    server.listen(8)
    return server


def _answer(party: Party, connection: socket.socket) -> None:
    with connection.makefile("rb") as inward, connection.makefile("wb") as outward:
        phase = read_frame(inward, 64)
        body = None if phase is None else read_frame(inward, LIMIT)
        if phase is None or body is None:
            return
        said = phase.decode("ascii", "replace")
        try:
            found = party.handle(said, body)
        except Exception:
            # No question may end the process, and what the error says may be private: the
            # formatter keeps its kind alone.
            _LOGGER.exception("question-failed", extra={"phase": said})
            return
        write_frame(outward, found)


def main() -> int:
    """Run as a process until killed; a person's mistake is one line and exit code 2."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder = Path(sys.argv[1]).resolve()
    log_structured()
    try:
        party = open_party(folder)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        serve(party, folder / SOCKET)
    except KeyboardInterrupt:
        return 0
    except (NatflError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
