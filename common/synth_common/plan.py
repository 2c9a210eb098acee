"""The federation plan: everything a coordinator may ask of a hospital.

Frozen, strict (unknown keys are refused) and validated when it is built. The plan
holds only public values; what depends on a hospital (its data, its budget, its noise)
is configured at the hospital. ``Plan.digest`` names a plan, so that both sides can
check that they speak of the same one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from synth_common.errors import ConfigError
from synth_common.validation import validate

Family = Literal["vae", "gan", "embedding"]
Unit = Literal["patient", "image"]
TrustModel = Literal["local", "secure-aggregation"]
"""Whom a patient must trust. ``local``: only the own hospital; everything that leaves
it already carries the noise of the stated epsilon. ``secure-aggregation``: for what is released
once, also that no more sites than planned collude; training rounds stay local."""
Accountant = Literal["prv", "rdp", "pld"]
Tune = Literal["all", "last", "adapters"]
"""What DP-SGD trains of a private network that starts from public weights."""
Device = Literal["auto", "cpu", "cuda"]
SITE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
SiteName = Annotated[str, Field(pattern=SITE_NAME)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class StrictModel(BaseModel):
    """A frozen configuration section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class GeneratorPlan(StrictModel):
    """What is trained: the family, the picture it makes, and its size.

    ``size`` is in pixels (square), a multiple of 4 from 28 to 128. ``with_mask`` adds
    one output channel, so that an image and its mask are born together. ``canaries`` adds
    private parameters that only canary patients touch; for audits. ``site_normalisation``
    gives the encoder (or critic) a scale and a shift per channel that stay at the site.

    VAE: ``kl_schedule = "linear"`` lets the KL weight grow from 0 over the first ``kl_warmup``
    of the run's steps; ``prior = "learned"`` trains a Gaussian of latents per class.

    GAN: the critic takes ``critic_steps`` steps per generator step, doubled up to
    ``critic_steps_max`` whenever its running accuracy on fakes falls below ``critic_floor``
    (0: never); ``critic_constraint`` holds its weights within ``critic_bound``.

    What a release says of images: how those at the lowest ``frequencies`` of each axis vary
    together, the mean at twice as many, how strong finer detail is, and ``features`` random
    features (0: none), which have ``feature_share`` of the squared length of an image's vector: a
    larger share leaves more noise in the moments. The features teach a network that refines what
    is drawn from the moments, in ``refine_steps`` steps (with a release 0 only without features);
    it is told the class only if ``refine_by_class``, because of what classifiers then learn.
    ``pixel_centre`` and ``pixel_radius`` are public constants of the kind of image: pixels are
    taken relative to the centre, and a picture whose root mean square is then above the radius
    counts with less contrast.
    """

    family: Family = "vae"
    size: Annotated[int, Field(ge=28, le=128, multiple_of=4)] = 32
    channels: Literal[1, 3] = 1
    classes: Annotated[tuple[str, ...], Field(min_length=1)] = ("normal", "lesion")
    with_mask: bool = False
    latent_dim: Annotated[int, Field(ge=1, le=512)] = 16
    width: Annotated[int, Field(ge=8, le=512, multiple_of=8)] = 32
    dropout: Share = 0.0
    kl_weight: Annotated[float, Field(ge=0.0)] = 1.0
    kl_schedule: Literal["constant", "linear"] = "constant"
    kl_warmup: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    prior: Literal["standard", "learned"] = "standard"
    fakes_per_step: Annotated[int, Field(ge=1)] = 64
    critic_steps: Annotated[int, Field(ge=1, le=1024)] = 2
    critic_floor: Share = 0.0
    critic_steps_max: Annotated[int, Field(ge=1, le=1024)] = 16
    critic_constraint: Literal["none", "spectral", "clip"] = "none"
    critic_bound: Positive = 1.0
    canaries: Annotated[int, Field(ge=0, le=100_000)] = 0
    site_normalisation: bool = False
    frequencies: Annotated[int, Field(ge=2, le=32)] = 12
    features: Annotated[int, Field(ge=0, le=20_000, multiple_of=2)] = 0
    feature_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    refine_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 500
    refine_by_class: bool = False
    pixel_centre: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    pixel_radius: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5

    @field_validator("classes")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("class names must differ")
        return value

    def kl_factor(self, step: int, total: int) -> float:
        """What the KL weight is multiplied by at a step (0-based) of ``total``, in [0, 1]."""
        if self.kl_schedule == "constant":
            return 1.0
        return min(1.0, (step + 1) / (self.kl_warmup * total))

    @model_validator(mode="after")
    def _pace_fits(self) -> GeneratorPlan:
        if self.critic_floor > 0 and self.critic_steps_max < self.critic_steps:
            raise ValueError(
                f"critic_steps_max = {self.critic_steps_max} is below critic_steps = "
                f"{self.critic_steps}; raise it, or set critic_floor = 0"
            )
        return self


class PretrainingPlan(StrictModel):
    """Weights that training starts from, made of PUBLIC images without privacy.

    ``sha256`` names the weights (:func:`synth_common.privacy.egress.state_digest`, which is
    the SHA-256 of the file that ``synth-sim pretrain`` writes), and with it the plan's own
    digest does. ``public_data`` says what was public: name and licence. ``tune`` says what
    DP-SGD trains: everything, the last layers, or low-rank ``adapters`` of rank ``rank``
    beside frozen layers (Hu et al. 2021, arXiv 2106.09685).
    """

    sha256: Annotated[
        str | None,
        Field(pattern=r"^[0-9a-f]{64}$", description="64 hexadecimal digits, as pretrain prints"),
    ] = None
    public_data: Annotated[str, Field(max_length=500)] = ""
    tune: Tune = "all"
    rank: Annotated[int, Field(ge=1, le=64)] = 4

    @model_validator(mode="after")
    def _said(self) -> PretrainingPlan:
        if (self.sha256 is None) != (not self.public_data.strip()):
            raise ValueError(
                "sha256 and public_data go together: weights name the public images that made "
                "them, with their licence"
            )
        if self.sha256 is None and self.tune != "all":
            raise ValueError(
                f"tune = {self.tune!r} freezes weights, so it needs weights to start from: give "
                "sha256 and public_data, or tune 'all'"
            )
        return self


class TrainingPlan(StrictModel):
    """How long and how fast.

    ``patients_per_step`` is the public denominator of every private gradient: the expected
    number of patients in a Poisson draw, by declaration. ``learning_rate`` is that of the
    private steps (default: the family's own), ``generator_learning_rate`` that of a GAN's
    generator, which meets no patient and is trained where ``generator_training`` says: at
    the sites between critic steps, or at the coordinator after each round. ``rounds`` is 0
    where everything is learnt from one release (``release.embedding`` with share 1), and only
    there.
    """

    rounds: Annotated[int, Field(ge=0)] = 6
    steps_per_round: Annotated[int, Field(ge=1)] = 40
    patients_per_step: Annotated[int, Field(ge=1)] = 64
    physical_batch: Annotated[int, Field(ge=1)] = 256
    learning_rate: Positive | None = None
    generator_learning_rate: Positive = 5e-3
    generator_training: Literal["site", "server"] = "site"
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    ema_decay: Share = 0.99
    draws_per_image: Annotated[int, Field(ge=1, le=64)] = 1
    augment_shift: Annotated[int, Field(ge=0, le=16)] = 0
    augment_flip: bool = False
    device: Device = "auto"

    @property
    def total_steps(self) -> int:
        """Private steps of the whole run at one site."""
        return self.rounds * self.steps_per_round

    def rate_factor(self, step: int) -> float:
        """What the private learning rate is multiplied by at a step of the run (0-based).

        1 throughout, or a cosine from 1 down to a tenth.
        """
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, step / max(1, self.total_steps))
        return 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * progress))


class PrivacyPlan(StrictModel):
    """What is promised to a patient.

    ``epsilon = inf`` trains without noise or clipping and promises nothing; it exists so
    that the cost of privacy can be seen. ``spare_rounds`` is how many interrupted rounds
    the noise is calibrated to bear without a change.
    """

    epsilon: Annotated[float, Field(gt=0.0)] = 8.0
    delta: Annotated[float, Field(gt=0.0, le=0.01)] = 1e-5
    unit: Unit = "patient"
    max_images_per_patient: Annotated[int, Field(ge=1)] = 4
    clip_norm: Positive = 1.0
    accountant: Accountant = "prv"
    trust_model: TrustModel = "local"
    noise: Literal["secure", "simulation"] = "secure"
    spare_rounds: Annotated[int, Field(ge=0)] = 1

    @field_validator("epsilon")
    @classmethod
    def _number(cls, value: float) -> float:
        if math.isnan(value):
            raise ValueError("epsilon must be a number above 0, or inf")
        return value

    @property
    def private(self) -> bool:
        """False for the non-private twin (epsilon = inf)."""
        return math.isfinite(self.epsilon)


class EmbeddingPlan(StrictModel):
    """One message of every site, before the first round: a noisy sum over its patients.

    ``share`` is the part of ``privacy.epsilon`` that the release alone may cost; training
    rounds get what the whole then leaves. ``spare_attempts`` is how many lost attempts the
    noise is calibrated to bear. Under secure aggregation the sum's noise suffices even if
    ``colluders`` sites tell what they added. The default of 1 is for honest sites: each knows
    its own noise and can subtract it from the sum. ``scale_bits`` and ``modulus_bits`` set the
    grid of integers that the sum is computed on (``privacy.secure_sum.Lattice``).

    ``warm_steps`` is how many steps a VAE or GAN takes at the coordinator on
    images drawn from the release, before its first round. They are drawn as family ``embedding``
    draws them, so ``generator.refine_steps`` of the refiner come before these.
    """

    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    spare_attempts: Annotated[int, Field(ge=0, le=100)] = 0
    colluders: Annotated[int, Field(ge=0)] = 1
    scale_bits: Annotated[int, Field(ge=8, le=40)] = 24
    modulus_bits: Annotated[int, Field(ge=32, le=64)] = 64
    warm_steps: Annotated[int, Field(ge=1, le=100_000)] = 400


class ReleasePlan(StrictModel):
    """What a site releases once, apart from the generator: one of these, or nothing.

    ``label_histogram`` is the noise multiplier of a histogram of labels in which every
    patient counts once, charged like everything else and sent with the first round; None
    releases none. ``embedding`` is released before the first round, and holds the classes'
    counts too. With neither, synthetic sets hold every class alike.
    """

    label_histogram: Positive | None = None
    embedding: EmbeddingPlan | None = None


class FederationPlan(StrictModel):
    """What a round needs: replies, and seconds before a silent site counts as failed."""

    min_sites: Annotated[int, Field(ge=1)] = 2
    round_timeout_s: Positive = 3600.0


_MOST_COEFFICIENTS = 1024


def _coefficients(generator: GeneratorPlan) -> int:
    """Coefficients of an image that a release describes."""
    channels = generator.channels + int(generator.with_mask)
    return int(channels * generator.frequencies**2)


class Plan(StrictModel):
    """The whole agreement between the coordinator and the sites."""

    generator: GeneratorPlan = GeneratorPlan()
    pretraining: PretrainingPlan = PretrainingPlan()
    training: TrainingPlan = TrainingPlan()
    privacy: PrivacyPlan = PrivacyPlan()
    federation: FederationPlan = FederationPlan()
    release: ReleasePlan = ReleasePlan()

    @model_validator(mode="after")
    def _unit_fits(self) -> Plan:
        if self.privacy.unit == "image" and self.privacy.max_images_per_patient != 1:
            # One image is one unit: a cap above 1 would have no meaning.
            fixed = self.privacy.model_copy(update={"max_images_per_patient": 1})
            object.__setattr__(self, "privacy", fixed)
        return self

    @model_validator(mode="after")
    def _release_fits(self) -> Plan:
        embedding, rounds = self.release.embedding, self.training.rounds
        whole = embedding is not None and embedding.share == 1.0
        if rounds == 0 and not whole:
            raise ValueError(
                "training.rounds = 0: without a release that takes the whole budget at least one "
                "round is needed; set training.rounds, or release.embedding.share = 1"
            )
        if rounds and whole:
            raise ValueError(
                f"training.rounds = {rounds}: no round can follow a release with "
                "release.embedding.share = 1, which leaves no budget; set rounds = 0, or a smaller "
                "share"
            )
        if embedding is not None and self.release.label_histogram is not None:
            raise ValueError(
                f"release.label_histogram = {self.release.label_histogram:g}: release.embedding "
                "already holds the classes' counts, so a histogram would be paid for and never "
                "used; leave label_histogram out"
            )
        if self.privacy.trust_model == "secure-aggregation" and embedding is None:
            raise ValueError(
                "privacy.trust_model = secure-aggregation holds for a single release only, and "
                "the plan has none: set release.embedding, or trust_model = local"
            )
        return self

    @model_validator(mode="after")
    def _generator_fits_release(self) -> Plan:
        embedding, rounds = self.release.embedding, self.training.rounds
        if self.generator.family == "embedding" and rounds:
            raise ValueError(
                f"generator.family = embedding learns from the release alone, and training.rounds "
                f"= {rounds}: set training.rounds = 0 and release.embedding.share = 1"
            )
        if self.generator.family == "embedding" and self.generator.site_normalisation:
            raise ValueError(
                "generator.site_normalisation: family embedding has no encoder or critic to "
                "normalise for; leave it out"
            )
        if embedding is not None and self.pretraining.sha256 is not None:
            # Sites check that round 1 starts from the named weights; the release moves them.
            raise ValueError(
                "pretraining.sha256 and release.embedding: a generator that has learnt from a "
                "release no longer starts from the named weights, and every site would refuse "
                "round 1 after it paid for the release; leave one of them out"
            )
        if rounds == 0 and self.generator.canaries:
            raise ValueError(
                f"generator.canaries = {self.generator.canaries}: canaries ride in training "
                "rounds, and training.rounds = 0"
            )
        return self

    @model_validator(mode="after")
    def _frequencies_fit_release(self) -> Plan:
        chosen, size = self.generator.frequencies, self.generator.size
        if self.release.embedding is None:
            return self
        if chosen >= size:
            raise ValueError(
                f"generator.frequencies = {chosen}: a release describes finer detail than these "
                f"by its strength, and generator.size = {size} leaves none; set fewer than {size}"
            )
        if _coefficients(self.generator) > _MOST_COEFFICIENTS:
            raise ValueError(
                f"generator.frequencies = {chosen}: {_coefficients(self.generator)} coefficients "
                f"of an image, most are {_MOST_COEFFICIENTS}; set fewer"
            )
        return self

    @model_validator(mode="after")
    def _features_are_used(self) -> Plan:
        chosen = self.generator
        if self.release.embedding is None:
            return self
        if chosen.features and not chosen.refine_steps:
            raise ValueError(
                f"generator.features = {chosen.features}: with generator.refine_steps = 0 nothing "
                f"learns from the features, which take {chosen.feature_share:g} of a vector's "
                "squared length from the moments; set features = 0, or refine_steps"
            )
        if chosen.refine_by_class and not chosen.features:
            raise ValueError(
                "generator.refine_by_class = true: with generator.features = 0 there is no network "
                "to tell the class; set refine_by_class = false, or features"
            )
        return self

    @property
    def release_sites(self) -> int:
        """Fewest sites that the sum of a release may be made of."""
        embedding = self.release.embedding
        if embedding is None or self.privacy.trust_model == "local":
            return self.federation.min_sites
        # Of two sites, or of two that do not collude, each could tell the other's vector.
        return max(3, embedding.colluders + 2, self.federation.min_sites)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        values = json.loads(self.model_dump_json())  # inf becomes a string
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan of :meth:`to_json`. Raises ConfigError for anything else."""
        try:
            values = json.loads(text)
        except ValueError as err:
            raise ConfigError(f"the plan is not JSON: {err}") from err
        if not isinstance(values, dict):
            raise ConfigError("the plan is not a JSON object")
        return validate(Plan, values, where="plan")

    def differences(self, other: Plan) -> list[str]:
        """``field: own value against other value`` of every field in which two plans differ."""
        mine, yours = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        keys = dict.fromkeys([*mine, *yours])  # a section may be there in one plan only
        pairs = [(key, mine.get(key), yours.get(key)) for key in keys]
        return [f"{key}: {own} against {its}" for key, own, its in pairs if own != its]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``section.key``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
