"""A live terminal view of a running federation."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from secure_natfl.observe.metrics import ailments
from secure_natfl.observe.state import Seen, look


def watch(folder: Path, console: Console, *, every: float = 1.0, once: bool = False) -> None:
    """Show how the federation in `folder` stands until it is closed, or the user interrupts.

    RunFolderError where there is no such folder. once: print one picture and return.
    """
    if once:
        console.print(picture(look(folder)))
        return
    with Live(picture(look(folder)), console=console, refresh_per_second=4) as live:
        while True:
            seen = look(folder)
            live.update(picture(seen))
            if seen.closed:
                return
            time.sleep(every)


def picture(seen: Seen) -> RenderableType:
    """The state as one panel: the session, its rounds, its sites, its traffic."""
    title = f"session {seen.session[:12]}" if seen.session else "waiting for a session"
    wrong = ailments(seen)
    parts: list[RenderableType] = [_summary(seen)]
    if seen.answered:
        parts.append(_answered(seen))
    if seen.planned:
        parts.append(_rounds(seen))
    if seen.sites:
        parts.append(_sites(seen))
    if seen.traffic:
        parts.append(_traffic(seen))
    parts += [Text(reason, style="bold red") for reason in wrong]
    return Panel(Group(*parts), title=title, border_style="red" if wrong else "green")


def _summary(seen: Seen) -> Text:
    quiet = "" if seen.quiet_s is None else f", last record {seen.quiet_s:.0f} s ago"
    ended = "closed" if seen.closed else "running"
    if seen.answered:
        return Text(f"{seen.party}, {ended}: what its journal has answered")
    return Text(
        f"{ended}: {len(seen.learned)} rounds learned, {seen.broken} attempts broken off, "
        f"{seen.resumed} resumptions{quiet}"
    )


def _rounds(seen: Seen) -> Table:
    """The last ten rounds; a stage that a round has reached is marked."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("round", "planned", "opened", "learned"):
        table.add_column(name, justify="right" if name == "round" else "center")
    for number in seen.planned[-10:]:
        stages = (seen.planned, seen.opened, seen.learned)
        table.add_row(str(number + 1), *("●" if number in stage else "·" for stage in stages))
    return table


def _answered(seen: Seen) -> Table:
    """A site's own side, by phase."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("question", "latest round"):
        table.add_column(name, justify="right" if name == "latest round" else "left")
    for phase, number in seen.answered.items():
        table.add_row(phase, str(number))
    return table


def _sites(seen: Seen) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("site", "ε so far", "rounds missed"):
        table.add_column(name, justify="left" if name == "site" else "right")
    for site in seen.sites:
        spent = seen.epsilon.get(site)
        missed = seen.absent.get(site, 0)
        table.add_row(
            site,
            "–" if spent is None else f"{spent:.3g}",
            Text(str(missed), style="yellow" if missed else ""),
        )
    return table


def _traffic(seen: Seen) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("message", "count", "MB"):
        table.add_column(name, justify="left" if name == "message" else "right")
    for kind, one in sorted(seen.traffic.items(), key=lambda pair: -pair[1].bytes)[:6]:
        table.add_row(kind, str(one.messages), f"{one.bytes / 1e6:.2f}")
    return table
