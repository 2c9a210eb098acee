"""A private step without patients: does this machine do what the plan asks, and how fast?

Random pictures of the plan's shape take the way that patients' pictures take. No ledger is
opened, no file is read, and what is made is thrown away.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from synth_common.generators import build_generator
from synth_common.generators.embedding import build_embedding
from synth_common.images.imageset import ImageSet
from synth_common.plan import Device, GeneratorPlan, Plan
from synth_common.privacy.statistics import embedding_sum
from synth_common.privacy.training import Mechanism, PrivateTrainer, Steps, pick_device
from synth_common.randomness import noise_source

_STEPS = 2
_RELEASE_PATIENTS = 64


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal showed.

    Attributes:
        device: Where it ran.
        seconds: Of one step, the first left out; or of a release of ``patients`` patients.
        round_seconds: A whole round at this pace; None for a plan without rounds.
        patients: Pictures of so many patients were used.
    """

    device: str
    seconds: float
    round_seconds: float | None
    patients: int


def rehearse(plan: Plan, device: Device) -> Rehearsal:
    """Take private steps, or a release, on random pictures.

    Args:
        plan: Says what a step is. Every patient has as many images as the plan lets count,
            and as many patients are drawn as it expects, so that a real step is rarely slower.
        device: The site's own; ``auto`` leaves it to the plan.

    Raises:
        TrainingError: The step's numbers are not finite.
    """
    if device != "auto":
        plan = plan.model_copy(
            update={"training": plan.training.model_copy(update={"device": device})}
        )
    return _rounds(plan) if plan.training.rounds else _release(plan)


def _rounds(plan: Plan) -> Rehearsal:
    """The steps of a round, a few of them."""
    terms, training = plan.privacy, plan.training
    patients = training.patients_per_step
    trainer = PrivateTrainer(
        build_generator(plan.generator, seed=0, pretraining=plan.pretraining),
        _pictures(plan.generator, patients, terms.max_images_per_patient),
        Mechanism(
            noise_multiplier=1.0 if terms.private else 0.0,
            sample_rate=1.0,
            clip_norm=terms.clip_norm if terms.private else float("inf"),
            max_images=terms.max_images_per_patient,
            denominator=patients,
        ),
        training,
        noise_source("secure", 0),
    )
    kept = trainer.run(Steps(0, 1, 0), {}).kept  # loads libraries, compiles kernels
    began = time.perf_counter()
    trainer.run(Steps(1, _STEPS, 0), kept)
    seconds = (time.perf_counter() - began) / _STEPS
    device = str(pick_device(training.device))
    return Rehearsal(device, seconds, seconds * training.steps_per_round, patients)


def _release(plan: Plan) -> Rehearsal:
    """The sum over patients of a plan that releases once."""
    pictures = _pictures(plan.generator, _RELEASE_PATIENTS, plan.privacy.max_images_per_patient)
    began = time.perf_counter()
    embedding_sum(
        pictures,
        build_embedding(plan.generator),
        plan.generator,
        plan.privacy.max_images_per_patient,
        noise_source("secure", 0),
    )
    return Rehearsal("cpu", time.perf_counter() - began, None, _RELEASE_PATIENTS)


def _pictures(plan: GeneratorPlan, patients: int, per_patient: int) -> ImageSet:
    """Random pictures of the plan's shape: of nobody."""
    rng, n = np.random.default_rng(0), patients * per_patient
    images = ImageSet(
        images=rng.random((n, plan.channels, plan.size, plan.size), dtype=np.float32),
        labels=np.arange(n, dtype=np.int64) % len(plan.classes),
        class_names=plan.classes,
        patient_ids=np.repeat(np.arange(patients), per_patient).astype(np.str_),
    )
    if not plan.with_mask:
        return images
    return replace(images, masks=(images.images[:, 0] > 0.5).astype(np.uint8))
