"""What a reader of a report must not overlook, derived from its recorded values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from synth_common.reporting.factbook import MISSING
from synth_common.reporting.numbers import epsilon_text, number, setting

# Everything without which a report cannot be judged, by its path in the report.
_ESSENTIAL = {
    ("privacy", "unit"): "whose presence the guarantee hides",
    ("privacy", "delta"): "delta",
    ("privacy", "trust_model", "name"): "the trust model",
    ("privacy", "noise_source", "kind"): "where the noise was drawn",
    ("run", "simulation"): "whether one machine played every hospital",
    ("plan", "digest"): "the digest of the federation plan",
}


def notices(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The notices of a report, gravest first.

    Args:
        report: A report without its ``warnings``.

    Returns:
        Records ``{"code", "severity": "danger"|"caution"|"note", "title", "text"}``.
    """
    found = [*_on_guarantee(report), *_on_course(report), *_on_reading(report)]
    rank = ("danger", "caution", "note")
    return sorted(found, key=lambda notice: rank.index(notice["severity"]))


def is_private(site: Mapping[str, Any]) -> bool | None:
    """Whether a site's recorded epsilon is finite; None where it is not recorded."""
    if number(site["epsilon"]) is not None:
        return True
    return False if site["epsilon"] in ("inf", "nan") else None


def over_target(site: Mapping[str, Any]) -> bool:
    """Whether a site's epsilon is above the target it was given."""
    spent, target = number(site["epsilon"]), number(site["target_epsilon"])
    return spent is not None and target is not None and spent > target


def _notice(code: str, severity: str, title: str, text: str) -> dict[str, Any]:
    """One notice."""
    return {"code": code, "severity": severity, "title": title, "text": text}


def _on_guarantee(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Notices on what is promised to a patient."""
    privacy = report["privacy"]
    sites = privacy["sites"]
    if any(is_private(s) is False for s in sites):
        yield _notice(
            "no-privacy",
            "danger",
            "No privacy guarantee",
            "This run trained without noise (epsilon = infinity). It exists to show what privacy "
            "costs. Neither its generator nor its images may be released.",
        )
    for site in filter(over_target, sites):
        yield _notice(
            "over-target",
            "danger",
            f"Epsilon above target at {site['name']}",
            f"{site['name']} has spent epsilon {epsilon_text(site['epsilon'])}; its target was "
            f"{setting(site['target_epsilon'])}.",
        )
    noiseless = bool(sites) and all(is_private(s) is False for s in sites)
    if privacy["noise_source"]["kind"] == "simulation" and not noiseless:
        yield _notice(
            "simulation-noise",
            "caution",
            "SIMULATION NOISE: NOT A RELEASE",
            "The noise was drawn from a seeded generator so that the run can be repeated. Whoever "
            "knows the seed can remove it. The epsilons below are those a run with secure noise "
            "would have; this run's generator and images must not be released.",
        )
    if privacy["unit"] == "image":
        yield _notice(
            "image-unit",
            "caution",
            "The guarantee protects an image, not a patient",
            "The source has no patient ids, so every image counts as one unit. A patient with "
            "several images is protected less than the epsilons below say, and the less the more "
            "images there are of that patient.",
        )


def _on_course(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Notices on how the run went."""
    rounds, failures = report["run"]["rounds"], report["federation"]["failures"]
    planned, completed = number(rounds["planned"]), number(rounds["completed"])
    if planned is not None and completed is not None and completed < planned:
        yield _notice(
            "ended-early",
            "caution",
            "Ended before its last round",
            f"{setting(rounds['completed'])} of {setting(rounds['planned'])} rounds were "
            f"completed. Why it ended: {rounds['ended']}.",
        )
    for failure in failures:
        yield _notice(
            "site-failure",
            "caution",
            f"{failure['site']} failed {_when(failure['round'])}",
            f"{failure['code']}: {failure['reason']}",
        )
    for warning in report["training"]["warnings"]:
        yield _notice(
            "training-health",
            "caution",
            f"Training health, {_when(warning['round'])}",
            str(warning["text"]),
        )
    for resume in report["run"]["resumed"]:
        known = resume if isinstance(resume, Mapping) else {}
        at = known.get("at", f"round {known.get('at_round', MISSING)}")  # as older runs say it
        yield _notice(
            "resumed",
            "note",
            "Interrupted and resumed",
            f"The run was stopped and continued at {at}. Privacy spent before the "
            "interruption is counted in the ledgers.",
        )


def _when(number: Any) -> str:
    """The round of a failure in words."""
    return "the release" if number == 0 else f"round {number or MISSING}"


def _on_reading(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Notices on how far the report itself can be trusted and shown."""
    absent = [meaning for path, meaning in _ESSENTIAL.items() if _at(report, path) == MISSING]
    if not report["privacy"]["sites"]:
        absent.append("the privacy spent by any hospital")
    absent += [
        f"the epsilon of {site['name']}"
        for site in report["privacy"]["sites"]
        if is_private(site) is None
    ]
    if absent:
        yield _notice(
            "not-recorded",
            "danger",
            f"{MISSING}: essential facts are missing",
            "This report cannot support a decision, because the run did not record "
            + "; ".join(absent)
            + ".",
        )
    for fact in report["membership"]["attacks"]:
        interval = fact["control_interval"]
        if isinstance(interval, list) and not interval[0] <= 0.5 <= interval[1]:
            yield _notice(
                "attack-control",
                "caution",
                f"Membership control failed at {fact['site'] or 'the pooled set'}",
                f"The control of attack {fact['attack']} compares members with members and should "
                "find nothing, yet its interval does not hold 0.5. Read this attack's result with "
                "care.",
            )
    if any(sample["kind"] == "real" for sample in report["samples"]):
        yield _notice(
            "real-patients",
            "danger",
            "Shows images of real patients",
            "This copy holds images of real patients. It must not leave the place that may hold "
            "them.",
        )
    if report["run"]["simulation"] is True:
        yield _notice(
            "simulation",
            "note",
            "One machine played every hospital",
            "Figures marked site-local were computed on each hospital's own private images "
            "without a privacy charge. In a real federation they would stay inside the hospital; "
            "they stand in one report only because this is a simulation.",
        )


def _at(report: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a path of keys."""
    value: Any = report
    for key in path:
        value = value[key]
    return value
