"""Who is enrolled: one file per site, and a verdict on every key that knocks.

The files are read again whenever one of them changes, so that a revocation takes effect at the
site's next request, without a restart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationError

from synth_common import wall_clock
from synth_common.enrolment import PublicKeys, Verdict, readable
from synth_common.errors import EnrolmentError
from synth_common.keys import fingerprint, require_closed
from synth_common.plan import SiteName, StrictModel
from synth_common.reporting.files import replace_text
from synth_server.settings import ServerFolder

State = Literal["enrolled", "expired", "revoked"]
MOST_REASON = 500


class Revocation(StrictModel):
    """When a site was turned away, and why; the reason is told to the site."""

    when: AwareDatetime
    reason: Annotated[str, Field(min_length=1, max_length=MOST_REASON)]


class FormerKeys(StrictModel):
    """Keys that a site no longer uses: they are refused by name, and nobody can enrol them."""

    keys: PublicKeys
    until: AwareDatetime
    why: str


class Member(StrictModel):
    """An enrolled site, ``DIR/sites/NAME.json``.

    Attributes:
        name: The site's name.
        keys: Its public keys.
        requested: When the site made the request that is in force.
        enrolled: When it was enrolled first.
        valid_until: When it has to send a fresh request.
        revoked: Set once it is turned away.
        former: Keys it had before.
    """

    name: SiteName
    keys: PublicKeys
    requested: AwareDatetime
    enrolled: AwareDatetime
    valid_until: AwareDatetime
    revoked: Revocation | None = None
    former: tuple[FormerKeys, ...] = ()

    def state(self, now: datetime | None = None) -> State:
        """What the site is at a time; default: the present."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if (now or wall_clock.now()) > self.valid_until else "enrolled"

    def refusal(self) -> str | None:
        """Why the site is turned away, as a sentence to it; None if it is not."""
        if self.revoked is not None:
            return (
                f"site {self.name} was revoked on {self.revoked.when:%Y-%m-%d}: "
                f"{self.revoked.reason}"
            )
        if self.state() == "expired":
            return (
                f"the enrolment of site {self.name} expired on {self.valid_until:%Y-%m-%d}: make a "
                f"fresh request with synth-client init --site {self.name} and send it to the "
                "coordinator"
            )
        return None


def read_members(folder: ServerFolder) -> list[Member]:
    """All members, enrolled or not, in the order of their names.

    Raises:
        EnrolmentError: A file is damaged or cannot be read; names it.
    """
    try:
        return [_read(path) for path in sorted(folder.sites.glob("[!.]*.json"))]
    except OSError as err:
        raise EnrolmentError(f"cannot read member {err.filename}: {err.strerror}") from err


def read_member(folder: ServerFolder, name: str) -> Member:
    """One member, whatever has become of the others' files.

    Raises:
        EnrolmentError: There is no such site; or its file is damaged or cannot be read.
    """
    names = sorted(path.stem for path in folder.sites.glob("[!.]*.json"))
    if name not in names:
        there = ", ".join(names) or "nobody"
        raise EnrolmentError(f"no site {name!r} was enrolled here; there is {there}")
    try:
        return _read(folder.sites / f"{name}.json")
    except OSError as err:
        raise EnrolmentError(f"cannot read member {err.filename}: {err.strerror}") from err


def write_member(folder: ServerFolder, member: Member) -> None:
    """Keep a member. Raises StorageError when the disk refuses."""
    replace_text(folder.sites / f"{member.name}.json", readable(member))


class Members:
    """The doorkeeper: which public keys are whose, and who is turned away.

    A file that is damaged while the server runs turns its site away and no other. Requests come in
    many threads, so what was read is replaced in one step.
    """

    def __init__(self, folder: Path) -> None:
        """Read the members below ``folder``, the coordinator's.

        Raises:
            EnrolmentError: A file is damaged; names it.
            PrivacyError: Others can enter the folder of members, and could enrol themselves.
        """
        self._folder = ServerFolder(folder)
        self._seen = _Seen({}, {})
        require_closed(self._folder.sites)
        read_members(self._folder)  # at the start a damaged file is an error

    def verdict(self, public_key: bytes) -> Verdict:
        """Whose key this is, or why it is turned away.

        Args:
            public_key: P-384, PEM (SubjectPublicKeyInfo), as Flower writes it.

        Raises:
            OSError: The files cannot be read for now, so that there is no verdict.
        """
        found = self._current().get(public_key.decode(errors="replace").strip())
        if found is None:
            return Verdict(
                None,
                f"no site is enrolled with this node key (SHA-256 {fingerprint(public_key)}): send "
                "the site's request.json to the coordinator, who enrols it with synth-server enrol",
            )
        if isinstance(found, Verdict):
            return found
        refusal = found.refusal()
        return Verdict(found.name, None) if refusal is None else Verdict(None, refusal)

    def names(self) -> Mapping[str, bytes]:
        """The sites that are let in now, and their node keys as PEM.

        While the files cannot be read it is those that were known before: this says who can be
        written to, and :meth:`verdict` who may fetch it.
        """
        try:
            current = self._current()
        except OSError:  # too many open files, say; it must not end a run
            current = self._seen.keys
        return {
            member.name: member.keys.node.encode()
            for member in current.values()
            if isinstance(member, Member) and member.state() == "enrolled"
        }

    def _current(self) -> Mapping[str, Verdict | Member]:
        """Node keys and what they stand for, once the files that changed are read."""
        stamps = _stamps(self._folder.sites)
        if stamps != {name: file.stamp for name, file in self._seen.files.items()}:
            self._seen = _look(self._folder, stamps, self._seen.files)
        return self._seen.keys


_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class _File:
    """One member's file: what it looked like when it was read, and the keys in it."""

    stamp: _Stamp
    keys: Mapping[str, Verdict | Member]


@dataclass(frozen=True)
class _Seen:
    """What was read: files by name, and all their keys."""

    files: Mapping[str, _File]
    keys: Mapping[str, Verdict | Member]


def _stamps(folder: Path) -> dict[str, _Stamp]:
    """What the files of all members look like, by site; costs a request microseconds a member."""
    stamps = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".json") and not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # gone since it was listed
                    found = entry.stat()
                    stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
                    stamps[entry.name.removesuffix(".json")] = stamp
    return stamps


def _look(folder: ServerFolder, stamps: Mapping[str, _Stamp], before: Mapping[str, _File]) -> _Seen:
    """Read the files that changed."""
    files = {}
    for name, stamp in stamps.items():
        known = before.get(name)
        if known is not None and known.stamp == stamp:
            files[name] = known
        else:
            files[name] = _File(stamp, _keys_in(folder.sites / f"{name}.json", known))
    found = [item for file in files.values() for item in file.keys.items()]
    # Keys in use come last: no other site's former key can shadow them.
    return _Seen(files, dict(sorted(found, key=lambda item: isinstance(item[1], Member))))


def _keys_in(path: Path, before: _File | None) -> Mapping[str, Verdict | Member]:
    """The keys in a file; those that a damaged one held are turned away."""
    try:
        member = _read(path)
    except FileNotFoundError:
        return {}
    except EnrolmentError:
        words = f"the coordinator's record of site {path.stem} is damaged; tell it so"
        return dict.fromkeys({} if before is None else before.keys, Verdict(None, words))
    former = {_mark(old.keys): Verdict(None, _replaced(member, old)) for old in member.former}
    return {**former, _mark(member.keys): member}


def _mark(keys: PublicKeys) -> str:
    return keys.node.strip()


def _replaced(member: Member, former: FormerKeys) -> str:
    """What a site hears that comes with a key it had before."""
    return (
        f"site {member.name} gave this key up on {former.until:%Y-%m-%d} ({former.why}): start it "
        "with its new keys"
    )


def _read(path: Path) -> Member:
    """One member's file. Raises EnrolmentError if it is damaged, and OSError."""
    try:
        member = Member.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as err:
        raise EnrolmentError(f"{path} is damaged; restore it from a backup: {err}") from err
    if member.name != path.stem:
        raise EnrolmentError(
            f"{path} is the record of site {member.name!r}; name it {member.name}.json"
        )
    return member
