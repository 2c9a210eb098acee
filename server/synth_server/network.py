"""The way to the sites over a network: the link, with who is enrolled at its door."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from synth_common.address import parse_address
from synth_common.errors import ConfigError
from synth_common.flower.link import Listener, open_link
from synth_server.attendance import Sites
from synth_server.members import Members
from synth_server.settings import ServerFolder, ServerSettings

LINK = (
    "TLS with certificates of the federation's own authority; every request is signed with the key "
    "of an enrolled site and turned away otherwise; sites dial out, and the coordinator listens on "
    "one port"
)
"""What the link is, in words for the record."""


def _spool(folder: ServerFolder, settings: ServerSettings) -> Path | None:
    """The folder of what is in transit, made if need be; None for the system's own."""
    named = settings.limits.spool
    if named is None:
        return None
    path = folder.path / named.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        with TemporaryFile(dir=path):
            return path
    except OSError as err:
        raise ConfigError(
            f"limits.spool = {str(named)!r}: {path} cannot be written ({err.strerror}); name a "
            "folder on a disk that the server may write"
        ) from err


@contextmanager
def open_network(folder: ServerFolder, settings: ServerSettings) -> Iterator[Sites]:
    """Serve the sites on the public port while the context lasts.

    Raises:
        ConfigError: The port or the folder of what is in transit cannot be used.
        EnrolmentError: A member's file is damaged.
        PrivacyError: Others could enrol themselves.
    """
    bind = parse_address(settings.bind)
    listener = Listener(
        host=bind.host,
        port=bind.port,
        certificate=folder.keys / "server.crt",
        key=folder.keys / "server.key",
        max_request_bytes=settings.limits.max_request_bytes,
        max_reply_bytes=settings.limits.max_reply_bytes,
        spool=_spool(folder, settings),
    )
    with open_link(listener, Members(folder.path)) as grid:
        yield Sites(grid, grid)
