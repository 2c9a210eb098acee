"""The rows of a comparison: what a run recorded, as one line, and lines over several seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from synth_common.facts import Fact
from synth_sim.scenario import Scenario

_SOURCE = "synth_sim.compare.run_comparison"
_METRICS = ("frechet", "kid", "precision", "recall", "density", "coverage")


def row_fact(generator: str, scenario: Scenario, facts: Sequence[Fact], report: str) -> Fact:
    """One line of the table: means over the sites, and the strongest attack on any.

    Args:
        generator: What the comparison calls it: a family, or a recipe's name.
        scenario: What ran.
        facts: What the run recorded.
        report: Its report, relative to the comparison.
    """
    row: dict[str, Any] = {
        "generator": generator,
        "family": scenario.generator.family,
        "epsilon": scenario.privacy.epsilon,
        "seed": scenario.seed,
        "unit": scenario.privacy.unit,
        "delta": scenario.privacy.delta,
        "noise": scenario.privacy.noise,
        **_privacy_columns(facts),
        **_quality_columns(facts),
        **_utility_columns(facts),
        **_segmentation_columns(facts),
        **_anomaly_columns(facts),
        **_augmentation_columns(facts),
        **_fairness_columns(facts),
        **_attack_columns(facts),
        **_cost_columns(facts),
        "report": report,
    }
    # What was not measured has no column: the page then says NOT RECORDED.
    row = {name: value for name, value in row.items() if value is not None}
    detail = {
        "aggregation": "mean over sites; membership: the highest AUC of any site and attack; "
        "worst_group: the lowest score of any group"
    }
    return Fact("compare.row", row, "site-local", _SOURCE, detail=detail)


def summary_facts(rows: Sequence[Fact]) -> list[Fact]:
    """One line per generator and epsilon that ran with several seeds: mean and range.

    A column that any of the seeds lacks has no mean; of a text, what the seeds gave is listed.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for fact in rows:
        groups.setdefault((fact.value["generator"], fact.value["epsilon"]), []).append(fact.value)
    facts = []
    for same in groups.values():
        if len(same) < 2:
            continue
        first, seeds = same[0], [row["seed"] for row in same]
        kept = ("generator", "family", "epsilon", "unit", "delta", "noise")
        value = {name: first[name] for name in kept} | {"seeds": seeds}
        for name in first:
            numbers = [row.get(name) for row in same]
            if name not in (*kept, "seed") and all(_is_number(n) for n in numbers):
                value[name] = _mean(numbers)
                value[f"{name}_interval"] = [min(numbers), max(numbers)]  # type: ignore[type-var]
            elif name not in (*kept, "report") and all(isinstance(n, str) for n in numbers):
                value[name] = ", ".join(dict.fromkeys(map(str, numbers)))
        detail = {"aggregation": "mean over seeds; interval: least and most of any seed"}
        facts.append(Fact("compare.seeds", value, "site-local", _SOURCE, detail=detail))
    return facts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mean(values: Sequence[Any]) -> float | None:
    """Mean of the numbers among ``values``; None without one."""
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def _privacy_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    spent = [f.value["epsilon"] for f in last_facts(facts, "privacy.site")]
    return {"epsilon_spent": max(spent, key=float, default=None)}


def _quality_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """Each distance in each feature space, diversity, and pixel scores where there are any."""
    columns: dict[str, Any] = {}
    for metric in _METRICS:
        found = last_facts(facts, f"quality.{metric}")
        for encoder in dict.fromkeys(str(f.detail.get("encoder")) for f in found):
            space = _space(encoder)
            same = [f for f in found if f.detail.get("encoder") == encoder]
            columns[f"{metric}_{space}"] = _mean([f.value for f in same])
            columns[f"{metric}_{space}_floor"] = _mean([f.detail.get("floor") for f in same])
    for metric in ("ms_ssim_diversity", "inception_score"):
        columns[metric] = _mean([f.value for f in last_facts(facts, f"quality.{metric}")])
    for score in ("ssim", "psnr"):
        values = [f.value.get(score) for f in last_facts(facts, "quality.reconstruction")]
        columns[score] = _mean(values)
    return columns


def _space(encoder: str) -> str:
    """What a comparison calls a feature space: its own two by kind, a file's by its name."""
    if encoder.startswith("radiomics"):
        return "radiomics"
    own = encoder.startswith(("random convolutions", "SimCLR"))
    return "network" if own else re.sub(r"[^a-z0-9]+", "_", encoder.lower()).strip("_")


def _pooled(facts: Sequence[Fact], name: str) -> list[Fact]:
    """The facts of a name that speak of all sites together."""
    return [fact for fact in last_facts(facts, name) if fact.site is None]


def _utility_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """Pooled balanced accuracy by what was trained on, with its interval."""
    columns: dict[str, Any] = {}
    for fact in _pooled(facts, "utility.classification"):
        trained_on = fact.detail.get("trained_on")
        columns[f"utility_{trained_on}"] = fact.value.get("balanced_accuracy")
        columns[f"utility_{trained_on}_interval"] = fact.detail.get("interval")
    return columns


def _segmentation_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """Pooled Dice and surface distance by what was trained on, with their intervals."""
    columns: dict[str, Any] = {}
    for fact in _pooled(facts, "utility.segmentation"):
        trained_on = fact.detail.get("trained_on")
        columns[f"dice_{trained_on}"] = fact.value.get("dice")
        columns[f"dice_{trained_on}_interval"] = fact.detail.get("interval")
        if trained_on == "synthetic":
            columns["dice_ratio_to_real"] = fact.value.get("ratio_to_real")
            columns["dice_ratio_to_real_interval"] = fact.detail.get("ratio_interval")
        distance = f"surface_distance_{trained_on}_{fact.detail.get('distance_unit')}"
        columns[distance] = fact.value.get("surface_distance")
        columns[f"{distance}_interval"] = fact.detail.get("surface_interval")
        columns[f"surface_distance_{trained_on}_mm"] = fact.value.get("surface_distance_mm")
        columns[f"surface_distance_{trained_on}_mm_interval"] = fact.detail.get(
            "surface_mm_interval"
        )
    return columns


def _anomaly_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """AUROC of the detectors that remember synthetic normal images, beside real ones."""
    columns: dict[str, Any] = {}
    for fact in _pooled(facts, "utility.anomaly"):
        trained_on = fact.detail.get("trained_on")
        if trained_on in ("synthetic", "real"):
            columns[f"anomaly_auroc_{trained_on}"] = fact.value.get("auroc")
            columns[f"anomaly_auroc_{trained_on}_interval"] = fact.detail.get("interval")
    return columns


def _augmentation_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """What synthetic images add at the smallest share of the real patients that was tried."""
    added = [
        fact
        for fact in _pooled(facts, "utility.augmentation")
        if fact.detail.get("trained_on") == "both"
    ]
    if not added:
        return {}
    least = min(added, key=lambda fact: float(fact.detail["share"]))
    # The share is part of the name: gains at different shares are not one column.
    name = f"augmentation_gain_at_{100 * least.detail['share']:g}pct"
    return {name: least.value.get("gain"), f"{name}_interval": least.detail.get("gain_interval")}


def _fairness_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """The lowest score of any group with figures, and what real images give the same group."""
    groups = _pooled(facts, "fairness.group")
    shown = [
        fact
        for fact in groups
        if fact.detail.get("trained_on") == "synthetic" and _is_number(fact.value.get("score"))
    ]
    if not shown:
        return {}
    worst = min(shown, key=lambda fact: float(fact.value["score"]))
    who = (worst.detail["dimension"], worst.detail["group"])
    columns: dict[str, Any] = {"worst_group": " ".join(who)}
    for fact in groups:
        trained_on = fact.detail.get("trained_on")
        same = (fact.detail["dimension"], fact.detail["group"]) == who
        if same and trained_on in ("synthetic", "real"):
            columns[f"worst_group_{trained_on}"] = fact.value.get("score")
            columns[f"worst_group_{trained_on}_interval"] = fact.detail.get("interval")
    return columns


def _attack_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """The strongest attack on any site."""
    attacks = [
        f
        for f in last_facts(facts, "membership.attack")
        if isinstance(f.value.get("auc"), int | float)
    ]
    if not attacks:
        return {"membership_auc": None}
    worst = max(attacks, key=lambda fact: float(fact.value["auc"]))
    return {
        "membership_auc": worst.value["auc"],
        "membership_auc_interval": worst.value.get("auc_interval"),
        "membership_tpr_at_1pct_fpr": worst.value.get("tpr_at_1pct_fpr"),
        "membership_attack": worst.value.get("attack"),
    }


def _cost_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """Seconds, memory, bytes sent and rounds.

    Bytes are those of tensors: models to the sites and back in every round, and every vector
    that came for the release, whose requests hold none.
    """
    seconds = {f.detail.get("phase"): f.value for f in facts if f.name == "run.seconds"}
    rounds = {f.round: f.value for f in facts if f.name == "federation.round"}
    released = last_facts(facts, "release.embedding")
    peak = [f.value for f in facts if f.name == "run.peak_memory_bytes"]
    ended = [f.value for f in facts if f.name == "run.rounds"]
    return {
        "seconds": seconds.get("total"),
        "training_seconds": seconds.get("training"),
        "peak_memory_bytes": peak[-1] if peak else None,
        "bytes_sent": sum(v["bytes_down"] + v["bytes_up"] for v in rounds.values())
        + sum(f.value["bytes_up"] for f in released),
        "rounds": ended[-1]["completed"] if ended else None,
    }


def last_facts(facts: Sequence[Fact], name: str) -> list[Fact]:
    """The facts of a name, a repeated recording (a resumed run) counted once."""
    from synth_common.reporting.factbook import FactBook

    return FactBook(facts).all(name)
