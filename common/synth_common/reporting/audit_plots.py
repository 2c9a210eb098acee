"""The plots of an audit: AUC beside baseline and control, ROC in logarithms, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from synth_common.reporting.numbers import ends_of, epsilon_text, interval, measured, number
from synth_common.reporting.svg import (
    DANGER,
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
from synth_common.reporting.words import AUC_SERIES

_LEAST = 2e-4
# Neither is in the dashes of a series: these lines are no attack.
_CEILING_STYLE: Mapping[str, Any] = {
    "color": DANGER,
    "linestyle": (0, (4, 1, 1, 1, 1, 1)),
    "linewidth": 1.6,
}
_GUESS_STYLE: Mapping[str, Any] = {"color": MUTED, "linewidth": 0.9}


def auc_plot(name: str, attacks: Sequence[Mapping[str, Any]]) -> Plot | None:
    """AUC of every attack with its interval, a panel per space; None without numbers."""
    drawn = [a for a in attacks if number(a["auc"]) is not None]
    if not drawn:
        return None
    spaces = list(dict.fromkeys(str(a["space"]) for a in drawn))
    most = max(sum(a["space"] == s for a in drawn) for s in spaces)
    alt = "AUC of attacks (0.5 is guessing): " + listed(
        [
            f"{a['attack']} in {a['space']} {measured(a['auc'])} ({interval(a['auc_interval'])})"
            for a in drawn
        ],
        most=14,
    )

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, len(spaces), squeeze=False, sharex=True)
        for place, (axes, space) in enumerate(zip(grid.flat, spaces, strict=True)):
            own = [a for a in drawn if a["space"] == space]
            _rows(
                axes, own, [str(a["attack"]) for a in own], AUC_SERIES, place == 0 or _differ(drawn)
            )
            axes.set_title(_title(space))
        styles = [_dot(i) for i in range(len(AUC_SERIES))]
        legend(figure, [key(s) for s in styles], [kind for kind, _, _ in AUC_SERIES])

    return draw(name, alt, (WIDTH, 0.9 + 0.3 * most), paint)


def _differ(drawn: Sequence[Mapping[str, Any]]) -> bool:
    """Whether spaces have different attacks, so that every panel needs names of its own."""
    by_space: dict[str, list[str]] = {}
    for attack in drawn:
        by_space.setdefault(str(attack["space"]), []).append(str(attack["attack"]))
    return len({tuple(names) for names in by_space.values()}) > 1


def group_plot(groups: Sequence[Mapping[str, Any]]) -> Plot | None:
    """AUC of the strongest attack in every group; None without numbers."""
    drawn = [g for g in groups if number(g["auc"]) is not None]
    if not drawn:
        return None
    alt = "Strongest attack in each group, AUC (0.5 is guessing): " + listed(
        [f"{g['group']} {measured(g['auc'])} ({interval(g['auc_interval'])})" for g in drawn],
        most=14,
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        names = short_names([str(g["group"]) for g in drawn], 40)
        _rows(axes, drawn, names, AUC_SERIES[:2], True)
        legend(figure, [key(_dot(i)) for i in range(2)], ["Strongest attack", "Blind baseline"])

    return draw("groups", alt, (WIDTH, 0.9 + 0.28 * len(drawn)), paint)


def _title(space: str) -> str:
    """A space's name without its numbers; the table has it whole."""
    return short_names([space.partition(",")[0]], 40)[0]


def _dot(number_: int) -> dict[str, Any]:
    """A series without a line."""
    return {**series_style(number_), "linestyle": "none"}


def _rows(
    axes: Axes,
    records: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    kinds: Sequence[tuple[str, str, str]],
    named: bool,
) -> None:
    """A row per record with a dot and an interval per kind."""
    for row, record in enumerate(records):
        for place, (_, value, span) in enumerate(kinds):
            found = number(record[value])
            if found is None:
                continue
            y = row + 0.22 * (place - (len(kinds) - 1) / 2)
            style = _dot(place)
            axes.plot([found], [y], **style)
            if (ends := ends_of(record[span])) is not None:
                axes.plot(ends, [y, y], color=style["color"], linewidth=1.1)
    axes.axvline(0.5, **_GUESS_STYLE)
    axes.set_yticks(range(len(names)), list(names) if named else [""] * len(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("AUC (0.5 is guessing)")


def roc_plot(
    name: str, attacks: Sequence[Mapping[str, Any]], ceiling: Mapping[str, Any] | None
) -> Plot | None:
    """ROC of every attack in logarithms, a panel per space, with chance and what epsilon allows.

    Its legend names every line that is drawn, and no other.
    """
    drawn = [a for a in attacks if isinstance(a["roc"], list) and a["roc"]]
    if not drawn:
        return None
    spaces = list(dict.fromkeys(str(a["space"]) for a in drawn))
    names = list(dict.fromkeys(str(a["attack"]) for a in drawn))
    curve = None if ceiling is None else ceiling["curve"]
    curve = curve if isinstance(curve, list) else None
    alt = "True positives at 1 % false positives: " + listed(
        [f"{a['attack']} in {a['space']} {measured(a['tpr_at_1pct'])}" for a in drawn], most=14
    )
    if ceiling is not None:
        alt += (
            f". Epsilon {epsilon_text(ceiling['epsilon'])} allows at most "
            f"{measured(ceiling['tpr_at_1pct'])}"
        )

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, len(spaces), squeeze=False, sharey=True)
        for axes, space in zip(grid.flat, spaces, strict=True):
            axes.plot([_LEAST, 1], [_LEAST, 1], **_GUESS_STYLE)
            if curve is not None:
                axes.plot(*zip(*curve, strict=True), **_CEILING_STYLE)
            for attack in (a for a in drawn if a["space"] == space):
                style = series_style(names.index(str(attack["attack"])))
                points = [(max(x, _LEAST), max(y, _LEAST)) for x, y in attack["roc"]]
                shown = {**style, "marker": None}
                axes.step(*zip(*points, strict=True), where="post", **shown)
            axes.set(xscale="log", yscale="log", xlim=(_LEAST, 1), ylim=(_LEAST, 1.3))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(FixedLocator([0.001, 0.01, 0.1, 1]))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_xlabel("False positive rate")
            axes.set_title(_title(space))
        grid[0][0].set_ylabel("True positive rate")
        styles = [{**series_style(i), "marker": None} for i in range(len(names))]
        labels = [*names, "chance (guessing)"]
        handles = [*styles, dict(_GUESS_STYLE)]
        if ceiling is not None and curve is not None:
            labels.append(f"most that epsilon {epsilon_text(ceiling['epsilon'])} allows any attack")
            handles.append(dict(_CEILING_STYLE))
        legend(figure, [key(h) for h in handles], labels)

    return draw(name, alt, (WIDTH, 3.4 + 0.16 * (len(names) // 3)), paint)
