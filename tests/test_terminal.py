"""What a command leaves behind when it ends by an error."""

from __future__ import annotations

import subprocess
import sys


def test_a_ctrl_c_that_falls_into_executed_text_still_gives_its_exit_code() -> None:
    """Python would end by the signal itself: see :func:`synth_common.terminal.guarded`."""
    program = (
        "import sys\n"
        "from synth_common.terminal import guarded\n"
        "sys.exit(guarded(lambda: exec('raise KeyboardInterrupt')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "error: stopped\n"
