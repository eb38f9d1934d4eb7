"""Figures of attacks: effects with their margins, and ROC curves on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from attacks.verdicts import Verdict
from secure_natfl.leakage.record import OVER_EPSILON, ArmResult, AttackReport, AttackRow
from secure_natfl.report import svg
from secure_natfl.report.figures import ROW, WIDTH, Panel, Plate

_LABELS = 116
_COLOURS = {
    Verdict.LEAKS: "local",
    Verdict.NO_LEAK: "personalised",
    Verdict.INCONCLUSIVE: "muted",
    Verdict.CONTROL: "central",
}
_MARKS = {
    Verdict.LEAKS: "X",
    Verdict.NO_LEAK: "o",
    Verdict.INCONCLUSIVE: "s",
    Verdict.CONTROL: "D",
}
_CURVES = ("central", "personalised", "local", "mean", "noise", "pooled")


def effects(report: AttackReport) -> Plate:
    """Each row's arms: effect over the best baseline, its interval, and the margin."""
    panels, data = [], []
    for index, row in enumerate(report.rows):
        with svg.style():
            figure, axes = svg.canvas(WIDTH, ROW * len(row.arms) + 56, (_LABELS, 44, 24, 8))
            _draw_effects(axes, row)
            said = "; ".join(f"{arm.arm}: {arm.verdict}, {_spelt(arm)}" for arm in row.arms)
            drawing = svg.inline(figure, f"effect{index}", row.criteria.title, said)
        panels.append(Panel(f"{row.criteria.id} {row.criteria.title}", drawing))
        data += [(row.criteria.id, arm.arm, _spelt(arm), str(arm.verdict)) for arm in row.arms]
    return Plate(
        "effects",
        "What each attack gains over the best baseline that saw nothing, with its 95 % interval. "
        "Blue diamonds are positive controls, orange crosses leaks, green circles arms where no "
        "leak was detected, grey squares arms on which nothing is concluded. The solid line is no "
        "gain, the dashed line the margin that was fixed before.",
        tuple(panels),
        ("Row", "Arm", "Gain", "Verdict"),
        tuple(data),
    )


def over_epsilon(report: AttackReport) -> Plate | None:
    """What the label attack gains at several ε, without noise at the right."""
    rows = [row for row in report.rows if row.criteria.id == OVER_EPSILON]
    arms = [arm for row in rows for arm in row.arms if arm.effect is not None]
    if len(arms) < 2:
        return None
    with svg.style():
        figure, axes = svg.canvas(WIDTH, 260, (52, 44, 16, 8))
        _draw_over_epsilon(axes, arms, rows[0].criteria.margin)
        said = "; ".join(f"{arm.arm}: {_spelt(arm)}" for arm in arms)
        drawing = svg.inline(figure, "over-epsilon", "Leakage over ε", said)
    return Plate(
        "over-epsilon",
        "What an adversary learns of a site's case mix at several ε, as the gain of L1 over its "
        "prior with 95 % intervals. Each ε is that of the whole run for every site; ∞ has no "
        "noise. The dashed line is the margin.",
        (Panel(rows[0].criteria.title, drawing),),
        ("ε", "Gain", "Verdict"),
        tuple((_level(arm), _spelt(arm), str(arm.verdict)) for arm in arms),
    )


def roc_curves(report: AttackReport) -> Plate | None:
    """ROC curves on logarithmic axes, as far as false-positive rates rest on ten others."""
    rows = [row for row in report.rows if any(arm.roc for arm in row.arms)]
    if not rows:
        return None
    arms = list(dict.fromkeys(arm.arm for row in rows for arm in row.arms if arm.roc))
    colours = {arm: _CURVES[at % len(_CURVES)] for at, arm in enumerate(arms)}
    panels = []
    for index, row in enumerate(rows):
        with svg.style():
            figure, axes = svg.canvas(WIDTH, 300, (52, 44, 16, 8))
            _draw_roc(axes, row, colours)
            drawing = svg.inline(
                figure, f"roc{index}", f"ROC of {row.criteria.id}", row.criteria.title
            )
        panels.append(Panel(f"{row.criteria.id} {row.criteria.title}", drawing))
    return Plate(
        "roc",
        "True against false positives, both on logarithmic axes; the dashed line is guessing. A "
        "curve starts where ten of those who were not in the data lie above the threshold.",
        tuple(panels),
        ("Row", "Arm", "True positives at the lowest rate drawn", "That rate"),
        tuple(
            (row.criteria.id, arm.arm, f"{arm.roc[0][1]:.3f}", f"{arm.roc[0][0]:.3f}")
            for row in rows
            for arm in row.arms
            if arm.roc
        ),
        tuple((arm, colour, "solid") for arm, colour in colours.items()),
    )


def _draw_effects(axes: Axes, row: AttackRow) -> None:
    axes.set_ylim(len(row.arms) - 0.4, -0.6)
    axes.set_yticks(range(len(row.arms)), [_short(arm.arm) for arm in row.arms])
    axes.tick_params(axis="y", length=0, labelcolor=svg.COLOURS["ink"])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.axvline(0, color=svg.COLOURS["ink"], linewidth=1)
    axes.axvline(
        row.criteria.margin, color=svg.COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3))
    )
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("gain over the best baseline")
    for y, arm in enumerate(row.arms):
        if arm.effect is None or arm.low is None or arm.high is None:
            continue
        colour = svg.COLOURS[_COLOURS[arm.verdict]]
        axes.plot([arm.low, arm.high], [y, y], color=colour, linewidth=2)
        axes.plot([arm.effect], [y], _MARKS[arm.verdict], color=colour, markersize=8)


def _draw_over_epsilon(axes: Axes, arms: Sequence[ArmResult], margin: float) -> None:
    ordered = list(reversed(arms))  # the least ε first, without noise last
    axes.set_xlim(-0.5, len(ordered) - 0.5)
    axes.set_xticks(range(len(ordered)), [_level(arm) for arm in ordered])
    axes.axhline(0, color=svg.COLOURS["ink"], linewidth=1)
    axes.axhline(margin, color=svg.COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
    axes.set_xlabel("ε of the run")
    axes.set_ylabel("gain over the prior")
    for x, arm in enumerate(ordered):
        if arm.effect is None or arm.low is None or arm.high is None:
            continue
        colour = svg.COLOURS[_COLOURS[arm.verdict]]
        axes.plot([x, x], [arm.low, arm.high], color=colour, linewidth=2)
        axes.plot([x], [arm.effect], _MARKS[arm.verdict], color=colour, markersize=8)


def _level(arm: ArmResult) -> str:
    return arm.arm.removeprefix("ε = ") if arm.arm.startswith("ε = ") else "∞"


def _draw_roc(axes: Axes, row: AttackRow, colours: dict[str, str]) -> None:
    lowest = min((arm.roc[0][0] for arm in row.arms if arm.roc), default=0.1)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("log")
    axes.plot([lowest, 1], [lowest, 1], color=svg.COLOURS["muted"], lw=1, linestyle=(0, (3, 3)))
    for arm in row.arms:
        if arm.roc:
            rates, hits = zip(*arm.roc, strict=True)
            floor = [max(hit, lowest / 2) for hit in hits]
            axes.plot(rates, floor, color=svg.COLOURS[colours[arm.arm]], linewidth=2)
    axes.set_xlim(lowest, 1)
    axes.set_ylim(lowest / 2, 1.05)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("false-positive rate")
    axes.set_ylabel("true-positive rate")


def _spelt(arm: ArmResult) -> str:
    if arm.effect is None or arm.low is None or arm.high is None:
        return "not measured"
    return f"{arm.effect:.3g} ({arm.low:.3g} to {arm.high:.3g})"


def _short(label: str, most: int = 16) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
