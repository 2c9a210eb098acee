"""What travels when a hospital joins: a request to the coordinator, and a kit back.

Both hold public values only, and travel signed (:mod:`synth_common.signed_files`). All sites
get the same kit. So its operators can find a coordinator that tells them different keys by
comparing one fingerprint (:meth:`Kit.members_fingerprint`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from pydantic import AwareDatetime, BaseModel, Field, field_validator, model_validator

from synth_common.address import parse_address
from synth_common.errors import ConfigError
from synth_common.keys import fingerprint, pem_of, read_node_public, read_signing_public
from synth_common.plan import Plan, SiteName, StrictModel

_Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Verdict:
    """What a coordinator thinks of a public key; exactly one is set.

    Attributes:
        name: The enrolled site whose key it is.
        refusal: Why the key is turned away, as a sentence that names the site if it is known.
    """

    name: str | None
    refusal: str | None


class PublicKeys(StrictModel):
    """The public halves of a site's three keys.

    Attributes:
        node: P-384 as PEM; signs the site's requests to the server.
        agreement: X25519, hexadecimal; masks of secure sums are agreed with it.
        signing: Ed25519, hexadecimal; signs what the site declares.
    """

    node: Annotated[str, Field(max_length=1000)]
    agreement: _Hex32
    signing: _Hex32

    @field_validator("node")
    @classmethod
    def _on_the_curve(cls, value: str) -> str:
        return pem_of(read_node_public(value))  # one spelling per key

    @field_validator("agreement")
    @classmethod
    def _agrees(cls, value: str) -> str:
        # Refuses points of low order, with which every shared secret is zero (RFC 7748, 6.1).
        X25519PrivateKey.generate().exchange(
            X25519PublicKey.from_public_bytes(bytes.fromhex(value))
        )
        return value

    @field_validator("signing")
    @classmethod
    def _signs(cls, value: str) -> str:
        read_signing_public(value)
        return value

    def fingerprint(self) -> str:
        """One fingerprint of all three, for people to compare."""
        return fingerprint(canonical(self))


class EnrolmentRequest(StrictModel):
    """A site asks to be enrolled.

    Attributes:
        format: Of this file.
        site: The site's name.
        made: When; a coordinator takes no request older than the one it has.
        keys: The site's public keys.
    """

    format: Literal["synthward-request-1"] = "synthward-request-1"
    site: SiteName
    made: AwareDatetime
    keys: PublicKeys


class KitMember(StrictModel):
    """A site as all sites know it; after ``valid_until`` the server turns it away."""

    name: SiteName
    keys: PublicKeys
    valid_until: AwareDatetime


class Kit(StrictModel):
    """What every enrolled site needs to know of the federation, itself included.

    Attributes:
        format: Of this file.
        federation: Its name.
        serial: Counts the kits of a federation; a site takes no lower one than it has.
        issued: When.
        address: ``host:port`` of the server, as sites dial it.
        plan: The plan that sites are asked to approve.
        members: All enrolled sites, in the order of their names.
    """

    format: Literal["synthward-kit-1"] = "synthward-kit-1"
    federation: Annotated[str, Field(min_length=1, max_length=60)]
    serial: Annotated[int, Field(ge=1)]
    issued: AwareDatetime
    address: str
    plan: Plan
    members: tuple[KitMember, ...]

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            return str(parse_address(value))
        except ConfigError as err:
            raise ValueError(str(err)) from err

    @model_validator(mode="after")
    def _differ(self) -> Kit:
        repeated = first_repeated([(member.name, member.keys) for member in self.members])
        if repeated is not None:
            raise ValueError(f"members: {repeated}")
        return self

    def member(self, name: str) -> KitMember | None:
        """The site of that name; None if the kit has none."""
        return next((member for member in self.members if member.name == name), None)

    def members_fingerprint(self) -> str:
        """Fingerprint of all names with their keys; the same at all sites with the same peers."""
        keys = {member.name: json.loads(canonical(member.keys)) for member in self.members}
        return fingerprint(canonical_json(keys))


def first_repeated(members: list[tuple[str, PublicKeys]]) -> str | None:
    """Says which two sites share a name (in any case) or a key; None if no two do."""
    seen: dict[str, str] = {}
    for name, keys in members:
        marks = {f"name {name.casefold()}": "their name, but for capital letters"}
        marks |= {f"node {keys.node}": "a node key", f"agreement {keys.agreement}": "an X25519 key"}
        marks |= {f"signing {keys.signing}": "an Ed25519 key"}
        for mark, what in marks.items():
            if mark in seen:
                return f"sites {seen[mark]!r} and {name!r} share {what}"
            seen[mark] = name
    return None


def canonical(model: BaseModel) -> bytes:
    """The bytes of a model that are signed: JSON with sorted keys and no spaces."""
    return canonical_json(json.loads(model.model_dump_json()))  # inf becomes a string


def canonical_json(values: Any) -> bytes:
    """Any JSON value as bytes that are the same wherever they are made."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def readable(model: BaseModel) -> str:
    """A model as JSON that a person can read."""
    return json.dumps(json.loads(canonical(model)), indent=2) + "\n"
