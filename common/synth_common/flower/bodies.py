"""Bodies of requests and answers on their way: of each at most a part is in memory.

Many sites send and fetch pieces of tensors side by side, each as fast as its line is. What
has come of a body, and what is still to go, waits in unnamed files, so that memory holds
whole bodies only of the few requests that threads are answering.
"""

from __future__ import annotations

from collections.abc import Iterator

from synth_common.flower.spool import Piece, Spool

PART = 32 * 2**10
"""Most bytes of a body that wait in memory."""


class Incoming:
    """A body that is being received.

    Args:
        spool: Takes what is more than a part.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._pieces: list[Piece] = []
        self._held = bytearray()
        self.length = 0

    def add(self, part: bytes) -> None:
        """Take the next bytes. Raises OSError when they cannot be kept (full disk)."""
        self._held += part
        self.length += len(part)
        if len(self._held) >= PART:
            self._pieces.append(self._spool.write(bytes(self._held)))
            self._held = bytearray()

    def read(self) -> bytes:
        """The whole body. Raises OSError when the disk fails."""
        return b"".join([*(piece.read() for piece in self._pieces), self._held])


def outgoing(body: bytes, spool: Spool) -> Piece:
    """A body that is to be sent, out of memory if it is more than a part. Raises OSError."""
    return spool.write(body) if len(body) > PART else Piece(body, None, 0, len(body))


def parts(body: Piece) -> Iterator[bytes]:
    """A body in parts, each read when it is asked for; one, if empty, of no body."""
    for offset in range(0, max(1, body.length), PART):
        yield body.read(PART, offset)
