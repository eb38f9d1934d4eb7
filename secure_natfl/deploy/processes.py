"""What a party's folder has started: written down, found again, and ended, by number and start.

A process number is given to somebody else once its process is gone; the start time tells whether
it is still the same. Each was started as the leader of a session of its own, so its group is its
children.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Final

from protocols.errors import RunFolderError
from secure_natfl.run_folder import write

PROCESSES: Final = "processes.json"


def record(folder: Path, name: str, pid: int) -> None:
    """Write a started process down."""
    found = recorded(folder)
    found[name] = (pid, started(pid))
    write(folder / PROCESSES, json.dumps(found).encode())


def forget(folder: Path) -> None:
    """Nothing runs here any more: what ran before is of no interest."""
    (folder / PROCESSES).unlink(missing_ok=True)


def recorded(folder: Path) -> dict[str, tuple[int, str]]:
    """Name → number and start time of what was started here and may still run."""
    try:
        stated = json.loads((folder / PROCESSES).read_bytes())
        return {name: (int(pid), str(since)) for name, (pid, since) in stated.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(
            "the list of processes is damaged", where=str(folder / PROCESSES), why=str(error)
        ) from None


def running(folder: Path) -> dict[str, int]:
    """Name → number of what was started here and still runs: the very process, not its number."""
    known = recorded(folder).items()
    return {name: pid for name, (pid, since) in known if since and started(pid) == since}


def stop(folder: Path, *, at_once: bool = False) -> list[str]:
    """End what was started here, each with its children; their names.

    at_once: without asking, as a power cut would; the demonstration uses it.
    """
    alive = running(folder)
    for pid in alive.values():
        # Flower starts the coordinator, which leads no group of ours.
        end = os.killpg if _leads(pid) else os.kill
        for how in (signal.SIGKILL,) if at_once else (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                end(pid, how)
            _wait(pid)
    return list(alive)


def _leads(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return os.getpgid(pid) == pid
    return False


def _wait(pid: int, seconds: float = 5.0) -> None:
    """Until a process and its children are gone: one that was killed takes a moment to die."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and (started(pid) or _children(pid)):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)


def _children(leader: int) -> bool:
    """Whether anything of a group is alive; what is dead and not yet buried does not count."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            stat = file.read_text(encoding="ascii", errors="replace")
            state, _, group, *_ = stat.rpartition(") ")[2].split()
            if int(group) == leader and state != "Z":
                return True
    return False


def started(pid: int) -> str:
    """When a process was started, in clock ticks since the machine was; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    state, *rest = stat.rpartition(") ")[2].split()
    return "" if state == "Z" else rest[18]
