"""Kits: what every enrolled site gets, signed, numbered, and the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synth_common import wall_clock
from synth_common.enrolment import Kit, KitMember
from synth_common.errors import EnrolmentError
from synth_common.keys import make_private_folder
from synth_common.plan import Plan
from synth_common.reporting.files import replace_text
from synth_common.signed_files import sign_kit
from synth_server.authority import kit_signer
from synth_server.members import read_members
from synth_server.settings import ServerFolder, ServerSettings, load_plan, load_settings


@dataclass(frozen=True)
class Issued:
    """Kits that were written.

    Attributes:
        serial: Of all of them.
        kits: Path of each site's.
        members_fingerprint: What the operators of all sites compare.
        wanted: Fewest sites that the plan needs.
    """

    serial: int
    kits: dict[str, Path]
    members_fingerprint: str
    wanted: int


def issue_kits(folder: ServerFolder) -> Issued:
    """Write the kit of every enrolled site; kits of others are taken away.

    Raises:
        ConfigError: The settings or the plan are impossible.
        EnrolmentError: A member or the signing key or its certificate is damaged or expired.
        PrivacyError: Others can read the signing key.
        StorageError: The disk refused.
    """
    settings, plan, signer = load_settings(folder), load_plan(folder.plan), kit_signer(folder)
    kit = _kit(folder, settings, plan)
    text = sign_kit(kit, signer)
    make_private_folder(folder.kits)
    names = [member.name for member in kit.members]
    replace_text(_serial(folder), f"{kit.serial}\n")  # first: a serial is never used twice
    written = {name: replace_text(folder.kits / f"{name}.json", text) for name in names}
    for path in folder.kits.glob("*.json"):
        if path.stem not in written:
            path.unlink()
    wanted = max(plan.federation.min_sites, plan.release_sites)
    return Issued(kit.serial, written, kit.members_fingerprint(), wanted)


def _kit(folder: ServerFolder, settings: ServerSettings, plan: Plan) -> Kit:
    """The next kit: the same for all sites, so that they can compare it."""
    members = [member for member in read_members(folder) if member.state() == "enrolled"]
    return Kit(
        federation=settings.name,
        serial=_last_serial(folder) + 1,
        issued=wall_clock.now(),
        address=settings.address,
        plan=plan,
        members=tuple(
            KitMember(name=m.name, keys=m.keys, valid_until=m.valid_until) for m in members
        ),
    )


def _serial(folder: ServerFolder) -> Path:
    return folder.kits / "serial"


def _last_serial(folder: ServerFolder) -> int:
    """The last serial number that was used; 0 before the first."""
    path = _serial(folder)
    if not path.exists() and not any(folder.kits.glob("*.json")):
        return 0
    try:
        return int(path.read_text())
    except (OSError, ValueError) as err:
        raise EnrolmentError(
            f"{path} is missing or damaged: write the highest serial number of the kits that sites "
            "have accepted into it"
        ) from err
