"""All that synthetic images may be useful for, on one training set and one holdout."""

from __future__ import annotations

from dataclasses import replace

from synth_common.evaluation.anomaly import evaluate_anomaly
from synth_common.evaluation.config import EvaluationConfig, Tell, quiet
from synth_common.evaluation.segmentation import evaluate_segmentation
from synth_common.evaluation.utility import evaluate_utility
from synth_common.facts import Fact
from synth_common.images.imageset import ImageSet


def evaluate_tasks(
    train: ImageSet,
    holdout: ImageSet,
    synthetic: ImageSet,
    config: EvaluationConfig,
    seed: int,
    tell: Tell = quiet,
) -> list[Fact]:
    """Classifiers, segmenters and anomaly detectors on synthetic, real and both.

    A single class leaves nothing to classify; segmenters need masks, detectors
    ``config.anomaly_normal``.

    Args:
        train: Real training images.
        holdout: Real test images of other patients; with ``sites``, also judged site by site.
        synthetic: Labelled synthetic images, with masks where they are to be segmented.
        config: Settings.
        seed: Root seed.
        tell: Is told of each stage as it begins.
    """
    facts: list[Fact] = []
    if len(train.class_names) > 1:
        facts += evaluate_utility(train, holdout, synthetic, config, seed, tell)
    if config.anomaly_normal is not None:
        facts += evaluate_anomaly(train, holdout, synthetic, config, seed, tell)
    if synthetic.masks is not None:
        facts += evaluate_segmentation(train, holdout, synthetic, config, seed, tell)
    return facts


def evaluate_tasks_at(  # noqa: PLR0913 - as above, at one site
    site: str,
    train: ImageSet,
    holdout: ImageSet,
    synthetic: ImageSet,
    config: EvaluationConfig,
    seed: int,
    tell: Tell = quiet,
) -> list[Fact]:
    """The same with one hospital's images alone: what a hospital can measure by itself.

    Returns:
        Facts of the site, with ``detail.trained_at``: those of pooled sites, where a
        simulation has them, come from other classifiers.
    """
    own, held = (replace(images, sites=None) for images in (train, holdout))
    facts = evaluate_tasks(own, held, synthetic, config, seed, tell)
    return [replace(f, site=site, detail={**f.detail, "trained_at": site}) for f in facts]
