"""Plays a study's missing cells side by side, one thread each, for as long as there is time."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from secure_natfl.study.cell import play
from secure_natfl.study.cell_run import Job
from secure_natfl.study.grid import Cell

Report = Callable[[Cell, str], None]
"""Called with a cell that ended, and its fault or ""."""

_DIED = "its process died, for want of memory perhaps"


@dataclass(frozen=True)
class Played:
    """What became of the cells: faults by cell id, and those that time did not suffice for."""

    failed: dict[str, str]
    left: tuple[Cell, ...]


def workers() -> int:
    """Cores that this process may use: so many cells run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def play_all(
    jobs: Iterable[Job], seconds: Callable[[Cell], float], budget: float, report: Report
) -> Played:
    """Play the jobs in order; `seconds` foretells a cell, none starts that would not fit `budget`.

    A cell that fails is named and the rest runs. Killed at any moment, it leaves whole files only.
    """
    waiting = list(jobs)
    deadline = time.monotonic() + budget
    failed: dict[str, str] = {}
    left: list[Cell] = []
    running: dict[Future[str], Cell] = {}
    pool = _pool()
    try:
        while waiting or running:
            while waiting and len(running) < workers():
                job = waiting.pop(0)
                if time.monotonic() + seconds(job.cell) > deadline:
                    left.append(job.cell)
                    continue
                running[pool.submit(play, job)] = job.cell
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            broken = False
            for future in ended:
                cell = running.pop(future)
                fault, died = _outcome(future)
                broken |= died
                if fault:
                    failed[cell.id] = fault
                report(cell, fault)
            if broken:
                for cell in running.values():
                    failed[cell.id] = _DIED
                    report(cell, _DIED)
                running.clear()
                pool.shutdown(wait=False, cancel_futures=True)
                pool = _pool()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return Played(failed, tuple(left))


def _outcome(future: Future[str]) -> tuple[str, bool]:
    try:
        return future.result(), False
    except BrokenProcessPool:
        return _DIED, True


def _pool() -> ProcessPoolExecutor:
    # Forked processes would inherit torch's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers(), mp_context=context, initializer=_follow)


def _follow() -> None:
    """A worker ends with the study's process, even when that one is killed."""
    parent = multiprocessing.parent_process()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
