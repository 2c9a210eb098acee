"""Message objects on disk: what is in transit costs no memory, whoever is slow.

Replies of many sites arrive side by side and are added up one at a time; kept in memory,
they would cost one model per site. Flower's object store keeps the tree and the reference
counts; the contents go to unnamed temporary files, which vanish with the process, and come
back array by array when somebody reads the array.

Not public in Flower: ``InMemoryObjectStore`` and its entries, and the layout of objects
(``get_object_head_values_from_object_content``, ``get_object_body``, each record's
``inflate``).
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore, ObjectEntry

from synth_common.errors import DataError

_SMALL = 16 * 2**10  # contents below this stay in memory
_HEAD_BYTES = 256  # holds the head of a chunk, which names no children
_RECORD_BYTES = 2**20  # of a record that is no array, and of an array's list of pieces
_FILE_BYTES = 64 * 2**20


class _File:
    """An unnamed file that is closed when nobody refers to it."""

    def __init__(self, folder: Path | None) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)


@dataclass(frozen=True)
class Piece:
    """Where a content lies: in memory, or in a file that lives as long as a piece of it."""

    content: bytes | None
    file: _File | None
    offset: int
    length: int

    def read(self, most: int | None = None, skip: int = 0) -> bytes:
        """The content, or some of its bytes. Raises OSError when the disk fails."""
        left = max(0, self.length - skip)
        length = left if most is None else min(most, left)
        if self.file is None:
            return (self.content or b"")[skip : skip + length]
        return os.pread(self.file.descriptor, length, self.offset + skip)


class Spool:
    """Writes contents one after the other into unnamed files.

    Args:
        folder: Where the files lie, or None for the system's folder for temporary files.
        file_bytes: A file is given up, and a new one begun, at this size.
    """

    def __init__(self, folder: Path | None = None, file_bytes: int = _FILE_BYTES) -> None:
        self._folder, self._file_bytes = folder, file_bytes
        self._file: _File | None = None
        self._end = 0
        self._lock = threading.Lock()

    def write(self, content: bytes) -> Piece:
        """Keep a content. Raises OSError when it cannot be written (full disk)."""
        if len(content) < _SMALL:
            return Piece(content, None, 0, len(content))
        with self._lock:
            if self._file is None or self._end >= self._file_bytes:
                # The pieces in the old file hold it; it is closed with the last of them.
                self._file, self._end = _File(self._folder), 0
            file, offset = self._file, self._end
            view = memoryview(content)
            while view:
                view = view[os.pwrite(file.descriptor, view, self._end) :]
                self._end = offset + len(content) - len(view)
        return Piece(None, file, offset, len(content))


class SpooledStore(InMemoryObjectStore):
    """Flower's object store with its contents in a spool.

    Attributes:
        kept: Ids of messages that a receiver's confirmation does not delete. A site that is
            killed after it confirmed gets its message again.
    """

    def __init__(self, spool: Spool) -> None:
        super().__init__(verify=True)
        self.kept: set[str] = set()
        self._spool = spool
        self._pieces: dict[str, Piece] = {}

    def put(self, object_id: str, object_content: bytes) -> None:
        """Keep a content that was announced; see Flower's ObjectStore."""
        super().put(object_id, object_content)  # checks the hash, the form and the announcement
        with self.lock_store:
            entry: ObjectEntry | None = self.store.get(object_id)
            if entry is None or object_id in self._pieces:
                return
            entry.content = b""
            try:
                self._pieces[object_id] = self._spool.write(object_content)
            except OSError:
                entry.is_available = False
                raise

    def get(self, object_id: str) -> bytes | None:
        """The content; ``b""`` while it is announced only, None when unknown."""
        with self.lock_store:
            if object_id not in self.store:
                return None
            piece = self._pieces.get(object_id)
        return b"" if piece is None else piece.read()

    def piece(self, object_id: str) -> Piece:
        """Where a content lies. Raises DataError when it is not there."""
        with self.lock_store:
            piece = self._pieces.get(object_id)
        if piece is None:
            raise DataError(f"the message lacks object {object_id[:16]}")
        return piece

    def delete(self, object_id: str) -> None:
        """Delete an object nobody refers to, and what only it referred to; not what is kept."""
        if object_id in self.kept:
            return
        with self.lock_store:
            super().delete(object_id)
            if object_id not in self.store:
                self._pieces.pop(object_id, None)

    def clear(self) -> None:
        """Delete everything."""
        super().clear()
        self._pieces.clear()


class SpooledArray(Array):
    """An array whose bytes are read from the spool every time they are asked for."""

    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, pieces: list[Piece]) -> None:
        self.__dict__["_pieces"] = pieces
        super().__init__(dtype=dtype, shape=shape, stype=stype, data=b"")

    @property
    def data(self) -> bytes:
        """The serialised array; one copy in memory, not kept here."""
        buffer = io.BytesIO()
        for piece in self.__dict__["_pieces"]:
            buffer.write(get_object_body(piece.read(), ArrayChunk))
        return buffer.getvalue()

    @data.setter
    def data(self, value: bytes) -> None:
        if value:
            raise TypeError("a spooled array is read only")


class Objects(Protocol):
    """Contents by object id."""

    def piece(self, object_id: str) -> Piece:
        """Where a content lies. Raises DataError when it is not there."""
        ...


class HeldObjects:
    """Contents in memory.

    Args:
        contents: By object id.
    """

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def piece(self, object_id: str) -> Piece:
        """See :class:`Objects`."""
        content = self._contents.get(object_id)
        if content is None:
            raise DataError(f"the message lacks object {object_id[:16]}")
        return Piece(content, None, 0, len(content))


class ContentReader:
    """Rebuilds a message's content from objects that a peer sent.

    Args:
        store: Where the objects are.
        max_bytes: Most bytes that all arrays may have together. A peer can name one chunk
            many times, so what was sent is no bound on what it unfolds to.
    """

    def __init__(self, store: Objects, max_bytes: int) -> None:
        self._store, self._left = store, max_bytes

    def read(self, message_object_id: str) -> RecordDict:
        """The content of a message.

        Raises:
            DataError: An object is missing or malformed, or the whole is too large. What
                the peer sent is not quoted.
        """
        try:
            (content_id,) = self._children(self._content(message_object_id))
            return cast(RecordDict, self._record(content_id, RecordDict))
        except DataError:
            raise
        except OSError as err:
            raise DataError(f"the message cannot be read back: {err.strerror}") from err
        except Exception as err:  # Flower's inflate raises whatever a malformed body causes
            raise DataError("the message cannot be rebuilt from its objects") from err

    def _record(self, object_id: str, kind: type[Any]) -> InflatableObject:
        content = self._content(object_id)
        if kind is ArrayRecord:
            return self._arrays(content)
        children: dict[str, InflatableObject] = {}
        for child in self._children(content):
            name = self._head(self._content(child))[0]
            if kind is not RecordDict or name not in _RECORDS:
                raise DataError(f"a {kind.__name__} holds an object of another kind")
            children[child] = self._record(child, _RECORDS[name])
        inflated: InflatableObject = kind.inflate(content, children)
        return inflated

    def _arrays(self, content: bytes) -> ArrayRecord:
        """The arrays of a record. Flower's ``inflate`` would read them all into memory."""
        record = ArrayRecord()
        for name, object_id in json.loads(get_object_body(content, ArrayRecord)).items():
            record[name] = self._array(object_id)
        return record

    def _array(self, object_id: str) -> SpooledArray:
        content = self._content(object_id)
        listed = self._children(content)
        described = json.loads(get_object_body(content, Array))
        pieces = []
        for index in described["arraychunk_ids"]:
            piece = self._store.piece(listed[index])
            if self._head(piece.read(_HEAD_BYTES))[:2] != (ArrayChunk.__qualname__, []):
                raise DataError("an array holds an object of another kind")
            self._left -= piece.length
            if self._left < 0:
                raise DataError("the message's arrays are larger than is allowed")
            pieces.append(piece)
        dtype, stype = str(described["dtype"]), str(described["stype"])
        return SpooledArray(dtype, tuple(map(int, described["shape"])), stype, pieces)

    def _content(self, object_id: str) -> bytes:
        """An object that is no piece of an array. In memory it takes many times its size."""
        piece = self._store.piece(object_id)
        if piece.length > _RECORD_BYTES:
            raise DataError("the message holds a record that is too large")
        return piece.read()

    def _children(self, content: bytes) -> list[str]:
        return self._head(content)[1]

    @staticmethod
    def _head(content: bytes) -> tuple[str, list[str], int]:
        return get_object_head_values_from_object_content(content)


_RECORDS: dict[str, type[Any]] = {
    kind.__qualname__: kind for kind in (ArrayRecord, ConfigRecord, MetricRecord)
}
