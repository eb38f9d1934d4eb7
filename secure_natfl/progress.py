"""Progress with time left for a person, seconds by stage for the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Stages:
    """Names what a run is doing. `seconds` adds up by stage name; work may be repeated."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[Callable[[int, int], None]]:
        """Time a block and show its progress; the block calls the result with (done, total)."""
        start = time.perf_counter()
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        label = f"{name} {detail}".strip()
        with bar:
            task = bar.add_task(label, total=None)

            def advance(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            yield advance
        taken = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + taken
        self._console.print(f"[dim]{taken:6.1f} s[/dim]  {label}", highlight=False)
