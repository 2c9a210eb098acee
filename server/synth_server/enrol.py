"""Enrolling sites: requests come in, members are enrolled, revoked and renewed.

Every change writes the kits of all enrolled sites anew (:mod:`synth_server.kits`). Private keys of
sites never come here.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from synth_common import wall_clock
from synth_common.enrolment import EnrolmentRequest, PublicKeys, first_repeated, readable
from synth_common.errors import ConfigError, EnrolmentError, StorageError, SynthwardError
from synth_common.keys import make_private_folder
from synth_common.reporting.files import replace_text
from synth_common.signed_files import read_file, read_request
from synth_server.authority import kit_signer, make_identity, renew_identity
from synth_server.kits import Issued, issue_kits
from synth_server.members import (
    MOST_REASON,
    FormerKeys,
    Member,
    Revocation,
    read_member,
    read_members,
    write_member,
)
from synth_server.settings import (
    ServerFolder,
    load_plan,
    load_settings,
    render_settings,
)

_MOST_DAYS = 3650
_SKEW = timedelta(days=1)


def init_server(folder: ServerFolder, name: str, address: str, plan_file: Path) -> x509.Certificate:
    """Make a coordinator in ``folder``: keys, certificates, settings and the plan.

    Returns:
        The authority's certificate.

    Raises:
        ConfigError: The name, address or plan is impossible, or there is a coordinator already.
        StorageError: The disk refused.
    """
    if folder.settings.exists() or folder.keys.exists():
        raise ConfigError(
            f"{folder.path} holds a coordinator already; choose another folder, or change "
            f"{folder.settings.name} and run synth-server renew"
        )
    text, plan = render_settings(name, address), load_plan(plan_file)
    try:
        folder.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise StorageError(f"cannot make folder {folder.path}: {err.strerror}") from err
    for part in (folder.sites, folder.kits):
        make_private_folder(part)
    replace_text(folder.settings, text)
    replace_text(folder.plan, readable(plan))
    return make_identity(folder, load_settings(folder))


def enrol(folder: ServerFolder, files: Sequence[Path], days: int) -> tuple[list[Member], Issued]:
    """Enrol the sites that made these requests (none if one is refused), and write everybody's kit.

    Args:
        folder: The coordinator's.
        files: Requests.
        days: How long the sites are let in before they have to send a fresh request.

    Returns:
        The new members, and the kits.

    Raises:
        EnrolmentError: A request cannot be trusted, or shares a name or key with another site.
        ConfigError: ``days`` is impossible, or settings or plan are.
        StorageError: The disk refused.
    """
    now = wall_clock.now()
    until = _until(now, days)
    requests = [read_request(read_file(path), str(path)) for path in files]
    with _alone(folder):
        members = read_members(folder)
        known = {member.name: member for member in members}
        for request in requests:
            _require_not_ahead(request, now)
            if request.site in known:
                raise EnrolmentError(_already(known[request.site], folder))
        _require_unique(members, [(request.site, request.keys) for request in requests])
        new = [
            Member(
                name=request.site,
                keys=request.keys,
                requested=request.made,
                enrolled=now,
                valid_until=until,
            )
            for request in requests
        ]
        kit_signer(folder)  # before anything is written
        for member in new:
            write_member(folder, member)
        return new, issue_kits(folder)


def revoke(folder: ServerFolder, name: str, reason: str) -> tuple[Member, Issued]:
    """Turn a site away from its next request on, and write the others' kits without it.

    Raises:
        EnrolmentError: There is no such site, or it was revoked before.
        ConfigError: No reason is given.
        StorageError: The disk refused.
    """
    if not 1 <= len(reason.strip()) <= MOST_REASON:
        raise ConfigError(
            f"--reason has {len(reason.strip())} characters, expected 1 to {MOST_REASON}: say why "
            "the site is revoked; it is told so"
        )
    with _alone(folder):
        member = read_member(folder, name)
        if member.revoked is not None:
            raise EnrolmentError(f"{member.refusal()}; nothing was written")
        revocation = Revocation(when=wall_clock.now(), reason=reason.strip())
        member = member.model_copy(update={"revoked": revocation})
        write_member(folder, member)  # first: it holds even if the kits cannot be written
        try:
            return member, issue_kits(folder)
        except SynthwardError as err:
            raise EnrolmentError(
                f"site {name} IS revoked, but the others' kits could not be written: {err}"
            ) from err


def renew_member(
    folder: ServerFolder, name: str, file: Path, days: int
) -> tuple[Member, bool, Issued]:
    """Let a site in for longer, by a fresh request of its own.

    A revoked site is let in again only with three new keys: what was revoked stays revoked.

    Returns:
        The member, whether its keys changed, and the kits.

    Raises:
        EnrolmentError: There is no such site, or the request is another site's, is not fresh,
            cannot be trusted, or uses a key that it must not.
        ConfigError, StorageError: As :func:`enrol`.
    """
    now = wall_clock.now()
    until = _until(now, days)
    request = read_request(read_file(file), str(file))
    if request.site != name:
        raise EnrolmentError(f"--site {name}, but {file} is a request of site {request.site}")
    with _alone(folder):
        member = read_member(folder, name)
        if request.made <= member.requested:
            raise EnrolmentError(
                f"{file} was made {request.made:%Y-%m-%d %H:%M:%S}, not after the request of "
                f"{member.requested:%Y-%m-%d %H:%M:%S} that is in force: have the site make a "
                f"fresh one with synth-client init --site {name}"
            )
        _require_not_ahead(request, now)
        changed = request.keys != member.keys
        former = member.former
        if changed or member.revoked is not None:
            former = (*former, _give_up(member, now))
        updated = member.model_copy(
            update={
                "keys": request.keys,
                "requested": request.made,
                "valid_until": until,
                "revoked": None,
                "former": former,
            }
        )
        others = [other for other in read_members(folder) if other.name != name]
        _require_unique(others, [(name, request.keys)])
        _require_not_given_up(updated, stays=member.keys if member.revoked is None else None)
        kit_signer(folder)
        write_member(folder, updated)
        return updated, changed, issue_kits(folder)


def renew_server(folder: ServerFolder) -> tuple[x509.Certificate, Issued]:
    """Renew the server's certificate, and write all kits anew, with the plan as it is now.

    Returns:
        The new certificate, and the kits.

    Raises:
        EnrolmentError, PrivacyError, ConfigError, StorageError: As :func:`renew_identity` and
            :func:`enrol`.
    """
    with _alone(folder):
        certificate = renew_identity(folder, load_settings(folder))
        return certificate, issue_kits(folder)


def _until(now: datetime, days: int) -> datetime:
    if not 1 <= days <= _MOST_DAYS:
        raise ConfigError(f"--days {days}: expected 1 to {_MOST_DAYS}")
    return now + timedelta(days=days)


def _require_not_ahead(request: EnrolmentRequest, now: datetime) -> None:
    """Refuse a request from the future: no later one could follow it for long."""
    if request.made > now + _SKEW:
        raise EnrolmentError(
            f"the request of site {request.site} was made {request.made:%Y-%m-%d %H:%M}, and it is "
            f"{now:%Y-%m-%d %H:%M} UTC here: have the site correct its clock and make a fresh one"
        )


def _already(member: Member, folder: ServerFolder) -> str:
    again = f"synth-server renew {folder.path} --site {member.name} --request FILE"
    if member.revoked is not None:
        return f"{member.refusal()}; to let it in again with new keys: {again}"
    return (
        f"site {member.name} is enrolled already, until {member.valid_until:%Y-%m-%d}; for a fresh "
        f"request of the same site: {again}"
    )


def _give_up(member: Member, now: datetime) -> FormerKeys:
    why = "it was renewed with others"
    if member.revoked is not None:
        why = f"it was revoked on {member.revoked.when:%Y-%m-%d}: {member.revoked.reason}"
    return FormerKeys(keys=member.keys, until=now, why=why)


def _require_unique(members: Sequence[Member], new: Sequence[tuple[str, PublicKeys]]) -> None:
    """Refuse names and keys that somebody else has or had."""
    current = [(member.name, member.keys) for member in members]
    repeated = first_repeated([*current, *new])
    for member in members:
        for former in member.former:
            # A former holder counts under a name of its own, so that only keys can clash.
            held = (f"{member.name} (before {former.until:%Y-%m-%d})", former.keys)
            repeated = repeated or first_repeated([held, *new])
    if repeated is not None:
        raise EnrolmentError(
            f"{repeated}: each site has its own; have the newer one make new keys with "
            "synth-client init --new-keys"
        )


def _require_not_given_up(member: Member, stays: PublicKeys | None) -> None:
    """Refuse a key that the site itself gave up; ``stays`` are those it goes on with."""
    for former in member.former:
        for kind in ("node", "agreement", "signing"):
            key = getattr(member.keys, kind)
            kept = stays is not None and getattr(stays, kind) == key
            if getattr(former.keys, kind) == key and not kept:
                raise EnrolmentError(
                    f"site {member.name} comes with a {kind} key that it gave up on "
                    f"{former.until:%Y-%m-%d} ({former.why}): have it make new keys with "
                    f"synth-client init --site {member.name} --new-keys"
                )


@contextmanager
def _alone(folder: ServerFolder) -> Iterator[None]:
    """Be the one who changes members; another command waits until we are done."""
    load_settings(folder)  # says what is wrong where there is no coordinator
    path = make_private_folder(folder.sites) / ".lock"
    try:
        handle = path.open("w")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as err:
        raise StorageError(f"cannot lock {path}: {err.strerror}") from err
    with handle:  # closing it frees the lock
        yield
