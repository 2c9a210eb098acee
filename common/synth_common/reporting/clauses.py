"""The clauses that fields of the ethics report serve, from one dated file of the package."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import NamedTuple

FILE = "clauses.toml"


class Clause(NamedTuple):
    """A law, standard or guide, the place in it, and what stands there."""

    law: str
    clause: str
    title: str


@dataclass(frozen=True)
class Clauses:
    """The file: every clause by its key, the day it was last gone through, and its digest.

    Attributes:
        known: Clauses by key.
        dated: ISO date.
        sha256: Of the file's bytes.
    """

    known: Mapping[str, Clause]
    dated: str
    sha256: str


@cache
def load_clauses() -> Clauses:
    """The packaged clauses."""
    content = (resources.files("synth_common.reporting") / FILE).read_bytes()
    values = tomllib.loads(content.decode("utf-8"))
    dated = values.pop("dated").isoformat()
    known = {key: Clause(**value) for key, value in values.items()}
    return Clauses(known, dated, hashlib.sha256(content).hexdigest())
