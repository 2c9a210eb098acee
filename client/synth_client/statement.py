"""A site's privacy statement about one run, made from its ledger and signed with its key.

Only what :mod:`synth_client.budget` calls public enters: settings, and epsilons that follow from
them. Nothing of it depends on an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from synth_client.enrol import load_signing_key, make_keys
from synth_client.site import read_settings
from synth_common import wall_clock
from synth_common.errors import ConfigError, LedgerError, PrivacyError, StorageError
from synth_common.plan import Plan
from synth_common.privacy.accounting import epsilon, merged
from synth_common.privacy.ledger import Ledger
from synth_common.promise import ADJACENCY, trust_words
from synth_common.release.statement import PrivacyStatement, StatedUse, sign_statement
from synth_common.reporting.files import replace_text


def make_statement(directory: Path, run_id: str | None = None) -> PrivacyStatement:
    """What a run charged the patients of the site in ``directory``.

    Args:
        directory: Of the site.
        run_id: The run; None for the one that used the images last.

    Raises:
        ConfigError: The ledger knows no such run; names those that it knows.
        PrivacyError: The run trained without privacy, so there is nothing to state.
        DataError, LedgerError: There is no site, or its ledger does not verify.
    """
    settings = read_settings(directory)
    with Ledger.read(directory / "ledger.sqlite") as ledger:
        run = _run(ledger, run_id, str(settings["name"]))
        plan = _plan(ledger, run)
        terms, uses = plan.privacy, ledger.history(run)
        if not terms.private:
            raise PrivacyError(
                f"run {run} trained without noise (privacy.epsilon = inf): there is no guarantee "
                "to state, and nothing of it may be released"
            )
        own = epsilon(uses, terms.delta, terms.accountant)
        whole = epsilon(ledger.history(), terms.delta, terms.accountant)
        return PrivacyStatement(
            site=settings["name"],
            run_id=run,
            plan_digest=plan.digest(),
            epsilon=own,
            epsilon_all_runs=max(own, whole),  # both are bounds with a numerical error
            delta=terms.delta,
            unit=terms.unit,
            adjacency=ADJACENCY[terms.unit],
            trust_model=terms.trust_model,
            trust_meaning=trust_words(plan),
            accountant=terms.accountant,
            uses=tuple(StatedUse(**asdict(use)) for use in merged(uses)),
            rounds=ledger.committed_rounds(run),
            clip_norm=terms.clip_norm,
            max_images_per_patient=terms.max_images_per_patient,
            noise=terms.noise,
            simulated=settings["simulated"],
            ledger_head=ledger.head,
            ledger_entries=len(ledger.entries),
            made=wall_clock.now(),
        )


def write_statement(directory: Path, out: Path, run_id: str | None = None) -> PrivacyStatement:
    """Write the statement, signed with the site's own key, to ``out``; a file there is replaced.

    Raises:
        EnrolmentError: The site has no signing key, or it is damaged.
        PrivacyError, ConfigError, DataError, LedgerError: As :func:`make_statement`; others can
            read the key.
        StorageError: The disk refused.
    """
    key = load_signing_key(directory)
    statement = make_statement(directory, run_id)
    replace_text(out, sign_statement(statement, key))
    return statement


def write_simulated(directories: Iterable[Path], out: Path, run_id: str) -> None:
    """Play all sites: make their keys and write ``out/NAME.json`` for each that took part.

    Raises:
        StorageError: The disk refused.
    """
    try:
        out.mkdir(exist_ok=True)
    except OSError as err:
        raise StorageError(f"cannot make folder {out}: {err.strerror}") from err
    for directory in directories:
        with Ledger.read(directory / "ledger.sqlite") as ledger:
            took_part = bool(ledger.reservations(run_id))
        if took_part:
            make_keys(directory)
            write_statement(directory, out / f"{directory.name}.json", run_id)


def _run(ledger: Ledger, run_id: str | None, site: str) -> str:
    """The run that is meant."""
    known = list(dict.fromkeys(r.key.run_id for r in ledger.reservations()))
    if run_id is None and known:
        return ledger.reservations()[-1].key.run_id
    if run_id is None or run_id not in known:
        asked = "a statement" if run_id is None else f"--run {run_id}"
        raise ConfigError(
            f"{asked}: the ledger of site {site} holds {', '.join(known) or 'no run at all'}; see "
            f"synth-client budget --site {site}"
        )
    return run_id


def _plan(ledger: Ledger, run_id: str) -> Plan:
    """The plan that a run was begun under, as the operator approved it; the ledger lets in one."""
    digest = ledger.reservations(run_id)[0].key.plan
    for decision in ledger.plans():
        if decision.digest == digest:
            return Plan.from_json(decision.plan)
    raise LedgerError(f"run {run_id} was begun under plan {digest[:12]}, which was never approved")
