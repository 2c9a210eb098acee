"""One page that sets many runs side by side: families and budgets against what they give.

Each ``compare.row`` fact is one run, measured by the same code as its own report; this
module arranges the rows and computes nothing.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synth_common.facts import Fact, read_facts
from synth_common.reporting.columns import column_of, ranked
from synth_common.reporting.factbook import MISSING, FactBook, fields
from synth_common.reporting.files import replace_text
from synth_common.reporting.report import run_section

FORMAT = "synthward-comparison/1"

_IDENTITY = ("generator", "family", "epsilon", "seed", "report", "seeds")


def build_comparison(facts: Iterable[Fact]) -> dict[str, Any]:
    """Order ``compare.*`` and ``run.*`` facts into a comparison. Pure; computes no number.

    Args:
        facts: Facts in the order they were recorded; the last row of a generator, epsilon and
            seed wins.

    Returns:
        ``{"format", "run", "together", "columns": [{"name", "title", "group", "better"}],
        "rows", "over_seeds"}``.
        Rows are ordered by generator, then by epsilon with infinity last; a column that some
        other row has and this one lacks holds ``"NOT RECORDED"``. ``over_seeds`` are lines
        like rows, one per generator and epsilon that ran with several seeds: means, and as
        intervals the least and the most of any seed.
    """
    book = FactBook(facts)
    found = [_named(f.value) for f in book.all("compare.row") if isinstance(f.value, Mapping)]
    seeds = [_named(f.value) for f in book.all("compare.seeds") if isinstance(f.value, Mapping)]
    names = list(dict.fromkeys(name for row in found for name in row if name not in _IDENTITY))
    # An interval is shown with the number that it belongs to.
    columns = ranked(column_of(n) for n in names if not n.endswith("_interval"))
    given = (n for n in ("seed", "report") if any(n in row for row in found))
    keep = ("generator", "family", "epsilon", *given)
    rows = [{name: row.get(name, MISSING) for name in (*keep, *names)} for row in found]
    plain = [column.name for column in columns]
    return {
        "format": FORMAT,
        "run": run_section(book),
        "together": fields(book.value("compare.together"), ("epsilon", "site", "runs", "unit")),
        "columns": [vars(column) for column in columns],
        "rows": sorted(rows, key=_order),
        "over_seeds": sorted(({**dict.fromkeys(plain, MISSING), **s} for s in seeds), key=_order),
    }


def write_comparison(out_dir: Path) -> Path:
    """Render ``facts.jsonl`` of a comparison as ``compare.html``, ``.json`` and ``.csv``.

    Args:
        out_dir: The comparison's directory, holding ``facts.jsonl``.

    Returns:
        The path of ``compare.html``.

    Raises:
        DataError: ``facts.jsonl`` is missing or damaged before its last line.
        StorageError: A file could not be written.
    """
    from synth_common.reporting.compare_page import render_comparison

    comparison = build_comparison(read_facts(out_dir / "facts.jsonl"))
    page = render_comparison(comparison)
    replace_text(out_dir / "compare.json", json.dumps(comparison, indent=2, allow_nan=False) + "\n")
    replace_text(out_dir / "compare.csv", as_csv(comparison["rows"]))
    return replace_text(out_dir / "compare.html", page)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; an interval takes two columns, ``_low`` and ``_high``."""
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval=MISSING, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without lists: pairs become two columns, longer lists JSON."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list) and len(value) == 2:
            flat[f"{name}_low"], flat[f"{name}_high"] = value
        else:
            flat[name] = json.dumps(value) if isinstance(value, list | dict) else value
    return flat


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what the comparison calls its generator: by default, its family."""
    return {"generator": row.get("generator", row.get("family", MISSING)), "family": MISSING, **row}


def _order(row: Mapping[str, Any]) -> tuple[str, float, str]:
    """Generator, then epsilon with infinity (and what is no number) last, then seed."""
    epsilon = row["epsilon"]
    plain = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    return (str(row["generator"]), float(epsilon) if plain else math.inf, str(row.get("seed", "")))
