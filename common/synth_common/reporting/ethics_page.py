"""The ethics report as a page: self-contained, for screen, print and screen readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from synth_common.reporting.factbook import MISSING
from synth_common.reporting.html import embedded, environment


def render_ethics(ethics: Mapping[str, Any], run_dir: Path) -> str:
    """Render an ethics report as HTML that needs no script, no network and no other file.

    Args:
        ethics: From :func:`synth_common.reporting.ethics.build_ethics`.
        run_dir: Where the pictures of latent directions lie; one that is not there is said.

    Returns:
        A whole HTML document.
    """
    rows = {r["fact"]: r for g in ethics["groups"] for f in g["fields"] for r in f["rows"]}
    return (
        environment()
        .get_template("ethics.html.j2")
        .render(
            ethics=ethics,
            title=_title(ethics, rows),
            tiles=[
                (label, shown(rows[f"charter: residual_risk.{key}"]))
                for label, key in (
                    ("Decision on the residual risk", "decision"),
                    ("Approved by", "approver"),
                    ("To be reviewed by", "review"),
                )
            ],
            titles={f["id"]: f["title"] for g in ethics["groups"] for f in g["fields"]},
            traversals=[{**t, "image": embedded(run_dir, t["path"])} for t in ethics["traversals"]],
            shown=shown,
        )
    )


def shown(row: Mapping[str, Any]) -> list[Markup]:
    """What a row's value reads as: one text, or one per item of a list or mapping."""
    value, show = row["value"], environment().filters[row["show"]]
    each = environment().filters["measured" if row["show"] == "words" else row["show"]]
    if isinstance(value, Mapping):
        return [Markup("{}: {}").format(key, each(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [each(item) for item in value]
    if value is None or isinstance(value, bool):
        return [each(value)]
    return [show(value)]


def _title(ethics: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    """What the charter calls it, or else the scenario."""
    stated = rows["charter: title"]["value"]
    scenario = ethics["run"]["scenario"]["title"]
    return str(scenario if stated == MISSING else stated)
