"""An end in good order: SIGTERM or Ctrl-C finish what is being done and interrupt any wait."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from synth_common.errors import Interrupted
from synth_common.flower import Grid, Message, PassingGrid

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopper:
    """Notes a signal; raises at once where the process only waits, else where it is asked.

    A second signal ends the process as it would without this. Use it in the main thread, as a
    context; in another thread only :meth:`stop` asks it.

    Args:
        hint: How to go on, for the error.
    """

    def __init__(self, hint: str) -> None:
        self.asked = False
        self._hint, self._waiting = hint, False
        self._former: dict[int, object] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._former = {}

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        for each, handler in self._former.items():
            signal.signal(each, handler)  # type: ignore[arg-type]
        self._former = {}
        self.stop()
        if self._waiting:
            self.check()

    def stop(self) -> None:
        """End at the next :meth:`check`."""
        self.asked = True

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        if self.asked:
            raise Interrupted(f"stopped; what was finished is kept. Continue with: {self._hint}")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this, nothing is lost when the process stops."""
        self.check()
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def sleep(self, seconds: float) -> None:
        """Wait; raise Interrupted as soon as a stop is asked for."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with self.waiting():
                time.sleep(min(left, 0.2))
        self.check()


class StoppableGrid(PassingGrid):
    """A grid whose waits for replies end with a stop; a reply that came is taken first.

    What a site answers later it keeps, and sends again for nothing when it is asked again.
    """

    def __init__(self, inner: Grid, stopper: Stopper) -> None:
        super().__init__(inner)
        self._stopper = stopper

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """See Flower's Grid; replies as they come."""
        replies = iter(self._inner.send_and_receive(messages, timeout=timeout))
        while True:
            with self._stopper.waiting():
                reply = next(replies, None)
            if reply is None:
                return
            yield reply
