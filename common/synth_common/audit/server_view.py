"""The view of a curious server: every site's updates against that site's own patients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from synth_common.audit.battery import Untested
from synth_common.audit.candidates import Case
from synth_common.audit.gathering import Flags, Gathered, of_patients
from synth_common.audit.measuring import FEWEST, Scored
from synth_common.audit.released_model import ReleasedModel, update_scores
from synth_common.errors import ConfigError

Array = npt.NDArray[np.float64]


def require_sites(gathered: Gathered, model: ReleasedModel | None) -> None:
    """Refuse updates of several sites where nothing tells which candidates are whose.

    Raises:
        ConfigError: Names the sites and the column.
    """
    if model is not None and len(model.updates) > 1 and "site" not in gathered.attributes:
        raise ConfigError(
            f"--updates holds those of {', '.join(sorted(model.updates))}, and no column `site` of "
            "--members and --nonmembers tells whose patients they are: synth-client audit-sets "
            "writes it; or give a folder with the updates of one site and that site's patients"
        )


def server_scores(
    gathered: Gathered,
    model: ReleasedModel,
    blind: tuple[Array, Array],
    untested: Untested,
    tell: Callable[[str], None],
) -> list[Scored]:
    """Scores of the updates of every site that candidates are from.

    A site's update holds nothing of another site's patients: with those among the members an
    attack that finds everybody would look weak.

    Args:
        gathered: The candidates; attribute ``site`` says whose they are.
        model: With the updates of one site or more.
        blind: Baseline of all patients: members (M,), non-members (N,).
        untested: Is told of sites with too few candidates.
        tell: Is told each site as it begins.

    Raises:
        ConfigError: As :func:`require_sites`.
    """
    require_sites(gathered, model)
    whose = gathered.attributes.get("site")
    empty = np.zeros((0, 0))
    case = Case(empty, gathered.member, gathered.patients, empty, empty)
    found = []
    for site, updates in model.updates.items():
        everybody = np.ones(sum(gathered.sides), dtype=bool)
        own = everybody if whose is None else of_patients(whose == site, gathered.patients)
        first, second = _sides(own, gathered)
        if min(first.sum(), second.sum()) < FEWEST:
            what = f"Updates of {site}"
            untested.add(what, f"fewer than {FEWEST} members or non-members are from it")
            continue
        tell(f"updates of {site}: {len(updates)} rounds")
        scores = case.by_patient(update_scores(model.generator, updates, gathered.real))
        found.append(
            Scored(
                "server",
                f"Update inner product: {site}",
                f"the released {model.plan.generator.family}",
                scores[0][first],
                scores[1][second],
                (blind[0][first], blind[1][second]),
                own,
            )
        )
    return found


def _sides(own: Flags, gathered: Gathered) -> tuple[Flags, Flags]:
    """Flags of patients as those of members and those of non-members."""
    members = gathered.sides[0]
    return own[:members], own[members:]
