"""Fairness by group, the gain of augmentation, anomaly detection: their plots and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.figure import Figure

from synth_common.reporting.dots import Dot, by_training, dot_of, one_panel
from synth_common.reporting.numbers import measured, number, setting
from synth_common.reporting.svg import WIDTH, Plot, draw, key, legend, listed, series_style
from synth_common.reporting.words import TRAINED_ON

DIMENSIONS: Final[Mapping[str, str]] = {
    "class": "By class",
    "site": "By hospital",
    "sex": "By sex",
    "age": "By age in years",
}
"""What people of a group share, as printed."""

_MOST_ROWS = 24
_WITH: Final = {"real": "Real images alone", "both": "Real and synthetic images"}


def anomaly_plot(records: Sequence[Mapping[str, Any]]) -> Plot | None:
    """AUROC by what the detector remembers as normal; None without numbers.

    Args:
        records: ``report["utility"]["anomaly"]``.
    """
    return by_training(records, "anomaly", "auroc", "AUROC")


def fairness_plot(records: Sequence[Mapping[str, Any]]) -> Plot | None:
    """The score of every group by what the classifiers were trained on; None without numbers.

    Groups too small to show have no dot. Hospitals are left out where groups are many.

    Args:
        records: ``report["fairness"]["groups"]``.
    """
    records = [r for r in records if "trained_at" not in r]
    names = {(r["dimension"], r["group"]) for r in records}
    shown = [r for r in records if len(names) <= _MOST_ROWS or r["dimension"] != "site"]
    dots: list[Dot] = []
    for record in shown:
        row = f"{record['dimension']}: {record['group']}"
        series = TRAINED_ON.get(record["trained_on"], str(record["trained_on"]))
        dot = dot_of(row, series, record["score"], record["interval"])
        dots += [dot] if dot else []
    alt = "Score on each group of held-out patients: " + listed(
        [
            f"{r['dimension']} {r['group']}, trained on {r['trained_on']}: {measured(r['score'])}"
            for r in shown
            if number(r["score"]) is not None
        ]
    )
    return one_panel(
        "fairness", alt, dots, "Recall of a class, else balanced accuracy (1 is perfect)"
    )


def fairness_tables(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One table per dimension: groups downwards, what was trained on across.

    Args:
        records: ``report["fairness"]["groups"]``.

    Returns:
        ``{"title", "measure", "settings", "rows"}``; a row holds the record of each setting
        under ``cells`` and, from any of them, who the group is.
    """
    tables: dict[str, dict[str, Any]] = {}
    for record in records:
        dimension, place = str(record["dimension"]), record.get("trained_at")
        title = DIMENSIONS.get(dimension, dimension)
        table = tables.setdefault(
            f"{dimension} {place}",
            {
                "title": title if place is None else f"{title}, classifiers of {place} alone",
                "measure": record["measure"],
                "settings": {},
                "rows": {},
            },
        )
        table["settings"][record["trained_on"]] = None
        row = table["rows"].setdefault(record["group"], {"any": record, "cells": {}})
        row["cells"][record["trained_on"]] = record
    return list(tables.values())


def augmentation_plot(records: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Balanced accuracy over the share of real patients, with and without synthetic images.

    Args:
        records: ``report["utility"]["augmentation"]``.

    Returns:
        The plot, or None without numbers.
    """
    known = [
        r
        for r in records
        if "trained_at" not in r
        and number(r["share"]) is not None
        and number(r["balanced_accuracy"]) is not None
    ]
    if not known:
        return None
    alt = "Balanced accuracy by share of the real patients: " + listed(
        [
            f"{setting(100 * r['share'])} %, {_WITH.get(r['trained_on'], r['trained_on'])}: "
            f"{measured(r['balanced_accuracy'])}"
            for r in known
        ],
        most=12,
    )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        kinds = [kind for kind in _WITH if any(r["trained_on"] == kind for r in known)]
        for order, kind in enumerate(kinds):
            style, apart = series_style(order), 1 + 0.03 * (2 * order - 1)
            line = [r for r in known if r["trained_on"] == kind]
            places = [100 * r["share"] * apart for r in line]
            axes.plot(places, [r["balanced_accuracy"] for r in line], **style)
            for place, record in zip(places, line, strict=True):
                ends = record["interval"]
                if isinstance(ends, list) and len(ends) == 2:
                    axes.plot((place, place), ends, color=style["color"], linewidth=1.2)
        shares = sorted({100 * r["share"] for r in known})
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{setting(share)} %" for share in shares])
        axes.minorticks_off()
        axes.set_xlabel("Share of the real training patients")
        axes.set_ylabel("Balanced accuracy")
        legend(figure, [key(series_style(i)) for i in range(len(kinds))], [_WITH[k] for k in kinds])

    return draw("augmentation", alt, (WIDTH, 2.9), paint)
