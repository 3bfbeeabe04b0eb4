"""How the figures look: matplotlib's object interface, colours that colour-blind readers can tell apart (Okabe and Ito)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tempertilt.errors import MissingExtraError

VERMILION, ORANGE, GREEN, SKY, BLUE, PURPLE = "#D55E00", "#E69F00", "#009E73", "#56B4E9", "#0072B2", "#CC79A7"
INK, MUTED, FAINT = "#222222", "#666666", "#DDDDDD"
SERIES = ((VERMILION, "o"), (ORANGE, "s"), (GREEN, "^"), (SKY, "D"), (BLUE, "v"), (PURPLE, "P"))

RC = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Our settings while a figure is made and saved.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "theory", "drawing the figures of t3 theory") from error
    with matplotlib.rc_context(RC):
        yield


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """A figure and its axes `(rows, columns)`, `size` in inches; call it within `drawing`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def line(axis: Any, xs: Sequence[float], ys: Sequence[float], number: int, label: str, **options: Any) -> None:
    """One of several series, by number: colour and marker."""
    colour, marker = SERIES[number % len(SERIES)]
    axis.plot(xs, ys, **{"color": colour, "marker": marker, "label": label, "linewidth": 1.8, "markersize": 4.5, **options})


def label(axis: Any, title: str, x: str, y: str) -> None:
    """Title and axes' names."""
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
