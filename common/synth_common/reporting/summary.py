"""The first screen in words: badge, key figures and a paragraph, all from the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synth_common.reporting.factbook import MISSING, POOLED
from synth_common.reporting.notices import is_private, over_target
from synth_common.reporting.numbers import epsilon_text, interval, measured, number, setting
from synth_common.reporting.words import FAMILIES

_NAMED = 5  # more hospitals than this are counted, not listed


def badge(report: Mapping[str, Any]) -> dict[str, str]:
    """The verdict on the guarantee: ``{"tone", "title", "text"}``.

    Red for a run without noise, for one above a target and for one whose privacy is not
    recorded. Amber for simulation noise or a guarantee per image. Green only when every
    site has a finite recorded epsilon within its target, per patient, from secure noise.
    """
    privacy = report["privacy"]
    sites = privacy["sites"]
    unit = str(privacy["unit"])
    if any(is_private(s) is False for s in sites):
        return {
            "tone": "danger",
            "title": "NO PRIVACY GUARANTEE (epsilon = inf)",
            "text": "Trained without noise, to show what privacy costs. Not to be released.",
        }
    if not sites or any(is_private(s) is None for s in sites) or unit == MISSING:
        return {
            "tone": "danger",
            "title": f"PRIVACY {MISSING}",
            "text": "The run did not record what every hospital's guarantee is.",
        }
    worst = most_spent(sites)
    whom = {"image": "per IMAGE, not per patient"}.get(unit, f"per {unit.upper()}")
    text = (
        f"Highest of {_hospitals(sites)}; target {setting(worst['target_epsilon'])}, "
        f"delta {setting(privacy['delta'])}."
    )
    spent = epsilon_text(worst["epsilon"])
    if any(over_target(s) for s in sites):
        return {"tone": "danger", "title": f"ABOVE TARGET: epsilon {spent} {whom}", "text": text}
    if privacy["noise_source"]["kind"] != "secure":
        title = f"PRIVATE: epsilon {spent} {whom}; simulation noise: not a release"
        if privacy["noise_source"]["kind"] == MISSING:
            title = f"PRIVATE: epsilon {spent} {whom}, if the noise was secure ({MISSING})"
        return {"tone": "caution", "title": title, "text": text}
    tone = "caution" if unit == "image" else "good"
    return {"tone": tone, "title": f"PRIVATE: epsilon {spent} {whom}", "text": text}


def most_spent(sites: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The site with the highest finite recorded epsilon."""
    return max(sites, key=lambda s: number(s["epsilon"]) or 0.0)


def strongest_attack(report: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The membership attack with the highest recorded AUC."""
    attacks = [a for a in report["membership"]["attacks"] if number(a["auc"]) is not None]
    return max(attacks, key=lambda a: number(a["auc"]) or 0.0, default=None)


@dataclass(frozen=True)
class Task:
    """What usefulness was measured by: a key of ``report["utility"]``, its score, and words."""

    key: str
    score: str
    title: str
    model: str


_CLASSIFY = Task("classification", "balanced_accuracy", "balanced accuracy", "classifier")
_SEGMENT = Task("segmentation", "dice", "Dice", "segmenter")


def utility_of(
    report: Mapping[str, Any], trained_on: str, task: Task = _CLASSIFY
) -> Mapping[str, Any] | None:
    """The pooled utility record of a training set; else the weakest hospital's."""
    found = [
        r
        for r in report["utility"][task.key]
        if r["trained_on"] == trained_on and number(r[task.score]) is not None
    ]
    pooled = [r for r in found if r["site"] is None]
    return min(pooled or found, key=lambda r: number(r[task.score]) or 0.0, default=None)


def _tasks(report: Mapping[str, Any]) -> list[Task]:
    """The tasks of which a figure was recorded; classification where there is none."""
    recorded = [t for t in (_CLASSIFY, _SEGMENT) if utility_of(report, "synthetic", t)]
    return recorded or [_CLASSIFY]


def key_figures(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """The tiles under the summary: ``{"name", "value", "text"}``."""
    return [_spent_tile(report), _attack_tile(report), _utility_tile(report), _rounds_tile(report)]


def sentences(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The plain-language summary: what a board asks, each with its answer."""
    return [
        ("What was done", _what(report)),
        ("What is promised", _guarantee(report)),
        ("Whom to trust", _trust(report)),
        ("Membership risk", _membership(report)),
        ("Usefulness", _use(report)),
    ]


def _what(report: Mapping[str, Any]) -> str:
    """Who trained what, how long."""
    run, data = report["run"], report["data"]
    sites = report["privacy"]["sites"]
    names = [s["name"] for s in sites]
    listed = 0 < len(names) <= _NAMED
    who = f"{_hospitals(sites)} ({', '.join(names)})" if listed else _hospitals(sites)
    how = {True: " in a simulation on one machine", False: ""}.get(run["simulation"], "")
    family = report["generator"]["family"]
    size = data["shape"]["size"]
    classes = data["classes"]
    kinds = ", ".join(map(str, classes)) if isinstance(classes, list) else classes
    return (
        f"{who} together trained a {FAMILIES.get(family, family)}{how}, to make synthetic images "
        f"of {setting(size)} × {setting(size)} pixels (classes: {kinds}). {_course(report)}"
    )


def _course(report: Mapping[str, Any]) -> str:
    """How long it took, in rounds or as one release."""
    rounds = report["run"]["rounds"]
    if rounds["planned"] == 0:
        return "All of it was learnt from one release of every hospital; there were no rounds."
    first = "A release came first. " if report["privacy"]["release"] else ""
    return (
        f"{first}{setting(rounds['completed'])} of {setting(rounds['planned'])} planned "
        "rounds were completed."
    )


def _guarantee(report: Mapping[str, Any]) -> str:
    """The epsilon of each hospital against its target."""
    privacy = report["privacy"]
    sites = privacy["sites"]
    if any(is_private(s) is False for s in sites):
        return (
            "Training added no noise, so there is NO PRIVACY GUARANTEE for anyone whose images "
            "were used."
        )
    if not sites:
        return f"The privacy spent by the hospitals is {MISSING}."
    whom = {
        "patient": "each patient, with all images of that patient together",
        "image": "each single image, not each patient",
    }.get(privacy["unit"], str(privacy["unit"]))
    if len(sites) <= _NAMED:
        spent = ", ".join(
            f"{s['name']} {epsilon_text(s['epsilon'])} of {setting(s['target_epsilon'])}"
            for s in sites
        )
    else:
        worst = most_spent(sites)
        spent = (
            f"at most {epsilon_text(worst['epsilon'])} of {setting(worst['target_epsilon'])} "
            f"({worst['name']})"
        )
    return (
        f"The differential-privacy guarantee covers {whom}. "
        f"Epsilon spent, against the target: {spent}; delta is {setting(privacy['delta'])}."
    )


def _trust(report: Mapping[str, Any]) -> str:
    """Whom a patient must trust."""
    trust = report["privacy"]["trust_model"]
    if any(is_private(s) is False for s in report["privacy"]["sites"]):
        return (
            "Everyone who received an update or an image of this run, because nothing was done to "
            f"hide a patient in them (trust model named in the plan: {trust['name']})."
        )
    return f"{str(trust['meaning']).rstrip('.')} (trust model: {trust['name']})."


def _membership(report: Mapping[str, Any]) -> str:
    """The strongest attack found."""
    attack = strongest_attack(report)
    if attack is None and report["membership"]["attacks"]:
        return "Membership risk was not tested: too few patients or images for the attacks."
    if attack is None:
        return f"Membership risk is {MISSING}: no attack on the synthetic images was recorded."
    count = len({a["attack"] for a in report["membership"]["attacks"]})
    kinds = (
        "The one membership attack"
        if count == 1
        else f"The strongest of {count} membership attacks"
    )
    return (
        f"{kinds} tried ({attack['attack']}, at {_where(attack)}) reached an AUC of "
        f"{measured(attack['auc'])} (interval {interval(attack['auc_interval'])}), where 0.5 is "
        f"guessing. Its verdict: {str(attack['verdict']).rstrip('.')}."
    )


def _use(report: Mapping[str, Any]) -> str:
    """What the synthetic images are good for, against real ones, task by task."""
    return " ".join(_use_for(report, task) for task in _tasks(report))


def _use_for(report: Mapping[str, Any], task: Task) -> str:
    """The sentence on one task."""
    synthetic, real = (utility_of(report, which, task) for which in ("synthetic", "real"))
    if synthetic is None:
        return (
            f"Usefulness is {MISSING}: no {task.model} trained on the synthetic images was "
            "recorded."
        )
    text = (
        f"A {task.model} trained on synthetic images alone reached a {task.title} of "
        f"{measured(synthetic[task.score])} (interval {interval(synthetic['interval'])}) "
        f"on real held-out patients ({_where(synthetic)})"
    )
    if real is None:
        return f"{text}; trained on real images: {MISSING}."
    where = "" if real["site"] == synthetic["site"] else f" ({_where(real)})"
    return (
        f"{text}; trained on real images it reached {measured(real[task.score])} "
        f"(interval {interval(real['interval'])}){where}."
    )


def _spent_tile(report: Mapping[str, Any]) -> dict[str, str]:
    """The highest epsilon."""
    sites = report["privacy"]["sites"]
    tile = {"name": "Highest epsilon spent", "text": "no hospital's ledger was recorded"}
    if not sites:
        return {**tile, "value": MISSING}
    infinite = [s for s in sites if is_private(s) is False]
    worst = infinite[0] if infinite else most_spent(sites)
    value = "∞" if infinite else epsilon_text(worst["epsilon"])
    text = f"target {setting(worst['target_epsilon'])}, at {worst['name']}"
    return {**tile, "value": value, "text": text}


def _attack_tile(report: Mapping[str, Any]) -> dict[str, str]:
    """The strongest attack."""
    attack = strongest_attack(report)
    tile = {"name": "Strongest membership attack, AUC", "text": "0.5 is guessing"}
    if attack is None and report["membership"]["attacks"]:
        return {**tile, "value": "not tested", "text": "too few patients or images"}
    if attack is None:
        return {**tile, "value": MISSING}
    return {
        **tile,
        "value": measured(attack["auc"]),
        "text": f"interval {interval(attack['auc_interval'])}; 0.5 is guessing",
    }


def _utility_tile(report: Mapping[str, Any]) -> dict[str, str]:
    """Synthetic against real."""
    task = _tasks(report)[0]
    synthetic, real = (utility_of(report, which, task) for which in ("synthetic", "real"))
    against = measured(real[task.score]) if real else MISSING
    return {
        "name": f"{task.title[:1].upper()}{task.title[1:]}, trained on synthetic",
        "value": measured(synthetic[task.score]) if synthetic else MISSING,
        "text": f"trained on real: {against}",
    }


def _rounds_tile(report: Mapping[str, Any]) -> dict[str, str]:
    """Rounds done, or messages where there are no rounds."""
    rounds, release = report["run"]["rounds"], report["privacy"]["release"]
    if rounds["planned"] == 0 and release:
        text = "attempts at one release; there were no rounds"
        return {
            "name": "Messages of a hospital",
            "value": setting(release["attempts"]),
            "text": text,
        }
    return {
        "name": "Rounds completed",
        "value": setting(rounds["completed"]),
        "text": f"of {setting(rounds['planned'])}; {rounds['ended']}",
    }


def _hospitals(sites: Sequence[Any]) -> str:
    """How many hospitals, in words."""
    if not sites:
        return f"Hospitals ({MISSING})"
    return "1 hospital" if len(sites) == 1 else f"{len(sites)} hospitals"


def _where(record: Mapping[str, Any]) -> str:
    """The place of a record in a sentence."""
    return record["site"] or POOLED.lower()
