"""Weights from public images: the scenario's generator, trained without privacy.

What is made here is public, so it may start any private run for nothing. It must not have met
a private image, which is refused by name, by place and by content.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import RootModel

from synth_client.holdout import image_target
from synth_common.errors import ConfigError, PrivacyError
from synth_common.facts import Fact, FactLog
from synth_common.images.duplicates import pixel_codes
from synth_common.images.imageset import ImageSet, concatenate
from synth_common.images.phantom import PhantomSource
from synth_common.images.sources import SourceConfig, load_source
from synth_common.randomness import derive_seed
from synth_common.validation import validate
from synth_sim.prepare import load_private
from synth_sim.scenario import Scenario

if TYPE_CHECKING:
    from synth_common.generators import Generator

_SOURCE = "synth_sim.pretrain.pretrain"
_PHANTOMS = 2000
_LOOKS = ("radiograph", "ct", "mri", "histology")
_MOST = 1_000_000


class _AnySource(RootModel[SourceConfig]):
    """One source, of whichever kind."""


@dataclass(frozen=True)
class Pretrained:
    """What pretraining made.

    Attributes:
        path: The safetensors file.
        sha256: Its SHA-256, hexadecimal; what ``pretraining.sha256`` of a plan names.
        public_data: Name and licence of the images.
    """

    path: Path
    sha256: str
    public_data: str

    def settings(self) -> list[str]:
        """The ``--set`` values that start a run from these weights."""
        text = self.public_data.replace("\\", " ").replace('"', "'")
        return [
            f"data.weights={self.path}",
            f'pretraining.sha256="{self.sha256}"',
            f'pretraining.public_data="{text}"',
        ]


def pretrain(scenario: Scenario, public: str, steps: int, out: Path) -> Pretrained:
    """Train the scenario's generator on public images without privacy and write its weights.

    Args:
        scenario: Whose generator, sizes and rates.
        public: ``reference`` (the scenario's ``data.reference``), a phantom look
            (``radiograph``, ``ct``, ``mri``, ``histology``), or a TOML file that describes a
            source as ``data.sources`` does.
        steps: Training steps, 1 to 1000000.
        out: The safetensors file, not there yet. Facts on what was public go beside it, to
            ``NAME.facts.jsonl``.

    Raises:
        ConfigError: An unknown source, an impossible number of steps, ``out`` exists, or the
            scenario's family does not learn from images.
        PrivacyError: The source is one of the scenario's private ones, or shares an image.
        DataError: A source cannot be used.
        StorageError: The disk refuses.
    """
    from safetensors.torch import save

    from synth_common.privacy.egress import state_digest
    from synth_common.reporting.files import replace_bytes

    if not 1 <= steps <= _MOST:
        raise ConfigError(f"--steps {steps}: must be 1 to {_MOST}")
    if out.suffix != ".safetensors" or out.exists():
        raise ConfigError(f"--out {out}: give a new file that ends in .safetensors")
    generator = _trainable(scenario)
    config = _source(scenario, public)
    _refuse_private(scenario, config)
    images = load_source(config, image_target(scenario.generator), scenario.data_root()).images
    if not isinstance(config, PhantomSource) or not _all_drawn(scenario):
        _refuse_shared(scenario, config.name, images)
    state = _train(generator, scenario, images, steps)
    ordered = {name: state[name].contiguous() for name in sorted(state)}
    made = Pretrained(out, state_digest(ordered), f"{config.name} ({config.licence})"[:500])
    replace_bytes(out, save(ordered))
    detail = {
        "family": scenario.generator.family,
        "source": config.model_dump(mode="json"),
        "images": len(images),
        "steps": steps,
        "seed": scenario.seed,
    }
    value = {"sha256": made.sha256, "public_data": made.public_data, "tune": None, "rank": None}
    fact = Fact("pretraining.public", value, "public", _SOURCE, detail=detail)
    FactLog(out.with_suffix(".facts.jsonl")).append(fact)
    return made


def _source(scenario: Scenario, public: str) -> SourceConfig:
    """The public source that the command names."""
    private = [source.name for source in scenario.data.sources]
    if public in private:
        raise PrivacyError(
            f"--public {public!r} is a private source of the scenario; weights trained on it "
            "without privacy would carry its patients into every run"
        )
    if public == "reference":
        if scenario.data.reference is None:
            raise ConfigError("--public reference: the scenario has no data.reference")
        return scenario.data.reference
    if public in _LOOKS:
        values: dict[str, Any] = {
            "kind": "phantom",
            "name": f"phantom-{public}",
            "look": public,
            "patients": _PHANTOMS,
            "images_per_patient": [1, 1],
            "seed": derive_seed(scenario.seed, "public phantoms", public) % 2**31,
            "label_map": _lesion_map(scenario.generator.classes),
        }
        return validate(_AnySource, values, where="--public").root
    if not public.endswith(".toml"):
        raise ConfigError(
            f"--public {public!r}: give reference, a phantom look ({', '.join(_LOOKS)}), or a "
            "TOML file that describes a source"
        )
    try:
        read = tomllib.loads(Path(public).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ConfigError(f"--public {public}: cannot be read: {err}") from err
    return validate(_AnySource, read, where=f"--public {public}").root


def _lesion_map(classes: Sequence[str]) -> dict[str, str]:
    """Phantoms know two classes; they stand for the plan's first two where names differ."""
    if {"normal", "lesion"} <= set(classes):
        return {}
    if len(classes) < 2:
        raise ConfigError(
            f"generator.classes = {list(classes)}: phantoms have two classes; describe a public "
            "source in a TOML file instead"
        )
    return {"normal": classes[0], "lesion": classes[1]}


def _refuse_private(scenario: Scenario, config: SourceConfig) -> None:
    """Refuse what is a private source by its name, its place or its seed."""
    place = _place(scenario, config)
    for private in scenario.data.sources:
        if config.name == private.name or place == _place(scenario, private):
            raise PrivacyError(
                f"--public: source {config.name!r} is the scenario's private source "
                f"{private.name!r}; weights trained on it without privacy would carry its "
                "patients into every run"
            )


def _place(scenario: Scenario, config: SourceConfig) -> object:
    """Where a source's images come from: a file's splits, a folder, or phantoms' look and seed."""
    if isinstance(config, PhantomSource):
        return config.look, config.seed
    path = config.path.expanduser()
    root = scenario.data_root()
    whole = path if path.is_absolute() or root is None else root / path
    return whole.resolve(), getattr(config, "splits", None)


def _all_drawn(scenario: Scenario) -> bool:
    """Whether every private source is phantoms: another look or seed draws other pictures."""
    return all(isinstance(source, PhantomSource) for source in scenario.data.sources)


def _refuse_shared(scenario: Scenario, name: str, public: ImageSet) -> None:
    """Refuse a source that holds a private image: the same pixels under another name."""
    for source, private in load_private(scenario).items():
        codes = pixel_codes(concatenate([_bare(public), _bare(private)]))
        shared = np.intersect1d(codes[: len(public)], codes[len(public) :])
        if shared.size:
            raise PrivacyError(
                f"--public: {shared.size} images of {name!r} are in the private source {source!r} "
                "too; weights trained on them without privacy would carry patients into every run"
            )


def _bare(images: ImageSet) -> ImageSet:
    """Pixels and labels alone."""
    return ImageSet(images.images, images.labels, images.class_names)


def _trainable(scenario: Scenario) -> Generator:
    """The scenario's generator, fresh; refused (ConfigError) if images teach it nothing."""
    from synth_common.generators import build_generator
    from synth_common.generators.tuning import untuned
    from synth_common.privacy.public_training import require_trainable

    generator = build_generator(untuned(scenario.generator), _seed(scenario))
    require_trainable(generator)
    return generator


def _train(
    generator: Generator, scenario: Scenario, images: ImageSet, steps: int
) -> dict[str, Any]:
    """The travelling state after ``steps`` steps without clip and noise."""
    from synth_common.privacy.public_training import train_openly

    train_openly(generator, images, scenario.training, steps, _seed(scenario))
    return generator.shared_state()


def _seed(scenario: Scenario) -> int:
    return derive_seed(scenario.seed, "pretraining")
