"""A site's keys, the request that enrols it, and the keys of its peers.

::

    DIRECTORY/request.json       what the coordinator gets: public halves, signed
    DIRECTORY/keys/private.key   X25519, hexadecimal: masks of secure sums          SECRET
    DIRECTORY/keys/node.key      P-384, PEM: signs requests to the server           SECRET
    DIRECTORY/keys/sign.key      Ed25519, PEM: signs what the site declares         SECRET
    DIRECTORY/keys/peers.json    X25519 public keys of the other sites, by name

Private keys are made at the site and never leave it; the folder is closed to others. Peers'
public keys are agreed upon at enrolment, between the sites' operators: a coordinator that could
hand out keys could pose as every peer and take all masks off. They come in its kit
(:mod:`synth_client.kit`), and operators compare them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from synth_common import keys, wall_clock
from synth_common.enrolment import EnrolmentRequest, PublicKeys
from synth_common.errors import ConfigError, PrivacyError
from synth_common.plan import SITE_NAME
from synth_common.privacy.pairwise_masks import public_bytes
from synth_common.reporting.files import replace_bytes, replace_text
from synth_common.signed_files import sign_request


def init_site(home: Path, name: str, new_keys: bool = False) -> tuple[Path, EnrolmentRequest]:
    """Make a site's directory, keys, settings to fill in, and its request.

    What is there is kept; the request is made anew, so that it is fresh.

    Args:
        home: Folder that holds ``sites/NAME``.
        name: The site's name, as all sites will know it.
        new_keys: Replace keys that are there. The server knows the site again, and peers can sum
            with it, only when they have the new ones.

    Returns:
        The site's directory, and the request that was written to ``request.json``.

    Raises:
        ConfigError: The name is impossible.
        EnrolmentError, PrivacyError: A key that is there is damaged, or others can read it.
        StorageError: The disk refused.
    """
    if re.fullmatch(SITE_NAME, name) is None:
        raise ConfigError(
            f"--site {name!r}: expected up to 64 letters, digits, - and _, the first no - or _"
        )
    directory = home / "sites" / name
    keys.make_private_folder(directory)
    public = make_keys(directory, new_keys)
    request = EnrolmentRequest(site=name, made=wall_clock.now(), keys=public)
    signed = sign_request(request, load_node_key(directory), load_signing_key(directory))
    if not (directory / "site.toml").exists():
        replace_bytes(directory / "site.toml", _settings(name).encode(), mode=0o600)
    replace_text(directory / "request.json", signed)
    return directory, request


def find_enrolling(home: Path, name: str) -> Path:
    """The directory of a site that has keys.

    Raises:
        ConfigError: There is none; names those that are there.
    """
    found = sorted(path.parent.parent.name for path in (home / "sites").glob("*/keys/node.key"))
    if name not in found:
        there = ", ".join(found) if found else "no site with keys"
        raise ConfigError(
            f"--site {name}: {home / 'sites'} holds {there}; check --site and --home, or make the "
            f"site's keys with synth-client init --site {name}"
        )
    return home / "sites" / name


def make_keys(directory: Path, fresh: bool = False) -> PublicKeys:
    """The public keys of the site in ``directory``; makes those that it has not.

    Args:
        directory: The site's.
        fresh: Make all of them, whatever is there.

    Raises:
        EnrolmentError, PrivacyError: A key that is there is damaged, or others can read it.
        StorageError: The disk refused.
    """
    keys.make_private_folder(directory / "keys")
    makers = {
        _private(directory): _make_agreement_key,
        _node(directory): keys.make_node_key,
        _signing(directory): keys.make_signing_key,
    }
    for path, make in makers.items():
        if fresh or not path.exists():
            make(path)
    return public_keys(directory)


def public_keys(directory: Path) -> PublicKeys:
    """The public halves of the keys of the site in ``directory``.

    Raises:
        EnrolmentError, PrivacyError: A key is missing or damaged, or others can read it.
    """
    return PublicKeys(
        node=keys.node_public(load_node_key(directory)),
        agreement=public_bytes(load_key(directory)).hex(),
        signing=keys.signing_public(load_signing_key(directory)),
    )


def load_node_key(directory: Path) -> ec.EllipticCurvePrivateKey:
    """The key on P-384 with which the site in ``directory`` signs its requests to the server.

    Raises:
        EnrolmentError: There is none, or it is damaged.
        PrivacyError: Others than its owner can read it.
    """
    return keys.load_node_key(_node(directory))


def load_signing_key(directory: Path) -> Ed25519PrivateKey:
    """The Ed25519 key of the site in ``directory``. Errors as :func:`load_node_key`."""
    return keys.load_signing_key(_signing(directory))


def make_key(directory: Path) -> str:
    """The X25519 public key (hexadecimal) of the site in ``directory``; makes one if it has none.

    Raises:
        PrivacyError: There is a key, and it is damaged or others can read it.
        StorageError: The disk refused.
    """
    path = _private(directory)
    keys.make_private_folder(path.parent)
    if not path.exists():
        _make_agreement_key(path)
    return public_bytes(load_key(directory)).hex()


def load_key(directory: Path) -> X25519PrivateKey:
    """The X25519 private key of the site in ``directory``.

    Raises:
        PrivacyError: There is none, it is damaged, or others than its owner can read it.
    """
    path = _private(directory)
    try:
        return X25519PrivateKey.from_private_bytes(bytes.fromhex(keys.read_private(path).decode()))
    except (OSError, ValueError) as err:
        raise PrivacyError(
            f"{path} holds no key for secure aggregation; enrol this site with its peers"
        ) from err


def agree(directory: Path, peers: Mapping[str, str]) -> None:
    """Write down the peers' public keys (hexadecimal, by name) that the operators agreed upon.

    Raises:
        PrivacyError: The folder of keys is open to others.
        StorageError: The disk refused.
    """
    path = _peers(directory)
    keys.make_private_folder(path.parent)
    replace_text(path, json.dumps(dict(sorted(peers.items())), indent=2) + "\n")


def load_peers(directory: Path) -> dict[str, bytes]:
    """The peers' public keys by name.

    Raises:
        PrivacyError: None were agreed upon, or the file is damaged.
    """
    path = _peers(directory)
    try:
        values = json.loads(path.read_text())
        return {str(name): bytes.fromhex(key) for name, key in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as err:
        raise PrivacyError(
            f"{path} holds no keys of peers; enrol this site with its peers"
        ) from err


def _make_agreement_key(path: Path) -> None:
    """Make an X25519 private key and keep it at ``path``, for its owner only."""
    secret = X25519PrivateKey.generate().private_bytes_raw()
    replace_bytes(path, f"{secret.hex()}\n".encode(), mode=0o600)


def _settings(name: str) -> str:
    """A commented ``site.toml`` for the operator to fill in."""
    text = (resources.files("synth_client") / "site.toml.template").read_text(encoding="utf-8")
    return text.replace("{name}", name)


def _private(directory: Path) -> Path:
    return directory / "keys" / "private.key"


def _node(directory: Path) -> Path:
    return directory / "keys" / "node.key"


def _signing(directory: Path) -> Path:
    return directory / "keys" / "sign.key"


def _peers(directory: Path) -> Path:
    return directory / "keys" / "peers.json"
