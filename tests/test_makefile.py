"""What ``make`` would do: the demo installs no tools, and no order of targets breaks another."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

_LEAN, _TOOLS = "--editable .\n", '--editable ".[ray,dev]"\n'


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    return tmp_path


def _would(tree: Path, target: str) -> str:
    """The commands that ``make TARGET`` would run."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout


def _made(tree: Path, *stamps: str) -> None:
    """Mark installations as done."""
    for stamp in stamps:
        (tree / ".venv" / stamp).touch()


def test_the_demo_installs_what_a_run_needs_and_says_so_first(tree: Path) -> None:
    plan = _would(tree, "demo")
    assert _LEAN in plan
    assert _TOOLS not in plan
    assert plan.index("minutes") < plan.index(_LEAN) < plan.index("synth-sim run")
    assert "--quiet" not in plan  # pip shows what it downloads


@pytest.mark.parametrize("target", ["test", "check", "install", "format"])
def test_the_tools_come_on_top_of_the_demo(tree: Path, target: str) -> None:
    whole = _would(tree, target)
    assert whole.index(_LEAN) < whole.index(_TOOLS)
    _made(tree, ".runtime")
    after_demo = _would(tree, target)
    assert (_LEAN in after_demo, _TOOLS in after_demo) == (False, True)


def test_the_demo_after_the_tests_installs_nothing(tree: Path) -> None:
    _made(tree, ".runtime", ".whole")
    assert "pip install" not in _would(tree, "demo")
    assert "pip install" not in _would(tree, "test")


def test_every_target_is_in_the_help(tree: Path) -> None:
    text = _would(tree, "help")
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "PHONY" in line)
    for target in phony.split()[1:]:
        assert target == "help" or f"make {target} " in text
    assert "runs/ stays" in text
    assert "runs" not in _would(tree, "clean")
