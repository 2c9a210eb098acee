"""What the site's operator decided: the lifetime budget, and what a coordinator may ask."""

from __future__ import annotations

from pathlib import Path

from synth_client.site import Site
from synth_common.errors import ConfigError, PlanError, PrivacyError
from synth_common.plan import Plan
from synth_common.privacy.ledger import Budget, Decision, Ledger


def open_budget(path: Path, budget: Budget, decision: Decision) -> Budget:
    """Set the budget of the ledger at ``path`` unless one holds; returns the one that holds.

    Raises:
        LedgerError, LedgerHeldError, StorageError: As :meth:`Ledger.hold`.
    """
    with Ledger.hold(path) as ledger:
        if not ledger.budgets():
            ledger.set_budget(budget, decision)
        return ledger.budget


def accept(path: Path, budget: Budget, plan: Plan, decision: Decision) -> None:
    """Set the budget of the ledger at ``path`` and approve ``plan``, unless both are done.

    Raises:
        LedgerError, LedgerHeldError, StorageError: As :meth:`Ledger.hold`.
    """
    open_budget(path, budget, decision)
    with Ledger.hold(path) as ledger:
        if plan.digest() not in ledger.approved():
            ledger.approve(plan.digest(), plan.to_json(), decision)


def approve(site: Site, plan: Plan, decision: Decision) -> list[str]:
    """Approve a plan that this site can keep; returns the digests that hold beside it.

    Raises:
        PrivacyError: The site could not keep its promise; names the setting.
        ConfigError: It is approved already.
        LedgerError, LedgerHeldError, StorageError: As :meth:`Ledger.hold`.
    """
    with Ledger.hold(site.ledger_path) as ledger:
        require_keepable(site, plan, ledger.budget)
        others = list(ledger.approved())
        if plan.digest() in others:
            raise ConfigError(f"plan {plan.digest()[:12]} is approved already; nothing was written")
        ledger.approve(plan.digest(), plan.to_json(), decision)
    return others


def revoke(path: Path, beginning: str, decision: Decision) -> str:
    """Take back the approval of the plan whose digest begins so; returns the whole digest.

    Raises:
        ConfigError: Fewer than eight characters, or not exactly one plan that holds fits.
    """
    if len(beginning) < 8:
        raise ConfigError(f"digest {beginning!r}: give at least its first eight characters")
    with Ledger.hold(path) as ledger:
        found = [digest for digest in ledger.approved() if digest.startswith(beginning)]
        if len(found) != 1:
            raise ConfigError(
                f"digest {beginning!r}: {len(found)} plans that hold begin so; see "
                "synth-client plan show"
            )
        ledger.revoke(found[0], decision)
    return found[0]


def require_keepable(site: Site, plan: Plan, budget: Budget) -> None:
    """Refuse a plan whose promise this site could not keep.

    Raises:
        PrivacyError: Names the setting.
    """
    _require_fitting_data(site, plan)
    terms = plan.privacy
    if terms.delta > budget.delta:
        raise PrivacyError(
            f"privacy.delta = {terms.delta:g} is above the {budget.delta:g} that the budget of "
            f"site {site.name} is stated at"
        )
    if terms.unit == "image" and budget.unit == "patient":
        raise PrivacyError(
            f"privacy.unit = 'image', but the budget of site {site.name} is stated per patient: a "
            "patient with several images would lose more than is charged"
        )
    if terms.noise == "simulation" and not site.simulated:
        raise PrivacyError(
            f"privacy.noise = 'simulation', but {site.name} is no simulated site: noise that a "
            "seed repeats protects nobody. Set privacy.noise = 'secure' in the plan"
        )
    if terms.unit == "patient" and site.train.patient_ids is None:
        raise PrivacyError(
            f"site {site.name} has no patient ids, so privacy.unit = patient cannot be kept; "
            "add a patient_id column or set privacy.unit = image"
        )


def _require_fitting_data(site: Site, plan: Plan) -> None:
    """Refuse a plan for other images: a label it does not know would fail when it is drawn.

    Whether a step fails may then depend on one patient, so it is refused before any step.
    """
    images, wanted = site.train, plan.generator
    classes, canaries = wanted.classes, wanted.canaries
    if canaries and not site.simulated:
        raise PrivacyError(
            f"generator.canaries = {canaries}: canaries are for audits in a simulation, and "
            f"{site.name} is a real site"
        )
    known, more = images.class_names[: len(classes)], images.class_names[len(classes) :]
    if known != classes or (more and len(more) != canaries):
        raise PrivacyError(
            f"generator.classes = {list(classes)}, but the images of site {site.name} have "
            f"classes {list(images.class_names)[:8]}: prepare them with the plan's classes"
        )
    shape = (wanted.channels, wanted.size, wanted.size)
    if images.images.shape[1:] != shape or (wanted.with_mask and images.masks is None):
        raise PrivacyError(
            f"generator.channels, size = {shape}, with_mask = {wanted.with_mask}, but the images "
            f"of site {site.name} are {images.images.shape[1:]}, masks: {images.masks is not None}"
        )


def require_approved(ledger: Ledger, asked: Plan) -> None:
    """Refuse a plan whose digest the operator did not approve.

    Raises:
        PlanError: Names every field in which it differs from the plan approved last, with
            both values.
    """
    approved = ledger.approved()
    if asked.digest() in approved:
        return
    if not approved:
        raise PlanError(
            f"no plan is approved at this site, and {asked.digest()[:12]} is asked for; its "
            "operator reads and approves one with synth-client plan approve FILE --site NAME"
        )
    digest, text = list(approved.items())[-1]
    differences = "; ".join(asked.differences(Plan.from_json(text)))
    raise PlanError(
        f"plan {asked.digest()[:12]} is asked for, but {digest[:12]} is approved "
        f"(asked against approved): {differences}"
    )
