"""``site.toml``: what a hospital's operator decides, strict and validated when it is read.

The plan is not here: which plans hold is a decision in the ledger, with a name, a date and
a reason. Nor is the coordinator's address, which came with the signed kit.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from synth_client.limits import Limits
from synth_common.errors import ConfigError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.images.sources import SourceConfig
from synth_common.plan import Accountant, Device, SiteName, StrictModel, Unit
from synth_common.validation import validate

FILE = "site.toml"


class SiteSection(StrictModel):
    """Section ``[site]``: the name under which the site was enrolled."""

    name: SiteName


class DataSection(StrictModel):
    """Section ``[data]``: the images, and which of them are kept for evaluation.

    Attributes:
        source: The images: a table with a ``kind`` (``folder``, ``npz`` or ``phantom``).
            A relative path starts at the folder of ``site.toml``.
        reference: Public images of nobody at the site, for the evaluation; optional.
        nominal_patients: PUBLIC declaration of about how many training patients there are.
        holdout: ``share``, a random share of the patients; ``split``, what the source's own
            split calls ``test``.
        holdout_share: That share (holdout ``share`` only).
        seed: Names the draw of the holdout, so that preparing again draws the same.
    """

    source: SourceConfig
    reference: SourceConfig | None = None
    nominal_patients: Annotated[int, Field(ge=1)]
    holdout: Literal["share", "split"] = "share"
    holdout_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    seed: Annotated[int, Field(ge=0)] = 0


class BudgetSection(StrictModel):
    """Section ``[budget]``: the lifetime budget with which the ledger is opened.

    Later changes are decisions in the ledger (``synth-client budget --set``).
    """

    epsilon: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    accountant: Accountant = "prv"
    unit: Unit = "patient"


class ServerSection(StrictModel):
    """Section ``[server]``: how this site reaches the coordinator.

    Attributes:
        proxy: ``http://HOST:PORT`` of a proxy that lets HTTPS through (CONNECT).
    """

    proxy: str | None = None

    @field_validator("proxy")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme != "http" or not parts.hostname or parts.port is None:
            raise ValueError("expected http://HOST:PORT of a proxy; leave the key out for none")
        return value


class ComputeSection(StrictModel):
    """Section ``[compute]``: the site's own machine.

    Attributes:
        device: Where the site trains; ``auto`` leaves it to the plan, and to whether there
            is a GPU.
        threads: Processor threads; None leaves it to the library.
    """

    device: Device = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None


class SiteSettings(StrictModel):
    """The whole of ``site.toml``."""

    site: SiteSection
    data: DataSection
    budget: BudgetSection
    limits: Limits = Limits()
    server: ServerSection = ServerSection()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeSection = ComputeSection()

    @model_validator(mode="after")
    def _patients_declared(self) -> SiteSettings:
        if self.limits.min_patients > self.data.nominal_patients:
            raise ValueError(
                f"limits.min_patients = {self.limits.min_patients} is above "
                f"data.nominal_patients = {self.data.nominal_patients}, so that the site would "
                "always refuse; lower the limit, or declare more patients if there are"
            )
        return self


def load_settings(directory: Path, name: str) -> SiteSettings:
    """The settings of site ``name`` in its directory.

    Raises:
        ConfigError: There are none, they are not TOML, a key is unknown or a value impossible
            (names each, and what may have been meant), or they are another site's.
    """
    path = directory / FILE
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(
            f"cannot read {path}: {err.strerror}; synth-client init --site {name} writes one to "
            "fill in"
        ) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path} is not TOML: {err}") from err
    settings = validate(SiteSettings, values, where=str(path))
    if settings.site.name != name:
        raise ConfigError(
            f"{path}: site.name = {settings.site.name!r}, but --site {name} lies here; correct "
            "the one that is wrong"
        )
    return settings
