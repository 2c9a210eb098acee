"""The three questions of a comparison, each a plot over epsilon: useful? alike? found?

Epsilon is on a logarithmic axis, with infinity (no privacy) at its end behind a break. Every
generator has a colour, a marker and a dash of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synth_common.reporting import numbers
from synth_common.reporting.svg import (
    MUTED,
    WIDTH,
    Plot,
    draw,
    key,
    legend,
    listed,
    series_style,
    short_names,
)

Row = Mapping[str, Any]
Text = Callable[[Mapping[str, Any], Row], str]

_DODGE = 0.025  # of the axis: equal numbers of two generators are both seen
_GUESSING = 0.5  # the AUC of an attack that learns nothing, by definition
_REFERENCE: Final[dict[str, Any]] = {"color": MUTED, "linestyle": (0, (5, 3)), "linewidth": 1.3}


@dataclass(frozen=True)
class KeyPlot:
    """A plot, what it asks, and the numbers behind it.

    Attributes:
        title: What is plotted.
        plot: The picture.
        epsilons: The table's columns, as printed.
        lines: One per generator: name, and (number, interval or "") per epsilon.
        reference: Name and number of the dashed line; None without one.
    """

    title: str
    plot: Plot
    epsilons: tuple[str, ...]
    lines: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    reference: tuple[str, str] | None


def key_plots(
    columns: Sequence[Mapping[str, Any]], rows: Sequence[Row], text: Text
) -> list[KeyPlot]:
    """Plots of usefulness, Fréchet distance and membership AUC, of what was recorded.

    Args:
        columns: The comparison's columns.
        rows: Its lines, one per generator and epsilon.
        text: Prints a cell.
    """
    plots = []
    for column in columns:
        asked = _question(str(column["name"]))
        measured = any(numbers.number(row[column["name"]]) is not None for row in rows)
        if asked is not None and measured:
            title, reference = asked
            plots.append(_key_plot(column, rows, text, (title, *reference)))
    order = ("Usefulness", "Fréchet", "Membership")
    return [plot for word in order for plot in plots if plot.title.startswith(word)]


def _question(name: str) -> tuple[str, tuple[str, str | float]] | None:
    """Title of a column's plot, and the name and column (or number) of its dashed line."""
    if name.startswith("utility_synthetic"):
        real = name.replace("utility_synthetic", "utility_real", 1)
        title = "Usefulness: balanced accuracy of a classifier trained on synthetic images"
        return title, ("trained on real images", real)
    if name == "dice_synthetic":
        title = "Usefulness: Dice of a segmenter trained on synthetic images and masks"
        return title, ("trained on real images", "dice_real")
    if name.startswith("frechet_") and not name.endswith("_floor"):
        space = name.removeprefix("frechet_")
        return f"Fréchet distance, {space} features", ("real against real", f"{name}_floor")
    if name == "membership_auc":
        return "Membership risk: highest AUC of any attack", ("guessing", _GUESSING)
    return None


def _key_plot(
    column: Mapping[str, Any], rows: Sequence[Row], text: Text, asked: tuple[str, str, str | float]
) -> KeyPlot:
    """One plot with its table and its alternative."""
    title, line_name, line = asked
    name = str(column["name"])
    generators = list(dict.fromkeys(str(row["generator"]) for row in rows))
    budgets = sorted({budget_of(row) for row in rows})
    levels = _levels(rows, line)
    cells = {(str(row["generator"]), budget_of(row)): row for row in rows}
    reference = None
    if levels:
        shown = [numbers.measured(level) for level in (levels[0], levels[-1])]
        reference = (line_name, " to ".join(dict.fromkeys(shown)))
    known = [row for row in rows if numbers.number(row[name]) is not None]
    points = [
        f"{row['generator']} at epsilon {numbers.setting(row['epsilon'])}: {text(column, row)}"
        for row in known
    ]
    alt = f"{title}, over epsilon. {listed(points, most=12)}."
    alt += f" Dashed line, {reference[0]}: {reference[1]}." if reference else ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = _places(budgets)
        for level in levels:
            axes.axhline(level, **_REFERENCE)
        for number, generator in enumerate(generators):
            own = [row for row in known if str(row["generator"]) == generator]
            apart = _DODGE * _span(places) * (number - (len(generators) - 1) / 2)
            spots = [(places[budget_of(row)] + apart, row) for row in own]
            _paint(axes, name, sorted(spots, key=lambda s: s[0]), series_style(number))
        _label(axes, column, places)
        handles = [key(series_style(i)) for i in range(len(generators))]
        names = short_names([g.upper() for g in generators])
        if reference:
            handles.append(key(dict(_REFERENCE)))
            names.append(reference[0])
        legend(figure, handles, names)

    return KeyPlot(
        title=title,
        plot=draw(f"key-{name}", alt, (WIDTH, 2.8), paint),
        epsilons=tuple(numbers.setting(_recorded(budget)) for budget in budgets),
        lines=tuple(
            (g, tuple(_cell(column, cells.get((g, budget)), text) for budget in budgets))
            for g in generators
        ),
        reference=reference,
    )


def _levels(rows: Sequence[Row], line: str | float) -> list[float]:
    """Where the dashed line lies: a number, or the least and the most of a column."""
    if not isinstance(line, str):
        return [line]
    found = [v for row in rows if (v := numbers.number(row.get(line))) is not None]
    return sorted({min(found), max(found)}) if found else []


def _cell(column: Mapping[str, Any], row: Row | None, text: Text) -> tuple[str, str]:
    """Number and interval as printed; an empty interval where none was recorded."""
    if row is None:
        return "not run", ""
    span = row.get(f"{column['name']}_interval")
    return text(column, row), numbers.interval(span) if isinstance(span, list) else ""


def _paint(
    axes: Axes, name: str, spots: Sequence[tuple[float, Row]], style: Mapping[str, Any]
) -> None:
    """One generator: a line through finite budgets, infinity apart, and intervals."""
    finite = [(x, row) for x, row in spots if math.isfinite(budget_of(row))]
    for part in (finite, [spot for spot in spots if spot not in finite]):
        if part:
            axes.plot([x for x, _ in part], [float(row[name]) for _, row in part], **style)
    for x, row in spots:
        if (ends := numbers.ends_of(row.get(f"{name}_interval"))) is not None:
            axes.plot((x, x), ends, color=style["color"], linewidth=1.1)


def _label(axes: Axes, column: Mapping[str, Any], places: Mapping[float, float]) -> None:
    """Ticks at the budgets that ran, a break before infinity, and the better direction."""
    better = {"lower": "lower is better", "higher": "higher is better"}.get(column["better"], "")
    axes.set_ylabel(better)
    ticks = [numbers.setting(_recorded(budget)) for budget in places]
    axes.set_xticks(list(places.values()), ticks)
    axes.set_xlabel("Epsilon (logarithmic; ∞ is without privacy)")
    margin = 0.08 * _span(places)
    axes.set_xlim(min(places.values()) - margin, max(places.values()) + margin)
    axes.margins(y=0.12)
    finite = [x for budget, x in places.items() if math.isfinite(budget)]
    if finite and math.inf in places:
        axes.axvline((max(finite) + places[math.inf]) / 2, color="#8a94a0", linestyle=(0, (1, 3)))


def _places(budgets: Sequence[float]) -> dict[float, float]:
    """Where each budget stands: its logarithm, infinity a step behind the largest."""
    finite = [math.log10(budget) for budget in budgets if math.isfinite(budget)]
    width = finite[-1] - finite[0] if len(finite) > 1 else 1.0
    end = finite[-1] + max(0.3, 0.3 * width) if finite else 0.0
    return {b: math.log10(b) if math.isfinite(b) else end for b in budgets}


def _span(places: Mapping[float, float]) -> float:
    """Width of the axis; 1 for a single budget."""
    return (max(places.values()) - min(places.values())) or 1.0


def budget_of(row: Row) -> float:
    """Epsilon as a number; infinity for what promises nothing."""
    plain = numbers.number(row["epsilon"])
    return math.inf if plain is None else plain


def _recorded(budget: float) -> float | str:
    """A budget as facts hold it."""
    return budget if math.isfinite(budget) else "inf"
