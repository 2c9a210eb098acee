"""A scenario: one simulated federation, whole, in one TOML file.

Sections ``generator``, ``pretraining``, ``training``, ``privacy``, ``federation`` and
``release`` are the federation plan; the others say where the images come from, how they are dealt
to hospitals, and how the result is judged. Unknown keys and impossible values are refused by name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from synth_common.errors import ConfigError, DataError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.images.phantom import Look
from synth_common.images.sources import PhantomSource, SourceConfig
from synth_common.plan import (
    FederationPlan,
    GeneratorPlan,
    Plan,
    PretrainingPlan,
    PrivacyPlan,
    ReleasePlan,
    StrictModel,
    TrainingPlan,
)
from synth_common.validation import validate
from synth_sim.partition import PartitionConfig

ROOT_VARIABLE = "SYNTHWARD_DATA"
_NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
_NAME_WORDS = "1 to 63 lower-case letters, digits and hyphens, as in two-clinics"
_BARE = re.compile(r"[A-Za-z_./~][\w./~:+-]*")


class DataConfig(StrictModel):
    """Where the images come from.

    Attributes:
        root: Folder that relative source paths start from (itself relative to the
            working directory); default: the environment's ``SYNTHWARD_DATA``.
        sources: One or more sources; every path in them is read once.
        reference: Public images like the sites' own, of nobody at a site: the encoder is
            trained on them and the membership adversary holds them. Left out, the encoder
            is untrained and the adversary gets half of each holdout.
        weights: The public weights that ``pretraining.sha256`` names, a safetensors file;
            relative to the working directory.
        holdout: What is kept for evaluation: ``share``, a random share of each site's
            patients; ``split``, what the source's own split calls ``test``, dealt to the
            sites like the rest.
        holdout_share: That share (holdout ``share`` only).
    """

    root: Path | None = None
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    reference: SourceConfig | None = None
    weights: Path | None = None
    holdout: Literal["share", "split"] = "share"
    holdout_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25


class ReportConfig(StrictModel):
    """What the report shows.

    Attributes:
        show_real: Put real patients' images into the report.
        phantom_look: Which phantoms stand beside the synthetic images; default: the look
            of the first phantom source, and none without one.
        grid_columns: Images per class in a grid.
        traversals: Latent directions shown, the most active first; 0 shows none.
    """

    show_real: bool = False
    phantom_look: Look | None = None
    grid_columns: Annotated[int, Field(ge=1, le=32)] = 8
    traversals: Annotated[int, Field(ge=0, le=16)] = 3


class Scenario(StrictModel):
    """A simulated federation."""

    name: Annotated[str, Field(pattern=_NAME, description=_NAME_WORDS)]
    title: str
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig
    partition: PartitionConfig
    generator: GeneratorPlan = GeneratorPlan()
    pretraining: PretrainingPlan = PretrainingPlan()
    training: TrainingPlan = TrainingPlan()
    privacy: PrivacyPlan = PrivacyPlan(noise="simulation")
    federation: FederationPlan = FederationPlan()
    release: ReleasePlan = ReleasePlan()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _normal_class_known(self) -> Scenario:
        normal, classes = self.evaluation.anomaly_normal, self.generator.classes
        if normal is not None and (normal not in classes or len(classes) < 2):
            raise ValueError(
                f"evaluation.anomaly_normal = {normal!r} must be one of several classes; "
                f"generator.classes holds {', '.join(classes)}"
            )
        return self

    @property
    def plan(self) -> Plan:
        """What coordinator and sites agree on."""
        return Plan(
            generator=self.generator,
            pretraining=self.pretraining,
            training=self.training,
            privacy=self.privacy,
            federation=self.federation,
            release=self.release,
        )

    @property
    def look(self) -> Look | None:
        """The phantoms that fit this scenario's images."""
        drawn = [s.look for s in self.data.sources if isinstance(s, PhantomSource)]
        return self.report.phantom_look or next(iter(drawn), None)

    def run_id(self) -> str:
        """Names the run by everything that decides its result, so that equal runs are equal.

        The place of the data, the weights and an encoder's file is left out: the same files
        elsewhere are the same run.
        """
        values = self.model_dump(mode="json")
        del values["data"]["root"], values["data"]["weights"]  # the plan names their content
        del values["evaluation"]["encoder_file"]  # its hash stays
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def data_root(self) -> Path | None:
        """The data root of the scenario or the environment, or None.

        Raises:
            DataError: A root is named, but it is not a folder.
        """
        named = self.data.root or os.environ.get(ROOT_VARIABLE)
        if not named:
            return None
        root = Path(named).expanduser().resolve()
        if not root.is_dir():
            origin = "data.root" if self.data.root else ROOT_VARIABLE
            raise DataError(
                f"{origin} = {str(named)!r} is not a folder; give the one that holds the images, "
                f"by --set data.root=FOLDER or {ROOT_VARIABLE}"
            )
        return root


def packaged() -> dict[str, Path]:
    """The scenarios that come with the package, by name."""
    folder = resources.files("synth_sim") / "scenarios"
    found = (Path(str(item)) for item in folder.iterdir() if item.name.endswith(".toml"))
    return {path.stem: path for path in sorted(found)}


def summaries() -> list[tuple[str, str]]:
    """Name and title of every packaged scenario."""
    return [(name, str(_read(path).get("title", ""))) for name, path in packaged().items()]


def load_scenario(name: str, overrides: Iterable[str] = (), seed: int | None = None) -> Scenario:
    """A packaged scenario, or one from a TOML file, with overrides applied.

    Args:
        name: A packaged name, or a path ending in ``.toml``.
        overrides: ``section.key=value``, values as in TOML; a plain word needs no quotes.
            Numbers in a key pick a list's item (``data.sources.0.patients=40``).
        seed: Replaces the scenario's seed.

    Raises:
        ConfigError: No such scenario, a file that is not TOML, an unknown key, or an
            impossible value; names each.
    """
    known = packaged()
    path = Path(name)
    if name in known:
        path = known[name]
    elif path.suffix != ".toml":
        raise ConfigError(
            f"no scenario {name!r}; packaged are {', '.join(known)}, "
            "or give a path that ends in .toml"
        )
    values = _read(path)
    for override in overrides:
        _apply(values, override)
    if seed is not None:
        values["seed"] = seed
    # A simulation is repeatable unless it asks for the operating system's noise.
    privacy = values.setdefault("privacy", {})
    if isinstance(privacy, dict):
        privacy.setdefault("noise", "simulation")
    scenario = validate(Scenario, values, where=f"scenario {name}")
    validate(Plan, {k: values[k] for k in Plan.model_fields if k in values}, f"scenario {name}")
    return scenario


def save_scenario(scenario: Scenario, path: Path) -> None:
    """Write the scenario as TOML that :func:`load_scenario` reads back to the same run.

    Raises:
        StorageError: The disk refuses.
    """
    import tomli_w

    from synth_common.reporting.files import replace_text

    values = _toml(scenario.model_dump(mode="python", exclude_none=True))
    root = scenario.data_root()
    if root is not None:
        values["data"]["root"] = str(root)
    if scenario.data.weights is not None:
        values["data"]["weights"] = str(scenario.data.weights.expanduser().resolve())
    replace_text(path, tomli_w.dumps(values))


def _toml(value: Any) -> Any:
    """Python values as TOML can hold them."""
    if isinstance(value, Mapping):
        return {str(k): _toml(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_toml(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read(path: Path) -> dict[str, Any]:
    """The values of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"cannot read scenario {path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigError(f"scenario {path} is not TOML: {err}") from err


def _apply(values: dict[str, Any], override: str) -> None:
    """Put one ``section.key=value`` into ``values``."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r}: expected section.key=value")
    place: Any = values
    for depth, part in enumerate(parts[:-1]):
        _require_place(place, parts[: depth + 1], override)
        # A section that is not written out yet is made.
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[int(part)]
    _require_place(place, parts, override)
    last: Any = parts[-1] if isinstance(place, dict) else int(parts[-1])
    place[last] = _value(text.strip(), override)


def _require_place(place: Any, parts: list[str], override: str) -> None:
    """Refuse a step into what is no section, and past the end of a list."""
    *above, part = parts
    if isinstance(place, list):
        if not (part.isdecimal() and int(part) < len(place)):
            raise ConfigError(
                f"--set {override!r}: {'.'.join(above)} is a list, and {part!r} is none of its "
                f"items; they are numbered {', '.join(map(str, range(len(place)))) or '(none)'}"
            )
    elif not isinstance(place, dict):
        raise ConfigError(
            f"--set {override!r}: {'.'.join(above)} = {place!r} is a value, not a section; set "
            f"{'.'.join(above)} itself"
        )


def _value(text: str, override: str) -> Any:
    """A TOML value; a plain word or path stands for itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as err:
        if _BARE.fullmatch(text):
            return text
        raise ConfigError(f"--set {override!r}: {text!r} is not a TOML value") from err
