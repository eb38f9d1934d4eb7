"""From a matplotlib figure to inline SVG that follows the page's colours, font and width.

Figures are drawn in sentinel colours; each is replaced in the SVG by the CSS custom property of the
same name, so that one drawing serves light, dark and print.
"""

import re
import warnings
from contextlib import AbstractContextManager
from io import StringIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

UNITS_PER_INCH = 72
"""SVG user units in an inch, so that figure sizes below are in CSS pixels."""

LARGEST_SCALE = 1.15
"""How far a wide page may enlarge a figure, so that its text stays near the page's own."""

COLOURS = {
    "ink": "#fa0001",
    "muted": "#fa0002",
    "rule": "#fa0003",
    "central": "#fa0011",
    "personalised": "#fa0012",
    "local": "#fa0013",
    "mean": "#fa0014",
    "noise": "#fa0015",
    "pooled": "#fa0016",
}

NOT_DRAWN = re.compile(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", re.S)

STYLE: "dict[RcKeyType, Any]" = {
    "svg.fonttype": "none",
    "svg.hashsalt": "secure_natfl",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 1,
    "axes.labelsize": 11,
    "xtick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.color": COLOURS["rule"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.75,
}


def style() -> AbstractContextManager[None]:
    """The context within which figures are drawn and inlined."""
    return mpl.rc_context(STYLE)


def canvas(width: int, height: int, box: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """A figure of `width` × `height` CSS pixels; `box` is left, bottom, right, top margin in them.

    Draw and inline it within `style()`.
    """
    figure = Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH))
    left, bottom, right, top = box
    span = ((width - left - right) / width, (height - bottom - top) / height)
    axes = figure.add_axes((left / width, bottom / height, *span))
    axes.set_axisbelow(True)
    return figure, axes


def inline(figure: Figure, key: str, title: str, description: str) -> Markup:
    """The figure as one `<svg>` element with title and description; `key` is unique in the page."""
    text = _drawn(figure)
    opening = re.search(r'viewBox="([^"]+)"', text)
    if opening is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    body = text[text.index(">", text.index("<svg")) + 1 :]
    names = f'aria-labelledby="{key}-t {key}-d"'
    widest = round(LARGEST_SCALE * figure.get_figwidth() * UNITS_PER_INCH)
    head = f'<svg role="img" viewBox="{opening[1]}" style="max-width: {widest}px" {names}>'
    head += f'<title id="{key}-t">{escape(title)}</title>'
    head += f'<desc id="{key}-d">{escape(description)}</desc>'
    return Markup(head + _themed(body, key))  # noqa: S704 (drawn here; texts are escaped)


def _drawn(figure: Figure) -> str:
    target = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # The page's font draws the text; a glyph that matplotlib's own font lacks is no fault.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(target, format="svg", metadata=nothing, transparent=True)
    return target.getvalue()


def _themed(body: str, key: str) -> str:
    body = re.sub(
        r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.S
    )
    body = re.sub(r'<g id="[^"<>]*"', "<g", body)
    body = re.sub(r'(<(?:path|clipPath)) id="', rf'\1 id="{key}-', body)
    body = re.sub(r'xlink:href="#|href="#', f'href="#{key}-', body)
    body = body.replace("url(#", f"url(#{key}-")
    body = re.sub(r"font-family: [^;<>]*; ", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", "\n", body).strip()
