"""What a release is called, and where its folder keeps what.

::

    NAME-X.Y.Z/images/SPLIT/NNNNNN.png   images; masks are mask-NNNNNN.png
    NAME-X.Y.Z/images/metadata.csv       file_name, label, split, seed and mask of each
    NAME-X.Y.Z/NAME.npz                  the same pixels as arrays (format npz)
    NAME-X.Y.Z/dicom/SPLIT/NNNNNN.dcm    the same as Secondary Capture (format dicom)
    NAME-X.Y.Z/croissant.json            machine-readable description (Croissant 1.0)
    NAME-X.Y.Z/DATASHEET.md MODEL_CARD.md LICENSE
    NAME-X.Y.Z/report.html report.json   the run's quality and privacy report
    NAME-X.Y.Z/plan.json                 the federation plan; its SHA-256 is the plan's digest
    NAME-X.Y.Z/statements/SITE.json      each site's privacy statement, signed by the site
    NAME-X.Y.Z/SHA256SUMS                of every file above
    NAME-X.Y.Z/release.intoto.jsonl      the signature over all of it
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from synth_common.claims import claim_in
from synth_common.errors import ConfigError

NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_NUMBER, _WORD = r"(?:0|[1-9]\d*)", r"(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)"
# The grammar of https://semver.org, without build metadata, which would not order two releases.
VERSION = rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_WORD}(?:\.{_WORD})*)?"

IMAGES, METADATA = "images", "images/metadata.csv"
DICOM = "dicom"
STATEMENTS = "statements"
PLAN = "plan.json"
SUMS = "SHA256SUMS"
SIGNATURE = "release.intoto.jsonl"
CROISSANT = "croissant.json"
LICENSE = "LICENSE"
PAPERS = (
    *(PLAN, SUMS, METADATA, CROISSANT, LICENSE, "DATASHEET.md", "MODEL_CARD.md"),
    *("report.json", "report.html", "ethics.json", "ethics.html"),
)
"""What every release has beside its images and statements."""
SIGNER = "release"
"""Under this name the key that signed the release stands in a folder of keys."""

RELEASE_KIND = "urn:synthward:release:1"
"""What the signed statement over a release is called."""

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ReleaseName:
    """Name and version of a release.

    Attributes:
        name: Up to 64 letters, digits, ``-`` and ``_``; none of :mod:`synth_common.claims`.
        version: ``X.Y.Z`` as https://semver.org has it, perhaps with ``-PRERELEASE``.
    """

    name: str
    version: str

    def __post_init__(self) -> None:
        if re.fullmatch(NAME, self.name) is None:
            raise ConfigError(
                f"--name {self.name!r}: expected up to 64 letters, digits, - and _, the first no - "
                "or _"
            )
        if re.fullmatch(VERSION, self.version) is None:
            raise ConfigError(
                f"--version {self.version!r}: expected X.Y.Z as https://semver.org has it, such as "
                "1.0.0 or 1.1.0-rc.1"
            )
        for option, text in (("--name", self.name), ("--version", self.version)):
            if (claim := claim_in(text)) is not None:
                raise ConfigError(f"{option} {text!r}: {claim}; say in a name what the images show")

    @property
    def folder(self) -> str:
        """``NAME-X.Y.Z``."""
        return f"{self.name}-{self.version}"

    def __str__(self) -> str:
        """For messages."""
        return f"{self.name} {self.version}"
