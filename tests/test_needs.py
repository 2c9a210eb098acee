"""What is missing on a machine skips a test, and fails it in CI, with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROBE = """
import pytest

@pytest.fixture
def made(tmp_path_factory):
    raise RuntimeError("made for a browser that is not there")

@pytest.mark.browser
def test_shown(made): ...

def test_plain(): ...

def test_real(data_root): ...
"""


def _outcome(folder: Path, **changes: str) -> str:
    """What pytest says of the probe on a machine without a browser and without images."""
    (folder / "test_probe.py").write_text(PROBE)
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    environment |= {"PATH": str(folder), "PYTHONPATH": str(TESTS), "SYNTHWARD_DATA": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-c", os.devnull, "-rsfE", "."],
        cwd=folder,
        env=environment | changes,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("unset", [{}, {"CI": ""}])
def test_what_is_missing_skips_before_anything_is_made(
    unset: dict[str, str], tmp_path: Path
) -> None:
    said = _outcome(tmp_path, **unset)
    assert "1 passed, 2 skipped" in said
    assert "no Chromium on this machine: install chromium" in said
    assert "no real images at" in said


def test_in_ci_it_fails_with_the_reason(tmp_path: Path) -> None:
    said = _outcome(tmp_path, CI="true")
    assert "skipped" not in said
    assert "1 passed" in said
    assert "test_shown - no Chromium on this machine: install chromium" in said.replace(
        "Failed: ", ""
    )
    assert "no real images at" in said
