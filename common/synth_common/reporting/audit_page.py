"""The page of an audit: verdict, gates, three views, and what was not tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from synth_common.reporting.audit_plots import auc_plot, group_plot, roc_plot
from synth_common.reporting.factbook import MISSING
from synth_common.reporting.gate_words import gate_words
from synth_common.reporting.html import embedded, environment
from synth_common.reporting.numbers import epsilon_text, measured, number, setting

VIEWS: Final[Mapping[str, tuple[str, str]]] = {
    "images": (
        "Images only",
        "The adversary holds the released images and images of other people, nothing else.",
    ),
    "model": (
        "The released model",
        "The adversary holds the weights of the generator.",
    ),
    "server": (
        "A curious server",
        "The adversary ran the coordinator and kept what every site sent in every round.",
    ),
}

_BADGES: Final[Mapping[str, tuple[str, str, str]]] = {
    "pass": (
        "good",
        "PASSED: every gate that the policy requires",
        "No attack that was run found what the policy forbids, at the power stated below. It "
        "is a statement about these attacks and these numbers, not a proof. An optional gate that "
        "was not run is counted as not run.",
    ),
    "fail": (
        "danger",
        "FAILED: do not release",
        "At least one gate of the policy failed. The gates below say which and why.",
    ),
    "not resolvable": (
        "caution",
        "UNDECIDED: not every gate could be decided",
        "No gate failed, but these numbers cannot show what the policy asks for.",
    ),
    "not run": (
        "caution",
        "UNDECIDED: a gate that the policy requires was not run",
        "No gate failed, but the policy asks for more than was given.",
    ),
}

_MARKS: Final[Mapping[str, str]] = {
    "pass": "✔",
    "fail": "✖",
    "not resolvable": "▲",
    "not run": "–",
}


def render_audit(audit: Mapping[str, Any], out: Path) -> str:
    """Render an audit as HTML that needs no script, no network and no other file.

    Args:
        audit: From :func:`synth_common.reporting.audit_report.build_audit`.
        out: Where the picture of pairs lies.

    Returns:
        A whole HTML document.
    """
    tone, title, text = _BADGES.get(
        str(audit["verdict"]), ("danger", f"VERDICT {MISSING}", "No verdict was recorded.")
    )
    views = [_view(audit, name) for name in VIEWS]
    pairs = audit["pairs"]
    return (
        environment()
        .get_template("audit.html.j2")
        .render(
            audit=audit,
            badge={"tone": tone, "title": title, "text": text},
            gates=[_gate(g) for g in audit["gates"]],
            figures=_figures(audit),
            views=views,
            groups=_groups(audit["groups"]),
            group_plot=group_plot(_groups(audit["groups"])),
            pairs=embedded(out, pairs) if isinstance(pairs, str) and pairs != MISSING else None,
            marks=_MARKS,
        )
    )


def _gate(gate: Mapping[str, Any]) -> dict[str, Any]:
    """A gate in words."""
    view = VIEWS.get(str(gate["view"]), (str(gate["view"]), ""))[0]
    return {
        **gate,
        **gate_words(gate),
        "where": view,
        "mark": _MARKS.get(str(gate["outcome"]), "?"),
        "optional": gate["required"] is False,
    }


def _figures(audit: Mapping[str, Any]) -> list[dict[str, str]]:
    """The tiles: gates, strongest attack, copies, guarantee."""
    gates, attacks = audit["gates"], audit["attacks"]
    passed = sum(g["outcome"] == "pass" for g in gates)
    strongest = max(attacks, key=lambda a: number(a["auc"]) or 0.0, default=None)
    copies, ceiling = audit["near_copies"], audit["ceiling"]
    return [
        {
            "name": "Gates passed",
            "value": f"{passed} of {len(gates)}" if gates else MISSING,
            "text": ", ".join(
                f"{sum(g['outcome'] == o for g in gates)} {o}"
                for o in ("fail", "not resolvable", "not run")
            ),
        },
        {
            "name": "Strongest attack, AUC",
            "value": measured(strongest["auc"]) if strongest else MISSING,
            "text": f"{strongest['attack']}; 0.5 is guessing" if strongest else "",
        },
        {
            "name": "Near-copies of members",
            "value": measured(copies["of_members"]),
            "text": f"of {measured(copies['synthetic'])} images; of non-members: "
            f"{measured(copies['of_nonmembers'])}",
        },
        {
            "name": "Guarantee, epsilon",
            "value": MISSING if ceiling is None else epsilon_text(ceiling["epsilon"]),
            "text": "per patient; none was recorded or stated"
            if ceiling is None
            else f"delta {setting(ceiling['delta'])}, {ceiling['origin']}",
        },
    ]


def _view(audit: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One adversary's attacks with their plots."""
    title, text = VIEWS[name]
    own = [a for a in audit["attacks"] if a["view"] == name]
    return {
        "name": name,
        "title": title,
        "text": text,
        "attacks": own,
        "auc_plot": auc_plot(f"auc-{name}", own),
        "roc_plot": roc_plot(f"roc-{name}", own, audit["ceiling"]),
        "roc": [a for a in own if isinstance(a["roc"], list) and a["roc"]],
    }


def _groups(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The strongest attack in every group and view, and how many looks there were."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault((str(record["group"]), str(record["view"])), []).append(record)
    lines = []
    for (_, view), members in found.items():
        worst = max(members, key=lambda a: number(a["auc"]) or 0.0)
        verdicts = {str(a["verdict"]) for a in members}
        order = ("found", "not resolvable", "not found")
        verdict = next((v for v in order if v in verdicts), MISSING)
        lines.append({**worst, "looks": len(members), "verdict": verdict, "where": VIEWS[view][0]})
    return lines
