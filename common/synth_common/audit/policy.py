"""The policy of an audit: thresholds that are written down before it runs."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from synth_common.claims import without_claims
from synth_common.errors import ConfigError
from synth_common.plan import StrictModel
from synth_common.validation import validate

View = Literal["images", "model", "server"]
"""What the adversary holds: images only; the released model; every round's updates."""

Measure = Literal[
    "membership",
    "auc",
    "tpr-at-1-percent",
    "tpr-at-0.1-percent",
    "near-copies",
    "data-copying",
    "reidentification",
    "linkability",
    "attribute-inference",
    "epsilon",
]

_WITHOUT_LIMIT = ("data-copying",)
_IMAGES_ONLY = (
    "near-copies",
    "data-copying",
    "reidentification",
    "linkability",
    "attribute-inference",
)
_CLOSEST = ("closest", "dcr", "nndr", "nearest-neighbour-distance", "nearest-neighbor-distance")


class Gate(StrictModel):
    """One condition of a release.

    Attributes:
        measure: What is judged.
        view: Which adversary's results are judged.
        limit: What must not be exceeded; its meaning depends on the measure.
        required: Whether the audit can pass without it having been run.
    """

    measure: Measure
    view: View = "images"
    limit: Annotated[float, Field(ge=0.0)] | None = None
    required: bool = True

    @field_validator("measure", mode="before")
    @classmethod
    def _no_closest_record(cls, value: object) -> object:
        """Refuse by name what looks like a privacy measure and is none."""
        text = str(value).lower().replace("_", "-").replace(" ", "-")
        if any(word in text for word in _CLOSEST):
            raise ValueError(
                "the distance to the closest record, and ratios of it, are never a gate: sets "
                "that pass it can be highly vulnerable (Yao et al. 2025, arXiv 2505.01524). Use "
                f"near-copies to look for copies; measures are {', '.join(get_args(Measure))}"
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> Gate:
        """A limit where one is needed, and a view in which the measure exists."""
        if (self.limit is None) != (self.measure in _WITHOUT_LIMIT):
            needs = "takes no limit" if self.limit is not None else "needs a limit"
            raise ValueError(f"measure {self.measure} {needs}")
        if self.view != "images" and self.measure in _IMAGES_ONLY:
            raise ValueError(f"measure {self.measure} exists in the view images only")
        if self.measure != "epsilon" and self.limit is not None and self.limit > 1:
            raise ValueError(f"measure {self.measure}: limit {self.limit:g} is above 1")
        return self


class Alike(StrictModel):
    """When members and non-members are too unlike for an audit.

    Attributes:
        max_distance: Largest Kolmogorov-Smirnov distance of a quantity, 0 to 1.
        max_shared_images: Pictures that may be on both sides.
    """

    max_distance: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    max_shared_images: Annotated[int, Field(ge=0)] = 0


class Stated(StrictModel):
    """The guarantee under which the images were made, where no model is given to read it from.

    Attributes:
        epsilon: As stated; per patient.
        delta: As stated.
    """

    epsilon: Annotated[float, Field(gt=0.0)]
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]


class AuditPolicy(StrictModel):
    """What must hold for a release, decided before the audit.

    Attributes:
        name: As printed; none of :mod:`synth_common.claims`.
        alpha: Probability of a false alarm over all attacks together.
        power: Power at which an effect counts as resolvable.
        copy_similarity: Correlation of detail from which two images are near-copies.
        alike: When members and non-members are refused.
        stated: The guarantee, where no model is given.
        gates: The conditions; all of them must pass.
    """

    name: Annotated[str, Field(min_length=1), AfterValidator(without_claims)]
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    power: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.8
    copy_similarity: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    alike: Alike = Alike()
    stated: Stated | None = None
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]


@dataclass(frozen=True)
class WrittenPolicy:
    """A policy as it was read: its text's SHA-256 says which one it was."""

    policy: AuditPolicy
    text: str
    origin: str

    @property
    def sha256(self) -> str:
        """Of the file's bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_policy(path: Path | None) -> WrittenPolicy:
    """Read a policy file; None reads the packaged one.

    Raises:
        ConfigError: The file is missing or no TOML, or a key is unknown or impossible.
    """
    if path is None:
        text = resources.files("synth_common.audit").joinpath("default-policy.toml").read_text()
        origin = "packaged with Synthward"
    else:
        origin = str(path)
        try:
            text = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(f"--policy {path}: cannot be read: {err}") from err
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"--policy {origin}: not TOML: {err}") from err
    return WrittenPolicy(validate(AuditPolicy, values, f"policy {origin}"), text, origin)
