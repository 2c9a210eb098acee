"""Fields of the ethics report that rest on facts of the run, its audits and its release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from synth_common.facts import CATALOGUE, Fact
from synth_common.reporting.evidence import Field, Record, Row, Show, of_fact
from synth_common.reporting.factbook import MISSING

# Families whose ``Generator.decode`` gives None; their weights hold no direction to walk along.
_WITHOUT_LATENT_SPACE: Final = frozenset({"embedding"})


def minimisation(record: Record) -> Iterator[Field]:
    """What of the images enters at all."""
    row = record.row
    yield Field(
        "minimisation",
        "Minimisation",
        "What of an image and its file does the program keep, and how many images of one patient?",
        ("gdpr-5-1-c", "ai-act-10-2"),
        [
            row("Kept of every image", "data.minimisation/kept"),
            row("Never copied", "data.minimisation/dropped"),
            row("Size in pixels", "data.shape/size", "setting"),
            row("Channels", "data.shape/channels", "setting"),
            row(
                "Most images of one patient in a draw",
                "plan.settings/privacy/max_images_per_patient",
                "setting",
            ),
        ],
    )


def generator(record: Record) -> Iterator[Field]:
    """What drew the images, so that it can be drawn again."""
    row = record.row
    yield Field(
        "generator",
        "Generator, seeds and hashes",
        "What exactly made the images, and could it be made again?",
        ("model-cards", "mi-claim-gen"),
        [
            row("Run", "run.id"),
            row("Started", "run.started", "moment"),
            row("Finished", "run.finished", "moment"),
            row("Family", "generator.summary/family"),
            row("Parameters", "generator.summary/parameters", "measured"),
            row(
                "Parameters that DP-SGD trains on patients",
                "generator.summary/private_parameters",
                "measured",
            ),
            row("Public images behind the initial weights", "pretraining.public/public_data"),
            row("Seed", "run.seed", "setting"),
            row("Federation plan, SHA-256", "plan.digest"),
            row("Program, version", "run.code/version"),
            row("Program, SHA-256 of its files", "run.code/sha256"),
            row("Final weights, SHA-256", "run.weights"),
            row("Libraries", "run.versions"),
            row("Command", "run.command"),
        ],
    )
    directions = record.facts("samples.traversal")
    yield Field(
        "interpretability",
        "Interpretability of the generator",
        "Can it be said in words what a part of the generator does?",
        ("future-ai", "model-cards"),
        [_direction(fact) for fact in directions] or [_no_direction(record)],
    )


def _direction(fact: Fact) -> Row:
    """One direction of the latent space: its share of all change, its picture by name."""
    row = of_fact(fact, f"Direction {fact.detail.get('direction', '')}")
    caption = fact.detail.get("caption", MISSING)
    return replace(row, value=f"{caption} (picture below)", fact="samples.traversal")


def _no_direction(record: Record) -> Row:
    """Nobody recorded a direction; of a family without a latent space there is none to record."""
    family = record.row("Latent directions", "plan.settings/generator/family")
    if family.value in _WITHOUT_LATENT_SPACE:
        return replace(family, value=f"none: family {family.value} has no latent space")
    return record.row("Latent directions", "samples.traversal")


def guarantee(record: Record) -> Iterator[Field]:
    """The formal guarantee: the whole pyramid."""
    row = record.row
    top = [
        row("Unit: whose presence it hides", "privacy.unit"),
        row("Neighbouring data sets", "privacy.adjacency"),
        row("Delta", "privacy.delta", "setting"),
        row("Trust model", "privacy.trust_model/name"),
        row("Whom a patient must trust", "privacy.trust_model/meaning"),
        row("Where the noise is drawn", "privacy.noise_source/statement"),
    ]
    spent = [r for f in record.facts("privacy.site") for r in _site(f)]
    yield Field(
        "guarantee",
        "Epsilon, delta, unit and trust model",
        "What is promised to a patient, by whom, and what was spent at each site?",
        ("nist-800-226",),
        [*top, *(spent or [row("Epsilon", "privacy.site", "epsilon")])],
    )
    together = record.one("compare.together")
    released = record.one("release.embedding")
    rows = [r for f in record.facts("privacy.site") for r in _mechanism(f)]
    if released is not None:
        rows += [
            of_fact(released, "Release: noise multiplier", "noise_multiplier", "measured"),
            of_fact(released, "Release: attempts, all charged", "attempts", "setting"),
            of_fact(
                released,
                "Release: epsilon if all other sites conspire",
                "epsilon_if_all_others_collude",
                "epsilon",
            ),
        ]
    tuned = (
        row("Tuning on the same patients outside these ledgers", "compare.together")
        if together is None
        else of_fact(together, "All runs of the comparison, composed", "epsilon", "epsilon")
    )
    yield Field(
        "composition",
        "Mechanism and composition",
        "How are patients sampled, clipped, noised, and is all added up: rounds, retries, tuning?",
        ("nist-800-226",),
        [*(rows or [row("Noise, sampling, clipping", "privacy.site")]), tuned],
    )


def _site(fact: Fact) -> list[Row]:
    shown: tuple[tuple[str, str, Show], ...] = (
        ("Epsilon spent, all entries of the ledger", "epsilon", "epsilon"),
        ("Target of the run", "target_epsilon", "setting"),
        ("Lifetime budget", "budget_epsilon", "setting"),
    )
    return [of_fact(fact, label, key, show) for label, key, show in shown]


def _mechanism(fact: Fact) -> list[Row]:
    shown: tuple[tuple[str, str, Show], ...] = (
        ("Noise multiplier", "noise_multiplier", "measured"),
        ("Sampling rate", "sample_rate", "measured"),
        ("Steps", "steps", "measured"),
        ("Clipping norm of a patient's gradient", "clip_norm", "setting"),
        ("Accountant", "accountant", "words"),
        ("Last entry of the ledger", "ledger_head", "words"),
    )
    return [of_fact(fact, label, key, show) for label, key, show in shown]


def security(record: Record) -> Iterator[Field]:
    """What may leave a site, by which way, and who can reach it."""
    row = record.row
    released = record.one("release.embedding")
    summed = (
        row("Secure aggregation", "privacy.trust_model/name")
        if released is None
        else of_fact(released, "Secure aggregation: trust model of the release", "trust_model")
    )
    rows = [
        row("Way between coordinator and sites", "security.link"),
        row("Tensors that may leave a site", "security.egress/tensors"),
        row("Statistics that may leave a site", "security.egress/statistics"),
        row("Single values that may leave a site", "security.egress/values"),
        row("Refused by name", "security.egress/refused"),
        summed,
    ]
    if released is not None:
        rows.append(of_fact(released, "Messages of the release", "messages", "measured"))
    yield Field(
        "security",
        "Security, access and what may leave a site",
        "What leaves a site, by which way, and who can reach what?",
        ("gdpr-32", "nist-800-226"),
        [
            *rows,
            record.stated("Measures of the organisation", "security.measures"),
            record.stated("Access", "security.access"),
        ],
    )


def fairness(record: Record) -> Iterator[Field]:
    """Whether groups are served alike, and what experts say."""
    recalls = [
        _of_detail(f, f"Recall per class, trained on {f.detail.get('trained_on', MISSING)}")
        for f in record.facts("utility.classification")
        if isinstance(f.value, Mapping) and f.value.get("per_class")
    ]
    yield Field(
        "bias",
        "Bias tests",
        "Do the images serve every class, site and group alike?",
        ("ai-act-10-bias", "future-ai"),
        [*_fairness(record), *recalls],
    )
    yield Field(
        "reader-study",
        "Assessment by medical experts",
        "What did experts who looked at the images find?",
        ("future-ai", "claim"),
        [
            record.stated("Study", "reader_study.reference"),
            record.stated("Finding", "reader_study.conclusion"),
        ],
    )


def _group(fact: Fact) -> str:
    """Whom a fact of fairness speaks of, and what was measured."""
    told = fact.detail
    whom = " ".join(str(told[key]) for key in ("dimension", "group") if key in told)
    how = f"{told['measure']}, trained on {told['trained_on']}" if "measure" in told else ""
    return ": ".join(part for part in (whom, how) if part) or CATALOGUE[fact.name]


def _fairness(record: Record) -> list[Row]:
    """Facts whose name begins with ``fairness.``, or a row that says that there is none."""
    names = [name for name in CATALOGUE if name.startswith("fairness.")]
    rows = [_served(f) for f in record.facts(*names) if f.detail.get("trained_on") != "real"]
    return rows or [record.row("Usefulness by sex, age and site", "fairness.")]


def _served(fact: Fact) -> Row:
    """How well a group is served, with its interval and size; or why that is not shown."""
    row = of_fact(fact, _group(fact), "", "measured")
    if (why := fact.detail.get("suppressed")) is not None:
        return replace(row, value=f"not shown: {why}", show="words")
    if not isinstance(row.value, Mapping):
        return row
    told = {key: fact.detail.get(key, MISSING) for key in ("interval", "test_patients")}
    smallest = {"smallest group": True} if fact.detail.get("smallest") else {}
    shown = {key.replace("_", " "): value for key, value in {**row.value, **told}.items()}
    return replace(row, value={**shown, **smallest})


def upkeep(record: Record) -> Iterator[Field]:
    """Marking of what is released, and what the run consumed."""
    row = record.row
    yield Field(
        "marking",
        "Marking as synthetic",
        "Is every released image marked as synthetic, readable by machines, and was that checked?",
        ("ai-act-50-2",),
        [row("Marks applied and verified", "release.marking", "measured")],
    )
    yield Field(
        "energy",
        "Energy",
        "What did the run consume?",
        ("iso-42001",),
        [
            row("Processors, joules", "run.energy/cpu_joules", "measured"),
            row("Accelerators, joules", "run.energy/gpu_joules", "measured"),
            row("How it was measured", "run.energy/method"),
            row("What it covers", "run.energy/covers"),
            row("Device", "run.device/processor"),
            *_seconds(record),
        ],
    )


def _seconds(record: Record) -> list[Row]:
    total = [f for f in record.facts("run.seconds") if f.detail.get("phase") == "total"]
    if not total:
        return [record.row("Seconds", "run.seconds", "duration")]
    return [of_fact(total[-1], "Wall-clock time", "", "duration")]


def _of_detail(fact: Fact, label: str) -> Row:
    return of_fact(fact, label, "per_class", "measured")
