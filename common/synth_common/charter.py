"""Charters: what people decided and stated about a federation and about a site's data.

No program can know the purpose of a data set, who approved it or what patients consented to; a
charter is where people write it down. The federation's charter is one TOML file at the
coordinator; each site owns another about its own data. Reports and releases quote them with the
file's SHA-256, and print NOT RECORDED for what a charter leaves out.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from synth_common.claims import without_claims
from synth_common.errors import ConfigError
from synth_common.plan import SiteName, StrictModel
from synth_common.validation import validate

Kind = Literal["federation", "site"]
"""Whose charter: the federation's, or one site's."""

_PLACEHOLDERS = {"FILL IN", "TODO", "TBD", "N/A", "XXX", "NOT RECORDED"}


def _stated(text: str) -> str:
    """Refuse what only looks like a statement, and claims that nobody can state of a release."""
    if text.upper() in _PLACEHOLDERS or not any(c.isalnum() for c in text):
        raise ValueError("is a placeholder; write the statement, or leave the key out")
    return without_claims(text)


Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(_stated)
]
"""Words for people: not empty, not a placeholder, and none of :mod:`synth_common.claims`."""
Texts = tuple[Text, ...]


@dataclass(frozen=True)
class Origin:
    """The file that a charter was read from: its name, and the SHA-256 of its bytes."""

    name: str
    sha256: str


class Role(StrictModel):
    """Who does what: ``name`` a person or body, ``role`` as in GDPR 4(7)-(8) or the protocol."""

    name: Text
    role: Text


class Approval(StrictModel):
    """An approval: the body that gave it, its number, and when."""

    number: Text
    body: Text | None = None
    decided: date | None = None


class Licence(StrictModel):
    """The licence of what is released: an SPDX expression, its text, or both.

    Attributes:
        spdx: An SPDX licence expression (``CC-BY-4.0``, ``LicenseRef-...`` for one of your own).
        text: The licence's words.
        file: A file that holds them, relative to the charter; :func:`load_charter` reads it
            into ``text``.
    """

    spdx: Text | None = None
    text: str | None = None
    file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_file(cls, values: Any, info: ValidationInfo) -> Any:
        """Put the words of ``file`` into ``text``."""
        folder = (info.context or {}).get("folder")
        if (
            not isinstance(values, dict)
            or folder is None
            or not isinstance(values.get("file"), str)
        ):
            return values
        if "text" in values:
            raise ValueError("text and file are both given; keep one of them")
        try:
            text = (folder / values["file"]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise ValueError(
                f"file = {values['file']!r}: cannot be read ({err}); name a text file, relative "
                "to the charter's folder"
            ) from err
        if not text.strip():
            raise ValueError(f"file = {values['file']!r}: holds no text")
        return {**values, "text": text}

    @field_validator("spdx")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            return canonicalize_license_expression(value)
        except InvalidLicenseExpression as err:
            raise ValueError(
                "is not an SPDX expression; take an identifier from spdx.org/licenses, or "
                "LicenseRef-NAME with licence.text or licence.file"
            ) from err

    @model_validator(mode="after")
    def _named(self) -> Licence:
        if self.spdx is None and not (self.text or "").strip() and self.file is None:
            raise ValueError("give spdx (for instance 'CC-BY-4.0'), text or file")
        return self

    @property
    def name(self) -> str:
        """What to call it: its SPDX expression, or the first line of its text."""
        if self.spdx is not None:
            return self.spdx
        return self.text.strip().splitlines()[0] if self.text else f"see {self.file}"


class ResidualRisk(StrictModel):
    """The decision to accept what risk remains: what, by whom, when, and until when it holds."""

    decision: Text | None = None
    approver: Text | None = None
    decided: date | None = None
    review: date | None = None


class Expert(StrictModel):
    """An expert determination after HIPAA, 45 CFR 164.514(b)(1)."""

    name: Text | None = None
    methods: Text | None = None
    conclusion: Text | None = None
    determined: date | None = None


class ReaderStudy(StrictModel):
    """An assessment by medical experts: where it is written up, and what it found."""

    reference: Text | None = None
    conclusion: Text | None = None


class Security(StrictModel):
    """Measures of the organisation, beside those that the program takes and records itself."""

    measures: Texts = ()
    access: Text | None = None


class _Stated(StrictModel):
    """A charter of either kind knows the file it was read from."""

    _origin: Origin | None = PrivateAttr(default=None)

    @property
    def origin(self) -> Origin | None:
        """The file; None where the charter was built in the program."""
        return self._origin


class Charter(_Stated):
    """The federation's charter; what is left out is None or empty, and prints NOT RECORDED.

    Attributes:
        title: Of the data set or the federation.
        contact: Who answers questions: a role or group and an address.
        licence: Of what is released.
        dated: When this charter was last agreed.
        purpose: What the synthetic images are for.
        prohibited_uses: What they must not be used for.
        controller: Who decides on purposes and means (GDPR 4(7)).
        roles: Who else does what.
        legal_basis: Of the processing of the patients' images (GDPR 6, 9, 89).
        impact_assessment: Reference and outcome of the assessment (GDPR 35).
        approvals: Of ethics committees and others, for the federation as a whole.
        citation: How to cite a release.
        incident_contact: Where to report that something leaked or is wrong.
        withdrawal: What happens when a release must be taken back.
        limits: What the images do not show or must not be relied on for.
        residual_risk: The decision to accept what risk remains.
        expert: A HIPAA expert determination.
        reader_study: An assessment by medical experts.
        security: Measures of the organisation.
    """

    title: Text
    contact: Text
    licence: Licence
    dated: date | None = None
    purpose: Text | None = None
    prohibited_uses: Texts = ()
    controller: Text | None = None
    roles: tuple[Role, ...] = ()
    legal_basis: Text | None = None
    impact_assessment: Text | None = None
    approvals: tuple[Approval, ...] = ()
    citation: Text | None = None
    incident_contact: Text | None = None
    withdrawal: Text | None = None
    limits: Texts = ()
    residual_risk: ResidualRisk = ResidualRisk()
    expert: Expert = Expert()
    reader_study: ReaderStudy = ReaderStudy()
    security: Security = Security()


class Period(StrictModel):
    """When the images were taken: first and last day, both included."""

    first: date
    last: date

    @model_validator(mode="after")
    def _in_order(self) -> Period:
        if self.last < self.first:
            raise ValueError(
                f"dates.first = {self.first} is after dates.last = {self.last}; exchange them"
            )
        return self


class SiteCharter(_Stated):
    """A site's own charter, about its own data; what is left out prints NOT RECORDED.

    Attributes:
        site: The site's name, as it was enrolled.
        contact: Who answers for it.
        dated: When this charter was last agreed.
        consent: On what the use of the images rests towards the patients.
        consent_statement: The same in words: what patients were told and could choose.
        approvals: Of the site's own ethics committee and others.
        origin_of_data: Where and in what care the images arose.
        dates: When they were taken.
        devices: With what: makers, models, modalities.
        patients: About how many patients, as the site chooses to state it.
        exclusions: Who or what was left out, and why.
        deidentification: What was done to the images before the program saw them, step by step.
    """

    site: SiteName
    contact: Text | None = None
    dated: date | None = None
    consent: Literal["consent", "opt-out", "waiver", "public-data", "no-patients"] | None = None
    consent_statement: Text | None = None
    approvals: tuple[Approval, ...] = ()
    origin_of_data: Text | None = None
    dates: Period | None = None
    devices: Texts = ()
    patients: Annotated[int, Field(ge=1)] | None = None
    exclusions: Texts = ()
    deidentification: Texts = ()


def load_charter(path: Path) -> Charter:
    """The federation's charter in a TOML file; ``licence.file`` is read into ``licence.text``.

    Raises:
        ConfigError: It cannot be read, is not TOML, a key is unknown or a value impossible;
            names each key, its value and what would be accepted.
    """
    return _load(Charter, path, "federation")


def load_site_charter(path: Path) -> SiteCharter:
    """A site's charter in a TOML file. Errors as :func:`load_charter`."""
    return _load(SiteCharter, path, "site")


def charter_template(kind: Kind, site: str = "north") -> str:
    """A commented charter to fill in; as it is, its blanks are refused by name.

    Args:
        kind: Whose charter.
        site: The site's name (kind ``site``).
    """
    text = (resources.files("synth_common") / f"charter-{kind}.toml.template").read_text("utf-8")
    return text.replace("@SITE@", site)


def left_out(charter: Charter | SiteCharter) -> list[str]:
    """Every key that a charter says nothing under, as ``section.key``."""
    return [key for key, value in _stated_values(charter) if value in (None, (), "")]


def _stated_values(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a charter and its value; sections are gone through, lists are not."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel) and not isinstance(value, Licence | Period):
            yield from _stated_values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


_Any = TypeVar("_Any", bound=_Stated)


def _load(model: type[_Any], path: Path, kind: Kind) -> _Any:
    try:
        content = path.read_bytes()
        values = tomllib.loads(content.decode("utf-8"))
    except OSError as err:
        raise ConfigError(
            f"cannot read charter {path}: {err.strerror}; "
            f"synth-audit charter {path} --kind {kind} writes one to fill in"
        ) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"charter {path} is not TOML: {err}") from err
    charter = validate(model, values, f"charter {path}", context={"folder": path.parent})
    charter._origin = Origin(path.name, hashlib.sha256(content).hexdigest())
    return charter
