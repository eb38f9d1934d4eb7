"""Learning curves and training losses, as plates of small multiples."""

import math

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from secure_natfl.report import formats, svg, words
from secure_natfl.report.figures import ARM_COLOURS, ARM_MARKS, WIDTH, Panel, Plate, axis_start
from secure_natfl.report.model import CurvePoint, LossPoint, Report

MOST_STEPS = 40

ARM_LINES = {"local_only": "--", "pooled": ":", "plain_mean": "-.", "noise_proxies": (0, (1, 3))}


def learning_curves(report: Report) -> Plate | None:
    """AUROC, or Dice of masks, after each round: one panel per hospital, one line per arm."""
    metric = "dice" if any(point.dice is not None for point in report.curves) else "auroc"
    name = formats.METRICS[metric]
    points = [(p, v) for p in report.curves if (v := getattr(p, metric)) is not None]
    if not points:
        return None
    lowest = axis_start(value for _, value in points)
    arms = words.in_arm_order(list({point.arm for point, _ in points}))
    hospitals = list(dict.fromkeys(point.hospital for point, _ in points))
    panels = []
    for index, hospital in enumerate(hospitals):
        lines = {arm: _line(points, arm, hospital) for arm in arms}
        panels.append(Panel(hospital, curve_panel(f"curve{index}", hospital, lines, lowest, name)))
    return Plate(
        "curves",
        "Area under the ROC curve after each round. The dashed grey line is chance."
        if metric == "auroc"
        else "Overlap of masks (Dice) after each round.",
        tuple(panels),
        ("Hospital", "Round", *(words.arm_label(arm) for arm in arms)),
        wide({((p.hospital, str(p.round)), p.arm): f"{v:.3f}" for p, v in points}, arms),
        legend_of(arms),
    )


def legend_of(arms: list[str]) -> tuple[tuple[str, str, str], ...]:
    """Name, colour property and CSS border style of each arm's line."""
    borders = {"local_only": "dashed", "pooled": "dotted", "plain_mean": "dashed"}
    borders["noise_proxies"] = "dotted"
    return tuple(
        (words.arm_label(arm), ARM_COLOURS.get(arm, "muted"), borders.get(arm, "solid"))
        for arm in arms
    )


def curve_panel(
    key: str,
    place: str,
    lines: dict[str, list[tuple[int, float]]],
    lowest: float,
    metric: str = "AUROC",
) -> Markup:
    """A figure by round for each arm; `lines` maps an arm to its (round, figure) points."""
    with svg.style():
        figure, axes = svg.canvas(WIDTH, 220, (44, 42, 12, 10))
        for arm, line in lines.items():
            rounds, values = zip(*line, strict=True) if line else ((), ())
            axes.plot(
                rounds,
                values,
                color=svg.COLOURS[ARM_COLOURS.get(arm, "muted")],
                linestyle=ARM_LINES.get(arm, "-"),
                linewidth=2,
                marker=ARM_MARKS.get(arm, "."),
                markersize=4,
            )
        axes.set_ylim(lowest, 1.0)
        if metric == "AUROC":
            axes.axhline(0.5, color=svg.COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("round")
        axes.set_ylabel(metric)
        last = [f"{words.arm_label(arm)} {line[-1][1]:.3f}" for arm, line in lines.items() if line]
        described = f"At the last round: {'; '.join(last)}"
        return svg.inline(figure, key, f"{metric} by round at {place}", described)


def loss_curves(report: Report) -> Plate | None:
    """Training losses, thinned to `MOST_STEPS` points a model; the central model stands out."""
    if not report.losses:
        return None
    models = list(dict.fromkeys(point.model for point in report.losses))
    lines = {model: _thinned([p for p in report.losses if p.model == model]) for model in models}
    with svg.style():
        figure, axes = svg.canvas(WIDTH, 220, (44, 42, 12, 10))
        for model, line in lines.items():
            colour = svg.COLOURS["central" if model == "central" else "muted"]
            width = 2 if model == "central" else 1
            axes.plot([p.step for p in line], [p.loss for p in line], color=colour, linewidth=width)
        axes.grid(axis="y")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        drawing = svg.inline(figure, "loss0", "Training loss", f"Models: {', '.join(models)}")
    return Plate(
        "losses",
        "Training loss: the central model in blue, the sites' models in grey.",
        (Panel("All models", drawing),),
        ("Step", *models),
        wide(
            {
                ((formats.number(p.step),), model): f"{p.loss:.4g}"
                for model, line in lines.items()
                for p in line
            },
            models,
        ),
    )


def wide(
    cells: dict[tuple[tuple[str, ...], str], str], columns: list[str]
) -> tuple[tuple[str, ...], ...]:
    """A table with one line per row key and one column per column key; gaps are "n/a"."""
    keys = dict.fromkeys(key for key, _ in cells)
    missing = formats.NOT_DEFINED
    return tuple((*key, *(cells.get((key, column), missing) for column in columns)) for key in keys)


def _line(
    points: list[tuple[CurvePoint, float]], arm: str, hospital: str
) -> list[tuple[int, float]]:
    return [(p.round, v) for p, v in points if p.arm == arm and p.hospital == hospital]


def _thinned(points: list[LossPoint]) -> list[LossPoint]:
    every = math.ceil(len(points) / MOST_STEPS)
    kept = points[::every]
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]
