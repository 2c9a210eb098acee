"""Checks a release bundle offline, and names everything that is wrong with it.

The order is that of trust: whoever signed says which files there are and what they hold; those
files hold the sites' statements, which the sites signed; and only then does what is written in
them count. Every problem is found that can be found, not only the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synth_common.errors import ConfigError, VerificationError
from synth_common.release import dsse, sums
from synth_common.release.image_check import check_images
from synth_common.release.names import (
    PAPERS,
    PLAN,
    RELEASE_KIND,
    SIGNATURE,
    SIGNER,
    STATEMENTS,
    SUMS,
    ReleaseName,
)
from synth_common.release.recomputed import understated
from synth_common.release.statement import PrivacyStatement, digest_of_plan, read_statement
from synth_common.release.sums import text_in
from synth_common.release.verdict import Code, Verdict
from synth_common.release.withdrawal import find, read_withdrawals


def verify_bundle(
    folder: Path, keys: Mapping[str, str] | None = None, withdrawn: Path | None = None
) -> Verdict:
    """Everything that is wrong with the bundle in ``folder``.

    Args:
        folder: ``NAME-X.Y.Z``.
        keys: Public keys by name, of the sites and of ``release``, as somebody told them; None
            where nobody did.
        withdrawn: A list of withdrawn releases.

    Raises:
        ConfigError: There is no such folder, or the list cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder; give that of a release, NAME-X.Y.Z")
    verdict = Verdict()
    try:
        text = text_in(folder / SIGNATURE)
        signed = dsse.read_signed(text, RELEASE_KIND, SIGNATURE)
        release = ReleaseName(str(signed.predicate["name"]), str(signed.predicate["version"]))
    except (VerificationError, ConfigError, OSError, KeyError, ValueError) as err:
        words = "is missing" if isinstance(err, FileNotFoundError) else str(err)
        verdict.blame("signature", SIGNATURE, f"the release's signature: {words}")
        return verdict
    verdict.release, verdict.signers[SIGNER] = str(release), signed.key
    verdict.simulation = signed.predicate.get("simulation") is True
    if folder.resolve().name != release.folder:
        verdict.blame(
            "name", folder.name, f"the folder is called {folder.name}, but {release} was signed"
        )
    plain, digests = _check_files(folder, signed.subject, verdict)
    _check_sums(plain, digests, verdict)
    statements = _check_statements(plain, signed.predicate, verdict)
    _check_reports(plain, signed.predicate, statements, verdict)
    check_images(plain, signed.predicate, verdict)
    if keys is not None:
        _check_keys(keys, verdict)
    if withdrawn is not None:
        _check_withdrawn(withdrawn, release, verdict)
    return verdict


def _check_files(
    folder: Path, subject: Mapping[str, str], verdict: Verdict
) -> tuple[dict[str, Path], dict[str, str]]:
    """Every file against what was signed; the files and their SHA-256 by name."""
    plain, odd = sums.files_below(folder)
    digests = {name: sums.digest_of(path) for name, path in plain.items()}
    for name in odd:
        verdict.blame("extra", name, f"{name} is a link or device; a release holds plain files")
    for name, digest in subject.items():
        if name not in plain:
            verdict.blame("missing", name, f"{name} was signed and is missing")
        elif (found := digests[name]) != digest:
            verdict.blame(
                "changed",
                name,
                f"{name} was changed: SHA-256 {found[:12]}..., signed {digest[:12]}...",
            )
    for name in PAPERS:
        if name not in subject:
            text = f"{name} is not among the signed files, and every release has one"
            verdict.blame("missing", name, text)
    for name in plain.keys() - subject.keys() - {SIGNATURE}:
        verdict.blame("extra", name, f"{name} was added: it is not among the signed files")
    return plain, digests


def _check_sums(plain: Mapping[str, Path], digests: Mapping[str, str], verdict: Verdict) -> None:
    """``SHA256SUMS`` against the files, for who trusts it alone."""
    if SUMS not in plain:
        return
    try:
        listed = sums.parse(text_in(plain[SUMS]))
    except (ValueError, OSError) as err:
        verdict.blame("sums", SUMS, f"{SUMS} cannot be read: {err}")
        return
    for name in sorted(plain.keys() - {SUMS, SIGNATURE}):
        if name not in listed:
            verdict.blame("sums", name, f"{SUMS} does not list {name}")
        elif listed[name] != digests[name]:
            verdict.blame("sums", name, f"{SUMS} lists another SHA-256 for {name} than it has")


def _check_statements(
    plain: Mapping[str, Path], predicate: Mapping[str, Any], verdict: Verdict
) -> dict[str, PrivacyStatement]:
    """Every site's statement: there, signed by itself, of this run and plan. Those that are."""
    plan = _plan(plain, predicate, verdict)
    sites = _sites(predicate)
    if not sites:
        verdict.blame("statement-missing", STATEMENTS, "the signed text names no site")
    statements: dict[str, PrivacyStatement] = {}
    for site in sites:
        name = f"{STATEMENTS}/{site}.json"
        if site == SIGNER:  # its key would stand where that of the release is looked for
            text = f"a site is called {site}, which is the name of who signs releases"
            verdict.blame("statement-forged", site, text)
            continue
        if name not in plain:
            verdict.blame(
                "statement-missing",
                site,
                f"site {site} took part, and its privacy statement is missing",
            )
            continue
        try:
            statement, key = read_statement(text_in(plain[name]), name)
        except (VerificationError, OSError, ValueError) as err:
            verdict.blame("statement-forged", site, f"the statement of {site}: {err}")
            continue
        statements[site] = statement
        verdict.signers[site] = key
        verdict.epsilons[site] = statement.epsilon
        for code, text in _misfits(site, statement, predicate, plan):
            verdict.blame(code, site, f"the statement of {site} {text}")
    return statements


def _sites(predicate: Mapping[str, Any]) -> list[str]:
    """The sites that the signed text names; none if it names none that could be read."""
    named = predicate.get("sites")
    return [str(site) for site in named] if isinstance(named, list) else []


def _plan(plain: Mapping[str, Path], predicate: Mapping[str, Any], verdict: Verdict) -> str | None:
    """The plan of the bundle as it is written, if it is the one that was signed for."""
    if PLAN not in plain:
        return None  # named among the missing files
    try:
        text = text_in(plain[PLAN])
    except (OSError, ValueError) as err:
        verdict.blame("plan", PLAN, f"{PLAN} cannot be read: {err}")
        return None
    if digest_of_plan(text) != predicate.get("plan_digest"):
        verdict.blame("plan", PLAN, f"{PLAN} is another plan than the release was signed for")
        return None
    return text


def _misfits(
    site: str, statement: PrivacyStatement, predicate: Mapping[str, Any], plan: str | None
) -> Iterator[tuple[Code, str]]:
    """In what a statement does not belong to the release."""
    if statement.site != site:
        yield "statement-forged", f"is that of {statement.site}"
    if statement.run_id != predicate.get("run_id"):
        yield "statement-run", f"is of run {statement.run_id}, not {predicate.get('run_id')}"
    if statement.simulated is not (predicate.get("simulation") is True):
        yield "statement-run", f"says simulated = {statement.simulated}, the release the contrary"
    if statement.plan_digest != predicate.get("plan_digest"):
        yield "statement-plan", f"is of plan {statement.plan_digest[:12]}, another than signed"
    elif plan is not None and (wrong := _contradictions(statement, plan)):
        yield "statement-plan", f"contradicts the plan (statement against plan): {wrong}"
    if (less := understated(statement)) is not None:
        yield "statement-epsilon", less


def _contradictions(statement: PrivacyStatement, plan: str) -> str:
    """In which terms, in words; empty for none."""
    try:
        return "; ".join(statement.differences(plan))
    except (ValueError, KeyError, TypeError) as err:
        return f"{PLAN} has no terms that can be read: {type(err).__name__}"


def _check_reports(
    plain: Mapping[str, Path],
    predicate: Mapping[str, Any],
    statements: Mapping[str, PrivacyStatement],
    verdict: Verdict,
) -> None:
    """The report is of the run that was signed for, and of the sites that stated their part."""
    name = "report.json"
    if name not in plain:
        return
    try:
        report = json.loads(text_in(plain[name]))
        pairs = [
            ("run", report["run"]["id"], predicate.get("run_id")),
            ("plan", report["plan"]["digest"], predicate.get("plan_digest")),
        ]
        took_part, spent = _took_part(report), _spent(report)
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as err:
        verdict.blame("report", name, f"{name} cannot be read: {type(err).__name__} {err}")
        return
    for what, its, own in pairs:
        if its != own:
            verdict.blame("report", name, f"{name} is of {what} {its}, the release of {own}")
    for site in sorted(took_part - set(_sites(predicate))):
        text = f"{name} says that site {site} took part, and the signed text does not name it"
        verdict.blame("statement-missing", site, text)
    for site, statement in statements.items():
        if statement.epsilon_all_runs < spent.get(site, 0.0) * (1 - 1e-9):
            text = (
                f"the statement of {site} says that all runs cost epsilon "
                f"{statement.epsilon_all_runs:.6g}, {name} says {spent[site]:.6g}: it is of an "
                "older copy of the ledger"
            )
            verdict.blame("statement-run", site, text)


def _took_part(report: Mapping[str, Any]) -> set[str]:
    """Every site of which the report says that something is in the weights."""
    rounds = [entry["replies"] for entry in report["federation"]["rounds"]]
    release = report["privacy"]["release"]
    return {str(site) for named in [*rounds, (release or {}).get("sites", [])] for site in named}


def _spent(report: Mapping[str, Any]) -> dict[str, float]:
    """Epsilon of everything in a site's ledger, as the report has it."""
    sites = [(str(site["name"]), site["epsilon"]) for site in report["privacy"]["sites"]]
    return {name: float(value) for name, value in sites if isinstance(value, int | float)}


def _check_keys(keys: Mapping[str, str], verdict: Verdict) -> None:
    """Every signature is by the key that somebody told."""
    wrong = False
    for name, key in verdict.signers.items():
        who = "the release" if name == SIGNER else f"the statement of {name}"
        if name not in keys:
            text = f"{who} is signed, but --keys holds no {name}.pub"
        elif keys[name] != key:
            text = (
                f"{who} is signed by the unknown key {dsse.key_id(key)[:16]}..., and {name}.pub is "
                f"{dsse.key_id(keys[name])[:16]}..."
            )
        else:
            continue
        wrong = True
        verdict.blame("unknown-key", name, text)
    verdict.known = not wrong
    verdict.silent = sorted(keys.keys() - verdict.signers.keys())


def _check_withdrawn(path: Path, release: ReleaseName, verdict: Verdict) -> None:
    """The release is not on the list, and the list is its signer's own."""
    try:
        listed, signer = read_withdrawals(path)
    except VerificationError as err:
        verdict.blame("withdrawn", path.name, f"the list of withdrawn releases: {err}")
        return
    if signer != verdict.signers[SIGNER]:
        verdict.blame(
            "withdrawn", path.name, f"{path} is not signed by the key that signed the release"
        )
    elif (entry := find(listed, release)) is not None:
        verdict.blame(
            "withdrawn",
            str(release),
            f"{release} was withdrawn on {entry.time:%Y-%m-%d}: {entry.reason}",
        )
