"""The plots over rounds: epsilon, losses and health signals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from synth_common.reporting.factbook import POOLED
from synth_common.reporting.numbers import epsilon_text, measured, number, setting
from synth_common.reporting.svg import (
    DANGER,
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
    whole_rounds,
)


@dataclass(frozen=True)
class _Line:
    """A line over rounds; a round without a number breaks it."""

    name: str
    points: tuple[tuple[int, float | None], ...]

    @property
    def last(self) -> float | None:
        """The last number on the line."""
        return next((v for _, v in reversed(self.points) if v is not None), None)


def epsilon_plot(sites: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Epsilon spent by each site after each round, with the targets; None without numbers.

    Args:
        sites: ``report["privacy"]["sites"]``.
    """
    lines = [
        _line(s["name"], ((p["round"], p["epsilon"]) for p in s["epsilon_by_round"])) for s in sites
    ]
    targets = sorted({t for s in sites if (t := number(s["target_epsilon"])) is not None})
    named = " and ".join(setting(t) for t in targets)
    ends = [f"{line.name} {epsilon_text(line.last)}" for line in lines if line.last is not None]
    alt = f"Epsilon spent over rounds, per hospital. At the end: {listed(ends)}." + (
        f" Target {named}." if targets else ""
    )

    def finish(axes: Axes) -> None:
        axes.set_ylim(bottom=0)
        for target in targets:
            axes.axhline(target, color=DANGER, linestyle=(0, (4, 2)), linewidth=1.4)
            axes.annotate(
                f"target {setting(target)}",
                (0, target),
                xycoords=("axes fraction", "data"),
                xytext=(3, 3),
                textcoords="offset points",
                color=DANGER,
            )
        if targets:
            axes.set_ylim(top=max(axes.get_ylim()[1], 1.12 * targets[-1]))

    return _over_rounds("epsilon", alt, lines, "Epsilon spent", finish)


def losses_plot(losses: Sequence[Mapping[str, Any]]) -> Plot | None:
    """The private loss of each site over rounds; None without numbers.

    Args:
        losses: ``report["training"]["losses"]``.
    """
    lines = [
        _line(entry["site"] or POOLED, ((p["round"], p["value"]) for p in entry["rounds"]))
        for entry in losses
    ]
    moves = [
        f"{line.name} from {measured(first)} to {measured(line.last)}"
        for line in lines
        if (first := next((v for _, v in line.points if v is not None), None)) is not None
    ]
    alt = f"Training loss over rounds, per hospital: {listed(moves)}."
    return _over_rounds("loss", alt, lines, "Mean loss", lambda axes: None)


def health_plot(health: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Each health signal over rounds, one panel per signal; None without numbers.

    Args:
        health: ``report["training"]["health"]``.
    """
    names = list(dict.fromkeys(name for entry in health for name in _signals(entry)))
    lines = [_line(n, ((e["round"], _signals(e).get(n)) for e in health)) for n in names]
    lines = [line for line in lines if line.last is not None]
    if not lines:
        return None
    alt = "Health signals over rounds. At the end: " + listed(
        [f"{line.name.replace('_', ' ')} {measured(line.last)}" for line in lines], most=12
    )
    rows = -(-len(lines) // 3)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(rows, 3, squeeze=False)
        for axes, line in zip(grid.flat, lines, strict=False):
            _plot_line(axes, line, {**series_style(0), "linestyle": "-"})
            axes.set_title(short_names([line.name.replace("_", " ")], 26)[0])
            whole_rounds(axes, [r for r, _ in line.points])
        for axes in grid.flat[len(lines) :]:
            axes.set_visible(False)

    return draw("health", alt, (WIDTH, 0.3 + 1.55 * rows), paint)


def _over_rounds(
    name: str, alt: str, lines: Sequence[_Line], ylabel: str, finish: Any
) -> Plot | None:
    """Lines over rounds; above :data:`MANY` of them only the highest is named."""
    drawn = [line for line in lines if line.last is not None]
    if not drawn:
        return None
    highest = max(drawn, key=lambda line: line.last or 0.0)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        if len(drawn) <= MANY:
            styles = [series_style(i) for i in range(len(drawn))]
            labels = short_names([line.name for line in drawn])
            legend(figure, [key(s) for s in styles], labels)
        else:
            quiet = {"color": MUTED, "linewidth": 0.6, "alpha": 0.7}
            loud = {**series_style(0), "zorder": 3}
            styles = [loud if line is highest else quiet for line in drawn]
            labels = [
                f"{short_names([highest.name])[0]} (highest)",
                f"{len(drawn) - 1} other hospitals",
            ]
            legend(figure, [key(loud), key(quiet)], labels)
        for line, style in zip(drawn, styles, strict=True):
            _plot_line(axes, line, style)
        axes.set_ylabel(ylabel)
        whole_rounds(axes, [r for line in drawn for r, _ in line.points])
        finish(axes)

    return draw(name, alt, (WIDTH, 2.9), paint)


def _plot_line(axes: Axes, line: _Line, style: Mapping[str, Any]) -> None:
    """One line; missing values leave a gap."""
    values = [float("nan") if v is None else v for _, v in line.points]
    axes.plot([r for r, _ in line.points], values, **style)


def _line(name: str, points: Any) -> _Line:
    """A line from (round, recorded value) pairs; rounds nobody recorded become gaps."""
    known = {r: number(v) for r, v in points if r is not None}
    span = range(min(known), max(known) + 1) if known else ()
    return _Line(name, tuple((r, known.get(r)) for r in span))


def _signals(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The signals of a round's health record."""
    return entry["signals"] if isinstance(entry["signals"], Mapping) else {}
