"""A scenario's settings one by one, as ``--set`` takes them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from synth_common.validation import sections_of
from synth_sim.scenario import Scenario


def settings(scenario: Scenario) -> list[str]:
    """``section.key=value`` of everything that is set or has a default, in the sections' order.

    What is not set and has no default reads ``section.key (not set)``, with the keys that would
    come with it.
    """
    return list(_lines(scenario, ""))


def _lines(model: BaseModel, prefix: str) -> Iterator[str]:
    """A model's own settings, then those of its sections where they stand."""
    for name, field in type(model).model_fields.items():
        value, key = getattr(model, name), prefix + name
        if value is None:
            yield f"{key} (not set)"
            inner = [
                n for section, _ in sections_of(field.annotation) for n in section.model_fields
            ]
            yield from (f"{key}.{n} (not set)" for n in dict.fromkeys(inner))
        elif isinstance(value, BaseModel):
            yield from _lines(value, f"{key}.")
        elif isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
            for number, item in enumerate(value):
                yield from _lines(item, f"{key}.{number}.")
        else:
            yield f"{key}={_toml(value)}"


def _toml(value: Any) -> str:
    """A value as TOML writes it; a word that needs no quotes has none."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "inf" if math.isinf(value) else repr(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
