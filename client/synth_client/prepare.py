"""``synth-client prepare``: from a hospital's images to a site that can take part.

Reads the images of ``site.toml`` as the plan wants them, splits them by patient, writes the
site's directory and opens its ledger with the budget of ``site.toml``. A ledger that is
there stays as it is: new patients join a data set whose cost is already written.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synth_client import lock
from synth_client.approval import open_budget
from synth_client.holdout import Holdout, image_target, require_unit, split_images, split_value
from synth_client.settings import SiteSettings
from synth_client.site import Site, save_site
from synth_common.errors import ConfigError
from synth_common.facts import Fact
from synth_common.images.sources import IntakeReport, load_source
from synth_common.plan import Plan
from synth_common.privacy.ledger import Budget, Decision
from synth_common.randomness import derive_seed

_SOURCE = "synth_client.prepare.prepare_site"
_FAR_OFF = 1.5
"""A declaration more than so many times too large or too small is worth a word."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What was prepared. SENSITIVE: exact counts of a site, for its operator's eyes.

    Attributes:
        intake: What became of the images that the source offered.
        split: Patients and images on both sides (``holdout.split_value``).
        nominal_patients: What is declared to others.
        wanted: The budget of ``site.toml``.
        holds: The budget that the ledger holds.
    """

    intake: IntakeReport
    split: dict[str, Any]
    nominal_patients: int
    wanted: Budget
    holds: Budget


def read_plan(path: Path) -> Plan:
    """The plan in a file. Raises ConfigError where there is none."""
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(
            f"cannot read plan {path}: {err}; synth-client accept writes it from the coordinator's "
            "kit, or name a file with --plan"
        ) from err


def site_budget(settings: SiteSettings) -> Budget:
    """The lifetime budget of ``site.toml``."""
    terms = settings.budget
    return Budget(terms.epsilon, terms.delta, terms.accountant, terms.unit)


def prepare_site(
    directory: Path,
    settings: SiteSettings,
    plan: Plan,
    decision: Decision,
    say: Say,
    *,
    replace: bool = False,
) -> Prepared:
    """Make the site in ``directory`` ready.

    Args:
        directory: Of the site; holds ``site.toml``.
        settings: The operator's.
        plan: Says how large the images are and which classes there are.
        decision: Who sets the budget, and why.
        say: Gets a line as each part of the work begins.
        replace: Put the images in the place of those prepared before.

    Returns:
        What was found.

    Raises:
        ConfigError: Images were prepared before, and ``replace`` is not set.
        DataError: The images cannot be used as they are.
        PrivacyError: The budget is per patient, and the images know no patients.
        LimitError: Fewer training patients than ``limits.min_patients``.
        RunningError: The site's service runs.
        StorageError: The disk refused.
    """
    data = directory / "data.npz"
    if data.exists() and not replace:
        raise ConfigError(
            f"{data} was prepared before; give --replace to put the images of {directory.name} in "
            "its place (the ledger stays, and goes on)"
        )
    with lock.hold(directory):
        site, intake = _read(directory, settings, plan, say)
        settings.limits.require_patients(site.train.unit_count())
        say(f"writing   {data}")
        save_site(site)
        budget = site_budget(settings)
        holds = open_budget(site.ledger_path, budget, decision)
    split = split_value(site.train, site.holdout)
    site.facts.append(*_facts(settings, intake, split))
    return Prepared(intake, split, site.nominal_patients, budget, holds)


def _read(
    directory: Path, settings: SiteSettings, plan: Plan, say: Say
) -> tuple[Site, IntakeReport]:
    """The site's images, split; nothing is written."""
    name, data, source = settings.site.name, settings.data, settings.data.source
    say(f"reading   source {source.name!r} ({source.kind}) as {_picture(plan)}")
    intake = load_source(source, image_target(plan.generator), directory)
    unit = settings.budget.unit
    require_unit(intake.images, unit, source.name, "budget.unit")
    say(f"splitting {len(intake.images)} images by {unit}")
    kept = Holdout(data.holdout, data.holdout_share, derive_seed(data.seed, "split", name))
    train, holdout = split_images(intake.images, kept, unit, f"site {name!r}")
    site = Site(
        name=name,
        directory=directory,
        train=train,
        holdout=holdout,
        nominal_patients=data.nominal_patients,
        seed=derive_seed(data.seed, "site", name),
    )
    return site, intake.report


def _picture(plan: Plan) -> str:
    """What the images are brought to, for reading."""
    wanted = plan.generator
    mask = " with masks" if wanted.with_mask else ""
    return f"{wanted.channels} x {wanted.size} x {wanted.size} px{mask}, classes {wanted.classes}"


def _facts(settings: SiteSettings, intake: IntakeReport, split: dict[str, Any]) -> list[Fact]:
    """The site's own facts about its images; paths are left out, they can hold a name."""
    name, source = settings.site.name, settings.data.source
    own = {"name": source.name, "kind": source.kind, "path": None}
    return [
        Fact("data.source", own, "site-local", _SOURCE, site=name),
        Fact("data.licence", source.licence, "site-local", _SOURCE, site=name),
        Fact("data.intake", intake.as_fact_value(), "site-local", _SOURCE, site=name),
        Fact("data.split", split, "site-local", _SOURCE, site=name),
    ]


def describe(prepared: Prepared) -> list[str]:
    """What was prepared, line by line, for the operator."""
    intake, split, nominal = prepared.intake, prepared.split, prepared.nominal_patients
    lines = [f"images    {intake.offered} offered, {intake.accepted} accepted"]
    lines += [f"          {count} set aside: {why}" for why, count in intake.set_aside.items()]
    if intake.duplicates.images:
        lines.append(
            f"          {intake.duplicates.images} of the accepted are exact duplicates, in "
            f"{intake.duplicates.groups} groups; they stay, on one side of the split"
        )
    for part in ("train", "holdout"):
        classes = ", ".join(f"{n} {name}" for name, n in split[f"{part}_per_class"].items())
        lines.append(
            f"{part:<9} {split[f'{part}_patients']} patients, {split[f'{part}_images']} images: "
            f"{classes}"
        )
    lines.append(f"declared  data.nominal_patients = {nominal}{_far_off(nominal, split)}")
    return [*lines, _budget_line(prepared)]


def _far_off(nominal: int, split: dict[str, Any]) -> str:
    """A word about a declaration that is far from the truth; empty where it is near."""
    ratio = nominal / split["train_patients"]
    if abs(math.log(ratio)) <= math.log(_FAR_OFF):
        return ""
    effect = "wastes signal" if ratio > 1 else "spends the budget on too few steps"
    return f", {ratio:.2g} times the training patients: that {effect}"


def _budget_line(prepared: Prepared) -> str:
    """The budget, for reading; says so if the ledger holds another than the settings name."""
    holds, wanted = prepared.holds, prepared.wanted
    line = (
        f"budget    epsilon {holds.epsilon:g} per {holds.unit} at delta {holds.delta:g} "
        f"({holds.accountant})"
    )
    if holds == wanted:
        return line
    return (
        f"{line}, as the ledger holds it; site.toml names epsilon {wanted.epsilon:g}, delta "
        f"{wanted.delta:g}: change it with synth-client budget --set"
    )
