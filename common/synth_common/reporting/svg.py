"""A matplotlib figure as inline SVG: one page holds many, in its own font, without links."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK: Final = "#1b2430"
MUTED: Final = "#5b6775"
DANGER: Final = "#9f1d20"

# Each at least 4.5:1 on white; neighbours differ in lightness as well as in hue, and every
# series also has a marker and a line style of its own.
COLOURS: Final = (
    "#14508c",
    "#b0440c",
    "#1d7a5f",
    "#7b3f98",
    "#7d6200",
    "#a02060",
    "#00718a",
    "#4a4a4a",
)
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES: Final[tuple[Any, ...]] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

MANY: Final = len(COLOURS)
"""Up to this many series are told apart by eye; above it, only the extreme is named."""

WIDTH: Final = 6.6
"""Inches; the page scales it to its column."""

# Both the style and the warnings' filters belong to the process, not to a thread.
_ONE_AT_A_TIME = threading.Lock()

# Any: the type of matplotlib's keys differs between its versions.
_STYLE: Final[Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, searchable, read aloud
    "svg.hashsalt": "synthward",  # the same report gives the same bytes
    "text.parse_math": False,  # a $ in a hospital's name is a $
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8a94a0",
    "axes.linewidth": 0.8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7eb",
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Plot:
    """A picture and its text alternative.

    Attributes:
        svg: An ``<svg role="img">`` element with ``aria-label`` and ``<title>``.
        alt: The same in words, made from the numbers drawn.
    """

    svg: Markup
    alt: str


def draw(name: str, alt: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Plot:
    """Paint a figure and return it as inline SVG.

    Args:
        name: Unique on its page; prefixes every id inside the SVG.
        alt: Text alternative.
        size: Width and height in inches; the page scales the picture to its column.
        paint: Draws into the figure.
    """
    buffer = io.StringIO()
    with _ONE_AT_A_TIME, rc_context(_STYLE), warnings.catch_warnings():
        # Names in any script are laid out by the browser's fonts, not by matplotlib's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size)
        paint(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Plot(svg=_inline(buffer.getvalue(), name, alt), alt=alt)


def _inline(text: str, name: str, alt: str) -> Markup:
    """Strip what only a file needs, make ids unique on the page, and add the alternative."""
    body = text[text.index("<svg") :]
    head, body = body.split(">", 1)
    box = re.search(r'viewBox="[^"]+"', head)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r"font-family: [^;\"]+;? ?", "", body)  # the page's font
    # Markup is safe here: matplotlib escapes every text it writes, and the label is escaped.
    return Markup(
        f'<svg {box.group() if box else ""} role="img" aria-label="{escape(alt)}">'
        f"<title>{escape(alt)}</title>{body}"
    )


def series_style(number: int) -> dict[str, Any]:
    """Colour, marker and dash of series ``number`` (0-based), told apart without colour."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


def short_names(names: Sequence[str], width: int = 30) -> list[str]:
    """Names cut in the middle to ``width`` characters, kept distinct by a number."""
    short: list[str] = []
    for position, name in enumerate(names, start=1):
        half = (width - 1) // 2
        cut = name if len(name) <= width else f"{name[:half]}…{name[-half:]}"
        # matplotlib hides labels that begin with an underscore.
        cut = f" {cut}" if cut.startswith("_") else cut
        short.append(cut if cut not in short else f"{cut} ({position})")
    return short


def legend(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str]) -> None:
    """A legend above the plot, in as many columns as its longest label leaves room for."""
    columns = max(1, int(96 // (max(map(len, labels), default=1) + 7)))
    figure.legend(list(handles), list(labels), loc="outside upper left", ncols=columns)


def key(style: dict[str, Any]) -> Line2D:
    """A legend handle in a style."""
    return Line2D([], [], **style)


def whole_rounds(axes: Axes, rounds: Sequence[int]) -> None:
    """Label a round axis at whole rounds only."""
    step = max(1, -(-len(set(rounds)) // 12))
    axes.set_xticks(sorted(set(rounds))[::step])
    axes.set_xlabel("Round")


def listed(parts: Sequence[str], most: int = MANY) -> str:
    """Parts as a list in words, cut to what can be listened to."""
    if not parts:
        return "nothing recorded"
    rest = len(parts) - most
    return ", ".join(parts[:most]) + (f" and {rest} more in the table" if rest > 0 else "")
