"""Figures of the leakage notebook, in the report's colours; no state of matplotlib's is touched.

What leaks is framed and drawn in orange, what does not in blue.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from attacks.cryptanalysis import KeyGuess
from secure_natfl.leakage.notebook import SharesFound

PAPER, INK, MUTED, RULE = "#fdfdfb", "#1b1e22", "#565d66", "#d6d8d2"
LEAKS, STOPPED, _NOT_FOUND = "#a94c06", "#0b5a8a", "#e4e6e1"
_DPI, _WIDE = 150, 10.5
_LINE: Final = 165  # characters of a caption
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.facecolor": PAPER,
}


@dataclass(frozen=True)
class Picture:
    """A finished figure: Jupyter shows it, a script may write it."""

    png: bytes

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return self.png, {"width": round(96 * _WIDE)}

    def write(self, path: Path) -> None:
        """As a PNG file; folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.png)


@dataclass(frozen=True, eq=False)
class Tile:
    """An image [H, W] in [0, 1], or [H, W, 3], with a line below; `leaks` None: no verdict."""

    image: NDArray[np.generic]
    text: str = ""
    leaks: bool | None = None


def gallery(titles: Sequence[str], rows: Sequence[Sequence[Tile]], caption: str) -> Picture:
    """Tiles in rows under their columns' titles."""
    with mpl.rc_context(_STYLE):
        side = _WIDE / len(titles)
        figure, below = _figure((side + 0.12) * len(rows) + 0.55, caption)
        grid = figure.subplots(len(rows), len(titles), squeeze=False)
        for row, axes in zip(rows, grid, strict=True):
            for tile, axis in zip(row, axes, strict=True):
                _draw(axis, tile)
        for title, axis in zip(titles, grid[0], strict=True):
            axis.set_title(title, loc="left", fontsize=9, fontweight="bold", color=INK, pad=7)
        height = figure.get_figheight()
        figure.subplots_adjust(
            left=0.005, right=0.995, top=1 - 0.5 / height, bottom=(below + 0.25) / height,
            wspace=0.08, hspace=0.2,
        )  # fmt: skip
        return _finished(figure)


def share_panels(found: Mapping[str, SharesFound], margin: float, caption: str) -> Picture:
    """Guessed over true shares of the classes but the first, a panel for each arm.

    margin: the saving up to which a panel is drawn as stopped; an attack that is as much worse
    than its prior says nothing.
    """
    with mpl.rc_context(_STYLE):
        figure, below = _figure(_WIDE / len(found) + 0.95, caption)
        grid = figure.subplots(1, len(found), squeeze=False, sharex=True, sharey=True)[0]
        for (name, one), axis in zip(found.items(), grid, strict=True):
            _compare(axis, one, margin)
            axis.set_title(name, loc="left", fontsize=9, fontweight="bold", color=INK, pad=7)
        grid[0].set_ylabel("guessed by the attacker")
        height = figure.get_figheight()
        figure.subplots_adjust(
            left=0.055, right=0.995, top=1 - 0.5 / height, bottom=(below + 0.5) / height,
            wspace=0.08,
        )  # fmt: skip
        return _finished(figure)


def key_map(guess: KeyGuess, key: NDArray[np.int8]) -> NDArray[np.float64]:
    """Every coefficient as a pixel of a square [S, S, 3]: orange where the guess is right."""
    side = math.isqrt(len(key) - 1) + 1
    colours = np.array([mpl.colors.to_rgb(one) for one in (_NOT_FOUND, LEAKS, PAPER)])
    kind = np.full(side * side, 2)
    kind[: len(key)] = guess.coefficients == key
    pixels: NDArray[np.float64] = colours[kind.reshape(side, side)]
    return pixels


def _draw(axis: Axes, tile: Tile) -> None:
    axis.imshow(tile.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    colour = {None: MUTED, True: LEAKS, False: STOPPED}[tile.leaks]
    axis.set_xlabel(tile.text, color=colour, loc="left", fontsize=8.5, labelpad=4)
    for spine in axis.spines.values():
        spine.set(color=RULE if tile.leaks is None else colour, linewidth=1.6)


def _compare(axis: Axes, one: SharesFound, margin: float) -> None:
    colour = LEAKS if one.saved > margin else STOPPED if one.saved > -margin else MUTED
    words = f"{one.saved:.0%} of the prior's\nerror saved"
    if one.saved <= -margin:
        words = "worse than its prior:\nno conclusion"
    axis.plot([0, 1], [0, 1], color=RULE, linewidth=1.2)
    for usual in one.prior[1:]:
        axis.axhline(usual, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
    axis.scatter(one.shares[:, 1:], one.guess[:, 1:], s=26, color=colour, alpha=0.75, linewidths=0)
    axis.text(0.04, 0.95, words, color=colour,
              transform=axis.transAxes, va="top", fontsize=8.5)  # fmt: skip
    axis.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="true share")
    axis.set_xticks([0, 0.5, 1])
    axis.set_yticks([0, 0.5, 1])
    axis.spines[["top", "right"]].set_visible(False)


def _figure(height: float, caption: str) -> tuple[Figure, float]:
    """A figure whose drawings are `height` inches high, and the inches of its caption below."""
    lines = textwrap.wrap(caption, _LINE)
    below = 0.17 * len(lines) + 0.1
    figure = Figure(figsize=(_WIDE, height + below), facecolor=PAPER)
    figure.text(0.005, 0.06 / (height + below), "\n".join(lines), color=MUTED, fontsize=8.5,
                va="bottom", linespacing=1.35)  # fmt: skip
    return figure, below


def _finished(figure: Figure) -> Picture:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI)
    return Picture(out.getvalue())
