"""The data reference names every key, reason and kind that the code knows."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from synth_common.images.preprocess import Reason
from synth_common.images.sources import FolderSource, NpzSource, PhantomSource
from synth_sim.partition import Kind, PartitionConfig, SiteShare
from synth_sim.scanner import Scanner

_PAGE = (Path(__file__).parents[1] / "docs/reference/data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "model", [PhantomSource, NpzSource, FolderSource, SiteShare, PartitionConfig, Scanner]
)
def test_every_key_is_documented(model: type[BaseModel]) -> None:
    assert [
        name for name in model.model_fields if f"`{name}`" not in _PAGE and name != "sites"
    ] == []


@pytest.mark.parametrize("name", [*get_args(Reason), *get_args(Kind)])
def test_every_reason_and_kind_is_documented(name: str) -> None:
    assert f"| `{name}` |" in _PAGE
