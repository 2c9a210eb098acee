"""What a test needs of its machine: what is missing skips the test, and in CI fails it.

CI installs what its tests need (``.ci/run``), so that a skip there would hide that they never ran.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it where ``CI`` is set, with the reason."""
    if os.environ.get("CI"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)
