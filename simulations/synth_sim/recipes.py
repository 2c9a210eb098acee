"""Names that ``synth-sim compare`` knows beside the families: each a few settings of a scenario.

A new recipe is one line in :data:`RECIPES`; nothing else needs to know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import get_args

from synth_common.errors import ConfigError
from synth_common.plan import Family

RECIPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vae-site": ("generator.family=vae", "generator.site_normalisation=true"),
        "gan-site": ("generator.family=gan", "generator.site_normalisation=true"),
        # The family's own name: it needs its release, and has no rounds.
        "embedding": (
            "generator.family=embedding",
            "training.rounds=0",
            "release.embedding.share=1.0",
        ),
        "curriculum": ("generator.family=vae", "release.embedding.share=0.5"),
    }
)
"""Name in a comparison -> the settings it stands for (``section.key=value``)."""


def overrides_of(name: str) -> tuple[str, ...]:
    """The settings that a generator's name in a comparison stands for.

    Raises:
        ConfigError: It is neither a family nor a recipe; names those that are.
    """
    if name in RECIPES:
        return RECIPES[name]
    families = get_args(Family)
    if name not in families:
        known = ", ".join(dict.fromkeys([*families, *RECIPES]))
        raise ConfigError(f"--generators {name!r}: unknown; choose among {known}")
    return (f"generator.family={name}",)
