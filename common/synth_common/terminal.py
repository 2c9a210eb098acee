"""What every command does alike: ``--version``, one line for an expected error, and its code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import version

from synth_common.errors import SynthwardError


def show_version(wanted: bool) -> None:
    """Print the version and end, if that is wanted; the callback of every ``--version``."""
    if wanted:
        sys.stdout.write(f"synthward {version('synthward')}\n")
        raise SystemExit(0)


def guarded(command: Callable[[], object]) -> int:
    """Run a command; expected errors become a line and a code, never a traceback."""
    try:
        command()
    except SynthwardError as err:
        sys.stderr.write(f"error: {err}\n")
        _forget_interrupt()
        return err.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped\n")
        _forget_interrupt()
        return 130
    except BrokenPipeError:
        # The reader of our output went away; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else 0 if err.code is None else 1
    return 0


def printable(text: str) -> str:
    """Text on one line, whatever a stranger wrote: what steers a terminal is shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _forget_interrupt() -> None:
    """Keep Python from killing itself at exit for a Ctrl-C that was dealt with.

    One that arrives while a string is executed, as ``dataclass`` does, sets a flag in CPython
    (``unhandled_keyboard_interrupt``) that no ``except`` clears, and the exit code would be lost.
    Executing a string anew clears it.
    """
    exec("")
