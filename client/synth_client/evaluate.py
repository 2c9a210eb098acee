"""A site judges the final generator on its own patients, and keeps the figures.

Nothing here is charged to a budget, so nothing here may leave: every figure goes into the
site's own ``facts.jsonl``. The reply to the coordinator is an acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.synthetic import class_labels, sample_images
from synth_common.images.imageset import ImageSet
from synth_common.randomness import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from synth_client.site import Site
    from synth_common.facts import Fact
    from synth_common.generators import Generator
    from synth_common.plan import Plan


def _quiet(site: str, stage: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class SiteEvaluation:
    """How a site judges a generator.

    Attributes:
        config: How many images, seeds and resamples.
        seed: Root seed of samples, draws and encoders; public.
        reference: Public images for the self-supervised encoder and as a population that
            no site trained on; None where there are none.
        shares: Released shares of the classes to draw labels by; empty for equal shares.
        site_state: The site's own normalisation, for reconstructions.
        tell: Is told at the site, by the site's name, of each stage as it begins; with
            worker processes it must survive cloudpickle.
    """

    config: EvaluationConfig
    seed: int
    reference: ImageSet | None = None
    shares: tuple[float, ...] = ()
    site_state: Mapping[str, Tensor] = field(default_factory=dict)
    tell: Callable[[str, str], None] = _quiet


def evaluate_site(
    site: Site, plan: Plan, evaluation: SiteEvaluation, state: Mapping[str, Tensor]
) -> None:
    """Sample the generator, measure it against the site's images, record the facts locally.

    Args:
        site: Whose patients judge.
        plan: The approved plan; says what generator ``state`` belongs to.
        evaluation: Settings.
        state: The final travelling tensors.

    Raises:
        CheckpointError: ``state`` does not fit the planned generator.
        StorageError: The site's facts could not be written.
    """
    from synth_common.audit.membership import evaluate_membership
    from synth_common.evaluation.suite import evaluate_fidelity, evaluate_reconstruction
    from synth_common.generators import build_generator

    generator = build_generator(plan.generator, seed=0, pretraining=plan.pretraining)
    generator.load_shared_state(state)
    generator.load_site_state(evaluation.site_state)
    generator.eval()
    config, seed, reference = evaluation.config, evaluation.seed, evaluation.reference
    evaluation.tell(site.name, f"drawing {config.synthetic_images} synthetic images")
    labels = class_labels(plan, config.synthetic_images, evaluation.shares)
    synthetic = sample_images(generator, labels, seed)
    evaluation.tell(site.name, "features, distances and diversity beside its own images")
    facts = evaluate_fidelity(
        site.holdout, site.train, synthetic, reference, config, seed, site.name
    )
    evaluation.tell(site.name, "reconstructions")
    facts += evaluate_reconstruction(generator, site.holdout, config, site.name)
    evaluation.tell(site.name, "membership attacks")
    facts += evaluate_membership(
        site.train, site.holdout, synthetic, reference, config, seed, site.name
    )
    if config.site_utility:
        facts += _utility(site, plan, evaluation, generator)
    site.facts.extend(facts)


def _utility(
    site: Site, plan: Plan, evaluation: SiteEvaluation, generator: Generator
) -> list[Fact]:
    """What as many synthetic images as the site trains on are worth beside its own."""
    from synth_common.evaluation.tasks import evaluate_tasks_at

    config, seed = evaluation.config, derive_seed(evaluation.seed, "utility", site.name)
    count = min(len(site.train), config.utility_images)
    evaluation.tell(site.name, "drawing synthetic images to train on")
    labels = class_labels(plan, count, evaluation.shares)
    synthetic = sample_images(generator, labels, seed)
    tell = partial(evaluation.tell, site.name)
    return evaluate_tasks_at(site.name, site.train, site.holdout, synthetic, config, seed, tell)
