"""The coordinator's settings, ``server.toml``, and where its folder keeps what.

::

    DIR/server.toml        settings
    DIR/plan.json          the federation plan
    DIR/keys/              ca.key server.key sign.key   private, for their owner only   SECRET
                           ca.crt server.crt sign.crt   certificates
    DIR/sites/NAME.json    an enrolled site: public keys, valid_until, revoked or not
    DIR/kits/NAME.json     what that site gets
    DIR/run/               the run: facts.jsonl, checkpoints/, samples/, report.html, and
                           events.jsonl and state.json, which tell how it goes; statements/ of
                           the sites and releases.jsonl once it is released
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from synth_common.address import parse_address
from synth_common.errors import ConfigError
from synth_common.plan import Plan, StrictModel
from synth_common.reporting.files import filled
from synth_common.validation import validate
from synth_server.run_settings import AggregationConfig, RunConfig

# What a scenario holds beside the plan: how a simulation makes its data and judges its result.
_NOT_PLAN = frozenset({"name", "title", "seed", "data", "partition", "evaluation", "report"})


class LimitSettings(StrictModel):
    """What the server bears.

    Attributes:
        max_request_bytes: Largest body of one request; tensors travel in pieces of 1 MiB.
        max_reply_bytes: Largest answer of a site, all of its pieces together.
        spool: Folder of what is in transit, on a disk; None for the system's folder for
            temporary files. A relative path starts at the coordinator's folder.
    """

    max_request_bytes: Annotated[int, Field(ge=2**21)] = 2**23
    max_reply_bytes: Annotated[int, Field(ge=2**20)] = 2**30
    spool: Path | None = None


class ServerSettings(StrictModel):
    """``server.toml``.

    Attributes:
        name: Name of the federation.
        address: ``host:port`` that sites dial; the server's certificate names the host.
        bind: ``host:port`` that the server listens on.
        limits: What it bears.
        run: How the plan is run.
        aggregation: How replies become one model.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,49}$")]
    address: str
    bind: str
    limits: LimitSettings = LimitSettings()
    run: RunConfig = RunConfig()
    aggregation: AggregationConfig = AggregationConfig()

    @field_validator("address", "bind")
    @classmethod
    def _is_address(cls, value: str) -> str:
        try:
            return str(parse_address(value))
        except ConfigError as err:
            raise ValueError(str(err)) from err


@dataclass(frozen=True)
class ServerFolder:
    """The coordinator's folder; only names, nothing is read."""

    path: Path

    @property
    def settings(self) -> Path:
        """The settings."""
        return self.path / "server.toml"

    @property
    def plan(self) -> Path:
        """The federation plan."""
        return self.path / "plan.json"

    @property
    def keys(self) -> Path:
        """Keys and certificates."""
        return self.path / "keys"

    @property
    def sites(self) -> Path:
        """One file per enrolled site."""
        return self.path / "sites"

    @property
    def kits(self) -> Path:
        """One kit per enrolled site."""
        return self.path / "kits"

    @property
    def run(self) -> Path:
        """The run directory."""
        return self.path / "run"


def render_settings(name: str, address: str) -> str:
    """A commented ``server.toml``.

    Raises:
        ConfigError: The name or the address is impossible.
    """
    values = {"name": name, "address": address, "bind": f"0.0.0.0:{parse_address(address).port}"}
    settings = validate(ServerSettings, values, "synth-server init")
    text = (resources.files("synth_server") / "server.toml.template").read_text(encoding="utf-8")
    # A JSON string of these characters is a TOML string.
    return filled(text, {k: json.dumps(getattr(settings, k)) for k in ("name", "address", "bind")})


def load_settings(folder: ServerFolder) -> ServerSettings:
    """The coordinator's settings.

    Raises:
        ConfigError: There are none, or a key or value is unknown or impossible; names each.
    """
    try:
        values = tomllib.loads(folder.settings.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ConfigError(
            f"{folder.path} holds no server.toml; make a coordinator with synth-server init DIR"
        ) from err
    except OSError as err:
        raise ConfigError(f"cannot read {folder.settings}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{folder.settings} is not TOML: {err}") from err
    return validate(ServerSettings, values, str(folder.settings))


def load_plan(path: Path) -> Plan:
    """A plan that real sites can approve: JSON, or TOML with the plan's sections.

    The TOML may be a scenario; what it holds beside the plan is left out.

    Raises:
        ConfigError: The file cannot be read, a key or value is unknown or impossible, or sites
            would refuse the plan because it is meant for simulations.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"cannot read plan {path}: {err}") from err
    plan = _plan_of_toml(text, path) if path.suffix == ".toml" else Plan.from_json(text)
    if plan.privacy.noise != "secure":
        raise ConfigError(
            f"{path}: privacy.noise = {plan.privacy.noise!r} is for simulations, and every real "
            "site refuses it: set privacy.noise = 'secure'"
        )
    if plan.generator.canaries:
        raise ConfigError(
            f"{path}: generator.canaries = {plan.generator.canaries} is for audits in a "
            "simulation, and every real site refuses it: leave it out"
        )
    return plan


def _plan_of_toml(text: str, path: Path) -> Plan:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"plan {path} is not TOML: {err}") from err
    return validate(Plan, {k: v for k, v in values.items() if k not in _NOT_PLAN}, f"plan {path}")
