"""Facts of a run whose sites are elsewhere: what the plan says and what the sites' replies state.

A coordinator sees no ledger and no image. What only a site knows is in the site's own facts, and
the report says NOT RECORDED.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synth_common.facts import Fact
from synth_common.messages import Values
from synth_common.plan import Plan
from synth_server.release_store import Release

_SOURCE = "synth_server.deployed"
_STATED = ("epsilon", "noise_multiplier", "sample_rate", "steps", "ledger_head")


def data_facts(plan: Plan) -> list[Fact]:
    """What is agreed about the images."""
    source, made = f"{_SOURCE}.data_facts", plan.generator
    shape = {"size": made.size, "channels": made.channels, "with_mask": made.with_mask}
    kind = {"kind": "each hospital holds its own images"}
    return [
        Fact("data.classes", list(made.classes), "public", source),
        Fact("data.shape", shape, "public", source),
        Fact("data.partition", kind, "public", source),
    ]


def stated_facts(plan: Plan, number: int, replies: Mapping[str, Values]) -> list[Fact]:
    """The guarantee of every site that replied in a round, as its ledger states it.

    Args:
        plan: Gives what is the same at every site.
        number: The round; 0 for the release.
        replies: Public values by site.
    """
    source = f"{_SOURCE}.stated_facts"
    facts = []
    for site, values in sorted(replies.items()):
        if "epsilon" not in values:
            continue
        stated = {key: values[key] for key in _STATED if key in values}
        whole = {**_agreed(plan), **stated}
        epsilon = values["epsilon"]
        facts += [
            Fact("privacy.epsilon", epsilon, "public", source, site=site, round=number),
            Fact("privacy.site", whole, "public", source, site=site),
        ]
    return facts


def release_values(release: Release) -> dict[str, Values]:
    """What every site in a release stated, as a reply to a round would."""
    return {
        site: {
            "epsilon": epsilon,
            "noise_multiplier": release.noise_multipliers[site],
            "sample_rate": 1.0,
            "steps": 0,
        }
        for site, epsilon in release.epsilons.items()
    }


def _agreed(plan: Plan) -> dict[str, Any]:
    """What the plan says of every site's guarantee."""
    terms = plan.privacy
    return {
        "target_epsilon": terms.epsilon,
        "delta": terms.delta,
        "accountant": terms.accountant,
        "clip_norm": terms.clip_norm if terms.private else None,
        "max_images_per_patient": terms.max_images_per_patient,
        "denominator": plan.training.patients_per_step,
    }
