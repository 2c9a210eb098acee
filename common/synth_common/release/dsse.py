"""Signed statements: in-toto statements in DSSE envelopes, with Ed25519.

Statement: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md. Envelope and the
bytes that are signed (PAE): https://github.com/secure-systems-lab/dsse/blob/master/protocol.md.
What is signed begins with ``DSSEv1`` and the type, so that no signature of an enrolment request
or a kit can serve here, nor the other way round.

The public key stands in the signed text, so that an envelope can be checked by itself. That
shows who signed only to whoever knows from elsewhere whose key it is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from synth_common.enrolment import canonical_json
from synth_common.errors import VerificationError
from synth_common.keys import read_signing_public, signing_public

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


@dataclass(frozen=True)
class Signed:
    """A statement whose signature fits the key that it names.

    Attributes:
        subject: SHA-256, hexadecimal, by name.
        predicate: What is said of the subjects.
        key: Ed25519 public key that signed, 64 hexadecimal digits.
    """

    subject: Mapping[str, str]
    predicate: Mapping[str, Any]
    key: str


def sign(
    kind: str, subject: Mapping[str, str], predicate: Mapping[str, Any], key: Ed25519PrivateKey
) -> str:
    """One line of JSON: an envelope around a statement of type ``kind``.

    Args:
        kind: The predicate's type, a URI.
        subject: SHA-256, hexadecimal, by name.
        predicate: JSON values; ``signed_by`` is added, the public key in hexadecimal.
        key: Signs.
    """
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": n, "digest": {"sha256": d}} for n, d in sorted(subject.items())],
        "predicateType": kind,
        "predicate": {**predicate, "signed_by": signing_public(key)},
    }
    payload = canonical_json(statement)
    signature = {"keyid": key_id(signing_public(key)), "sig": _text(key.sign(_pae(payload)))}
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": _text(payload),
        "signatures": [signature],
    }
    return json.dumps(envelope) + "\n"


def read_signed(text: str, kind: str, where: str) -> Signed:
    """The statement in an envelope of :func:`sign`; ``where`` names the file in errors.

    Raises:
        VerificationError: It is malformed, of another type, or the signature does not fit the key
            that it names.
    """
    try:
        envelope = json.loads(text)
        payload = base64.b64decode(envelope["payload"], validate=True)
        statement = json.loads(payload)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        types = (envelope["payloadType"], statement["_type"], statement["predicateType"])
        predicate = dict(statement["predicate"])
        key = str(predicate.pop("signed_by"))
        public = read_signing_public(key)
        named = [(str(s["name"]), str(s["digest"]["sha256"])) for s in statement["subject"]]
    except (ValueError, KeyError, TypeError, IndexError, binascii.Error, RecursionError) as err:
        raise VerificationError(f"{where} is no signed statement: {_why(err)}") from err
    if types != (PAYLOAD_TYPE, STATEMENT_TYPE, kind):
        raise VerificationError(f"{where} is signed, but as {types[2]!r} and not as {kind!r}")
    if len(envelope["signatures"]) != 1 or len(dict(named)) != len(named):
        raise VerificationError(f"{where} has several signatures, or names a subject twice")
    try:
        public.verify(signature, _pae(payload))
    except InvalidSignature as err:
        raise VerificationError(
            f"{where}: the signature is forged or the text was edited: it does not fit the key "
            f"{key_id(key)[:16]}... that it names"
        ) from err
    return Signed(dict(named), predicate, public.public_bytes_raw().hex())


def key_id(public: str) -> str:
    """SHA-256 of an Ed25519 public key given in hexadecimal; people compare it."""
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()


def _pae(payload: bytes) -> bytes:
    """What is signed: the pre-authentication encoding of DSSE."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _why(err: Exception) -> str:
    return f"{type(err).__name__} {err}".strip()
