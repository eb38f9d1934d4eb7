"""A site's own figures: its learning curve, ROC curves and reliability diagrams."""

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from secure_natfl.report import formats, svg, words
from secure_natfl.report.curves import curve_panel, legend_of, wide
from secure_natfl.report.figures import Panel, Plate, axis_start
from secure_natfl.report.site_model import ClassFigures, SiteReport

SIDE = 260
MARGINS = (46.0, 42.0, 12.0, 10.0)


def site_curve(site: SiteReport) -> Plate | None:
    """AUROC on the site's own test part after each round."""
    points = [point for point in site.curve if point.auroc is not None]
    if not points:
        return None
    arms = words.in_arm_order(list({point.arm for point in points}))
    lines = {
        arm: [(p.round, p.auroc) for p in points if p.arm == arm and p.auroc is not None]
        for arm in arms
    }
    lowest = axis_start(point.auroc for point in points if point.auroc is not None)
    drawing = curve_panel("curve0", site.client.name, lines, lowest)
    return Plate(
        "curves",
        "Area under the ROC curve on this site's test part after each round.",
        (Panel(site.client.name, drawing),),
        ("Round", *(words.arm_label(arm) for arm in arms)),
        wide({((str(p.round),), p.arm): f"{p.auroc:.3f}" for p in points}, arms),
        legend_of(arms),
    )


def roc_curves(site: SiteReport) -> Plate | None:
    """One ROC curve per class that has both outcomes in the test part."""
    classes = [figures for figures in site.classes if figures.roc]
    if not classes:
        return None
    panels = tuple(Panel(c.class_name, _roc(f"roc{i}", c)) for i, c in enumerate(classes))
    return Plate(
        "roc",
        "ROC curve of the personalised model, class by class. The diagonal is chance.",
        panels,
        ("Class", "False-positive rate", "True-positive rate"),
        tuple((c.class_name, f"{x:.3f}", f"{y:.3f}") for c in classes for x, y in c.roc),
    )


def reliability(site: SiteReport) -> Plate | None:
    """Predicted probability against observed frequency, class by class."""
    classes = [figures for figures in site.classes if figures.reliability]
    if not classes:
        return None
    panels = tuple(Panel(c.class_name, _reliable(f"rel{i}", c)) for i, c in enumerate(classes))
    return Plate(
        "reliability",
        "How often a predicted probability comes true; larger dots hold more cases. On the "
        "diagonal the model says exactly what happens.",
        panels,
        ("Class", "Mean predicted", "Observed", "Cases"),
        tuple(
            (c.class_name, f"{b.predicted:.3f}", f"{b.observed:.3f}", formats.number(b.n))
            for c in classes
            for b in c.reliability
        ),
    )


def _roc(key: str, figures: ClassFigures) -> Markup:
    with svg.style():
        figure, axes = _square()
        axes.plot(*zip(*figures.roc, strict=True), color=svg.COLOURS["personalised"], linewidth=2)
        axes.set_xlabel("false-positive rate")
        axes.set_ylabel("true-positive rate")
        title = f"ROC curve, {figures.class_name}"
        return svg.inline(figure, key, title, f"{len(figures.roc)} thresholds; see the table.")


def _reliable(key: str, figures: ClassFigures) -> Markup:
    total = sum(part.n for part in figures.reliability) or 1
    with svg.style():
        figure, axes = _square()
        axes.scatter(
            [part.predicted for part in figures.reliability],
            [part.observed for part in figures.reliability],
            s=[20 + 200 * part.n / total for part in figures.reliability],
            color=svg.COLOURS["personalised"],
        )
        axes.set_xlabel("predicted")
        axes.set_ylabel("observed")
        title = f"Reliability, {figures.class_name}"
        return svg.inline(figure, key, title, f"{len(figures.reliability)} bins; see the table.")


def _square() -> tuple[Figure, Axes]:
    figure, axes = svg.canvas(SIDE, SIDE, MARGINS)
    axes.plot([0, 1], [0, 1], color=svg.COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    return figure, axes
