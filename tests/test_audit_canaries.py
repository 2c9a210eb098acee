"""The verdict on simulated canaries: right at the claim, and strong against less noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from synth_common.audit.canaries import AuditResult, Claim, audit_canaries, canary_scores
from synth_common.audit.gaussian import gaussian_mu
from synth_common.errors import DataError

CLAIM = Claim(epsilon=4.0, delta=1e-5, alpha=0.05)


def _audit(mu: float, seed: int, canaries: int = 600, claim: Claim = CLAIM) -> AuditResult:
    """Canaries of an ideal Gaussian mechanism."""
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    scores = rng.normal(0, 1, canaries) + mu * included
    return audit_canaries(included, scores, claim, rng)


def test_a_claim_that_holds_is_refuted_no_more_often_than_alpha():
    claimed = gaussian_mu(CLAIM.epsilon, CLAIM.delta)
    results = [_audit(claimed, seed) for seed in range(40)]
    assert sum(result.refuted for result in results) <= 3
    # Close to detection: the bound is a large share of what is true.
    assert np.mean([result.cp_gdp for result in results]) > 0.5 * CLAIM.epsilon


@pytest.mark.parametrize("canaries", [200, 600])
def test_the_stated_power_is_the_share_of_audits_that_refute_half_the_noise(canaries):
    claimed = gaussian_mu(CLAIM.epsilon, CLAIM.delta)
    stated = [_audit(claimed, seed, canaries).power.half_noise for seed in range(40)]
    found = [_audit(2 * claimed, 1000 + seed, canaries).refuted for seed in range(40)]
    # The threshold of the simulated audits is chosen, the model's is the best one.
    assert np.mean(found) == pytest.approx(np.mean(stated), abs=0.2)


def test_the_detectable_epsilon_is_refuted_four_times_in_five():
    claimed = gaussian_mu(CLAIM.epsilon, CLAIM.delta)
    detectable = np.median([_audit(claimed, s).power.detectable_epsilon for s in range(12)])
    assert detectable > CLAIM.epsilon
    mu = gaussian_mu(float(detectable), CLAIM.delta)
    refuted = np.mean([_audit(mu, 500 + seed).refuted for seed in range(60)])
    assert 0.6 < refuted < 0.95


def test_less_efficient_attacks_say_so():
    claimed = gaussian_mu(CLAIM.epsilon, CLAIM.delta)
    ideal, weak = _audit(claimed, 1).power, _audit(0.5 * claimed, 1).power
    assert weak.efficiency < ideal.efficiency <= 1
    assert weak.half_noise < ideal.half_noise
    assert weak.detectable_epsilon > ideal.detectable_epsilon
    blind = _audit(-3.0, 2).power
    assert (blind.efficiency, blind.detectable_epsilon) == (0.0, math.inf)
    assert blind.half_noise < CLAIM.alpha


def test_a_leak_without_errors_is_refuted_by_every_bound_that_can():
    result = _audit(50.0, 3, canaries=1000)
    assert result.refuted
    assert (result.errors.false_positives, result.errors.false_negatives) == (0, 0)
    assert result.steinke > 0
    assert result.fdp > result.steinke
    assert result.jagielski > CLAIM.epsilon
    assert result.auc == 1.0


def test_no_leak_gives_no_bound():
    result = _audit(0.0, 4)
    assert result.verdict == "claim not refuted"
    assert result.cp_gdp < 0.5
    assert result.steinke < 0.5


def test_the_threshold_is_chosen_on_other_canaries_than_those_it_is_judged_on():
    result = _audit(1.0, 5, canaries=601)
    assert result.chosen_on == 200
    assert result.errors.n_in + result.errors.n_out == 401 == result.guesses.canaries
    rng = np.random.default_rng(6)
    included = rng.random(900) < 0.5
    scores = rng.normal(0, 1, 900) + included
    first = audit_canaries(included, scores, CLAIM, np.random.default_rng(0))
    judged = np.random.default_rng(0).permutation(900)[300:]
    scores[judged] += 7.0  # moves every canary that counts, none that the threshold saw
    second = audit_canaries(included, scores, CLAIM, np.random.default_rng(0))
    assert first.threshold == second.threshold
    assert second.errors.false_positives == second.errors.n_out


def test_scores_point_up_for_a_canary_that_was_pushed_down_and_weigh_steps_alike():
    sent = np.array([[0.0, 0.0], [1.0, 1.0]])
    replied = np.array([[-0.4, 0.1], [0.8, 1.0]])
    assert canary_scores(sent, replied, [2.0, 1.0]).tolist() == pytest.approx([0.4, -0.05])


@pytest.mark.parametrize(
    "impossible",
    [
        lambda: Claim(math.inf, 1e-5, 0.05),
        lambda: Claim(0.0, 1e-5, 0.05),
        lambda: Claim(1.0, 0.0, 0.05),
        lambda: Claim(1.0, 1e-5, 1.0),
        lambda: _audit(1.0, 0, canaries=59),
        lambda: audit_canaries(
            np.ones(90, dtype=bool), np.arange(90.0), CLAIM, np.random.default_rng(0)
        ),
        lambda: audit_canaries(
            np.arange(90) % 2 == 0, np.full(90, math.nan), CLAIM, np.random.default_rng(0)
        ),
        lambda: audit_canaries(
            np.arange(90) % 2 == 0, np.arange(91.0), CLAIM, np.random.default_rng(0)
        ),
        lambda: canary_scores(np.zeros((2, 3)), np.zeros((2, 3)), [1.0]),
        lambda: canary_scores(np.zeros((1, 3)), np.zeros((1, 3)), [0.0]),
    ],
)
def test_what_cannot_be_judged_is_refused(impossible):
    with pytest.raises(DataError):
        impossible()
