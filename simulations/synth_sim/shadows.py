"""Shadow trainings for an audit: a run's own recipe on other patients, in process.

The plan, Flower messages, clip, noise and ledgers are those of a run. Everything private of a
shadow run lives in a directory that is deleted with it, ledgers too: its weights never leave, so
that nothing is spent at a site.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synth_client.app import SiteApp
from synth_client.approval import accept
from synth_client.evaluate import SiteEvaluation
from synth_client.site import Site, save_site
from synth_common.audit.shadows import Labels, span
from synth_common.errors import DataError, StorageError, SynthwardError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.synthetic import sample_images
from synth_common.facts import FactLog
from synth_common.generators import Generator
from synth_common.images.imageset import ImageSet
from synth_common.plan import Plan
from synth_common.privacy.ledger import Budget, Decision, Ledger
from synth_common.randomness import derive_seed, numpy_stream
from synth_server.coordinate import train
from synth_server.coordination import Coordination
from synth_server.rounds import Interlude, discover_sites
from synth_server.strategy import UniformAverage
from synth_server.weights import initial_generator
from synth_sim.prepare import enrol_sites
from synth_sim.release import prices
from synth_sim.shadow_recipe import Recipe
from synth_sim.transport import PartitionSites, open_grid

_DISCOVERY_SECONDS = 600.0
_DECISION = Decision("synth-audit", "shadow training of an audit; its weights never leave")
Tell = Callable[[str], None]


@dataclass
class ShadowTrainer:
    """Follows a recipe on given patients and draws images; one model at a time.

    Attributes:
        recipe: The recipe.
        folder: Where each training has a directory of its own for as long as it lasts. It
            holds images of patients.
        models: How many there will be, for the estimate of time.
        seed: Of the audit: dealing, Poisson draws, noise and drawn images.
        tell: Is told after the first two rounds of the first model how long all may take.
        noise: Noise multipliers that the shadow sites charged last, by site.
    """

    recipe: Recipe
    folder: Path
    models: int
    seed: int
    tell: Tell
    noise: dict[str, float] = field(default_factory=dict)

    def draw(self, number: int, images: ImageSet, labels: Labels) -> ImageSet:
        """Train model ``number`` on the images and draw one of each label, as PNG keeps them.

        Args:
            number: 0 upwards; other numbers have other noise.
            images: Of the patients to train on, with ``patient_ids``. SENSITIVE.
            labels: (S,) indices of the plan's classes.

        Raises:
            DataError: Fewer patients than sites.
            StorageError: The disk refuses.
            SynthwardError: What stopped the training; see its class.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(prefix=".shadow-", dir=self.folder)
        except OSError as err:
            raise StorageError(f"cannot train below {self.folder}: {err.strerror}") from err
        with place as path:
            generator = self._train(number, images, Path(path).resolve())
        drawn = sample_images(generator, labels, derive_seed(self.seed, "shadow images", number))
        # A release is in 8 bits, so its distances to candidates are those of rounded pixels.
        pixels = np.rint(drawn.images * 255).astype(np.float32) / np.float32(255)
        return ImageSet(pixels, drawn.labels, drawn.class_names, masks=drawn.masks)

    def record(self) -> dict[str, Any]:
        """What an audit records of the recipe; the run's noise beside the shadows'."""
        sites = self.recipe.sites
        of_run = {name: own.noise_multiplier for name, own in sites.items()}
        known = {name: noise for name, noise in of_run.items() if noise is not None}
        return {
            "recipe_sha256": self.recipe.digest,
            "family": self.recipe.plan.generator.family,
            "rounds": self.recipe.rounds,
            "sites": len(sites),
            "noise_multiplier": dict(self.noise),
            **({"noise_multiplier_of_run": known} if known else {}),
            "ledger": "none charged: shadow trainings are deleted and leave no site",
        }

    def _train(self, number: int, images: ImageSet, place: Path) -> Generator:
        """The generator after the recipe's rounds; all else stays in ``place``."""
        sites = self._sites(number, images, place)
        recipe = self.recipe
        run_id = f"{derive_seed(self.seed, 'shadow run', number):016x}"
        course = Coordination(
            plan=recipe.plan,
            run_id=run_id,
            # The run's own: initial weights and the coordinator's draws are part of the recipe,
            # and what is public must not spread the shadows apart.
            seed=recipe.seed,
            folder=place,
            log=FactLog(place / "facts.jsonl"),
            tell=_Pace(self, number),
            generator=initial_generator(recipe.plan, recipe.seed, recipe.weights, "data.weights"),
            prices=lambda release: prices(recipe.plan, sites, release),
        )
        try:
            _federate(course, sites, recipe.rounds)
        except SynthwardError as err:
            said = [_last_words(site) for site in sites]
            more = "".join(f"; {words}" for words in said if words)
            raise type(err)(f"shadow model {number + 1} of {self.models}: {err}{more}") from err
        for site in sites:
            with Ledger.read(site.ledger_path) as ledger:
                uses = [use for made in ledger.reservations(run_id) for use in made.uses]
            trained = [use for use in uses if use.purpose == "training"]
            self.noise[site.name] = (trained or uses)[-1].noise_multiplier
        course.generator.eval()
        return course.generator

    def _sites(self, number: int, images: ImageSet, place: Path) -> list[Site]:
        """Deal the patients to the recipe's sites in proportion to what these declared."""
        terms, plan = self.recipe.sites, self.recipe.plan
        count = images.unit_count()
        if count < len(terms):
            raise DataError(f"{count} patients to train on, for {len(terms)} sites of the run")
        rates = [each.sample_rate for each in terms.values()]
        declared = [_declared(rate, plan, count // len(terms)) for rate in rates]
        order = numpy_stream(self.seed, "shadow deal", number).permutation(count)
        # One patient for every site; the others in proportion.
        rest = np.rint(np.cumsum(declared) / sum(declared) * (count - len(terms)))
        ends = rest.astype(np.int64) + np.arange(1, len(terms) + 1)
        units, sites = images.units(), []
        for (name, own), nominal, part in zip(
            terms.items(), declared, np.split(order, ends[:-1]), strict=True
        ):
            site = Site(
                name=name,
                directory=place / "sites" / name,
                train=images.subset(np.isin(units, part)),
                holdout=images.subset(np.zeros(0, dtype=np.int64)),
                nominal_patients=nominal,
                seed=derive_seed(self.seed, "shadow site", number, name),
                simulated=True,
            )
            save_site(site)
            promised = plan.privacy
            budget = Budget(own.budget_epsilon, promised.delta, promised.accountant, promised.unit)
            accept(site.ledger_path, budget, plan, _DECISION)
            sites.append(site)
        if plan.privacy.trust_model == "secure-aggregation":
            enrol_sites({site.name: site.directory for site in sites})
        return sites


def _declared(rate: float | None, plan: Plan, patients: int) -> int:
    """The patients that a site declared, from its sample rate: they fix the mechanism."""
    if rate is None:
        return max(1, patients)
    return max(1, round(plan.training.patients_per_step / rate))


def _last_words(site: Site) -> str:
    """The last line of a site's own account of its failure; empty where it has none."""
    path = site.directory / "errors.log"
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.exists() else []
    return f"{site.name}: {lines[-1]}" if lines else ""


class _EnoughError(Exception):
    """The rounds that the released weights are from are done."""


class _UpTo(Interlude):
    """Ends the training after as many rounds as the released weights have."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def before(self, number: int) -> None:
        """See :class:`Interlude`."""
        if number > self._rounds:
            raise _EnoughError


def _federate(course: Coordination, sites: list[Site], rounds: int) -> None:
    """Release and rounds, through the messages of a run; the generator has the last weights."""
    plan = course.plan
    app = SiteApp(
        resolve=PartitionSites(tuple(site.directory for site in sites)),
        evaluation=SiteEvaluation(EvaluationConfig(), course.seed),  # is never asked for
        threads=torch.get_num_threads(),
    )
    with open_grid("inprocess", app, len(sites)) as grid:
        nodes = discover_sites(grid, _DISCOVERY_SECONDS)
        strategy = UniformAverage(nodes, plan.federation.min_sites, course.run_id, plan)
        state = course.generator.shared_state()
        try:
            train(course, grid, strategy, (0, state), _UpTo(rounds))
        except _EnoughError:
            return  # the generator took the state of every round as it came


class _Pace:
    """Hears of the rounds of the first model, and tells early what all models may take."""

    def __init__(self, trainer: ShadowTrainer, number: int) -> None:
        self._trainer, self._number = trainer, number
        self._began = time.monotonic()
        self._first = 0.0

    def note(self, text: str) -> None:
        """Warnings about a shadow's health are not the audit's."""

    def site(self, name: str) -> None:
        """Not worth a line."""

    def stage(self, where: str, what: str) -> None:
        """Nothing is evaluated."""

    def round(self, number: int, epsilons: Mapping[str, float | str]) -> None:
        """See :class:`synth_server.progress.Reporter`."""
        rounds, models = self._trainer.recipe.rounds, self._trainer.models
        seconds = time.monotonic() - self._began
        if number == 1:
            self._first = seconds
        # The first round waits for what is done once; the second tells what a round takes.
        if self._number == 0 and number == 2 and rounds > 2:
            whole = seconds + (seconds - self._first) * (rounds - 2)
            self._trainer.tell(
                f"shadow models: round 2 of {rounds} of the first; about {span(whole * models)} "
                f"for all {models}; Ctrl-C stops"
            )
