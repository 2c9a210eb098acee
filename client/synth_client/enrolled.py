"""What a site keeps of the kit that it accepted: where the coordinator is, and its plan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synth_common.errors import ConfigError
from synth_common.plan import Plan

KIT, CERTIFICATE, NODE_KEY = "kit.json", "ca.crt", "keys/node.key"


@dataclass(frozen=True)
class Enrolled:
    """A site's side of its enrolment.

    Attributes:
        host: Of the coordinator, as the site dials it; the certificate must carry it.
        port: Of the coordinator.
        certificate: The federation's certificate authority, PEM.
        plan: The plan that the coordinator sent.
        valid_until: When the site's enrolment ends, UTC.
    """

    host: str
    port: int
    certificate: bytes
    plan: Plan
    valid_until: datetime


def read_enrolled(directory: Path, name: str) -> Enrolled:
    """The kit that site ``name`` in ``directory`` accepted.

    Raises:
        ConfigError: There is none, it cannot be read, or it names no such site.
    """
    path = directory / KIT
    try:
        kit = json.loads(path.read_text(encoding="utf-8"))["kit"]
        certificate = (directory / CERTIFICATE).read_bytes()
        host, _, port = str(kit["address"]).rpartition(":")
        until = _member(kit, name)["valid_until"]
        return Enrolled(
            host=host.strip("[]"),
            port=int(port),
            certificate=certificate,
            plan=Plan.from_json(json.dumps(kit["plan"])),
            valid_until=datetime.fromisoformat(until).astimezone(UTC),
        )
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigError(
            f"{path} is not the kit of an enrolled site ({type(err).__name__}: {err}); put it in "
            f"place with synth-client accept KIT --site {name}"
        ) from err


def _member(kit: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of site ``name``. Raises KeyError where there is none."""
    for member in kit["members"]:
        if member["name"] == name:
            return dict(member)
    raise KeyError(f"site {name} is not a member")
