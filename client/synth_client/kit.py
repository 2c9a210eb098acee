"""The kit that a coordinator answers with: accepted once by a person, read at every start.

::

    DIRECTORY/kit.json             the kit that was accepted last, with its signature
    DIRECTORY/ca.crt               the federation's authority; pinned with the first kit
    DIRECTORY/plan.json            the plan in the kit, for ``synth-client plan approve``
    DIRECTORY/keys/peers.json      X25519 public keys of the other sites, by name
    DIRECTORY/keys/history.jsonl   every kit that was accepted: by whom, with which peers' keys

What is known of a peer is never forgotten: a coordinator that drops a peer and brings it back with
another key is noticed as one that changes the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from synth_client.enrol import agree, load_peers, public_keys
from synth_common import wall_clock
from synth_common.certificates import read_certificate, to_pem
from synth_common.enrolment import Kit, KitMember, readable
from synth_common.errors import EnrolmentError
from synth_common.keys import fingerprint, require_closed, same_fingerprint
from synth_common.privacy.ledger import Decision
from synth_common.reporting.files import replace_text
from synth_common.signed_files import SignedKit, read_file, read_kit, require_fresh

Change = Literal["new", "known", "CHANGED", "gone"]


@dataclass(frozen=True)
class Peer:
    """Another site: what its kit entry means here.

    Attributes:
        name: Its name.
        fingerprint: SHA-256 of its X25519 public key; operators compare it.
        change: Against what this site knew of it.
    """

    name: str
    fingerprint: str
    change: Change


@dataclass(frozen=True)
class _Accepted:
    """One line of the history."""

    time: str
    operator: str
    reason: str
    authority: str
    serial: int
    digest: str
    peers: dict[str, str]


def is_pinned(directory: Path) -> bool:
    """Whether the site knows the federation's authority from a kit it accepted."""
    return (directory / "ca.crt").exists()


def accept(
    directory: Path,
    signed: SignedKit,
    told: str | None,
    operator: str,
    replacing: Decision | None = None,
) -> tuple[Peer, ...]:
    """Accept a kit: pin the authority, and take over address, plan and peers' keys.

    Args:
        directory: The site's; its name is the site's.
        signed: The kit, with its signatures verified.
        told: The authority's fingerprint as a person heard it; None once it is pinned.
        operator: Who accepts; it is written down.
        replacing: The decision to take peers' keys that changed; None refuses them.

    Returns:
        The peers, for the operator to compare.

    Raises:
        EnrolmentError: The authority is another one, the site's own keys do not stand in the kit
            as they are, the kit is older than one that was accepted, something expired, or a
            peer's key changed.
        PrivacyError: Others can read a private key.
        StorageError: The disk refused.
    """
    kit, name = signed.kit, directory.name
    _require_authority(directory, signed, told)
    require_fresh(signed)
    _require_own(directory, kit.member(name), name)
    history = _read_history(directory)
    _require_newer(signed, history)
    known = _known_keys(directory, history)
    keys = {member.name: member.keys.agreement for member in kit.members if member.name != name}
    peers = _compare(keys, known, _agreed(directory))
    _require_same_keys(peers, replacing)
    entry = _Accepted(
        time=wall_clock.now().isoformat(),
        operator=operator,
        reason="" if replacing is None else replacing.reason,
        authority=signed.fingerprint,
        serial=kit.serial,
        digest=signed.digest,
        peers=keys,
    )
    _append(directory, entry)  # first: what was seen is remembered even if the rest fails
    replace_text(directory / "plan.json", readable(kit.plan))
    agree(directory, keys)
    replace_text(directory / "ca.crt", to_pem(signed.authority))
    replace_text(directory / "kit.json", signed.text)
    return peers


def load_kit(directory: Path) -> Kit:
    """The kit that this site accepted, verified against the pinned authority.

    Whether the enrolment has expired is in ``kit.member(name).valid_until``.

    Raises:
        EnrolmentError: None was accepted, or it was altered.
    """
    path = directory / "kit.json"
    if not path.exists():
        raise EnrolmentError(
            f"site {directory.name} has accepted no kit: send {directory / 'request.json'} to the "
            f"coordinator, then synth-client accept KIT --site {directory.name}"
        )
    signed = read_kit(read_file(path), str(path))
    if signed.authority != read_certificate(directory / "ca.crt"):
        raise EnrolmentError(
            f"{path} and {directory / 'ca.crt'} are of different federations: accept the kit again"
        )
    return signed.kit


def _require_authority(directory: Path, signed: SignedKit, told: str | None) -> None:
    """Refuse a kit of another authority than the one that is pinned, or that a person heard of."""
    pinned = directory / "ca.crt"
    if pinned.exists() and read_certificate(pinned) != signed.authority:
        raise EnrolmentError(
            f"the kit's authority has the fingerprint {signed.fingerprint}, and not that of "
            f"{pinned}: this is another federation, or somebody poses as it. If the coordinator "
            f"did make a new one, ask its IT by telephone, remove {pinned}, and accept it again"
        )
    if told is None and not pinned.exists():
        raise EnrolmentError(
            "no fingerprint was given: ask the coordinator's IT for it by telephone, and give it "
            "with --fingerprint"
        )
    if told is not None and not same_fingerprint(told, signed.fingerprint):
        raise EnrolmentError(
            f"--fingerprint {told}, but the kit's authority has {signed.fingerprint}: mistyped, or "
            "this kit is not the coordinator's. Nothing was written"
        )


def _require_own(directory: Path, own: KitMember | None, name: str) -> None:
    """Refuse a kit that does not name this site with exactly the keys it has."""
    if own is None:
        raise EnrolmentError(f"the kit does not name site {name}: it is not enrolled, or revoked")
    if own.keys != public_keys(directory):
        raise EnrolmentError(
            f"the kit holds other keys for site {name} than it has here: the coordinator enrolled "
            "an older request, or somebody else under this name. Send request.json again, and "
            "compare fingerprints by telephone. Nothing was written"
        )
    if own.valid_until < wall_clock.now():
        raise EnrolmentError(
            f"the enrolment of site {name} expired on {own.valid_until:%Y-%m-%d}: make a fresh "
            f"request with synth-client init --site {name}"
        )


def _require_newer(signed: SignedKit, history: list[_Accepted]) -> None:
    """Refuse a kit older than one that was accepted, or another one under the same number."""
    last = max(
        (entry for entry in history if entry.authority == signed.fingerprint),
        key=lambda entry: entry.serial,
        default=None,
    )
    if last is None or signed.kit.serial > last.serial:
        return
    if signed.kit.serial < last.serial:
        raise EnrolmentError(
            f"kit number {signed.kit.serial} is older than number {last.serial}, accepted on "
            f"{last.time[:10]}: ask the coordinator for the newest"
        )
    if signed.digest != last.digest:
        raise EnrolmentError(
            f"kit number {last.serial} was accepted on {last.time[:10]} with other content: the "
            "coordinator tells sites different things, or was restored from a backup. Compare with "
            "the other sites, and ask for a kit with a higher number"
        )


def _compare(
    keys: Mapping[str, str], known: Mapping[str, str], agreed: Mapping[str, str]
) -> tuple[Peer, ...]:
    """What the peers in a kit are to a site that knows, and now sums with, these keys."""
    peers = []
    for name, key in sorted(keys.items()):
        change: Change = "new"
        if name in known:
            change = "known" if known[name] == key else "CHANGED"
        peers.append(Peer(name, fingerprint(bytes.fromhex(key)), change))
    gone = sorted(agreed.keys() - keys.keys())
    return (*peers, *(Peer(n, fingerprint(bytes.fromhex(agreed[n])), "gone") for n in gone))


def _require_same_keys(peers: tuple[Peer, ...], replacing: Decision | None) -> None:
    """Refuse changed keys, unless the operator decided to take them."""
    changed = [f"{peer.name} ({peer.fingerprint})" for peer in peers if peer.change == "CHANGED"]
    if changed and replacing is None:
        raise EnrolmentError(
            f"the kit brings another key for {', '.join(changed)}: a coordinator that poses as a "
            "peer would do this. Ask that hospital's operator for the fingerprint of its X25519 "
            "key; if it is this one, repeat with --replace-peers --reason TEXT. Nothing was written"
        )


def _known_keys(directory: Path, history: list[_Accepted]) -> dict[str, str]:
    """The last key that was seen of every peer, whether or not it is still one."""
    known = _agreed(directory)
    for entry in history:
        known |= entry.peers
    return known


def _agreed(directory: Path) -> dict[str, str]:
    """The keys that are in use; none before the first kit."""
    if not (directory / "keys" / "peers.json").exists():
        return {}
    return {name: key.hex() for name, key in load_peers(directory).items()}


def _read_history(directory: Path) -> list[_Accepted]:
    """Every acceptance, in order."""
    path = directory / "keys" / "history.jsonl"
    require_closed(path.parent)
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_Accepted(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as err:
        raise EnrolmentError(f"{path} is damaged; restore it from a backup: {err}") from err


def _append(directory: Path, entry: _Accepted) -> None:
    """Add to the history; written whole, so that no line of it can be torn."""
    path = directory / "keys" / "history.jsonl"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    replace_text(path, before + json.dumps(asdict(entry), sort_keys=True) + "\n")
