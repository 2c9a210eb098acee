"""Documentation that must not drift from the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from synth_common import errors

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
]


def _branches(base=errors.SynthwardError):
    yield base
    for child in base.__subclasses__():
        yield from _branches(child)


def test_every_error_has_its_row_and_every_row_its_error():
    page = (ROOT / "docs/reference/exit-codes.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.M))
    in_code = {}
    for branch in _branches():
        if branch.__module__ == "synth_common.errors":
            in_code[str(branch.exit_code)] = branch.__name__
    assert rows == in_code


def test_exit_codes_differ():
    codes = [b.exit_code for b in _branches() if b.__module__ == "synth_common.errors"]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_tests_that_pages_name_exist():
    for page in MARKDOWN:
        for file, name in re.findall(r"(test_\w+\.py)::(test_\w+)", page.read_text()):
            source = ROOT / "tests" / file
            assert source.is_file(), f"{page.name} names {file}"
            assert f"def {name}(" in source.read_text(), f"{page.name} names {file}::{name}"


def test_nothing_calls_synthetic_data_anonymous():
    word = "anony" + "mous"
    for path in [*MARKDOWN, *ROOT.glob("*/synth_*/**/*")]:
        if path.suffix in {".md", ".py", ".j2", ".toml", ".html"}:
            text = path.read_text().lower()
            assert word not in text, path


def _keys(model, prefix=""):
    for name, field in model.model_fields.items():
        kind = field.annotation
        if prefix == "" and hasattr(kind, "model_fields"):
            yield from _keys(kind, f"{name}.")
        else:
            yield prefix + name


def test_every_scenario_key_is_documented_with_its_default_section():
    from synth_sim.scenario import Scenario

    page = (ROOT / "docs/reference/scenario.md").read_text()
    documented = set(re.findall(r"`([a-z_.0-9]+)`", page))
    assert set(_keys(Scenario)) <= documented
    described = {k for k in documented if k.count(".") == 1 and not k.endswith(".md")}
    assert described <= set(_keys(Scenario))
