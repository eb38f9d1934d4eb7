"""Plays a study's missing cells side by side, one thread each, for as long as there is time."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
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

    Once a cell did not fit, no later seed starts. A cell that fails is named and the rest runs.
    Whatever ran when a process died is played once more, one at a time: who dies alone has failed.
    Killed at any moment, it leaves whole files only.
    """
    failed: dict[str, str] = {}
    left: list[Cell] = []
    running: dict[Future[str], Job] = {}
    fitting = _fitting(jobs, seconds, time.monotonic() + budget, left)

    def settle(job: Job, fault: str) -> None:
        if fault:
            failed[job.cell.id] = fault
        report(job.cell, fault)

    pool = _pool()
    try:
        while True:
            for job in itertools.islice(fitting, workers() - len(running)):
                running[_started(pool, job)] = job
            if not running:
                return Played(failed, tuple(left))
            ended = list(wait(running, return_when=FIRST_COMPLETED).done)
            if any(_fault(future) is None for future in ended):
                pool = _renewed(pool)
                ended = list(running)
            again = []
            for future in ended:
                job, fault = running.pop(future), _fault(future)
                if fault is None:
                    again.append(job)
                else:
                    settle(job, fault)
            for job in again:
                pool, fault = _alone(pool, job)
                settle(job, fault)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _fitting(
    jobs: Iterable[Job], seconds: Callable[[Cell], float], deadline: float, left: list[Cell]
) -> Iterator[Job]:
    """The jobs that still fit when they are asked for; cells of the others go to `left`."""
    for job in jobs:
        late = left and job.cell.config.run.seed != left[0].config.run.seed
        if late or time.monotonic() + seconds(job.cell) > deadline:
            left.append(job.cell)
        else:
            yield job


def _started(pool: ProcessPoolExecutor, job: Job) -> Future[str]:
    try:
        return pool.submit(play, job)
    except BrokenProcessPool as error:
        # Another cell's process has died since the last look.
        future: Future[str] = Future()
        future.set_exception(error)
        return future


def _fault(future: Future[str]) -> str | None:
    """The cell's fault or "", once it ends; None where a process died."""
    try:
        return future.result()
    except BrokenProcessPool:
        return None


def _alone(pool: ProcessPoolExecutor, job: Job) -> tuple[ProcessPoolExecutor, str]:
    """Play one job while no other runs: the pool to go on with, and the job's fault or ""."""
    fault = _fault(_started(pool, job))
    return (pool, fault) if fault is not None else (_renewed(pool), _DIED)


def _renewed(pool: ProcessPoolExecutor) -> ProcessPoolExecutor:
    """Another pool, once the broken one's processes have let go of their folders."""
    pool.shutdown()
    return _pool()


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
