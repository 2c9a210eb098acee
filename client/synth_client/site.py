"""A site: one hospital's data, ledger and local records, all in one directory.

::

    DIRECTORY/site.json       public declarations
    DIRECTORY/data.npz        prepared images            SENSITIVE
    DIRECTORY/ledger.sqlite   every use of the images, the lifetime budget, approved plans;
                              ledger.head beside it names its last entry
    DIRECTORY/keys/           the key for secure sums, and the peers' keys (see enrol)
    DIRECTORY/outbox/         replies that were paid for, to be sent again for free
    DIRECTORY/facts.jsonl     local facts                SENSITIVE
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from synth_client.limits import Limits
from synth_common.clock import moment
from synth_common.errors import ConfigError, DataError, StorageError
from synth_common.facts import Fact, FactLog
from synth_common.images.imageset import ImageSet
from synth_common.plan import Device, Plan, TrainingPlan
from synth_common.privacy.accounting import Use, epsilon, merged
from synth_common.privacy.ledger import Ledger
from synth_common.reporting.files import replace_bytes

_SOURCE = "synth_client.site.privacy_facts"
_COLUMNS = (
    "patient_ids",
    "masks",
    "sites",
    "splits",
    "second_masks",
    "sexes",
    "ages",
    "spacings",
)


@dataclass(frozen=True)
class Site:
    """A hospital as its own programs see it.

    Attributes:
        name: Known to every peer.
        directory: Where everything of the site lives.
        train: Images the generator may learn from. SENSITIVE.
        holdout: Images kept for evaluation, other patients. SENSITIVE.
        nominal_patients: PUBLIC declaration of about how many training patients the
            site has; with ``training.patients_per_step`` it gives the sample rate.
        seed: Seeds simulations; deployments draw noise from the operating system.
        simulated: Whether this is a part of a simulation, where noise may be repeatable.
        limits: What the operator allows beside the budget.
        device: Where the site trains; ``auto`` leaves it to the plan.
    """

    name: str
    directory: Path
    train: ImageSet
    holdout: ImageSet
    nominal_patients: int
    seed: int
    simulated: bool = False
    limits: Limits = field(default_factory=Limits)
    device: Device = "auto"

    def __post_init__(self) -> None:
        if self.nominal_patients < 1:
            raise ConfigError(
                f"site {self.name}: nominal_patients = {self.nominal_patients}; "
                "declare about how many training patients the site has"
            )

    @property
    def ledger_path(self) -> Path:
        """The site's ledger."""
        return self.directory / "ledger.sqlite"

    @property
    def outbox(self) -> Path:
        """Replies that were paid for."""
        return self.directory / "outbox"

    @property
    def facts(self) -> FactLog:
        """The site's local facts."""
        return FactLog(self.directory / "facts.jsonl")

    def units(self, plan: Plan) -> ImageSet:
        """The training images, in the units of the plan, whether or not patients are known."""
        by_patient = plan.privacy.unit == "patient"
        return self.train if by_patient else replace(self.train, patient_ids=None)

    def training(self, plan: Plan) -> TrainingPlan:
        """The plan's training, on the site's own device where its operator named one."""
        if self.device == "auto":
            return plan.training
        return plan.training.model_copy(update={"device": self.device})

    def require_within_limits(self, ledger: Ledger) -> None:
        """Refuse what the operator's limits forbid now; called before anything is charged.

        The coordinator sees the refusal, so it may depend on the ledger and the clock only: how
        many patients there are is looked at before the service starts.

        Raises:
            LimitError: Names the limit.
        """
        self.limits.require_room(ledger.reservations(), moment())

    def sample_rate(self, plan: Plan) -> float:
        """Probability with which each patient enters a step; public, at most 1."""
        return min(1.0, plan.training.patients_per_step / self.nominal_patients)


def save_site(site: Site) -> None:
    """Write data and declarations into the site's directory, and open its ledger.

    The directory and all in it are readable by their owner only.

    Raises:
        StorageError: The disk refused.
    """
    settings = {
        "name": site.name,
        "nominal_patients": site.nominal_patients,
        "seed": site.seed,
        "simulated": site.simulated,
        "class_names": list(site.train.class_names),
    }
    arrays = {**_arrays("train", site.train), **_arrays("holdout", site.holdout)}
    try:
        site.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        site.directory.chmod(0o700)  # it may have been there
        partial = site.directory / "data.partial.npz"
        partial.unlink(missing_ok=True)
        # Private before there is a byte in it, whatever the umask.
        made = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(made, "wb") as file:
            np.savez(file, **arrays)
        partial.replace(site.directory / "data.npz")
    except OSError as err:
        raise StorageError(f"cannot write site {site.directory}: {err.strerror}") from err
    declared = json.dumps(settings, indent=2) + "\n"
    replace_bytes(site.directory / "site.json", declared.encode(), mode=0o600)
    Ledger.create(site.ledger_path, f"training images of {site.name}")


def find_site(home: Path, name: str) -> Path:
    """The directory of site ``name`` below ``home/sites``.

    Raises:
        ConfigError: There is none; names those that are there.
    """
    folder = home / "sites"
    found = sorted(path.parent.name for path in folder.glob("*/site.json"))
    if name not in found:
        there = ", ".join(found) if found else "no site"
        raise ConfigError(f"--site {name}: {folder} holds {there}; check --site and --home")
    return folder / name


def load_site(directory: Path) -> Site:
    """Read what :func:`save_site` wrote.

    Raises:
        DataError: A file is missing or damaged.
    """
    settings = read_settings(directory)
    try:
        with np.load(directory / "data.npz", allow_pickle=False) as arrays:
            names = tuple(settings["class_names"])
            train, holdout = (_image_set(arrays, part, names) for part in ("train", "holdout"))
    except (OSError, ValueError, KeyError) as err:
        raise DataError(f"{directory} is not a prepared site: {err}") from err
    return Site(
        name=settings["name"],
        directory=directory,
        train=train,
        holdout=holdout,
        nominal_patients=settings["nominal_patients"],
        seed=settings["seed"],
        simulated=settings["simulated"],
    )


def read_settings(directory: Path) -> dict[str, Any]:
    """A site's public declarations (``site.json``), without its images.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    try:
        settings = json.loads((directory / "site.json").read_text())
        missing = {"name", "nominal_patients", "seed", "simulated", "class_names"} - set(settings)
    except (OSError, ValueError, TypeError) as err:
        raise DataError(f"{directory} is not a prepared site: {err}") from err
    if missing:
        raise DataError(f"{directory} is not a prepared site: site.json lacks {sorted(missing)}")
    return dict(settings)


def _arrays(part: str, images: ImageSet) -> dict[str, Any]:
    """The columns of a set under ``part.`` names."""
    columns = {name: getattr(images, name) for name in ("images", "labels", *_COLUMNS)}
    return {f"{part}.{name}": value for name, value in columns.items() if value is not None}


def _image_set(arrays: Mapping[str, Any], part: str, class_names: tuple[str, ...]) -> ImageSet:
    """The set stored under ``part.`` names."""
    optional = {n: arrays[f"{part}.{n}"] for n in _COLUMNS if f"{part}.{n}" in arrays}
    return ImageSet(arrays[f"{part}.images"], arrays[f"{part}.labels"], class_names, **optional)


def privacy_facts(site: Site, plan: Plan, run_id: str) -> list[Fact]:
    """The site's guarantee as its ledger has it: composed now, and after every round of a run.

    Composed is everything in the ledger, whatever run it was for.

    Raises:
        LedgerError: The ledger does not verify.
    """
    with Ledger.read(site.ledger_path) as ledger:
        reservations, head, budget = ledger.reservations(), ledger.head, ledger.budget
    terms = plan.privacy
    uses: list[Use] = []
    per_round: dict[int, float] = {}
    for reservation in reservations:
        uses += reservation.uses
        if reservation.key.run_id == run_id:
            per_round[reservation.key.round] = epsilon(uses, terms.delta, terms.accountant)
    training = [use for use in uses if use.purpose == "training"]
    told = training or uses  # a run of one release has no training
    last = told[-1] if told else None
    whole = {
        "epsilon": epsilon(uses, terms.delta, terms.accountant),
        "target_epsilon": terms.epsilon,
        "budget_epsilon": budget.epsilon,
        "delta": terms.delta,
        "noise_multiplier": last.noise_multiplier if last else None,
        "sample_rate": last.sample_rate if last else None,
        "steps": sum(use.steps for use in training),
        "accountant": terms.accountant,
        "clip_norm": terms.clip_norm if terms.private else None,
        "max_images_per_patient": terms.max_images_per_patient,
        "denominator": plan.training.patients_per_step,
        "ledger_head": head,
        "history": [vars(use) for use in merged(uses)],
    }
    facts = [Fact("privacy.site", whole, "public", _SOURCE, site=site.name)]
    facts += [
        Fact("privacy.epsilon", value, "public", _SOURCE, site=site.name, round=number)
        for number, value in per_round.items()
    ]
    return facts
