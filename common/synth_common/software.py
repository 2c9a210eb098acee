"""Which program this is: its version, and one digest over all its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Final

PACKAGES: Final = ("synth_common", "synth_client", "synth_server", "synth_sim")
_COMPILED: Final = frozenset({".pyc", ".pyo"})


@cache
def code_value() -> dict[str, str]:
    """``{"version", "sha256"}`` of the installed program."""
    roots = {package: Path(str(resources.files(package))) for package in PACKAGES}
    return {"version": version("synthward"), "sha256": digest_of(roots)}


def digest_of(roots: Mapping[str, Path]) -> str:
    """SHA-256 over the path and SHA-256 of every file in folders, by path; caches left out."""
    whole = hashlib.sha256()
    for package, root in sorted(roots.items()):
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            if path.suffix in _COMPILED or path.name.startswith("."):
                continue
            name = f"{package}/{path.relative_to(root).as_posix()}"
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{digest}  {name}\n".encode())
    return whole.hexdigest()
