"""The page: a report dictionary and its sample grids become one self-contained HTML file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from synth_common.reporting import dots, numbers, plots, summary
from synth_common.reporting.factbook import MISSING, POOLED, site_order
from synth_common.reporting.words import GLOSSARY, METRICS, TRAINED_ON, metric_title

_PNG = b"\x89PNG\r\n\x1a\n"


def render_report(report: Mapping[str, Any], run_dir: Path) -> str:
    """Render a report as HTML that needs no script, no network and no other file.

    Args:
        report: From :func:`synth_common.reporting.report.build_report`.
        run_dir: Where the sample grids' paths start.

    Returns:
        A whole HTML document.
    """
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            badge=summary.badge(report),
            sentences=summary.sentences(report),
            figures=summary.key_figures(report),
            samples=[{**s, "image": embedded(run_dir, s["path"])} for s in report["samples"]],
            traversals=[{**t, "image": embedded(run_dir, t["path"])} for t in report["traversals"]],
            plots={
                "epsilon": plots.epsilon_plot(report["privacy"]["sites"]),
                "losses": plots.losses_plot(report["training"]["losses"]),
                "health": plots.health_plot(report["training"]["health"]),
                "utility": dots.utility_plot(report["utility"]["classification"]),
                "segmentation": dots.segmentation_plot(report["utility"]["segmentation"]),
                "membership": dots.membership_plot(report["membership"]["attacks"]),
            },
            **_round_tables(report),
            failed={(f["site"], f["round"]): f["code"] for f in report["federation"]["failures"]},
            quality_groups=_quality_groups(report["quality"]["metrics"]),
            encoders=_encoders(report),
            glossary=GLOSSARY,
        )
    )


@cache
def environment() -> Environment:
    """Jinja with the package's templates and number filters; every missing value is marked."""
    env = Environment(
        loader=PackageLoader("synth_common.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    texts: dict[str, Callable[[Any], str]] = {
        "measured": numbers.measured,
        "setting": numbers.setting,
        "epsilon": numbers.epsilon_text,
        "span": numbers.interval,
        "size": numbers.bytes_text,
        "duration": numbers.seconds_text,
        "moment": numbers.when,
        "words": str,
    }
    env.filters.update({name: _marking(text) for name, text in texts.items()})
    env.globals.update(
        MISSING=MISSING, POOLED=POOLED, METRICS=METRICS, TRAINED_ON=TRAINED_ON, style=_style(env)
    )
    env.filters["metric_title"] = metric_title
    return env


def _marking(text: Callable[[Any], str]) -> Callable[[Any], Markup]:
    """A filter that escapes a text and makes every ``NOT RECORDED`` in it stand out."""

    def mark(value: Any) -> Markup:
        safe = str(escape(text(value)))
        return Markup(safe.replace(MISSING, f'<strong class="missing">{MISSING}</strong>'))

    return mark


def _style(env: Environment) -> Markup:
    """The style sheet, from the package."""
    return Markup(env.get_template("style.css").render())


def embedded(run_dir: Path, path: Any) -> str | None:
    """A sample grid as a data: URI; None where no such PNG lies inside the run directory."""
    file = (run_dir / str(path)).resolve()
    if not file.is_relative_to(run_dir.resolve()) or not file.is_file():
        return None
    content = file.read_bytes()
    if not content.startswith(_PNG):
        return None
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def _round_tables(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tables behind the plots over rounds."""
    completed = report["run"]["rounds"]["completed"]
    training = report["training"]
    epsilons = [
        (site["name"], point["round"], point["epsilon"])
        for site in report["privacy"]["sites"]
        for point in site["epsilon_by_round"]
    ]
    losses = [
        (entry["site"] or POOLED, point["round"], point["value"])
        for entry in training["losses"]
        for point in entry["rounds"]
    ]
    signals = [
        (name.replace("_", " "), entry["round"], value)
        for entry in training["health"]
        if isinstance(entry["signals"], Mapping)
        for name, value in entry["signals"].items()
    ]
    return {
        "epsilons": _over_rounds(epsilons, completed),
        "losses": _over_rounds(losses, completed),
        "signals": _over_rounds(signals, completed),
    }


def _over_rounds(values: Iterable[tuple[str, int | None, Any]], completed: Any) -> dict[str, Any]:
    """A table of series against all rounds from the first, the longer of the two downwards.

    A release before the first round is round 0.

    Returns:
        ``{"series": names, "rounds": numbers, "cells": {(name, round): value}, "rounds_down",
        "blocks": columns in groups that fit a printed page}``.
    """
    cells = {(name, r): value for name, r, value in values if r is not None}
    series = list(dict.fromkeys(name for name, _ in cells))
    # A completed round that nobody recorded has its place too, and is seen to be missing.
    last = max((r for _, r in cells), default=0)
    first = min((r for _, r in cells), default=1)
    rounds = list(
        range(min(1, first), max(last, completed if isinstance(completed, int) else 0) + 1)
    )
    rounds_down = len(rounds) > len(series)
    across: Sequence[Any] = series if rounds_down else rounds
    step = 6 if rounds_down else 10
    return {
        "series": series,
        "rounds": rounds,
        "cells": cells,
        "rounds_down": rounds_down,
        "blocks": [across[i : i + step] for i in range(0, len(across), step)],
    }


def _quality_groups(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A plot and a matrix of sites against metrics for each encoder.

    Encoders of one metric only share the last group, whose columns name them.
    """
    used: dict[Any, dict[str, None]] = {}
    for record in metrics:
        used.setdefault(record["encoder"], {})[record["metric"]] = None
    groups: dict[str, dict[str, Any]] = {}
    for record in sorted(metrics, key=lambda m: len(used[m["encoder"]]) == 1):
        own = len(used[record["encoder"]]) > 1
        name = f"Encoder {record['encoder']}" if own else "Further metrics"
        group = groups.setdefault(
            name, {"name": name, "own": own, "records": [], "columns": {}, "rows": {}}
        )
        column = (record["metric"], record["encoder"])
        group["records"].append(record)
        group["columns"][column] = record["better"]
        group["rows"].setdefault(record["site"], {})[column] = record
    for number, group in enumerate(groups.values(), start=1):
        group["plot"] = dots.quality_plot(group["records"], name=f"quality{number}")
        group["rows"] = dict(sorted(group["rows"].items(), key=lambda row: site_order(row[0])))
    return list(groups.values())


def _encoders(report: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Every encoder a figure was measured with, and its SHA-256."""
    records = [*report["quality"]["metrics"], *report["membership"]["attacks"]]
    return list(dict.fromkeys((r["encoder"], r["encoder_sha256"]) for r in records))
