"""A finished small run and its release, and how a bundle is tampered with and signed again."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from simulation_scenario import write_tiny

from synth_common.charter import charter_template
from synth_common.keys import load_signing_key
from synth_common.release import dsse, sums
from synth_common.release.formats import FORMATS
from synth_common.release.names import RELEASE_KIND, SIGNATURE, SUMS, ReleaseName
from synth_common.release.statement import PrivacyStatement, read_statement, sign_statement
from synth_server.publish import Request, publish
from synth_sim.run import RunOptions, run_scenario
from synth_sim.scenario import load_scenario

COUNT = 24
NAME = ReleaseName("lungs", "1.0.0")


@dataclass(frozen=True)
class Released:
    """A run directory, its bundle, and the folder of public keys."""

    run: Path
    bundle: Path
    keys: Path

    @property
    def key(self) -> Ed25519PrivateKey:
        """Whoever released it."""
        return load_signing_key(self.run / "keys" / "sign.key")

    def site_key(self, name: str) -> Ed25519PrivateKey:
        return load_signing_key(self.run / "sites" / name / "keys" / "sign.key")

    def copy(self, folder: Path) -> Path:
        """A bundle to tamper with."""
        return Path(shutil.copytree(self.bundle, folder / self.bundle.name))


def write_charter(folder: Path) -> Path:
    text = charter_template("federation")
    for key, value in {"title": "Drawn lungs", "contact": "x@y.org", "spdx": "CC-BY-4.0"}.items():
        text = text.replace(f'{key} = "FILL IN"', f'{key} = "{value}"')
    path = folder / "charter.toml"
    path.write_text(text)
    return path


def request(folder: Path, **changes: Any) -> Request:
    values = {
        "release": NAME,
        "charter": write_charter(folder),
        "count": COUNT,
        "formats": frozenset(FORMATS),
        "out": folder / "releases",
    }
    return Request(**{**values, **changes})


def make(folder: Path) -> Released:
    """Two simulated hospitals, two rounds, one release in all forms."""
    scenario = load_scenario(str(write_tiny(folder)), ["generator.with_mask=true"])
    run_scenario(scenario, RunOptions(folder / "run"))
    made = publish(folder / "run", request(folder))
    return Released(folder / "run", made.bundle, made.keys)


def resign(bundle: Path, key: Ed25519PrivateKey, **changes: Any) -> None:
    """Sign a bundle as it is now, as whoever holds ``key`` could."""
    signed = dsse.read_signed((bundle / SIGNATURE).read_text(), RELEASE_KIND, "old")
    plain, _ = sums.files_below(bundle)
    digests = {n: sums.digest_of(p) for n, p in plain.items() if n not in (SUMS, SIGNATURE)}
    (bundle / SUMS).write_text(sums.render(digests))
    digests[SUMS] = sums.digest_of(bundle / SUMS)
    predicate = {**signed.predicate, **changes}
    (bundle / SIGNATURE).write_text(dsse.sign(RELEASE_KIND, digests, predicate, key))


def edit_signed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit what is signed, and leave the signature as it was."""
    envelope = json.loads(path.read_text())
    values = json.loads(base64.b64decode(envelope["payload"]))
    change(values["predicate"])
    envelope["payload"] = base64.b64encode(json.dumps(values).encode()).decode()
    path.write_text(json.dumps(envelope))


def restate(path: Path, key: Ed25519PrivateKey, changes: Mapping[str, Any]) -> None:
    """The same statement with other values, signed with ``key``."""
    statement, _ = read_statement(path.read_text(), "old")
    other = PrivacyStatement.model_validate({**statement.model_dump(), **changes})
    path.write_text(sign_statement(other, key))
