"""A coordinator and sites that enrol, in a folder, with a clock that tests can set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from synth_client.enrol import init_site
from synth_client.kit import Peer, accept
from synth_common.certificates import certificate_fingerprint
from synth_common.plan import Plan
from synth_common.signed_files import SignedKit, read_kit
from synth_server.enrol import enrol, init_server
from synth_server.settings import ServerFolder

NAMES = ("hill", "north", "river")


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.time = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, **amount: float) -> None:
        self.time += timedelta(**amount)


@dataclass
class Federation:
    """A coordinator with a folder, and a home per site, below ``path``."""

    path: Path
    fingerprint: str

    @property
    def folder(self) -> ServerFolder:
        return ServerFolder(self.path / "coordinator")

    def site(self, name: str) -> Path:
        return self.path / name / "sites" / name

    def ask(self, name: str, new_keys: bool = False) -> Path:
        """The site makes its request; returns the file."""
        directory, _ = init_site(self.path / name, name, new_keys)
        return directory / "request.json"

    def enrol(self, *names: str, days: int = 365) -> None:
        enrol(self.folder, [self.ask(name) for name in names], days)

    def kit(self, name: str) -> SignedKit:
        path = self.folder.kits / f"{name}.json"
        return read_kit(path.read_text(), str(path))

    def accept(self, name: str, **changes) -> tuple[Peer, ...]:
        given = {"told": self.fingerprint, "operator": "test", **changes}
        return accept(self.site(name), given.pop("signed", None) or self.kit(name), **given)


def found(path: Path, address: str = "localhost:8443", plan: Plan | None = None) -> Federation:
    """A coordinator without sites."""
    file = path / "agreed.json"
    file.write_text((plan or Plan()).to_json())
    authority = init_server(ServerFolder(path / "coordinator"), "lungs", address, file)
    return Federation(path, certificate_fingerprint(authority))
