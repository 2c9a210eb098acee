"""Secure sums: masks cancel and hide, the noise of the sum is the declared one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from scipy import stats

from synth_common.errors import PrivacyError
from synth_common.privacy.pairwise_masks import MaskContext, public_bytes, total_mask
from synth_common.privacy.secure_sum import SLACK, Lattice, NoiseTerms, RunningSum, noisy
from synth_common.randomness import SecureNoise, SimulationNoise

NAMES = ("alpha", "beta", "delta", "gamma")
KEYS = {
    name: X25519PrivateKey.from_private_bytes(bytes([i + 1] * 32)) for i, name in enumerate(NAMES)
}
PUBLIC = {name: public_bytes(key) for name, key in KEYS.items()}
CONTEXT = MaskContext("run", 1, NAMES, "digest")
LATTICE = Lattice()
SIZE = 60_000


def mask(
    name: str, context: MaskContext = CONTEXT, size: int = SIZE, peers: Mapping[str, bytes] = PUBLIC
):
    return total_mask(name, KEYS[name], peers, context, size)


def message(
    name: str, vector: np.ndarray, context: MaskContext = CONTEXT, lattice: Lattice = LATTICE
):
    words = noisy(vector, 10**12, lattice, len(context.participants), SimulationNoise(7, name))
    return lattice.reduced(words + mask(name, context, len(vector)))


# ------------------------------------------------------------------ masks


@pytest.mark.parametrize("participants", [NAMES, NAMES[:3], NAMES[1:], ("alpha", "delta", "gamma")])
def test_masks_of_all_participants_cancel_and_of_fewer_do_not(participants):
    context = replace(CONTEXT, participants=participants)
    masks = [mask(name, context, 1000) for name in participants]
    assert not sum(masks).any()
    for left_out in range(len(masks)):
        rest = sum(m for i, m in enumerate(masks) if i != left_out)
        assert np.count_nonzero(rest) > 990


@pytest.mark.parametrize(
    "other",
    [
        MaskContext("run2", 1, NAMES, "digest"),
        MaskContext("run", 2, NAMES, "digest"),
        MaskContext("run", 1, NAMES[:3], "digest"),
        MaskContext("run", 1, NAMES, "digest2"),
        # Where fields end must not be guessed from their text.
        MaskContext('run",1,["alpha', 1, NAMES, "digest"),
        MaskContext("run", 11, NAMES, "digest"),
    ],
)
def test_two_contexts_have_independent_masks(other):
    first, second = mask("alpha"), mask("alpha", other)
    assert not (first == second).any()
    assert stats.kstest((first - second) / 2.0**64, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(first.astype(float), second.astype(float))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(SIZE)


def test_pairs_have_masks_of_their_own_and_other_keys_other_masks():
    three = replace(CONTEXT, participants=NAMES[:3])
    pairs = [mask(name, three, 100) for name in NAMES[:3]]
    assert len({m.tobytes() for m in pairs}) == 3
    strangers = {**PUBLIC, "beta": public_bytes(X25519PrivateKey.generate())}
    assert (mask("alpha", CONTEXT, 100) != mask("alpha", CONTEXT, 100, strangers)).all()


def test_only_enrolled_peers_with_usable_keys_take_part():
    few = {name: PUBLIC[name] for name in NAMES[:2]}
    with pytest.raises(PrivacyError, match="'delta' is not enrolled"):
        mask("alpha", CONTEXT, 10, few)
    with pytest.raises(PrivacyError, match="alpha is not among"):
        mask("alpha", replace(CONTEXT, participants=NAMES[1:]), 10)
    for bad in (bytes(32), b"short"):  # a point of low order; not a point
        with pytest.raises(PrivacyError, match="key of 'beta' cannot be used"):
            mask("alpha", CONTEXT, 10, {**PUBLIC, "beta": bad})
    for names in (("beta", "alpha"), ("alpha", "alpha", "beta")):
        with pytest.raises(PrivacyError, match="sorted"):
            replace(CONTEXT, participants=names)


# ------------------------------------------------------------------ what the server sees

STRUCTURED = {
    "zeros": np.zeros(SIZE),
    "largest": np.full(SIZE, 2.0**30),
    "a ramp": np.linspace(-1000.0, 1000.0, SIZE),
    "one spike": np.eye(1, SIZE, 7)[0] * 1e6,
    "a period": np.tile([0.0, 1.0, -1.0, 0.5], SIZE // 4),
}


def looks_uniform(words: np.ndarray) -> bool:
    """Every byte by chi-square, the value by Kolmogorov and Smirnov, neighbours by correlation."""
    octets = words.view(np.uint8).reshape(-1, 8)
    tables = [np.bincount(octets[:, i], minlength=256) for i in range(8)]
    least = min(stats.chisquare(table).pvalue for table in tables)
    share = stats.kstest(words / 2.0**64, "uniform").pvalue
    values = words.astype(float)
    neighbours = abs(np.corrcoef(values[1:], values[:-1])[0, 1]) * math.sqrt(len(words))
    return bool(least > 1e-5 and share > 1e-4 and neighbours < 5)


@pytest.mark.parametrize("shape", STRUCTURED)
def test_a_masked_vector_looks_uniform_whatever_is_in_it(shape):
    for name in NAMES:
        assert looks_uniform(message(name, STRUCTURED[shape]))


def test_the_same_test_tells_vectors_that_are_not_masked():
    for vector in STRUCTURED.values():
        assert not looks_uniform(noisy(vector, 10**12, LATTICE, 4, SecureNoise()))


def test_messages_of_swapped_sites_are_distributed_alike():
    """Who holds which vector does not show in any message, only in the sum."""
    flat, steep = STRUCTURED["zeros"], STRUCTURED["a ramp"]
    for name in NAMES[:2]:
        straight = message(name, flat, MaskContext("straight", 1, NAMES, "d"))
        swapped = message(name, steep, MaskContext("swapped", 1, NAMES, "d"))
        assert stats.ks_2samp(straight / 2.0**64, swapped / 2.0**64).pvalue > 1e-3
        again = message(name, steep, MaskContext("straight", 2, NAMES, "d"))
        assert abs(np.corrcoef(straight.astype(float), again.astype(float))[0, 1]) < 0.03


def test_the_sum_of_all_messages_but_one_looks_uniform_too():
    """So an attempt in which one site was lost tells nothing."""
    rest = sum(message(name, STRUCTURED["a ramp"]) for name in NAMES[:-1])
    assert looks_uniform(rest)


# ------------------------------------------------------------------ the sum


@pytest.mark.parametrize("bits", [48, 57, 64])
def test_the_sum_of_masked_vectors_is_the_sum_of_the_vectors(bits):
    lattice, rng = Lattice(scale_bits=20, modulus_bits=bits), np.random.default_rng(1)
    vectors = {name: rng.normal(0, 50, 500) for name in NAMES}
    total = RunningSum(500, lattice)
    for name in reversed(NAMES):
        words = noisy(vectors[name], 0, lattice, 4, SecureNoise())
        total.add(lattice.reduced(words + mask(name, size=500)))
    assert total.count == 4
    assert np.abs(total.vector() - sum(vectors.values())).max() <= 4 * 0.5 / lattice.scale


def test_values_that_could_wrap_around_are_refused_by_name():
    lattice = Lattice(scale_bits=20, modulus_bits=40)
    largest = lattice.room(4) / lattice.scale
    noisy(np.array([0.999 * largest, -0.999 * largest]), 0, lattice, 4, SecureNoise())
    for value in (1.001 * largest, -1.001 * largest, math.nan, math.inf):
        with pytest.raises(PrivacyError, match="modulus_bits = 40 at scale_bits = 20"):
            noisy(np.array([0.0, value]), 0, lattice, 4, SecureNoise())
    with pytest.raises(PrivacyError, match="modulus_bits"):  # it is the noise that is too large
        noisy(np.zeros(1000), lattice.room(4) ** 2 * 4, lattice, 4, SecureNoise())
    with pytest.raises(PrivacyError, match="over 4 sites"):
        lattice.require_room(most=1.001 * largest, deviation=0.0, sites=4)
    lattice.require_room(most=0.5 * largest, deviation=lattice.room(4) / 40, sites=4)


@pytest.mark.parametrize("bits", [(0, 64), (24, 24), (24, 65)])
def test_impossible_lattices_are_refused(bits):
    with pytest.raises(PrivacyError, match="modulus_bits"):
        Lattice(*bits)


# ------------------------------------------------------------------ the noise


def total_noise(terms: NoiseTerms, sites: int, factor: float = 1.0) -> np.ndarray:
    """The noise in a sum over so many honest sites, in steps of the grid."""
    total = RunningSum(terms.coordinates, terms.lattice)
    for i in range(sites):
        variance = int(terms.variance() * factor**2)
        zeros = np.zeros(terms.coordinates)
        noise = SimulationNoise(i, terms.sites)
        total.add(noisy(zeros, variance, terms.lattice, terms.sites, noise))
    return total.vector() * terms.lattice.scale


def has_scale(values: np.ndarray, scale: float) -> bool:
    """At least the scale, as far as a test of spread can tell; and about normal."""
    normal = stats.kstest(values, "norm", args=(0, scale)).pvalue > 1e-3
    return bool(normal and values.std() > scale * (1 - 5 / math.sqrt(2 * len(values))))


@pytest.mark.parametrize(("sites", "colluders"), [(1, 0), (3, 0), (3, 1), (5, 2), (8, 1)])
def test_the_noise_of_the_sum_suffices_even_without_the_colluders(sites, colluders):
    terms = NoiseTerms(3.73, 20_000, LATTICE, sites, colluders)
    whole = 3.73 * terms.sensitivity
    honest = total_noise(terms, sites - colluders)
    assert has_scale(honest, whole)
    assert not has_scale(total_noise(terms, sites - colluders, factor=0.7), whole)
    if sites - colluders > 1:  # one more that tells its noise than was provided for
        assert not has_scale(total_noise(terms, sites - colluders - 1), whole)
    together = total_noise(terms, sites)
    assert has_scale(together, whole * math.sqrt(sites / (sites - colluders)))


def test_the_sensitivity_covers_rounding():
    """Vectors that differ by 1 differ by no more on the grid, at the worst place for rounding."""
    for bits, size in [(1, 400), (4, 10_000), (24, 1000)]:
        lattice = Lattice(scale_bits=bits)
        terms = NoiseTerms(1.0, size, lattice)
        rng = np.random.default_rng(bits)
        before = (rng.integers(-3, 4, size) + 0.5 - 1e-9) / lattice.scale
        step = rng.normal(size=size)
        after = before + step / np.linalg.norm(step)
        moved = np.linalg.norm(lattice.rounded(after, 3) - lattice.rounded(before, 3))
        assert moved <= terms.sensitivity
    worst = NoiseTerms(1.0, 10_000, Lattice(scale_bits=4))
    # Rounding matters here: without its share the bound would be broken.
    lattice = worst.lattice
    before = np.full(10_000, 0.5 - 1e-9) / lattice.scale
    after = before + 1.0 / math.sqrt(10_000)
    moved = np.linalg.norm(lattice.rounded(after, 3) - lattice.rounded(before, 3))
    assert lattice.scale * (1 + SLACK) < moved <= worst.sensitivity


def test_a_site_that_charges_itself_less_adds_what_is_missing_itself():
    plan = NoiseTerms(2.0, 100, LATTICE, sites=4, colluders=1)
    whole = lambda multiplier: (multiplier * plan.sensitivity) ** 2  # noqa: E731
    own = plan.variance(own_multiplier=3.0)
    others = 2 * plan.variance()  # honest ones beside it
    assert own + others >= whole(3.0)
    assert own + others == pytest.approx(whole(3.0), rel=1e-9)
    assert plan.variance(own_multiplier=1.0) == plan.variance()  # never less than the plan
    assert NoiseTerms(0.0, 100, LATTICE, 3).variance() == 0


def test_noise_so_small_that_being_discrete_costs_something_is_refused():
    NoiseTerms(0.5, 200_000, LATTICE, 10, 1).require_negligible(1e-9)
    NoiseTerms(0.0, 10, Lattice(2, 30), 3).require_negligible(1e-9)  # none was promised
    with pytest.raises(PrivacyError, match="scale_bits = 1"):
        NoiseTerms(0.01, 4, Lattice(1, 40), 40, 1).require_negligible(1e-5)
    for colluders in (-1, 3):
        with pytest.raises(PrivacyError, match="colluders"):
            NoiseTerms(1.0, 10, LATTICE, 3, colluders)
