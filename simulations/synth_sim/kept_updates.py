"""What a curious server would keep: of every round, the tensors it sent and each site's reply.

Only a simulation keeps them, and only when asked to, for an audit of the server's view.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from synth_common.audit.released_model import Update
from synth_common.errors import DataError, StorageError
from synth_common.flower import Grid, Message, PassingGrid, state_of
from synth_common.messages import arrays_in, header_of
from synth_common.reporting.files import replace_bytes

FOLDER = "updates"
_TRAIN = "train"
_FILE = re.compile(r"round-(\d{4,})-(sent|site-(.+))\.safetensors")


class KeepingGrid(PassingGrid):
    """A grid that writes what passes in training rounds into a folder.

    Args:
        inner: The grid that carries the messages.
        folder: Where to write; made if missing.
        names: Site of each node.
    """

    def __init__(self, inner: Grid, folder: Path, names: Mapping[int, str]) -> None:
        super().__init__(inner)
        self._folder, self._names = folder, names
        self._rounds: dict[int, int] = {}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Pass messages and replies on, and keep their tensors."""
        for reply in self._inner.send_and_receive(self._noted(messages), timeout=timeout):
            node = reply.metadata.src_node_id
            if node in self._rounds and not reply.has_error():
                name = f"site-{self._names[node]}"
                self._write(self._rounds.pop(node), name, state_of(arrays_in(reply)))
            yield reply

    def _noted(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            if message.metadata.message_type == _TRAIN:
                number = header_of(message).round
                if number not in self._rounds.values():  # all sites are sent the same
                    self._write(number, "sent", state_of(arrays_in(message)))
                self._rounds[message.metadata.dst_node_id] = number
            yield message

    def _write(self, number: int, name: str, state: Mapping[str, Tensor]) -> None:
        from safetensors.torch import save

        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise StorageError(f"cannot keep updates in {self._folder}: {err.strerror}") from err
        replace_bytes(self._folder / f"round-{number:04d}-{name}.safetensors", save(tensors))


def read_updates(folder: Path) -> dict[str, list[Update]]:
    """The updates of every site in the order of rounds.

    Raises:
        DataError: The folder holds none, or a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    found: dict[str, list[Update]] = {}
    try:
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        states = {
            (int(match[1]), match[3]): load(path.read_bytes())
            for path in files
            if (match := _FILE.fullmatch(path.name))
        }
    except (OSError, SafetensorError) as err:
        raise DataError(f"--updates {folder}: cannot be read: {err}") from err
    for (number, site), replied in sorted(states.items(), key=lambda item: item[0][0]):
        if site is not None:
            if (number, None) not in states:
                raise DataError(f"--updates {folder}: round {number}: what was sent is missing")
            found.setdefault(site, []).append(Update(number, states[number, None], replied))
    if not found:
        raise DataError(
            f"--updates {folder}: holds no updates; make them with synth-sim run --keep-updates"
        )
    return found
