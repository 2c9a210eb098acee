"""Per-patient clipping: the fast rules against a slow loop, and what must be refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from synth_common.errors import PrivacyError
from synth_common.generators import Generator, build_generator
from synth_common.plan import GeneratorPlan
from synth_common.privacy import convolution_norms, gradients
from synth_common.privacy.convolution_norms import Block, form, gram_squares, weighted_sum
from synth_common.privacy.gradients import PatientGradients, Rows, sum_gradients
from synth_common.privacy.workspace import Workspace


@pytest.fixture(params=["kept", "formed", "gram"])
def way(request, monkeypatch):
    """Each way through a convolution in turn, in portions of a few patients."""
    monkeypatch.setattr(convolution_norms, "_STACKED", 7_000)
    monkeypatch.setattr(convolution_norms, "_GRAMS", 14_000)
    if request.param != "kept":
        monkeypatch.setattr(convolution_norms, "KEPT", 0)
    cost = 0.0 if request.param == "gram" else math.inf
    monkeypatch.setattr(convolution_norms, "_gramming", lambda block: cost)
    return request.param


def _slow(losses: torch.Tensor, network: nn.Module, rows: Rows, clip: float):
    """The definition: one autograd call per patient, then clip, then sum."""
    parameters = list(network.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    norms, start = [], 0
    for count in rows.counts:
        mean = losses[start : start + count].mean()
        gradient = torch.autograd.grad(mean, parameters, retain_graph=True, allow_unused=True)
        gradient = [
            torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters, gradient, strict=True)
        ]
        norm = math.sqrt(sum(g.square().sum().item() for g in gradient))
        norms.append(norm)
        for t, g in zip(total, gradient, strict=True):
            t += g * min(1.0, clip / norm)
        start += count
    return dict(zip(parameters, total, strict=True)), norms


def _batch(plan: GeneratorPlan, n: int):
    rng = torch.Generator().manual_seed(3)
    channels = plan.channels + int(plan.with_mask)
    images = torch.rand(n, channels, plan.size, plan.size, generator=rng)
    return images, torch.randint(len(plan.classes), (n,), generator=rng)


def _generator(family: str, size: int, channels: int = 1, mask: bool = False) -> Generator:
    plan = GeneratorPlan(family=family, size=size, channels=channels, with_mask=mask, width=16)
    return build_generator(plan, seed=1)


@pytest.mark.parametrize("family", ["vae", "gan"])
@pytest.mark.parametrize(
    ("size", "channels", "mask"), [(28, 1, False), (32, 3, True), (64, 1, True)]
)
def test_fast_clipping_equals_the_definition_per_patient(family, size, channels, mask, way):
    generator = _generator(family, size, channels, mask)
    rows = Rows((1, 1, 2, 3, 3))
    images, labels = _batch(generator.plan, rows.total)

    def loss():
        return generator.private_loss(images, labels, torch.Generator().manual_seed(5))

    norms_only = _slow(loss(), generator.private_module, rows, math.inf)[1]
    clip = sorted(norms_only)[2]  # some patients above, some below
    expected, norms = _slow(loss(), generator.private_module, rows, clip)
    engine = PatientGradients(generator.private_module)
    engine.rounding = 0.0  # the arithmetic itself; the allowance has a test of its own
    got = engine.clipped_sum(loss, rows, clip)
    assert torch.allclose(got.norms, torch.tensor(norms), rtol=1e-5)
    assert got.gradients.keys() == expected.keys()
    scale = max(g.abs().max().item() for g in expected.values())
    for parameter, gradient in expected.items():
        assert (got.gradients[parameter] - gradient).abs().max().item() <= 1e-5 * scale


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 3), (1, 7)])
def test_convolution_gradients_equal_a_loop_over_patients(kernel, count, monkeypatch):
    monkeypatch.setattr(convolution_norms, "_STACKED", 3_000)  # several portions
    monkeypatch.setattr(convolution_norms, "_GRAMS", 50_000)
    torch.manual_seed(0)
    padding = (kernel[0] // 2, kernel[1] // 2)
    layer = nn.Conv2d(4, 6, kernel, padding=padding)
    inputs, flows = torch.randn(5 * count, 4, 6, 9), torch.randn(5 * count, 6, 6, 9)
    slow = []
    for patient in range(5):
        own = slice(patient * count, (patient + 1) * count)
        total = (layer(inputs[own]) * flows[own]).sum()
        slow.append(torch.autograd.grad(total, layer.weight)[0])
    expected = torch.stack([gradient.square().sum() for gradient in slow])
    block = Block(layer, inputs, flows, 5, Workspace())
    formed, squares = form(block, keep="here")
    weights = torch.rand(5)
    total = sum(w * gradient for w, gradient in zip(weights, slow, strict=True))
    assert torch.allclose(squares, expected, rtol=1e-5)
    assert torch.allclose(gram_squares(block), expected, rtol=1e-5)
    assert torch.allclose(form(block, keep=None)[1], expected, rtol=1e-5)
    assert torch.allclose(weighted_sum(layer, formed, weights), total, atol=1e-4, rtol=1e-5)


def test_the_cheaper_way_depends_on_the_shape():
    def block(channels: int, side: int, count: int) -> Block:
        layer = nn.Conv2d(channels, channels, 3, padding=1)
        rows = torch.zeros(count * 2, channels, side, side)
        return Block(layer, rows, rows, 2, Workspace())

    ways = convolution_norms
    deep, wide = block(64, 8, 1), block(16, 16, 1)
    assert ways._gramming(deep) < ways._forming(deep)
    assert ways._forming(wide) < ways._gramming(wide)
    assert ways._forming(block(64, 8, 4)) < ways._gramming(block(64, 8, 4))
    assert ways.worth_keeping([wide])
    strided = nn.Conv2d(16, 16, 3, stride=2, padding=1)
    assert not ways.worth_keeping([Block(strided, wide.inputs, wide.flows, 2, Workspace())])


def test_scratch_memory_carries_nothing_from_one_batch_to_the_next():
    generator = _generator("vae", 32)
    engine = PatientGradients(generator.private_module)
    images, labels = _batch(generator.plan, 12)

    def run(chosen: slice, counts: tuple[int, ...]):
        rng = torch.Generator().manual_seed(0)
        return engine.clipped_sum(
            lambda: generator.private_loss(images[chosen], labels[chosen], rng), Rows(counts), 0.1
        )

    first = run(slice(0, 5), (1, 2, 2))
    run(slice(0, 12), (3, 3, 6))
    again = run(slice(0, 5), (1, 2, 2))
    assert torch.equal(first.norms, again.norms)
    for parameter, gradient in first.gradients.items():
        assert torch.equal(gradient, again.gradients[parameter])


class _Odd(nn.Module):
    """Layers outside the fast rules: strides, groups, an affine norm, a sequence linear."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(2, 8)
        self.wide = nn.Conv2d(8, 8, 5, dilation=2, bias=False)
        self.even = nn.Conv2d(8, 8, 2)
        self.sequence = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.grouped(self.strided(x)).tanh())
        x = self.even(self.wide(x)).flatten(2).transpose(1, 2)
        return self.sequence(x).square().sum((1, 2))


def test_layers_without_a_fast_rule_use_opacus_and_agree():
    torch.manual_seed(0)
    network, rows = _Odd(), Rows((1, 2, 2))
    x = torch.rand(5, 1, 24, 24)
    expected, norms = _slow(network(x), network, rows, 0.5)
    got = PatientGradients(network).clipped_sum(lambda: network(x), rows, 0.5)
    assert torch.allclose(got.norms, torch.tensor(norms), rtol=1e-4)
    for parameter, gradient in expected.items():
        assert torch.allclose(got.gradients[parameter], gradient, atol=1e-5)


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_one_more_patient_moves_the_sum_by_at_most_the_clip(family, way):
    generator = _generator(family, 28)
    images, labels = _batch(generator.plan, 6)
    engine = PatientGradients(generator.private_module)

    def clipped(n: int, counts: tuple[int, ...]):
        def loss():
            noise = torch.Generator().manual_seed(0)
            return generator.private_loss(images[:n], labels[:n], noise)

        return engine.clipped_sum(loss, Rows(counts), 0.1).gradients

    with_patient, without = clipped(6, (1, 2, 3)), clipped(3, (1, 2))
    moved = sum((with_patient[p] - without[p]).square().sum().item() for p in without)
    assert 0.05 < math.sqrt(moved) <= 0.1 * (1 + 1e-5)


def test_physical_batches_add_up_to_the_logical_one():
    generator = _generator("gan", 28)
    images, labels = _batch(generator.plan, 6)
    engine, rng = PatientGradients(generator.private_module), torch.Generator()

    def part(chosen: slice, counts: tuple[int, ...]):
        return engine.clipped_sum(
            lambda: generator.private_loss(images[chosen], labels[chosen], rng), Rows(counts), 0.1
        )

    whole = part(slice(0, 6), (1, 1, 2, 2)).gradients
    pieces = sum_gradients([part(slice(0, 2), (1, 1)), part(slice(2, 6), (2, 2))])
    for parameter, gradient in whole.items():
        assert torch.allclose(pieces[parameter], gradient, atol=1e-6)


def test_batch_normalisation_is_refused():
    with pytest.raises(PrivacyError, match="BatchNorm"):
        PatientGradients(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)))


def test_a_parameter_without_a_rule_is_refused():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(PrivacyError, match="no per-example gradient rule for Bare"):
        PatientGradients(Bare())


def test_a_layer_used_twice_is_refused():
    layer = nn.Linear(3, 3)
    engine = PatientGradients(nn.Sequential(layer))
    with pytest.raises(PrivacyError, match="ran twice"):
        engine.clipped_sum(lambda: layer(layer(torch.ones(1, 3))).sum(1), Rows((1,)), 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
def test_a_patient_whose_gradient_is_not_finite_is_left_out_and_nobody_else(bad, way):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 1))
    engine = PatientGradients(network)
    images = torch.rand(4, 1, 8, 8)
    spoilt = images.clone()
    spoilt[1] = bad

    def clipped(x: torch.Tensor, counts: tuple[int, ...]):
        return engine.clipped_sum(lambda: network(x).square().sum(1), Rows(counts), 1.0)

    with_bad, without = clipped(spoilt, (1, 1, 2)), clipped(images[[0, 2, 3]], (1, 2))
    assert torch.isfinite(with_bad.norms).tolist() == [True, False, True]
    for parameter, gradient in without.gradients.items():
        assert torch.allclose(with_bad.gradients[parameter], gradient, atol=1e-6)
    assert all(p.requires_grad for p in network.parameters())


def _total(gradients) -> float:
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))


def test_products_that_cancel_do_not_slip_past_the_clip(way):
    """Without the allowance for rounding these add thousands of times the clip."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 64, bias=False)
    row = torch.randn(1, 64) * 1e4
    pair = torch.cat([row, row * (1 + 1e-6)])
    weights = torch.tensor([1.0, -1.0])[:, None] * torch.randn(1, 64) * 1e4
    part = PatientGradients(linear).clipped_sum(
        lambda: (linear(pair) * weights).sum(1), Rows((2,)), 1.0
    )
    assert _total(part.gradients) <= 1.01

    convolution = nn.Conv2d(32, 128, 3, padding=1, bias=False)
    flat = 1e4 + torch.randn(1, 32, 4, 4) * 1e-3
    flow = torch.randn(1, 128, 4, 4) * 1e4
    flow = flow - flow.mean((2, 3), keepdim=True)
    part = PatientGradients(convolution).clipped_sum(
        lambda: (convolution(flat) * flow).sum((1, 2, 3)), Rows((1,)), 1.0
    )
    assert _total(part.gradients) <= 1.01


@pytest.mark.parametrize("images", [4, 64])
@pytest.mark.parametrize("patients", [1, 12])
@pytest.mark.parametrize(
    ("channels", "side", "stride"),
    [((64, 64), 8, 1), ((8, 32), 16, 1), ((16, 16), 16, 2)],
)
def test_many_rows_that_cancel_do_not_slip_past_the_clip(
    channels, side, stride, patients, images, way
):
    """Half of a patient's rows against the other half: what is left is rounding.

    Norm and sum are added up in different orders. An allowance that does not grow with the
    number of rows lets up to 24 times the clip through.
    """
    torch.manual_seed(1)
    layer = nn.Conv2d(*channels, 3, stride, padding=1, bias=False)
    half = torch.rand(images // 2, channels[1], side // stride, side // stride)
    flow = torch.cat([half, -half.mean(0, keepdim=True).expand_as(half)])
    inputs = torch.ones(patients * images, channels[0], side, side)
    flows = flow.repeat(patients, 1, 1, 1)

    def added(rounding: float) -> float:
        engine = PatientGradients(layer)
        engine.rounding = rounding
        part = engine.clipped_sum(
            lambda: (layer(inputs) * flows).sum((1, 2, 3)) * images,
            Rows((images,) * patients),
            1e-9,
        )
        return _total(part.gradients) / (1e-9 * patients)

    assert added(gradients._ROUNDING) <= 1 + 1e-4
    if images == 64 and (way == "formed" or stride == 2):
        assert added(0.0) > 2  # what the allowance is there for


def test_the_allowance_for_rounding_only_ever_raises_a_norm(way):
    generator = _generator("vae", 32)
    images, labels = _batch(generator.plan, 6)
    engine = PatientGradients(generator.private_module)

    def norms():
        rng = torch.Generator().manual_seed(0)
        return engine.clipped_sum(
            lambda: generator.private_loss(images, labels, rng), Rows((1, 2, 3)), 1.0
        ).norms

    allowed = norms()
    engine.rounding = 0.0
    exact = norms()
    assert (allowed >= exact * (1 - 1e-6)).all()
    assert (allowed <= exact * 1.01).all()


def test_rows_out_of_order_are_refused():
    with pytest.raises(PrivacyError, match="ordered"):
        Rows((2, 1))
