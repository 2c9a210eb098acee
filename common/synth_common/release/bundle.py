"""A release bundle: written whole into a folder of its own, signed, and never changed again."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from synth_common import wall_clock
from synth_common.charter import Charter
from synth_common.errors import ConfigError, StorageError
from synth_common.facts import Fact
from synth_common.leaving import leaving
from synth_common.plan import Plan
from synth_common.release import dsse, sums
from synth_common.release.cards import Card, datasheet, license_text, license_url, model_card
from synth_common.release.croissant import croissant
from synth_common.release.drawing import Mix, draw, mix
from synth_common.release.formats import Format, NpzWriter, PngWriter, Writer
from synth_common.release.marking import software
from synth_common.release.marks import marking_fact
from synth_common.release.names import (
    CROISSANT,
    LICENSE,
    METADATA,
    PLAN,
    RELEASE_KIND,
    SIGNATURE,
    SPLITS,
    STATEMENTS,
    SUMS,
    ReleaseName,
)
from synth_common.release.papers import write_report
from synth_common.release.statement import PrivacyStatement

if TYPE_CHECKING:
    from synth_common.generators import Generator

Report = Callable[[Path, Charter, Path, Sequence[Fact]], object]
"""Writes a further report of a run directory into a folder, by the charter and more facts."""


@dataclass(frozen=True)
class Material:
    """A finished run, as far as a release needs it.

    Attributes:
        run_dir: The run directory; pictures of its report lie there.
        run_id: The run.
        seed: Of the run; the images' seeds are derived from it.
        facts: Of the run.
        simulation: Whether one machine played every hospital.
        plan: The federation plan.
        charter: What people decided and stated.
        statements: The sites' signed statements by name: as read, and their text.
        generator: With its final weights.
        weights: SHA-256 of those.
        shares: Released shares of the classes; empty for equal ones.
    """

    run_dir: Path
    run_id: str
    seed: int
    facts: Sequence[Fact]
    simulation: bool
    plan: Plan
    charter: Charter
    statements: Mapping[str, tuple[PrivacyStatement, str]]
    generator: Generator
    weights: str
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Attributes:
        release: Name and version.
        count: How many images.
        formats: Forms that the images come in; PNG is always among them.
        out: Folder that gets ``NAME-X.Y.Z``.
        reports: Further reports of the run.
    """

    release: ReleaseName
    count: int
    formats: frozenset[Format]
    out: Path
    reports: Sequence[Report] = ()


def make_bundle(material: Material, order: Order, key: Ed25519PrivateKey) -> Path:
    """Write and sign a bundle. Returns its folder.

    Raises:
        ConfigError: The version is there already; it is never written over.
        StorageError: The disk refused; nothing is left behind.
    """
    final = order.out / order.release.folder
    require_new(final)
    try:
        order.out.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=order.out))
    except OSError as err:
        raise StorageError(f"cannot write into {order.out}: {err.strerror}") from err
    try:
        _fill(material, order, partial, key)
        partial.chmod(0o755)
        require_new(final)  # it may have been made meanwhile
        partial.rename(final)
    except OSError as err:
        raise StorageError(f"cannot write {final}: {err.strerror or err}") from err
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after the rename there is none
    return final


def require_new(final: Path) -> None:
    """Refuse to write over a release. Raises ConfigError."""
    if os.path.lexists(final):
        raise ConfigError(
            f"{final} exists, and a version is never changed: give the next --version, and "
            "withdraw this one if it must not be used"
        )


def _fill(material: Material, order: Order, folder: Path, key: Ed25519PrivateKey) -> None:
    """Everything in the bundle, its signature last."""
    seed, made = _seed(material, order), wall_clock.now()
    chosen = mix(material.plan, order.count, material.shares, seed)
    counts = _write_images(material, order, chosen, folder)
    marked = marking_fact(sums.files_below(folder)[0])
    facts = [*leaving(material.facts), marked]
    report = write_report(facts, material.run_dir, folder)
    card = Card(
        release=order.release,
        made=made,
        simulation=material.simulation,
        charter=material.charter,
        plan=material.plan,
        statements={name: read for name, (read, _) in material.statements.items()},
        report=report,
        counts=counts,
        shares=chosen.shares,
        weights=material.weights,
        formats=sorted(order.formats),
    )
    _write_papers(material, card, folder)
    for write in order.reports:
        write(material.run_dir, material.charter, folder, [marked])
    _sign(card, material, folder, key)


def _seed(material: Material, order: Order) -> int:
    """Another version has other images."""
    from synth_common.randomness import derive_seed

    return derive_seed(material.seed, "release bundle", order.release.name, order.release.version)


def _write_images(
    material: Material, order: Order, chosen: Mix, folder: Path
) -> dict[str, dict[str, int]]:
    """All images in all forms; how many of each class are in each split."""
    classes = material.plan.generator.classes
    counts = {name: dict.fromkeys(SPLITS, 0) for name in classes}
    writers = _writers(material, order, folder)
    for picture in draw(material.generator, chosen.labels, _seed(material, order)):
        counts[classes[picture.label]][picture.split] += 1
        for writer in writers:
            writer.add(picture)
    for writer in writers:
        writer.close()
    return counts


def _writers(material: Material, order: Order, folder: Path) -> list[Writer]:
    """One writer per form."""
    classes = material.plan.generator.classes
    found: list[Writer] = [PngWriter(folder, classes)]
    if "npz" in order.formats:
        found.append(NpzWriter(folder / f"{order.release.name}.npz", classes))
    if "dicom" in order.formats:
        from synth_common.release.dicom import DicomWriter, Origin

        named = f"{order.release}/{material.run_id}".encode()
        short = hashlib.sha256(named).hexdigest()[:8]
        found.append(DicomWriter(folder, classes, Origin(short, _contribution(material))))
    return found


def _contribution(material: Material) -> str:
    """What a DICOM object says of the promise: the largest epsilon that a site stated."""
    from synth_common.reporting.numbers import epsilon_text

    terms = material.plan.privacy
    largest = max(read.epsilon for read, _ in material.statements.values())
    simulated = "SIMULATION. " if material.simulation else ""
    return (
        f"{simulated}Trained under differential privacy: epsilon {epsilon_text(largest)}, delta "
        f"{terms.delta:g} per {terms.unit} at each site; run {material.run_id}"
    )


def _write_papers(material: Material, card: Card, folder: Path) -> None:
    """Everything that people and machines read about the images."""
    charter, plan = material.charter, material.plan
    (folder / STATEMENTS).mkdir()
    texts = {
        PLAN: plan.to_json(),  # byte for byte: its SHA-256 is the plan's digest
        LICENSE: license_text(charter),
        "DATASHEET.md": datasheet(card),
        "MODEL_CARD.md": model_card(card),
        **{f"{STATEMENTS}/{name}.json": text for name, (_, text) in material.statements.items()},
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    columns = ["file_name", "label", "split", "seed"]
    columns += ["mask"] if plan.generator.with_mask else []
    about = _about(card)
    text = croissant(card.release, about, sums.digest_of(folder / METADATA), columns)
    (folder / CROISSANT).write_text(text, encoding="utf-8")


def _about(card: Card) -> dict[str, Any]:
    """What the machine-readable description quotes of charter and guarantee."""
    charter = card.charter
    mark = "SIMULATION, not a release. " if card.simulation else ""
    return {
        "description": f"{mark}{charter.title}: synthetic medical images, drawn by a generator "
        f"that was trained under differential privacy ({card.guarantee}).",
        "license": license_url(charter),
        "date": card.made.date().isoformat(),
        "creator": charter.controller,
        "cite_as": charter.citation,
        "limits": list(charter.limits),
        "uses": charter.purpose,
        "privacy": "Every record was drawn by a generator that learnt from patients: "
        f"{card.guarantee}.",
    }


def _sign(card: Card, material: Material, folder: Path, key: Ed25519PrivateKey) -> None:
    """``SHA256SUMS`` and the signature over every file."""
    plain, _ = sums.files_below(folder)
    digests = {name: sums.digest_of(path) for name, path in plain.items()}
    (folder / SUMS).write_text(sums.render(digests), encoding="utf-8")
    digests[SUMS] = sums.digest_of(folder / SUMS)
    predicate = {
        "name": card.release.name,
        "version": card.release.version,
        "made": card.made.isoformat(),
        "run_id": material.run_id,
        "plan_digest": material.plan.digest(),
        "simulation": material.simulation,
        "sites": sorted(material.statements),
        "images": {s: sum(by[s] for by in card.counts.values()) for s in SPLITS},
        "formats": list(card.formats),
        "weights_sha256": material.weights,
        "software": software(),
    }
    (folder / SIGNATURE).write_text(
        dsse.sign(RELEASE_KIND, digests, predicate, key), encoding="utf-8"
    )
