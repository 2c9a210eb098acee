"""What a plan promises a patient, in words: the same in facts, reports and statements."""

from __future__ import annotations

from collections.abc import Mapping

from synth_common.plan import Plan, Unit

ADJACENCY: Mapping[Unit, str] = {
    "patient": "add or remove one patient (all of the patient's images)",
    "image": "add or remove one image",
}
"""Neighbouring data sets, by the unit that is hidden."""

_LOCAL = (
    "A patient trusts the own hospital alone: every update that leaves it already carries the "
    "noise of the stated epsilon."
)


def trust_words(plan: Plan) -> str:
    """The trust model in words; without noise there is none to speak of."""
    terms, embedding = plan.privacy, plan.release.embedding
    if not terms.private:
        return (
            "Trained without noise: a patient must trust everyone who sees an update or an image."
        )
    if terms.trust_model == "local" or embedding is None:
        return _LOCAL
    others = {0: "none", 1: "at most one"}.get(
        embedding.colluders, f"at most {embedding.colluders}"
    )
    words = (
        "For the vector that every hospital sent once, a patient trusts the own hospital, and that "
        f"{others} of the others shares what it knows with the coordinator: the coordinator "
        "learnt the sum over the hospitals only, and the noise of the stated epsilon is in that "
        "sum, each hospital having added a part."
    )
    if plan.training.rounds:
        words += " In training rounds a patient trusts the own hospital alone."
    return words
