"""Names that ``synth-sim compare`` knows beside the families: each a few settings of a scenario.

A new recipe is one line in :data:`RECIPES`; nothing else needs to know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

from synth_common.errors import ConfigError
from synth_common.plan import Family


@dataclass(frozen=True)
class Recipe:
    """What a name in a comparison stands for, as ``section.key=value``.

    Attributes:
        settings: What makes it what it is; nothing overrules them.
        defaults: What a user's own values overrule.
    """

    settings: tuple[str, ...]
    defaults: tuple[str, ...] = ()

    def overrides(self, wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
        """The defaults, the user's values and the settings: the later win."""
        return (*self.defaults, *wanted, *self.settings)


_RELEASE_ONLY = (
    "generator.family=embedding",
    "training.rounds=0",
    "release.embedding.share=1.0",
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "vae-site": Recipe(("generator.family=vae", "generator.site_normalisation=true")),
        "gan-site": Recipe(("generator.family=gan", "generator.site_normalisation=true")),
        # The family's own name: it needs its release, and has no rounds.
        "embedding": Recipe(_RELEASE_ONLY),
        "embedding-refined": Recipe(_RELEASE_ONLY, ("generator.features=3000",)),
        "curriculum": Recipe(("generator.family=vae",), ("release.embedding.share=0.5",)),
    }
)
"""By name; a new one needs no other change."""


def recipe_of(name: str) -> Recipe:
    """The recipe that a generator's name in a comparison stands for.

    Raises:
        ConfigError: It is neither a family nor a recipe; names those that are.
    """
    if name in RECIPES:
        return RECIPES[name]
    families = get_args(Family)
    if name not in families:
        known = ", ".join(dict.fromkeys([*families, *RECIPES]))
        raise ConfigError(f"--generators {name!r}: unknown; choose among {known}")
    return Recipe((f"generator.family={name}",))
