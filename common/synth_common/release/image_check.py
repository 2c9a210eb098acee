"""Checks the images of a release: their marks, their table, and how many there are."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synth_common.release.marks import counts_of, is_png, unmarked
from synth_common.release.names import IMAGES, METADATA
from synth_common.release.sums import text_in
from synth_common.release.verdict import Verdict


def check_images(plain: Mapping[str, Path], predicate: Mapping[str, Any], verdict: Verdict) -> None:
    """Every image is marked as synthetic, and the table lists exactly the images there are."""
    if predicate.get("images") != (counted := counts_of(plain)):
        text = f"the signed text counts {predicate.get('images')} images, there are {counted}"
        verdict.blame("metadata", IMAGES, text)
    for name, path in plain.items():
        verdict.images += int(is_png(name))
        for why in unmarked(name, path):
            verdict.blame("marking", name, f"{name} is not marked as synthetic: {why}")
    if METADATA not in plain:
        return
    there = {name.removeprefix(f"{IMAGES}/") for name in plain if name.endswith(".png")}
    try:
        rows = list(csv.DictReader(io.StringIO(text_in(plain[METADATA]))))
        listed = {row[key] for row in rows for key in ("file_name", "mask") if row.get(key)}
    except (ValueError, KeyError, csv.Error) as err:
        verdict.blame("metadata", METADATA, f"{METADATA} cannot be read: {err}")
        return
    for name in sorted(there ^ listed):
        text = "does not list" if name in there else "lists, and there is no"
        verdict.blame("metadata", name, f"{METADATA} {text} {name}")
