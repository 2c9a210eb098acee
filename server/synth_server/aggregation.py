"""How the replies of a round become one model, and what is too large to be one of them.

Everything here works on what sites already released, so it changes no privacy, and the choice is
the coordinator's alone. The mean is a running sum: memory holds one sum whatever the number of
sites. The trimmed mean and the median (Yin et al. 2018, arXiv 1803.01498) bear a few sites that
lie, and hold every reply of a round at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from synth_common.generators import Generator
from synth_common.plan import Plan
from synth_server.run_settings import AggregationConfig

Dtypes = Mapping[str, torch.dtype]


class Aggregate(Protocol):
    """Takes replies one by one and gives one model.

    Attributes:
        count: Replies taken.
    """

    count: int

    def add(self, reply: Iterable[tuple[str, Tensor]]) -> None:
        """Take a reply: finite tensors, the same names and shapes every time, one by one."""
        ...

    def result(self, dtypes: Dtypes) -> dict[str, Tensor]:
        """The model of the replies taken, at least one, in the given dtypes; to be asked once."""
        ...


class RunningMean:
    """The mean, from a running sum in float64."""

    def __init__(self) -> None:
        self._total: dict[str, Tensor] = {}
        self.count = 0

    def add(self, reply: Iterable[tuple[str, Tensor]]) -> None:
        """See :class:`Aggregate`."""
        for name, value in reply:
            if name in self._total:
                self._total[name] += value
            else:
                self._total[name] = value.to(torch.float64)
        self.count += 1

    def result(self, dtypes: Dtypes) -> dict[str, Tensor]:
        """See :class:`Aggregate`."""
        names = list(self._total)
        return {k: (self._total.pop(k) / self.count).to(dtypes[k]) for k in names}


class Ordered:
    """A mean of the middle values of every coordinate; keeps every reply until the end.

    Args:
        config: A rule other than the mean.
    """

    def __init__(self, config: AggregationConfig) -> None:
        self._config = config
        self._kept: dict[str, list[Tensor]] = {}
        self.count = 0

    def add(self, reply: Iterable[tuple[str, Tensor]]) -> None:
        """See :class:`Aggregate`."""
        for name, value in reply:
            self._kept.setdefault(name, []).append(value)
        self.count += 1

    def result(self, dtypes: Dtypes) -> dict[str, Tensor]:
        """See :class:`Aggregate`; the replies are let go one tensor at a time."""
        left_out = self._left_out()
        made = {}
        for name in list(self._kept):
            ordered = torch.stack(self._kept.pop(name)).to(torch.float64).sort(dim=0).values
            middle = ordered[left_out : self.count - left_out]
            made[name] = middle.mean(dim=0).to(dtypes[name])
        return made

    def _left_out(self) -> int:
        """Replies left out at each end: for a median, all but the middle one or two."""
        if self._config.rule == "median":
            return (self.count - 1) // 2
        return self._config.trimmed(self.count)


def aggregate(config: AggregationConfig) -> Aggregate:
    """An empty aggregate of the chosen rule."""
    return RunningMean() if config.rule == "mean" else Ordered(config)


def doubts(config: AggregationConfig, sites: int, model_bytes: int) -> list[str]:
    """What the rule cannot do with so many sites, and what it takes, in sentences.

    Args:
        config: The rule.
        sites: Fewest replies that a round may be made of.
        model_bytes: Of the tensors that travel.
    """
    if config.rule == "mean":
        return []
    said = []
    if config.rule == "trimmed-mean" and config.trimmed(sites) == 0:
        said.append(
            f"aggregation.trim = {config.trim:g} of {sites} replies leaves nobody out: the trimmed "
            f"mean is the mean, and one site that lies moves it; it takes {_sites(config.trim)} "
            f"replies" + (f", or trim = {_share(sites):g} or more" if sites > 2 else "")
        )
    if config.rule == "median" and sites < 3:
        said.append(
            f"aggregation.rule = median of {sites} replies is their mean: one site that lies moves "
            "it; it takes 3 replies or more"
        )
    said.append(
        f"aggregation.rule = {config.rule} holds every reply of a round at once: at least "
        f"{sites * model_bytes / 1e6:.0f} MB"
    )
    return said


def _sites(trim: float) -> int:
    """Fewest replies of which this share is one."""
    return math.ceil(1.0 / trim - 1e-9)


def _share(sites: int) -> float:
    """Smallest share, in hundredths, that leaves out one of so many replies at each end."""
    return math.ceil(100.0 / sites - 1e-9) / 100.0


def largest_update(plan: Plan, generator: Generator, factor: float) -> float | None:
    """Longest step, in Euclidean norm, that a reply may have taken from the tensors sent.

    A step of Adam moves a parameter by no more than about three times the learning rate, as
    ``(1 - beta1) / sqrt(1 - beta2)`` is about 3.2 (Kingma and Ba 2015, section 2.1), whatever the
    gradient and its clip; what averages parameters moves no further. All of it is public.

    Args:
        plan: Steps of a round, and learning rates.
        generator: Which tensors travel, and the family's own rate.
        factor: Times the learning rate per step and parameter; 0 for no bound.
    """
    if factor == 0.0:
        return None
    training = plan.training
    rate = training.learning_rate or generator.private_rate
    if plan.generator.family == "gan":
        rate = max(rate, training.generator_learning_rate)
    count = sum(v.numel() for v in generator.shared_state().values() if v.is_floating_point())
    return factor * rate * training.steps_per_round * math.sqrt(count)
