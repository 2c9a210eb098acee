"""The dot plots: quality against its floor, utility and membership with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from synth_common.reporting.factbook import POOLED
from synth_common.reporting.numbers import ends_of, interval, measured, number
from synth_common.reporting.svg import (
    MANY,
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
from synth_common.reporting.words import AUC_SERIES, TRAINED_ON, metric_title

_PANELS = 3  # side by side
_ONE = "One hospital"
_Where = tuple[str, str]  # what a panel shows (a metric, an attack) and by which encoder


@dataclass(frozen=True)
class Dot:
    """A number on a row, in a series, with its interval where it has one.

    Attributes:
        row: What the row is called.
        series: What the dot stands for, in the legend.
        value: Where it lies.
        interval: Ends of its interval.
    """

    row: str
    series: str
    value: float
    interval: tuple[float, float] | None = None


def utility_plot(records: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Balanced accuracy by what the classifier was trained on; None without numbers.

    Args:
        records: ``report["utility"]["classification"]``.
    """
    return by_training(records, "utility", "balanced_accuracy", "Balanced accuracy")


def segmentation_plot(records: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Dice by what the segmenter was trained on; None without numbers.

    Args:
        records: ``report["utility"]["segmentation"]``.
    """
    return by_training(records, "segmentation", "dice", "Dice")


def by_training(
    records: Sequence[Mapping[str, Any]], name: str, score: str, title: str
) -> Plot | None:
    """A score with its interval, by what was trained on."""
    records = [r for r in records if "trained_at" not in r]  # those trained at one site: the table
    many = len({r["site"] for r in records}) > MANY
    dots = [
        dot
        for record in records
        if (
            dot := dot_of(
                *_place(
                    record, TRAINED_ON.get(record["trained_on"], str(record["trained_on"])), many
                ),
                record[score],
                record["interval"],
            )
        )
    ]
    alt = f"{title} on real held-out patients: " + listed(
        [
            f"{r['site'] or POOLED}, trained on {r['trained_on']}: {measured(r[score])}"
            for r in records
        ]
    )
    return one_panel(name, alt, dots, f"{title} (1 is perfect)")


def membership_plot(records: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Attack AUC with its baseline and control; None without numbers.

    Args:
        records: ``report["membership"]["attacks"]``.
    """
    sites = {r["site"] for r in records}
    panels: dict[_Where, list[Dot]] = {}
    for record in records:
        where = (str(record["attack"]), str(record["encoder"]))
        for kind, value, span in AUC_SERIES:
            if len(sites) > MANY:
                series = POOLED if record["site"] is None else _ONE
                place = (kind, series)
            else:
                place = (record["site"] or POOLED, kind)
            dot = dot_of(*place, record[value], record[span])
            if dot:
                panels.setdefault(where, []).append(dot)
    alt = "Membership attacks, AUC (0.5 is guessing): " + listed(
        [
            f"{r['attack']} at {r['site'] or POOLED} {measured(r['auc'])} "
            f"({interval(r['auc_interval'])}), control {measured(r['control_auc'])}"
            for r in records
        ]
    )
    return _panels("membership", alt, panels, {where: where[0] for where in panels}, 0.5)


def quality_plot(metrics: Sequence[Mapping[str, Any]], name: str = "quality") -> Plot | None:
    """Each metric beside its real-versus-real floor, one panel per metric and encoder.

    Args:
        metrics: Records of ``report["quality"]["metrics"]``.
        name: Unique on the page.

    Returns:
        The plot, or None without numbers.
    """
    panels: dict[_Where, list[Dot]] = {}
    many = len({m["site"] for m in metrics}) > MANY
    for record in metrics:
        where = (record["metric"], str(record["encoder"]))
        for series, value in (("Synthetic v real", "value"), ("Floor: real v real", "floor")):
            dot = dot_of(*_place(record, series, many), record[value], record.get("interval"))
            if dot:
                dot = dot if value == "value" else replace(dot, interval=None)
                panels.setdefault(where, []).append(dot)
    alt = "Quality metrics beside their real-versus-real floors: " + listed(
        [
            f"{metric_title(m['metric'])} {m['site'] or POOLED} {measured(m['value'])}"
            f" (floor {measured(m['floor'])})"
            for m in metrics
        ]
    )
    arrows = {"lower": " ↓", "higher": " ↑"}
    titles = {
        (m["metric"], str(m["encoder"])): metric_title(m["metric"]) + arrows.get(m["better"], "")
        for m in metrics
    }
    return _panels(name, alt, panels, titles, None)


def _place(record: Mapping[str, Any], series: str, many: bool) -> tuple[str, str]:
    """Row and series of a record: a row per site, or per series where sites are many."""
    site = record["site"]
    if many:
        return series, (POOLED if site is None else _ONE)
    return (site or POOLED), series


def dot_of(row: str, series: str, value: Any, span: Any) -> Dot | None:
    """A dot, or None where no number was recorded."""
    plain = number(value)
    return None if plain is None else Dot(row, series, plain, ends_of(span))


def _paint(axes: Axes, dots: Sequence[Dot], rows: Sequence[str], series: Sequence[str]) -> None:
    """Dots on their rows, top row first; the series of a row side by side."""
    for dot in dots:
        order = series.index(dot.series)
        apart = 0.22 * (order - (len(series) - 1) / 2)
        style = _style(dot.series, order)
        y = rows.index(dot.row) + apart
        if dot.interval and dot.series != _ONE:
            axes.plot(dot.interval, (y, y), color=style["color"], linewidth=1.3)
        axes.plot([dot.value], [y], **style)
    axes.set_yticks(range(len(rows)), short_names(rows, 34))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.08)


def _keys(series: Sequence[str]) -> list[Line2D]:
    """Legend handles of the series."""
    return [key(_style(name, i)) for i, name in enumerate(series)]


def _style(series: str, order: int) -> dict[str, Any]:
    """Marker of a series; of the many hospitals in a strip, a stroke each."""
    if series == _ONE:
        return {"color": MUTED, "marker": "|", "markersize": 8, "linestyle": "none", "alpha": 0.8}
    return {**series_style(order), "linestyle": "none", "alpha": 0.9}


def _orders(dots: Sequence[Dot]) -> tuple[list[str], list[str]]:
    """Rows and series in order of first appearance."""
    return list(dict.fromkeys(d.row for d in dots)), list(dict.fromkeys(d.series for d in dots))


def one_panel(name: str, alt: str, dots: Sequence[Dot], xlabel: str) -> Plot | None:
    """A dot plot of one panel; None without dots."""
    if not dots:
        return None
    rows, series = _orders(dots)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _paint(axes, dots, rows, series)
        axes.set_xlabel(xlabel)
        legend(figure, _keys(series), series)

    return draw(name, alt, (WIDTH, 0.95 + 0.36 * len(rows)), paint)


def _panels(
    name: str,
    alt: str,
    panels: Mapping[_Where, Sequence[Dot]],
    titles: Mapping[_Where, str],
    reference: float | None,
) -> Plot | None:
    """Small multiples: on a common scale around a reference, else each on its own."""
    if not panels:
        return None
    rows, series = _orders([dot for dots in panels.values() for dot in dots])
    columns = min(_PANELS, len(panels))
    lines = -(-len(panels) // columns)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(
            lines, columns, squeeze=False, sharey=True, sharex=reference is not None
        )
        for axes, (where, dots) in zip(grid.flat, panels.items(), strict=False):
            if reference is not None:
                axes.axvline(reference, color=MUTED, linestyle=(0, (4, 2)), linewidth=1.2)
            _paint(axes, dots, rows, series)
            axes.set_title(short_names([titles[where]], 30)[0])
            axes.set_xlabel(short_names([where[1]], 26)[0], color=MUTED)
            axes.locator_params(axis="x", nbins=5)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        legend(figure, _keys(series), series)

    row = 0.24 if len(series) < 3 else 0.34
    return draw(name, alt, (WIDTH, 0.4 + lines * (0.75 + row * len(rows))), paint)
