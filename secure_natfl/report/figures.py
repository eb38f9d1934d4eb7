"""Figures are plates of small multiples that a phone shows one below the other; the dot plots.

Each function returns a `Plate`: panels, caption, and the same figures as a table. Panels are about
360 CSS pixels wide, so that their 11-pixel text keeps its size on a narrow screen.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator, NullFormatter, NullLocator

from secure_natfl.report import formats, svg, words
from secure_natfl.report.model import Interval, Report, Scores

WIDTH = 360
LABELS = 132
ROW = 24

ARM_COLOURS = {
    "central": "central",
    "personalised": "personalised",
    "local_only": "local",
    "plain_mean": "mean",
    "noise_proxies": "noise",
    "pooled": "pooled",
}
ARM_MARKS = {
    "central": "o",
    "personalised": "v",
    "local_only": "s",
    "plain_mean": "D",
    "noise_proxies": "X",
    "pooled": "^",
}


_SAID = {"auroc": "Area under the ROC curve", "dice": "Overlap of masks (Dice)"}


@dataclass(frozen=True)
class Panel:
    """One drawing under its heading."""

    heading: str
    drawing: Markup


@dataclass(frozen=True)
class Plate:
    """A numbered figure: its panels, its caption, and its data as a table."""

    key: str
    caption: str
    panels: tuple[Panel, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: tuple[tuple[str, str, str], ...] = ()
    """Arms that the lines stand for: name, colour property, CSS border style."""


@dataclass(frozen=True)
class Row:
    """One arm's row for a hospital: the arm, its name, a short name for figures, its scores."""

    arm: str
    label: str
    short: str
    scores: Scores


def rows_of(report: Report, hospital: str) -> list[Row]:
    """All arms scored at a hospital, personalised models site by site, in the reports' order."""
    found: dict[str, list[Row]] = {}
    if report.central is not None and hospital in report.central.scores:
        found["central"] = [_row("central", report.central.scores[hospital])]
    found["personalised"] = [
        Row("personalised", f"Personalised, {client.name}", client.name, client.scores)
        for client in report.clients
        if client.hospital == hospital
    ]
    for arm, baseline in report.baselines.items():
        if hospital in baseline.scores:
            found[arm] = [_row(arm, baseline.scores[hospital])]
    return [row for arm in words.in_arm_order(list(found)) for row in found[arm]]


def hospital_dots(report: Report) -> Plate:
    """AUROC, or Dice of masks, with its interval: one panel per hospital, one row per model."""
    rows = {hospital: rows_of(report, hospital) for hospital in words.hospitals(report)}
    metric = "dice" if any(client.scores.dice for client in report.clients) else "auroc"
    name = formats.METRICS[metric]

    def figure_of(row: Row) -> Interval | None:
        found: Interval | None = getattr(row.scores, metric)
        return found

    drawn = {h: group for h, group in rows.items() if any(map(figure_of, group))} or rows
    lowest = _floor(figure_of(row) for group in rows.values() for row in group)
    panels = []
    for index, (hospital, group) in enumerate(drawn.items()):
        values = [figure_of(row) for row in group]
        described = "; ".join(map(_described, group, values))
        with svg.style():
            figure, axes = svg.canvas(WIDTH, ROW * len(group) + 52, (LABELS, 40, 48, 8))
            _draw_rows(axes, group, values, name, lowest)
            drawing = svg.inline(figure, f"dots{index}", f"{name} at {hospital}", described)
        panels.append(Panel(hospital, drawing))
    return Plate(
        "dots",
        f"{_SAID[metric]} at each hospital, with 95 % bootstrap intervals over test units. "
        "Green triangles are the personalised models, site by site. "
        + ("" if metric == "dice" else "The dashed line is chance. ")
        + "A hospital with one class is in the table alone.",
        tuple(panels),
        ("Hospital", "Model", name, "Interval"),
        tuple(
            (hospital, row.label, formats.score(figure_of(row)), formats.bounds(figure_of(row)))
            for hospital, group in rows.items()
            for row in group
        ),
    )


def wire_dots(report: Report) -> Plate:
    """Bytes per site and round on a logarithmic axis, beside sending the models instead."""
    wire, same = report.wire, "numbers" if report.leaves else "logits"
    amounts = [
        ("Upload", wire.upload_bytes, "central"),
        (f"Same {same}, fp32", wire.fp32_bytes, "muted"),
        ("Download", wire.download_bytes, "central"),
        ("Opening", wire.opening_bytes, "central"),
    ]
    amounts += [(f"Send {name}", size, "local") for name, size in wire.model_fp32_bytes.items()]
    amounts += [(f"Slots, {name}", size, "local") for name, size in wire.slots_model_bytes.items()]
    with svg.style():
        figure, axes = svg.canvas(WIDTH, ROW * len(amounts) + 52, (LABELS, 40, 62, 8))
        _rows_axis(axes, [name for name, _, _ in amounts])
        axes.set_xscale("log")
        for y, (_, size, colour) in enumerate(amounts):
            if size:
                axes.plot([size], [y], "o", color=svg.COLOURS[colour], markersize=8)
            _beside(axes, y, formats.data_size(size))
        axes.xaxis.set_major_formatter(_decade)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("bytes, logarithmic")
        listed = "; ".join(f"{name} {formats.data_size(size)}" for name, size, _ in amounts)
        drawing = svg.inline(figure, "wire0", "Bytes per site and round", listed)
    return Plate(
        "wire",
        f"Bytes per site and round: what this run sent (blue), the same {same} without protection "
        "(grey), and sending a model instead (orange)"
        + (
            ", in the clear or with every weight in a CKKS slot, 57 B a number and keys on top"
            if wire.slots_model_bytes
            else ""
        )
        + ". The axis is logarithmic.",
        (Panel("Per site and round", drawing),),
        ("What", "Bytes", f"Against fp32 {same}"),
        tuple(
            (name, formats.number(size), formats.ratio(size, wire.fp32_bytes))
            for name, size, _ in amounts
        ),
    )


def _row(arm: str, scores: Scores) -> Row:
    return Row(arm, words.arm_label(arm), words.arm_label(arm), scores)


def _draw_rows(
    axes: Axes, rows: list[Row], values: list[Interval | None], metric: str, lowest: float
) -> None:
    _rows_axis(axes, [row.short for row in rows])
    axes.set_xlim(lowest, 1.0)
    axes.xaxis.set_major_locator(MultipleLocator(0.1))
    if metric == "AUROC":
        axes.axvline(0.5, color=svg.COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
    axes.set_xlabel(metric)
    for y, (row, value) in enumerate(zip(rows, values, strict=True)):
        _beside(axes, y, formats.score(value))
        if value is not None:
            colour = svg.COLOURS[ARM_COLOURS.get(row.arm, "muted")]
            axes.plot([value.low, value.high], [y, y], color=colour, lw=2)
            mark, size = ARM_MARKS.get(row.arm, "o"), 9 if row.arm == "central" else 7
            where = [value.value], [y]
            axes.plot(*where, mark, color=colour, markersize=size, clip_on=False)


def _rows_axis(axes: Axes, labels: list[str]) -> None:
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axes.tick_params(axis="y", length=0, labelcolor=svg.COLOURS["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _beside(axes: Axes, y: int, text: str) -> None:
    place = axes.get_yaxis_transform()
    axes.text(1.04, y, text, transform=place, va="center_baseline", ha="left", clip_on=False)


def _decade(size: float, _: object) -> str:
    return formats.data_size(size).replace(".00 ", " ").replace(".0 ", " ")


def _short(label: str, most: int = 19) -> str:
    label = " ".join(label.split())
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _described(row: Row, value: Interval | None) -> str:
    interval = formats.bounds(value)
    return f"{row.label} {formats.score(value)}" + (f" ({interval})" if interval else "")


def axis_start(values: Iterable[float]) -> float:
    """Where an AUROC axis starts: below chance and below every value, on a multiple of 0.05."""
    return math.floor(min([0.45, *values]) * 20) / 20


def _floor(intervals: Iterable[Interval | None]) -> float:
    lows = [min(interval.low, interval.value) for interval in intervals if interval is not None]
    return axis_start(lows)
