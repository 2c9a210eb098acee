"""What DP-SGD trains of a network that starts from public weights: all, the end, adapters.

A parameter that is not tuned asks for no gradient; the engine then takes none of it, the clip
does not see it and no noise is added to it. Fewer tuned parameters mean less noise in all,
since every coordinate gets its own (Yu et al. 2022, arXiv 2110.06500).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from synth_common.errors import ConfigError
from synth_common.generators.interface import Generator
from synth_common.generators.networks import SiteNormalisation
from synth_common.plan import GeneratorPlan, PretrainingPlan


class _Adapted(nn.Module):
    """A frozen layer plus a low-rank path: ``W x + b + up(down(x))`` (Hu et al. 2021).

    The frozen parameters keep their names, so that public weights fit with and without
    adapters. ``up`` begins at zero: an adapted network is at first the network it adapts.
    """

    down: nn.Module
    up: nn.Module
    bias: nn.Parameter | None

    def __init__(self, base: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.detach(), requires_grad=False)
        bias = base.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)


class AdaptedLinear(_Adapted):
    """Linear layer with an adapter: in -> rank -> out."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__(base)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        low: Tensor = self.up(self.down(x))
        return F.linear(x, self.weight, self.bias) + low


class AdaptedConvolution(_Adapted):
    """Convolution with an adapter: the same kernel down to ``rank`` channels, then 1x1 up."""

    def __init__(self, base: nn.Conv2d, rank: int) -> None:
        super().__init__(base)
        self.stride, self.padding, self.dilation = base.stride, base.padding, base.dilation
        self.down = nn.Conv2d(
            base.in_channels,
            rank,
            base.kernel_size,  # type: ignore[arg-type]
            base.stride,  # type: ignore[arg-type]
            base.padding,  # type: ignore[arg-type]
            base.dilation,  # type: ignore[arg-type]
            bias=False,
        )
        self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        low: Tensor = self.up(self.down(x))
        full = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)
        return full + low


def tune(generator: Generator, plan: PretrainingPlan) -> None:
    """Freeze what the plan does not tune, and add adapters where it asks for them.

    The site's own normalisation is always tuned: it has no public weights.

    Raises:
        ConfigError: The family has no last layers to tune.
    """
    private = generator.private_module
    if plan.tune == "last":
        if not generator.last_layers:
            raise ConfigError(
                f"pretraining.tune = 'last': family {generator.plan.family!r} names no last "
                "layers; choose 'all' or 'adapters'"
            )
        private.requires_grad_(False)
        for layer in generator.last_layers:
            layer.requires_grad_(True)
        for module in private.modules():
            if isinstance(module, SiteNormalisation):
                module.requires_grad_(True)
    elif plan.tune == "adapters":
        _adapt(private, plan.rank)
        for average in generator.averages:
            _adapt(average, plan.rank)
            average.requires_grad_(False)


def _adapt(module: nn.Module, rank: int) -> None:
    """Put adapters beside every layer that has more weights than they would have.

    A smaller layer (a label's shifts, a critic's score) is trained whole.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, SiteNormalisation):
            continue
        adapted: nn.Module | None = None
        if isinstance(child, nn.Linear):
            if rank * (child.in_features + child.out_features) < child.weight.numel():
                adapted = AdaptedLinear(child, rank)
        elif isinstance(child, nn.Conv2d) and child.groups == 1:
            down = rank * child.weight[0].numel()
            if down + rank * child.out_channels < child.weight.numel():
                adapted = AdaptedConvolution(child, rank)
        else:
            _adapt(child, rank)
        if adapted is not None:
            setattr(module, name, adapted)


def untuned(plan: GeneratorPlan) -> GeneratorPlan:
    """The generator that public weights belong to: no canaries, no site's own normalisation."""
    return plan.model_copy(update={"canaries": 0, "site_normalisation": False})
