"""Facts: the only source of a number in a report.

A fact is one measured or configured value with where it came from. Facts are
appended to ``facts.jsonl`` as they are measured and never changed; reports are
rendered from that file and compute nothing. The names are a closed catalogue, so
that a misspelt fact fails when it is written and not when a board reads the report.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from synth_common.errors import ConfigError, DataError, StorageError

Scope = Literal["public", "released", "site-local"]
"""Who may see a fact.

``public``: holds nothing about patients (settings, noise multipliers, seconds of the
simulator). ``released``: computed from patients through a charged mechanism, or from
its output alone. ``site-local``: computed from patients without a charge; in a real
federation it stays inside the hospital, and a report made of several hospitals' local
facts exists only in a simulation, where one machine plays every hospital.
"""

CATALOGUE: Mapping[str, str] = {
    "run.id": "Identifier of the run",
    "run.scenario": "Scenario name",
    "run.command": "Command line that started the run",
    "run.seed": "Root seed of everything reproducible",
    "run.engine": "Transport between server and sites",
    "run.simulation": "True when one machine played every hospital",
    "run.started": "Start, UTC",
    "run.finished": "End, UTC",
    "run.seconds": "Wall-clock seconds by phase (detail.phase)",
    "run.peak_memory_bytes": "Largest resident memory of the run's process",
    "run.energy": "Joules of processors and accelerators, where the machine tells; how measured",
    "run.code": "Version of the program, and SHA-256 over its files",
    "run.weights": "SHA-256 of the generator's final weights",
    "run.roles": "Who coordinated, and which sites took part",
    "run.versions": "Versions of Python and of the libraries used",
    "run.device": "Processor or accelerator, and threads",
    "run.rounds": "Rounds: planned and completed, and why the run ended",
    "run.resumed": "The run was interrupted and continued (one fact per resume)",
    "plan.digest": "SHA-256 of the federation plan",
    "plan.settings": "The federation plan, whole",
    "data.source": "Where a site's images came from",
    "data.licence": "Licence and attribution of a source, as its owner states it",
    "data.classes": "Class names, in label order",
    "data.intake": "Images offered, accepted and set aside with reasons; exact duplicates",
    "data.label_shares": "Shares of the classes, from the sites' released noisy histograms",
    "data.split": "Patients and images in train and holdout",
    "data.scanner_shift": "Simulated scanner character of a site",
    "data.minimisation": "What of an image and its file is kept, and what is never copied",
    "data.partition": "How the images were dealt to the sites",
    "data.shape": "Size and channels after preprocessing",
    "privacy.unit": "Whose presence the guarantee hides: patient or image",
    "privacy.delta": "Delta of the guarantee",
    "privacy.trust_model": "Whom a patient must trust",
    "privacy.adjacency": "Neighbouring data sets",
    "privacy.noise_source": "Where the noise was drawn",
    "privacy.site": "A site's composed guarantee, from its ledger",
    "privacy.epsilon": "Epsilon composed up to a round, by a site's ledger",
    "security.link": "The way between coordinator and sites, and who can use it",
    "security.egress": "All that the program lets leave a site under the plan; what it refuses",
    "training.loss": "Mean private loss of a site in a round (site-local)",
    "training.health": "Signals of collapse, divergence, vanishing gradients (cost no privacy)",
    "training.warning": "A health signal crossed its threshold",
    "generator.summary": "Family, parameters, which tensors are trained privately and travel",
    "pretraining.public": "What was public in the initial weights, their SHA-256, what is tuned",
    "release.embedding": "The release before the first round: who is in it, its noise and price",
    "federation.round": "A round: replies, seconds, bytes down and up",
    "federation.failure": "A site that failed a round, with the reason code",
    "quality.frechet": "Frechet distance between real and synthetic features",
    "quality.kid": "Kernel inception distance (polynomial MMD) in the named feature space",
    "quality.precision": "Share of synthetic images inside the real manifold",
    "quality.recall": "Share of real images inside the synthetic manifold",
    "quality.density": "Density (Naeem 2020)",
    "quality.coverage": "Coverage (Naeem 2020)",
    "quality.ms_ssim_diversity": "1 - mean MS-SSIM between random pairs of one class",
    "quality.inception_score": "Inception Score with the named classifier",
    "quality.reconstruction": "SSIM, PSNR and pixel error of reconstructions (VAE)",
    "quality.elbo": "Reconstruction loss and KL on the holdout (VAE)",
    "utility.classification": "Classifier trained on synthetic, real or both, tested on real",
    "utility.segmentation": "Segmenter trained on synthetic, real or both, tested on real",
    "utility.augmentation": "Classifier on a share of the real patients, with or without synthetic",
    "utility.anomaly": "Anomaly detector whose normal images are synthetic, real or both",
    "fairness.group": "Utility on one class, site, sex or age band of the held-out patients",
    "membership.attack": "A membership attack with baseline, control and intervals",
    "audit.canaries": "Lower bounds on epsilon from canaries, the verdict on the claim, the power",
    "audit.policy": "The policy of an audit: name, SHA-256, where it was read, thresholds",
    "audit.set": "A set of an audit: source, images offered, accepted and set aside, patients",
    "audit.alike": "How far members and non-members differ by more than membership",
    "audit.attack": "A membership attack of an audit, in all patients or in a group",
    "audit.shadows": "Shadow trainings of an audit: how many, of what recipe; no ledger is charged",
    "audit.test": "A test of an audit that is no AUC: copying, re-identification, linking",
    "audit.near_copies": "Synthetic images that are near-copies of members, with the control",
    "audit.ceiling": "What the recorded epsilon allows any attack at most: TPR by FPR",
    "audit.correction": "How probabilities were corrected for the number of attacks, and power",
    "audit.untested": "What an audit did not test, and why",
    "audit.gate": "A gate of the policy and its outcome",
    "audit.verdict": "The verdict of an audit over all its gates",
    "audit.pairs": "Closest pairs of synthetic image and member (file; shows patients)",
    "samples.traversal": "Images along one direction of the latent space, and its activity",
    "samples.grid": "A sample grid (file relative to the run directory)",
    "release.marking": "Marks as synthetic on every released image, and whether they were verified",
    "compare.row": "One row of a comparison of generators and budgets",
    "compare.seeds": "A generator and budget of a comparison over several seeds: means, ranges",
    "compare.together": "Epsilon of all private runs of a comparison on one site, composed",
}
"""Fact names and what each means, one line each."""


@dataclass(frozen=True)
class Fact:
    """One recorded value.

    Attributes:
        name: A key of :data:`CATALOGUE`.
        value: Anything JSON can hold. Non-finite floats are stored as the strings
            ``"inf"``, ``"-inf"`` and ``"nan"``.
        scope: Who may see it, see :data:`Scope`.
        source: Dotted name of the function that measured or configured it.
        site: The site it speaks of, or None for the whole run.
        round: The 1-based round it belongs to (0: the release before the first), or None.
        detail: What a reader needs to judge the value: n, encoder, interval, floor.
        time: UTC time of recording, ISO 8601.
    """

    name: str
    value: Any
    scope: Scope
    source: str
    site: str | None = None
    round: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        if self.name not in CATALOGUE:
            raise ConfigError(
                f"fact name {self.name!r} is not in the catalogue; "
                "add it to synth_common.facts.CATALOGUE with its meaning"
            )


def plain(value: Any) -> Any:
    """A value as facts store it: tuples as lists, numpy scalars as Python's, inf/nan as strings.

    Raises:
        ConfigError: JSON has no place for it.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays, 0-d tensors
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise ConfigError(f"a fact cannot hold a {type(value).__name__}: {value!r}")


class FactLog:
    """Append-only log of facts, one JSON object a line, flushed to disk at every append."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, *facts: Fact) -> None:
        """Write facts in order. Raises StorageError when the disk refuses."""
        lines = "".join(
            json.dumps(plain(vars(f)), sort_keys=True, allow_nan=False) + "\n" for f in facts
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_torn_line()
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(lines)
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as err:
            raise StorageError(f"cannot append facts to {self.path}: {err.strerror}") from err

    def _drop_torn_line(self) -> None:
        """Cut off a last line without an end: its writer died, and it would spoil the next."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as handle:
            whole = handle.read()
            if whole and not whole.endswith(b"\n"):
                handle.truncate(whole.rfind(b"\n") + 1)

    def extend(self, facts: Iterable[Fact]) -> None:
        """Append every fact of an iterable in one write."""
        self.append(*facts)


def read_facts(path: Path) -> Iterator[Fact]:
    """Yield the facts of a ``facts.jsonl`` in order.

    A torn last line (the process died while writing it) is skipped; a broken line
    anywhere else raises DataError with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as err:
        raise DataError(f"cannot read facts {path}: {err.strerror}") from err
    last = len(lines) - 1
    for number, line in enumerate(lines):
        if not line:
            continue
        try:
            yield Fact(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as err:
            if number == last:
                return
            raise DataError(f"{path} line {number + 1} is not a fact: {err}") from err
