"""Who holds what: one row a site, one column a class, a disc for what there is of it."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from secure_natfl.report import formats, svg
from secure_natfl.report.figures import LABELS, ROW, WIDTH, Panel, Plate
from secure_natfl.report.model import Holding, Report

_LARGEST = 18
"""Diameter of the largest disc, in CSS pixels; a row is 24."""


def who_holds_what(report: Report) -> Plate | None:
    """One panel per task; None where no site's counts may be shown."""
    if not report.holdings:
        return None
    tasks: dict[str, list[Holding]] = {}
    for holding in report.holdings:
        tasks.setdefault(holding.task, []).append(holding)
    return Plate(
        "holdings",
        "Training images of each class at each simulated site, of masks the pixels of each class. "
        "Areas of discs are in proportion within a task; where nothing is drawn, there is none.",
        tuple(
            Panel(name if len(tasks) > 1 else "Sites and classes", _panel(f"holding{i}", held))
            for i, (name, held) in enumerate(tasks.items())
        ),
        ("Site", "Class", "Counted", "Number"),
        tuple(
            (holding.site, name, holding.counted, formats.number(count))
            for holding in report.holdings
            for name, count in holding.counts.items()
        ),
    )


def left_out(report: Report) -> list[str]:
    """Sites whose counts are their own affair."""
    shown = {holding.site for holding in report.holdings}
    return [client.name for client in report.clients if client.name not in shown]


def _panel(key: str, held: Sequence[Holding]) -> Markup:
    classes = list(held[0].counts)
    counts = np.array([[holding.counts[name] for name in classes] for holding in held])
    longest = max(map(len, classes))
    # Names of classes stand upright below, about six pixels a letter.
    below = 14 + 6 * min(longest, 19)
    with svg.style():
        figure, axes = svg.canvas(WIDTH, ROW * len(held) + below + 8, (LABELS, below, 12, 8))
        axes.set_xlim(-0.6, len(classes) - 0.4)
        axes.set_ylim(len(held) - 0.4, -0.6)
        axes.set_yticks(range(len(held)), [_short(holding.site) for holding in held])
        axes.set_xticks(range(len(classes)), [_short(name) for name in classes], rotation=90)
        axes.tick_params(length=0, labelcolor=svg.COLOURS["ink"])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.grid()
        rows, columns = np.nonzero(counts)
        areas = _LARGEST**2 * counts[rows, columns] / counts.max()
        axes.scatter(columns, rows, s=areas, color=svg.COLOURS["central"], linewidths=0)
        told = "; ".join(_told(holding) for holding in held)
        return svg.inline(figure, key, "Who holds what", told)


def _told(holding: Holding) -> str:
    parts = ", ".join(f"{name} {formats.number(n)}" for name, n in holding.counts.items())
    return f"{holding.site}: {parts} {holding.counted}"


def _short(label: str, most: int = 19) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
