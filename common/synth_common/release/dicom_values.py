"""Which elements of a DICOM header are known to be harmless; all others are findings.

Known are: what this program writes itself, registered and random UIDs, defined terms, codes of
public schemes, and few numbers. Each is matched as a whole, every value of it, and never by how it
begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import RFC_4122, UUID

from synth_common.release.dicom import DERIVATION, MANUFACTURER, PATIENT
from synth_common.release.dicom_file import is_registered
from synth_common.release.dicom_terms import is_known_term
from synth_common.release.identifiers import Kind, in_text
from synth_common.release.image_headers import Found

_WORD: Final = re.compile(r"\w+")
_TEXT_VR: Final = frozenset(_WORD.findall("AE AS LO LT SH ST UC UR UT"))
_DATE_VR: Final = frozenset(("DA", "DT", "TM"))
_BINARY_VR: Final = frozenset(_WORD.findall("OB OD OF OL OV OW UN"))
_MOST_NUMBERS: Final = 64
"""Longer lists of binary numbers are tables, and can hold anything (PS3.3, C.11.1: LUT Data)."""
_BIRTH: Final = frozenset(("PatientBirthDate", "PatientBirthTime"))
_IDS: Final = frozenset(
    _WORD.findall(
        "PatientID OtherPatientIDs AccessionNumber StudyID IssuerOfPatientID MedicalRecordLocator "
        "AdmissionID RequestedProcedureID ScheduledProcedureStepID PerformedProcedureStepID "
        "FillerOrderNumberImagingServiceRequest PlacerOrderNumberImagingServiceRequest "
        "ClinicalTrialSubjectID ServiceEpisodeID"
    )
)
_DEVICES: Final = frozenset(
    _WORD.findall(
        "StationName DeviceID DetectorID GantryID PlateID CassetteID GridID GeneratorID XRayTubeID "
        "Manufacturer ManufacturerModelName SoftwareVersions SourceApplicationEntityTitle "
        "ScheduledStationAETitle PerformedStationAETitle PerformedStationName "
        "ImplementationVersionName"
    )
)
# What a keyword contains, whatever its value representation; the last are quasi-identifiers.
_MARKS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "contact": ("Address", "Telephone", "Email"),
    "institution": ("Institution", "Organization", "PerformedLocation", "CurrentPatientLocation"),
    "patient data": ("Patient", "EthnicGroup", "Occupation", "SmokingStatus", "PregnancyStatus"),
}
_SHORT: Final = r"\d{1,3}(?:[._]\d{1,3}){0,3}"
_CHARACTERS: Final = r"(?:ISO_IR \d{1,3}|ISO 2022 IR \d{1,3}|GB18030|GBK)?"
_SIDES: Final = r"[LRAPHF]{0,3}"
# What release/dicom.py writes, and what says how to read or turn the pixels; all of a value.
_WHOLE: Final[Mapping[str, re.Pattern[str]]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "PatientName": rf"{PATIENT}[0-9a-f]{{8}}-\d{{6}}",
        "PatientID": rf"{PATIENT}[0-9a-f]{{8}}-\d{{6}}",
        "Manufacturer": MANUFACTURER,
        "SoftwareVersions": rf"Synthward {_SHORT}(?:(?:a|b|rc|\.post|\.dev)\d{{1,3}})?",
        "DerivationDescription": re.escape(DERIVATION),
        "ContributionDescription": r"(?:SIMULATION\. )?Trained under differential privacy: epsilon "
        r"[\d.,]+, delta [\d.e-]+ per (?:patient|image) at each site; run [0-9a-f-]{1,64}",
        "SpecificCharacterSet": rf"{_CHARACTERS}(?:\\{_CHARACTERS})*",
        "PatientOrientation": rf"{_SIDES}(?:\\{_SIDES})?",
        "PatientPosition": r"[HFLRAP]F(?:[PS]|D[LR])",
        "ImplementationVersionName": r"(?:PYDICOM|PYNETDICOM|GDCM|OFFIS[_-]DCMTK|DCTOOL|OSIRIX|"
        rf"dcm4che(?:-dcm4chee)?|fo-dicom)(?:[ _-]?{_SHORT})?",
        # pydicom, DCMTK, GDCM, dcm4che, dicom3tools, pynetdicom, fo-dicom
        "ImplementationClassUID": r"1\.2\.826\.0\.1\.3680043\.8\.498\.1"
        r"|1\.2\.276\.0\.7230010\.3\.0(?:\.\d){2,4}"
        r"|1\.2\.826\.0\.1\.3680043\.2\.1143\.107\.104\.103\.115(?:\.\d{1,2}){3}"
        r"|1\.2\.40\.0\.13\.1(?:\.\d)?|1\.3\.6\.1\.4\.1\.5962\.2"
        r"|1\.2\.826\.0\.1\.3680043\.9\.3811(?:\.\d{1,2}){3}|1\.3\.6\.1\.4\.1\.30071\.8",
    }.items()
}
_SYNTHETIC: Final = "Synthetic: "
_UUID: Final = re.compile(r"2\.25\.([1-9]\d{0,38})")
# PS3.16, 8: public schemes, and what their codes look like.
_SCHEMES: Final[Mapping[str, re.Pattern[str]]] = {
    scheme: re.compile(pattern)
    for scheme, pattern in {
        "DCM": r"1\d{5}",
        "SCT": r"\d{6,18}",
        "SRT": r"[A-Z0-9]{1,2}-[A-F0-9]{4,6}",
        "LN": r"\d{1,5}-\d",
        "UCUM": r"(?![^\n]*(?:[A-Z][a-z]{2}|[A-Z]{4}))[\w.%/*\[\]{}^':-]{1,16}",
    }.items()
}
CODES: Final = frozenset(_WORD.findall("CodeValue CodingSchemeDesignator CodeMeaning"))
"""The parts of a code (PS3.3, 8.8) that this module judges together."""


def in_element(name: str, vr: str, value: Any) -> Iterator[Found]:
    """One plain element: what may identify somebody in it.

    Args:
        name: Its keyword, or its tag if it has none.
        vr: Value representation (PS3.5, 6.2).
        value: As pydicom gives it.
    """
    text = shown(value)
    if not text.strip():
        return
    if vr in _BINARY_VR or isinstance(value, bytes):
        if name != "FileMetaInformationVersion" or value != b"\0\1":
            yield "hidden data", name, text
        return
    if name in _WHOLE and _WHOLE[name].fullmatch(text):
        return
    found = list(in_text(text))
    if name == "SeriesDescription" and text.startswith(_SYNTHETIC) and not found:
        return
    kind = _kind(name, vr, value, text)
    if kind in (None, "free text") and vr != "UI" and found:
        yield from ((k, name, part) for k, part in found)
    elif kind is not None:
        yield kind, name, text


def in_code(name: str, value: Any, scheme: str, below: Kind | None) -> Iterator[Found]:
    """One part of a code: harmless if a public scheme has such codes, and of nobody's person.

    Args:
        name: One of :data:`CODES`.
        value: As pydicom gives it.
        scheme: The coding scheme designator beside it.
        below: What it identifies where it stands, see :func:`identifies`.
    """
    text = shown(value)
    if not text.strip():
        return
    found = list(in_text(text))
    if below is not None:
        yield below, name, text
    elif name == "CodeValue" and scheme in _SCHEMES:
        if not _SCHEMES[scheme].fullmatch(text):
            yield "id", name, text
    elif found:
        yield from ((k, name, part) for k, part in found)
    elif scheme not in _SCHEMES:
        yield "free text", name, text


def identifies(sequence: str) -> Kind | None:
    """What the codes of a sequence say of a person or place, by its keyword; None for others."""
    if sequence.startswith("PersonIdentification"):
        return "name"
    if sequence.startswith(("PatientOrientation", "PatientGantryRelationship")):
        return None
    return _marked(sequence)


def _kind(name: str, vr: str, value: Any, text: str) -> Kind | None:
    """What an element is by its name and value representation; None for what is harmless."""
    if name in _BIRTH:
        return "date of birth"
    if vr == "PN":
        return "name"
    if vr in _DATE_VR:
        return "date"
    if vr == "UI":
        return None if all(_says_nothing(uid) for uid in text.split("\\")) else "id"
    if name in _IDS:
        return "id"
    if name in _DEVICES or "Serial" in name:
        return "device"
    if marked := _marked(name):
        return marked
    if vr == "CS":
        return None if all(is_known_term(term) for term in text.split("\\")) else "free text"
    if vr not in ("IS", "DS") and _count(value) > _MOST_NUMBERS:
        return "hidden data"
    return "free text" if vr in _TEXT_VR else None


def _marked(name: str) -> Kind | None:
    """What a keyword says that an element is about."""
    for kind, marks in _MARKS.items():
        if any(mark in name for mark in marks):
            return kind
    return None


def _says_nothing(uid: str) -> bool:
    """Whether a UID is registered in PS3.6, or a random UUID (PS3.5, B.2), as we write them."""
    match = _UUID.fullmatch(uid)
    if match is None:
        return is_registered(uid)
    number = int(match[1])
    if number >= 1 << 128:
        return False
    read = UUID(int=number)
    return read.variant == RFC_4122 and read.version == 4


def _count(value: Any) -> int:
    """How many values an element has."""
    return len(value) if _is_many(value) else 1


def _is_many(value: Any) -> bool:
    return isinstance(value, list | tuple) or type(value).__name__ == "MultiValue"


def shown(value: Any) -> str:
    """A value as text; several as DICOM writes them."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return f"{len(value)} bytes" if value.strip(b"\0 ") else ""
    if _is_many(value):
        return "\\".join(str(item) for item in value)
    return str(value)
