"""One copy in a hundred images is found, however the copies are disguised; fresh images pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_sets import People, nobodys, phantoms, planted

from synth_common.audit.battery import Copies, search_copies
from synth_common.audit.gates import Outcome, decide
from synth_common.audit.judging import judge
from synth_common.audit.policy import read_policy
from synth_common.images.imageset import ImageSet

PATIENTS = 1200
SHARE = 0.01
LOOKS = 30
"""More attacks and tests than a whole audit corrects for."""


@pytest.fixture(scope="module")
def drawn() -> People:
    members, others, fresh = (phantoms(PATIENTS, seed) for seed in (41, 42, 43))
    return People(members, others, others, fresh)


def _searched(synthetic: ImageSet, drawn: People) -> tuple[Copies, Outcome]:
    """The search for near-copies, and its gate in the packaged policy."""
    policy = read_policy(None).policy
    similar = policy.copy_similarity
    found = search_copies(nobodys(synthetic), drawn.members, drawn.others, similar)
    results = judge([], [], [], found, policy, None)
    gates = decide(results, policy)
    return found, next(g.outcome for g in gates if g.gate.measure == "near-copies")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [0, 1, 2, 3, None],
    ids=["as they are", "mirrored", "moved", "another contrast", "of all kinds"],
)
def test_one_percent_of_planted_copies_is_found(drawn: People, kind: int | None) -> None:
    synthetic, count = planted(drawn, SHARE, kind)
    found, outcome = _searched(synthetic, drawn)
    assert count == 12
    assert outcome == "fail"
    assert found.of_nonmembers == 0
    assert found.patients == (found.of_members, 0)
    assert count - 1 <= found.of_members <= count
    # Of all looks of an audit together, half of alpha is for those at all patients.
    assert found.difference.chance * LOOKS < 0.025
    pairs = {(int(s), int(r)) for s, r in found.pairs[: found.of_members]}
    assert pairs <= {(i, 7 * i) for i in range(count)}


@pytest.mark.slow
def test_fresh_images_pass_and_so_do_copies_of_others(drawn: People) -> None:
    """What is copied from people who were not trained on is no leak of the members'."""
    found, outcome = _searched(drawn.fresh, drawn)
    assert (found.of_members, found.of_nonmembers, outcome) == (0, 0, "pass")
    swapped = replace(drawn, members=drawn.others, others=drawn.members)
    synthetic, count = planted(drawn, SHARE)
    found, outcome = _searched(synthetic, swapped)
    assert (found.of_members, outcome) == (0, "pass")
    assert found.of_nonmembers >= count - 1
    assert np.isclose(found.difference.chance, 1.0)
