"""What a check of a release found, and whose keys somebody said they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from synth_common.errors import ConfigError
from synth_common.keys import read_signing_public

Code = Literal[
    "signature",
    "name",
    "changed",
    "missing",
    "extra",
    "sums",
    "plan",
    "statement-missing",
    "statement-forged",
    "statement-run",
    "statement-plan",
    "statement-epsilon",
    "unknown-key",
    "report",
    "marking",
    "metadata",
    "withdrawn",
]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        code: What kind of thing.
        where: File, site or release that it is about.
        text: The same for people, with what was found and what was expected.
    """

    code: Code
    where: str
    text: str


@dataclass
class Verdict:
    """What a check found.

    Attributes:
        release: Name and version as signed; empty where the signature does not verify.
        problems: Everything that is wrong.
        signers: Public keys, hexadecimal: the sites' by name, and the release's own.
        known: Whether somebody said whose keys these are, and all agree.
        simulation: Whether the signed text says that one machine played every hospital.
        images: How many images were looked at.
        epsilons: Stated epsilon of the run by site.
        silent: Names of keys that were given and signed nothing here: sites that took no part,
            or that were left out.
    """

    release: str = ""
    problems: list[Problem] = field(default_factory=list)
    signers: dict[str, str] = field(default_factory=dict)
    known: bool = False
    simulation: bool = False
    images: int = 0
    epsilons: dict[str, float] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)

    def blame(self, code: Code, where: str, text: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(code, where, text))

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong; says nothing of whose signatures they are."""
        return not self.problems


def read_keys(folder: Path) -> dict[str, str]:
    """Ed25519 public keys, hexadecimal, by name: ``NAME.pub``, 64 hexadecimal digits each.

    Raises:
        ConfigError: There is none, or a file is not a key; names it.
    """
    if not folder.is_dir():
        raise ConfigError(f"--keys {folder}: is no folder; give the one that holds SITE.pub files")
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.pub")):
        try:
            key = read_signing_public(path.read_text(encoding="utf-8").strip())
        except (OSError, ValueError) as err:
            raise ConfigError(f"{path} is no Ed25519 public key (64 hexadecimal digits)") from err
        found[path.stem] = key.public_bytes_raw().hex()
    if not found:
        raise ConfigError(f"--keys {folder}: holds no NAME.pub")
    return found
