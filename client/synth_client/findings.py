"""What ``synth-client doctor`` finds: one result per check, with the way to mend it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from synth_common.errors import ReadinessError, SynthwardError

Outcome = Literal["ok", "warning", "problem", "not run"]


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: What was looked at.
        outcome: ``warning`` needs care soon; ``problem`` would make a round fail; ``not run``
            says in ``found`` what stands in the way.
        found: What there is.
        fix: How to mend it; empty where there is nothing to mend.
    """

    check: str
    outcome: Outcome
    found: str
    fix: str = ""


class Symptom(SynthwardError):
    """A check found something: a problem, or a warning."""

    def __init__(self, found: str, fix: str, outcome: Outcome = "problem") -> None:
        super().__init__(found)
        self.found, self.fix, self.outcome = found, fix, outcome


@dataclass
class Examination:
    """Runs checks in order; one that needs what another did not give is not run."""

    findings: list[Finding] = field(default_factory=list)

    def check(
        self,
        name: str,
        look: Callable[[], str],
        fix: str = "",
        needs: Sequence[str] = (),
    ) -> None:
        """Run one check.

        Args:
            name: Of the check.
            look: Returns what it found; raises :class:`Symptom`, or any error of ours.
            fix: How to mend what an error of ours says.
            needs: Checks without which this one says nothing.
        """
        missing = [n for n in needs if not self.passed(n)]
        if missing:
            self.add(Finding(name, "not run", f"needs {' and '.join(missing)}, see there"))
            return
        try:
            self.add(Finding(name, "ok", look()))
        except Symptom as symptom:
            self.add(Finding(name, symptom.outcome, symptom.found, symptom.fix))
        except SynthwardError as err:
            self.add(Finding(name, "problem", str(err), fix))
        except Exception as err:  # a doctor that breaks off hides what it found before
            self.add(Finding(name, "problem", f"{type(err).__name__}: {err}", fix))

    def add(self, finding: Finding) -> None:
        """Write a result down."""
        self.findings.append(finding)

    def passed(self, name: str) -> bool:
        """Whether a check was run and found no problem."""
        return any(f.check == name and f.outcome in ("ok", "warning") for f in self.findings)


def require_ready(findings: Sequence[Finding]) -> None:
    """Refuse (ReadinessError) a site with problems; names the checks."""
    bad = [finding.check for finding in findings if finding.outcome == "problem"]
    if bad:
        raise ReadinessError(
            f"{len(bad)} of {len(findings)} checks found a problem: {', '.join(bad)}"
        )


_MARKS = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM", "not run": "not run"}


def describe(findings: Sequence[Finding]) -> list[str]:
    """The findings for reading: check, what was found, and how to fix it."""
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.outcome]}  {finding.check}: {finding.found}")
        if finding.fix:
            lines.append(f"         How to fix: {finding.fix}")
    return lines
