"""Named moments around every durable write, and the claim of one process to a folder.

A process may die before a write or after it, never in the middle of one that counts. Whoever
wants to see that a party survives either watches the moments and ends the process at one; in
production nobody watches.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from protocols.errors import RunFolderError

Watcher = Callable[[str], None]
"""Called with "before NAME" and "after NAME"; what it raises, the write raises."""

_watchers: list[Watcher] = []


@contextmanager
def written(name: str) -> Iterator[None]:
    """Put around the lines that write and flush `name`; every durable write of a party has one."""
    _reached(f"before {name}")
    yield
    _reached(f"after {name}")


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Call `watcher` at every moment of this process until the block ends. Tests run it."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def append(descriptor: int, data: bytes, *, flush: bool = True) -> None:
    """Add `data` to the end of a file, whole, or leave the file as it was and raise OSError.

    descriptor: opened for appending, by the file's one writer. flush: have it on disk on return.
    A full disk takes the first half of a line; were that left, the next line would be unreadable.
    """
    before = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if flush:
            os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, before)
        raise


class Claim:
    """One process at work in `folder`, until this is closed, forgotten, or the process dies.

    RunFolderError while another process has it. The system lets go of it when a process is
    killed, so a claim never has to be cleared by hand.
    """

    _lock = -1

    def __init__(self, folder: Path) -> None:
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise RunFolderError(
                "another process is at work in this folder",
                where=str(folder),
                fix="wait until it ends, or stop it; then resume",
            ) from error

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __del__(self) -> None:
        self.close()


def _reached(moment: str) -> None:
    for watcher in _watchers:
        watcher(moment)
