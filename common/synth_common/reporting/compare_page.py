"""The comparison as a page: a table of all runs, and a plot per column over epsilon."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synth_common.reporting import numbers
from synth_common.reporting.columns import GROUPS
from synth_common.reporting.compare_plots import budget_of, key_plots
from synth_common.reporting.factbook import MISSING
from synth_common.reporting.html import environment
from synth_common.reporting.svg import (
    WIDTH,
    Plot,
    draw,
    key,
    legend,
    listed,
    series_style,
    short_names,
)

_PANELS = 3  # side by side
_RUNS_PER_TABLE = 6
_SCALES = {"bytes": (1e9, "GB"), "seconds": (60.0, "min")}


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """Render a comparison as HTML that needs no script, no network and no other file.

    Args:
        comparison: From :func:`synth_common.reporting.compare.build_comparison`.

    Returns:
        A whole HTML document.
    """
    columns = comparison["columns"]
    rows = comparison["over_seeds"] or comparison["rows"]
    grouped = {g: [c for c in columns if c["group"] == g] for g in GROUPS}
    groups = [
        {
            "name": name,
            "columns": members,
            "plot": None if name == "Privacy" else _plot(f"group{number}", name, members, rows),
        }
        for number, (name, members) in enumerate(grouped.items())
        if members
    ]
    step = _RUNS_PER_TABLE
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            comparison=comparison,
            groups=groups,
            key_plots=key_plots(columns, rows, cell_text),
            blocks=[rows[i : i + step] for i in range(0, len(rows), step)],
            private=[r for r in comparison["rows"] if numbers.number(r["epsilon"]) is not None],
            text=cell_text,
            span=span_text,
        )
    )


def cell_text(column: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A cell of the table: the number in its unit."""
    return _in_unit(column, row[column["name"]])


def span_text(column: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The interval of a cell, in the column's unit; empty where none was recorded."""
    span = row.get(f"{column['name']}_interval")
    if not isinstance(span, list) or len(span) != 2:
        return ""
    return " to ".join(dict.fromkeys(_in_unit(column, end) for end in span))


def _in_unit(column: Mapping[str, Any], value: Any) -> str:
    """A number of a column, in its unit."""
    if column["unit"] == "bytes":
        return numbers.bytes_text(value)
    if column["unit"] == "seconds":
        return numbers.seconds_text(value)
    if column["name"].startswith("epsilon"):
        return numbers.epsilon_text(value)
    return numbers.measured(value)


def _plot(
    name: str, group: str, columns: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> Plot | None:
    """Small multiples of a group: epsilon across, a marker and line per generator."""
    measured = [c for c in columns if not str(c["name"]).endswith("_floor")]
    drawn = [c for c in measured if any(numbers.number(r[c["name"]]) is not None for r in rows)]
    if not drawn:
        return None
    epsilons = list(
        dict.fromkeys(numbers.setting(r["epsilon"]) for r in sorted(rows, key=budget_of))
    )
    generators = list(dict.fromkeys(str(r["generator"]) for r in rows))
    lines = -(-len(drawn) // _PANELS)
    alt = f"{group} by generator and epsilon: " + listed(
        [
            f"{c['title']} {r['generator']} at epsilon {numbers.setting(r['epsilon'])}: "
            f"{cell_text(c, r)}"
            for c in drawn
            for r in rows
        ],
        most=12,
    )

    def paint(figure: Figure) -> None:
        grid = figure.subplots(lines, _PANELS, squeeze=False)
        for axes, column in zip(grid.flat, drawn, strict=False):
            for number, generator in enumerate(generators):
                own = [r for r in rows if str(r["generator"]) == generator]
                # Side by side, so that equal numbers of two generators are both seen.
                apart = 0.12 * (number - (len(generators) - 1) / 2)
                ticks = {e: i + apart for i, e in enumerate(epsilons)}
                _paint(axes, column, own, ticks, series_style(number))
            _label(axes, column, epsilons)
        for axes in grid.flat[len(drawn) :]:
            axes.set_visible(False)
        styles = [key(series_style(i)) for i in range(len(generators))]
        legend(figure, styles, short_names([g.upper() for g in generators]))

    return draw(name, alt, (WIDTH, 0.35 + 1.75 * lines), paint)


def _paint(
    axes: Axes,
    column: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    ticks: Mapping[str, float],
    style: Mapping[str, Any],
) -> None:
    """One generator's numbers of one column, with intervals where they were recorded."""
    scale = _SCALES.get(column["unit"], (1.0, ""))[0]
    points = [
        (ticks[numbers.setting(r["epsilon"])], value / scale, r)
        for r in sorted(rows, key=budget_of)
        if (value := numbers.number(r[column["name"]])) is not None
    ]
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], **style)
    for x, _, row in points:
        if (ends := numbers.ends_of(row.get(f"{column['name']}_interval"))) is not None:
            scaled = (ends[0] / scale, ends[1] / scale)
            axes.plot((x, x), scaled, color=style["color"], linewidth=1.0)


def _label(axes: Axes, column: Mapping[str, Any], epsilons: Sequence[str]) -> None:
    """Title, scale and epsilon ticks of a panel."""
    arrow = {"lower": "\u00a0↓", "higher": "\u00a0↑"}.get(column["better"], "")
    unit = _SCALES.get(column["unit"], (1.0, ""))[1]
    title = column["title"] + (f", {unit}" if unit else "") + arrow
    axes.set_title(textwrap.fill(title, 26))
    axes.set_xticks(range(len(epsilons)), [e if e != MISSING else "?" for e in epsilons])
    axes.set_xlim(-0.4, len(epsilons) - 0.6)
    axes.set_xlabel("Epsilon")
    axes.margins(y=0.15)
