"""A page as PDF: by WeasyPrint if it is installed, or else printed by a headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from synth_common.errors import ConfigError
from synth_common.reporting.files import replace_bytes

BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome")
_LIMIT_S: Final = 120


def print_pdf(page: Path) -> Path:
    """Print a self-contained page beside itself. Returns the PDF's path.

    Args:
        page: An HTML file that needs no other.

    Raises:
        ConfigError: Neither WeasyPrint nor a Chromium is there, or the browser failed.
        StorageError: The file could not be written.
    """
    made = _by_weasyprint(page)
    if made is None:
        made = _by_browser(page)
    return replace_bytes(page.with_suffix(".pdf"), made)


def _by_weasyprint(page: Path) -> bytes | None:
    """The PDF, or None where WeasyPrint or a library that it needs is not installed."""
    try:
        from weasyprint import HTML
        from weasyprint.urls import URLFetcher
    except (ImportError, OSError):  # OSError: Pango is missing
        return None
    # Pages are self-contained: nothing but what a page itself holds is read.
    fetcher = URLFetcher(allowed_protocols=("data",))
    source = page.read_text(encoding="utf-8")
    made: bytes = HTML(string=source, url_fetcher=fetcher).write_pdf(pdf_variant="pdf/ua-1")
    return made


def browser() -> str | None:
    """A Chromium on this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def _by_browser(page: Path) -> bytes:
    """What Chromium prints."""
    command = browser()
    if command is None:
        raise ConfigError(
            "--pdf needs WeasyPrint (pip install 'synthward[pdf]') or one of "
            f"{', '.join(BROWSERS)}, and neither is installed; ethics.html is written, and any "
            "browser prints it"
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "page.pdf"
        arguments = [
            *(command, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", f"--user-data-dir={folder}/profile"),
            *("--no-pdf-header-footer", f"--print-to-pdf={out}", page.resolve().as_uri()),
        ]
        try:
            subprocess.run(arguments, capture_output=True, timeout=_LIMIT_S, check=True)
            return out.read_bytes()
        except (subprocess.SubprocessError, OSError) as err:
            raise ConfigError(
                f"--pdf: {command} did not print {page} ({err}); install WeasyPrint with pip "
                "install 'synthward[pdf]'"
            ) from err
