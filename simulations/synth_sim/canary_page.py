"""The result of a canary audit in words: for the terminal and for ``canaries.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ENOUGH = 0.5
"""With less power than this against half the noise, an audit that finds nothing says nothing."""


def audit_lines(site: str, value: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of every line of a result.

    Args:
        site: The audited site.
        value: Value of the ``audit.canaries`` fact.
    """
    claim, errors, guesses = value["claim"], value["errors"], value["guesses"]
    power, sure = value["power"], 100 * (1 - claim["alpha"])
    return [
        ("site", site),
        ("claimed epsilon", f"{claim['epsilon']:.3f} at delta {claim['delta']:g}"),
        ("verdict", _verdict(value)),
        (
            "lower bound on epsilon",
            f"{value['cp_gdp']:.3f} with {sure:g} % confidence (CP-GDP; decides)",
        ),
        ("f-DP, one run", f"{value['fdp']:.3f} (reported)"),
        ("Jagielski", f"{value['jagielski']:.3f} (reported; any mechanism)"),
        ("Steinke, one run", f"{value['steinke']:.3f} (reported; any mechanism)"),
        (
            "canaries",
            f"{value['canaries']}: threshold chosen on {value['chosen_on']}, judged on "
            f"{errors['n_in']} in and {errors['n_out']} out, over {value['rounds']} rounds",
        ),
        (
            "errors",
            f"{errors['false_positives']} false positives, "
            f"{errors['false_negatives']} false negatives; AUC {value['auc']:.3f}",
        ),
        ("guesses", f"{guesses['right']} right of {guesses['made']}"),
        (
            "power",
            f"{_share(power['half_noise'])} to refute the claim if the noise were half",
        ),
        (
            "detectable",
            f"a true epsilon of {power['detectable_epsilon']:.1f} or more, with 80 % power",
        ),
        (
            "efficiency",
            f"{100 * power['efficiency']:.0f} % of the separation that the claim allows",
        ),
    ]


def _verdict(value: Mapping[str, Any]) -> str:
    """The verdict; one that could hardly have been another says so at once."""
    words, half = str(value["verdict"]).upper(), value["power"]["half_noise"]
    if value["verdict"] == "claim refuted" or half >= _ENOUGH:
        return words
    return (
        f"{words}, BUT INCONCLUSIVE: with half the noise it would have been refuted with "
        f"probability {_share(half)}; take more --canaries"
    )


def _share(probability: float) -> str:
    """A probability in per cent; one that rounds to certainty is not called certain."""
    return "more than 99.9 %" if probability > 0.999 else f"{100 * probability:.1f} %"


def audit_page(site: str, value: Mapping[str, Any]) -> str:
    """The result as Markdown, with what it can and cannot say."""
    rows = "\n".join(f"| {name} | {text} |" for name, text in audit_lines(site, value))
    return f"""# Canary audit of {site}

| | |
|---|---|
{rows}

The lower bound is what an attack on this run has shown; the claimed epsilon is what the
ledger adds up. A bound above the claim refutes the claim. A bound below it refutes nothing
and says no more than that: the power tells how much that is worth. The deciding bound takes
it for granted that the noise is Gaussian, as the plan says; the bounds marked "any
mechanism" do not, and need far more canaries. A canary sees the draw of patients, the clip,
the noise and the accounting; it does not see a leak through any other tensor, nor who can
read the hospital's disk.
"""
