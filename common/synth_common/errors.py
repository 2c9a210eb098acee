"""Every error Synthward raises on purpose: one tree, one exit code per branch.

A message names the parameter, the value it had and the way to fix it. A command
turns the error into one line on stderr and the exit code of its branch; the codes
are listed in ``docs/reference/exit-codes.md``, which a test holds to this module.
"""

from __future__ import annotations

from typing import ClassVar


class SynthwardError(Exception):
    """Base of the tree. Its own exit code (1) means an error without a branch."""

    exit_code: ClassVar[int] = 1


class ConfigError(SynthwardError):
    """A scenario, plan or command-line value is unknown or impossible."""

    exit_code = 2


class DataError(SynthwardError):
    """The images, labels or patient ids cannot be used as they are."""

    exit_code = 3


class PrivacyError(SynthwardError):
    """Going on would make a privacy claim false."""

    exit_code = 4


class BudgetError(PrivacyError):
    """The site's privacy budget does not cover what was asked."""

    exit_code = 5


class LedgerError(PrivacyError):
    """The site's ledger is damaged, or was altered outside Synthward."""

    exit_code = 6


class LedgerHeldError(PrivacyError):
    """Another process holds the site's ledger."""

    exit_code = 7


class FederationError(SynthwardError):
    """A round could not be aggregated: too few usable replies."""

    exit_code = 8


class CheckpointError(SynthwardError):
    """A checkpoint is missing, damaged or belongs to another run."""

    exit_code = 9


class StorageError(SynthwardError):
    """A file could not be written: full disk, no permission, not a directory."""

    exit_code = 10


class TrainingError(SynthwardError):
    """Training produced numbers that cannot be used (NaN, infinity)."""

    exit_code = 11


class PlanError(PrivacyError):
    """A coordinator asks for what the site's operator has not approved."""

    exit_code = 12


class AuditError(SynthwardError):
    """An audit refuted a claim: more leaks than was promised."""

    exit_code = 13


class AttemptSpentError(PrivacyError):
    """An attempt at a release was begun before and its reply is lost: it needs another number."""

    exit_code = 14


class RefusedError(FederationError):
    """The coordinator turns this site away by name: revoked, expired or unknown."""

    exit_code = 15


class EnrolmentError(SynthwardError):
    """A key, certificate, enrolment request or kit is missing, expired or cannot be trusted."""

    exit_code = 16


class LimitError(SynthwardError):
    """A site's own limits forbid it now: rounds a day, hours, or too few patients."""

    exit_code = 17


class ReadinessError(SynthwardError):
    """``synth-client doctor`` found something that would make a round fail."""

    exit_code = 18


class RunningError(SynthwardError):
    """A site's service runs already, or is needed and does not run."""

    exit_code = 19


class UnreachableError(SynthwardError):
    """The coordinator cannot be reached, or is not the one that the kit names."""

    exit_code = 20


class GateError(AuditError):
    """A release failed a gate of the audit's policy."""

    exit_code = 21


class UndecidedError(AuditError):
    """No gate failed, but at least one could not be decided: too few images, or not run."""

    exit_code = 22


class UnlikeError(DataError):
    """Members and non-members differ by more than membership, so an audit would say nothing."""

    exit_code = 23


class VerificationError(SynthwardError):
    """A release bundle or a signed statement is not what was signed, or was withdrawn."""

    exit_code = 24


class UnknownSignerError(SynthwardError):
    """A release bundle is whole, but nobody said whose the keys are that signed it."""

    exit_code = 25


class IdentifierError(SynthwardError):
    """A scan found what may identify a person, place or device in files meant for release."""

    exit_code = 26


class Interrupted(SynthwardError):
    """The user stopped the run (Ctrl-C or SIGTERM); it can be resumed."""

    exit_code = 130
