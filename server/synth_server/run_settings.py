"""Sections ``[run]`` and ``[aggregation]`` of ``server.toml``: how a run goes, apart from its plan.

Nothing here changes what a patient is promised; that is the plan's, and the sites'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from synth_common.plan import StrictModel

Rule = Literal["mean", "trimmed-mean", "median"]
Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class AggregationConfig(StrictModel):
    """What the coordinator makes of replies.

    Attributes:
        rule: ``mean``; ``trimmed-mean``, without the largest and smallest values of every
            coordinate; ``median`` of every coordinate.
        trim: Share of the replies that a trimmed mean leaves out at each end; whole replies,
            rounded down.
        largest_update: A reply that moved further than this many times what every step at the
            learning rate in one direction would give is refused; 0 refuses none.
    """

    rule: Rule = "mean"
    trim: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    largest_update: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 4.0

    def trimmed(self, sites: int) -> int:
        """How many replies of ``sites`` a trimmed mean leaves out at each end."""
        return int(self.trim * sites + 1e-9)  # 0.29 * 100 is a little less than 29


class RunConfig(StrictModel):
    """How the coordinator runs a plan.

    Attributes:
        seed: Of the initial weights and of the pictures; public.
        weights: The public weights that the plan's ``pretraining.sha256`` names, a safetensors
            file; relative to the coordinator's folder.
        gather_s: Once enough sites are online, seconds to wait for the other enrolled ones,
            before the first round or the release.
        patience_s: Seconds to wait in all for enough sites, before a round and after one that
            failed; then the run ends with an error and can be resumed.
        retry_s: Seconds before a round is asked for again that sites refused for a while.
        evaluate: Have every site judge the final generator on its own patients.
        grid_columns: Images per class in the grid of samples.
        traversals: Latent directions shown, the most active first; 0 shows none.
    """

    seed: Annotated[int, Field(ge=0)] = 0
    weights: Path | None = None
    gather_s: Seconds = 30.0
    patience_s: Seconds = 86400.0
    retry_s: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 60.0
    evaluate: bool = True
    grid_columns: Annotated[int, Field(ge=1, le=32)] = 8
    traversals: Annotated[int, Field(ge=0, le=16)] = 3
