"""The reference of server.toml and of the metrics, held to the code."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from synth_server.board import Board
from synth_server.metrics import render_metrics
from synth_server.settings import ServerSettings, render_settings

PAGE = (Path(__file__).resolve().parents[1] / "docs/reference/server.md").read_text()
TABLE = PAGE.split("## ")[0]


def _keys(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Every key with its default as the page writes it."""
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= _keys(field.annotation, f"{prefix}{name}.")
            continue
        value = field.default
        if value is PydanticUndefined:
            shown = "required"
        elif isinstance(value, str):
            shown = f"`{value}`"
        elif value is None or isinstance(value, bool):
            shown = {None: "none", True: "true", False: "false"}[value]
        else:
            shown = repr(value).removesuffix(".0") if value >= 5 else repr(value)
        found[prefix + name] = shown
    return found


def test_the_page_has_every_key_with_its_default_and_no_other() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (`?[\w.-]+`?) \|", TABLE, re.M))
    assert rows == _keys(ServerSettings)


def test_the_file_that_init_writes_has_the_defaults() -> None:
    written = tomllib.loads(render_settings("lungs", "localhost:8443"))
    default = ServerSettings(name="lungs", address="localhost:8443", bind="0.0.0.0:8443")
    assert ServerSettings.model_validate(written) == default
    assert set(written["aggregation"]) == set(type(default.aggregation).model_fields)


def test_the_page_has_every_metric(tmp_path: Path) -> None:
    board = Board(tmp_path, {"name": "n", "id": "i", "planned": 1, "target_epsilon": math.inf})
    board.heard({"east": 1.0}, ["east"])
    state = board.snapshot()
    state["round_seconds"], state["sites"]["east"]["epsilon"] = 1.0, 1.0
    served = set(re.findall(r"^# TYPE (\w+)", render_metrics(state), re.M))
    assert set(re.findall(r"`(synthward_\w+)`", PAGE)) == served
