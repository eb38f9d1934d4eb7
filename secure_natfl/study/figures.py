"""The figures of `study.html`: AUROC over ε, and what a better worst hospital costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from secure_natfl.report import formats, svg, words
from secure_natfl.report.figures import ARM_COLOURS, WIDTH, Panel, Plate, axis_start
from secure_natfl.study.advice import Worst
from secure_natfl.study.analysis import Score
from secure_natfl.study.grid import EPSILON, Setting, named
from secure_natfl.study.guarantee import Guarantee, guarantee_of

_PALETTE = ("central", "personalised", "mean", "noise", "local", "pooled")
_MARKS = "osD^vXP*"
_CALLED = {"central": "central model", "personalised": "personalised models"}
_DASHES = {"local_only": "--", "pooled": ":"}

Spot = tuple[str, float, float]
"""Label, price, AUROC."""


def over_epsilon(key: str, scores: Sequence[Score], model: str, given: Guarantee) -> Plate | None:
    """AUROC of `model` over an ε that is of `given`, one panel per hospital, one line per arm.

    The ∞ points stand at the right end as lines of their own colour; local-only and pooled models
    and the majority class are level lines. None where no arm has two values of ε.
    """
    known = [s for s in scores if s.seed is None and not s.site and s.auroc is not None]
    alike = {line_of(s.setting) for s in known if guarantee_of(s.setting.config) == given}
    chosen = [s for s in known if line_of(s.setting) in alike]
    mine = [s for s in chosen if s.model == model and math.isfinite(s.setting.epsilon)]
    hospitals = list(dict.fromkeys(s.hospital for s in mine))
    values = {(line_of(s.setting), s.setting.epsilon) for s in mine}
    if len(values) == len({line for line, _ in values}):
        return None
    lines = list(dict.fromkeys(line_of(s.setting) for s in mine))
    lowest = axis_start(s.auroc.low for s in chosen if s.auroc is not None)
    panels = [
        Panel(h, _panel(f"{key}{i}", h, [s for s in chosen if s.hospital == h], model, lowest))
        for i, h in enumerate(hospitals)
    ]
    styled = {"local_only": ("local", "dashed"), "pooled": ("pooled", "dotted")}
    present = [m for m in styled if any(s.model == m for s in chosen)]
    return Plate(
        key,
        f"AUROC of the {_CALLED[model]} over the ε that the noise is calibrated for "
        f"({given.words}). {_units(mine)}95 % bootstrap intervals over patients, mean over seeds. "
        "The level line in an arm's own colour is that arm without noise (ε = ∞); the thin dashed "
        "grey line is a model that always answers the majority class (0.5). A level line of local "
        "or pooled training is of the first of these settings.",
        tuple(panels),
        ("Hospital", "Line", "ε", "AUROC", "Interval", "Seeds"),
        tuple(
            (
                s.hospital,
                line_of(s.setting) if s.model == model else words.arm_label(s.model),
                formats.epsilon(_spelled(s.setting.epsilon)) if s.model == model else "",
                formats.score(s.auroc),
                formats.bounds(s.auroc),
                str(s.seeds),
            )
            for s in _shown(chosen, model)
        ),
        tuple((line, _colour(lines, line), "solid") for line in lines)
        + tuple((words.arm_label(m), *styled[m]) for m in present),
    )


def pareto(
    key: str, label: str, spell: Callable[[float], str], spots: Sequence[Spot], note: str = ""
) -> Plate:
    """AUROC at the worst hospital against a price; what nothing beats in both stands out."""
    front = front_of(spots)
    with svg.style():
        figure, axes = svg.canvas(WIDTH, 240, (44, 42, 16, 10))
        for name, price, value in spots:
            best = name in front
            colour = svg.COLOURS["central" if best else "muted"]
            axes.plot([price], [value], "o" if best else ".", color=colour, markersize=7)
        on = sorted((price, value) for name, price, value in spots if name in front)
        axes.plot(*zip(*on, strict=True), color=svg.COLOURS["central"], linewidth=1)
        if min(price for _, price, _ in spots) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        low, high = min(p for _, p, _ in spots), max(p for _, p, _ in spots)
        axes.xaxis.set_major_locator(FixedLocator(sorted({low, high})))
        axes.xaxis.set_major_formatter(lambda x, _: spell(x))
        axes.grid(axis="y")
        axes.set_xlabel(label)
        axes.set_ylabel("AUROC at the worst hospital")
        described = "; ".join(f"{n} {spell(p)} {v:.3f}" for n, p, v in spots)
        drawing = svg.inline(figure, key, f"Worst hospital against {label}", described)
    return Plate(
        key,
        f"AUROC at the worst hospital against {label}. Blue: no other setting is at least as good "
        f"in both and better in one.{note}",
        (Panel(f"Against {label}", drawing),),
        ("Setting", label[0].upper() + label[1:], "AUROC at the worst hospital", "On the front"),
        tuple((n, spell(p), f"{v:.3f}", "yes" if n in front else "no") for n, p, v in spots),
    )


def front_of(spots: Sequence[Spot]) -> set[str]:
    """Labels that no other spot beats: as cheap and as good, and better in one of the two."""
    return {
        name
        for name, price, value in spots
        if not any(p <= price and v >= value and (p, v) != (price, value) for _, p, v in spots)
    }


def spots_of(worst: Sequence[Worst], price: Callable[[Setting], float | None]) -> list[Spot]:
    """Every setting that has a price."""
    priced = [(one.setting.label, price(one.setting), one.auroc) for one in worst]
    return [(name, cost, value) for name, cost, value in priced if cost is not None]


def _units(scores: Sequence[Score]) -> str:
    """A caption's sentence on what a unit is where; "" where the guarantee is of whole clients."""
    if any((given := guarantee_of(s.setting.config)) and given.unit for s in scores):
        return ""
    named = dict.fromkeys(f"{s.unit} at {s.hospital}" for s in scores)
    return f"A unit is a patient or an image: {', '.join(named)}. "


def line_of(setting: Setting) -> str:
    """Arm and all of the point but ε: what one line of a figure stands for."""
    rest = [f"{named(axis)} = {value}" for axis, value in setting.point if axis != EPSILON]
    return ", ".join([setting.arm, *rest])


def _panel(key: str, hospital: str, scores: list[Score], model: str, lowest: float) -> Markup:
    mine = [s for s in scores if s.model == model]
    finite = sorted({s.setting.epsilon for s in mine if math.isfinite(s.setting.epsilon)})
    lines = list(
        dict.fromkeys(line_of(s.setting) for s in mine if math.isfinite(s.setting.epsilon))
    )
    with svg.style():
        figure, axes = svg.canvas(WIDTH, 240, (44, 42, 12, 10))
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(FixedLocator(finite))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_xlim(finite[0] / 1.2, finite[-1] * 1.2)
        for number, line in enumerate(lines):
            _line(axes, [s for s in mine if line_of(s.setting) == line], lines, number)
        for name, dash in _DASHES.items():
            level = next((s.auroc for s in scores if s.model == name and s.auroc), None)
            if level is not None:
                colour = svg.COLOURS[ARM_COLOURS[name]]
                axes.axhline(level.value, color=colour, linestyle=dash, linewidth=1.5)
        axes.axhline(0.5, color=svg.COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
        axes.set_ylim(lowest, 1.0)
        axes.grid(axis="y")
        axes.set_xlabel("ε, logarithmic")
        axes.set_ylabel("AUROC")
        said = [f"{s.setting.label} {formats.score(s.auroc)}" for s in mine]
        return svg.inline(figure, key, f"AUROC over ε at {hospital}", "; ".join(said))


def _line(axes: Axes, scores: list[Score], lines: list[str], number: int) -> None:
    colour = svg.COLOURS[_colour(lines, lines[number])]
    known = [(s.setting.epsilon, s.auroc) for s in scores if s.auroc is not None]
    finite = sorted((e, a.value, a.low, a.high) for e, a in known if math.isfinite(e))
    # Intervals of several arms at one ε stand side by side.
    shift = 1 + 0.025 * (number - (len(lines) - 1) / 2)
    at = [epsilon * shift for epsilon, *_ in finite]
    axes.plot(at, [v for _, v, _, _ in finite], color=colour, linewidth=2)
    axes.plot(at, [v for _, v, _, _ in finite], _MARKS[number % 8], color=colour, markersize=5)
    axes.vlines(at, [f[2] for f in finite], [f[3] for f in finite], color=colour, linewidth=1)
    for epsilon, found in known:
        if math.isinf(epsilon):
            axes.axhline(found.value, color=colour, linewidth=1, alpha=0.8)


def _colour(lines: list[str], line: str) -> str:
    return _PALETTE[lines.index(line) % len(_PALETTE)]


def _shown(scores: Sequence[Score], model: str) -> list[Score]:
    """The model's own figures, and each comparison of a hospital once."""
    found, seen = [], set()
    for score in scores:
        if score.model == model:
            found.append(score)
        elif score.model in _DASHES and (score.hospital, score.model) not in seen:
            seen.add((score.hospital, score.model))
            found.append(score)
    return found


def _spelled(epsilon: float) -> float | str:
    return "inf" if math.isinf(epsilon) else epsilon
