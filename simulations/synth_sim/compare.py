"""Generators and budgets side by side: one run each, on the same data and seed.

Every run is a fresh process, so that its peak memory and seconds are its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from synth_common.errors import ConfigError, Interrupted, StorageError, SynthwardError
from synth_common.facts import Fact, FactLog, read_facts
from synth_common.privacy.accounting import Use, epsilon
from synth_sim.scenario import Scenario, load_scenario

_SOURCE = "synth_sim.compare.run_comparison"
_METRICS = ("frechet", "kid", "precision", "recall", "density", "coverage")
_COPIED = ("run.scenario", "run.seed", "run.versions", "run.device", "data.classes", "data.shape")


@dataclass(frozen=True)
class CompareOptions:
    """What to compare and where.

    Attributes:
        scenario: Packaged name or TOML file.
        out: Directory; one sub-directory per run.
        families: Generator families.
        epsilons: Budgets as text; ``inf`` trains without privacy.
        overrides: Further ``section.key=value`` for every run.
        seed: Replaces the scenario's seed in every run.
        resume: Keep finished runs, continue interrupted ones.
        command: Command line, for the report.
    """

    scenario: str
    out: Path
    families: tuple[str, ...]
    epsilons: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    seed: int | None = None
    resume: bool = False
    command: str = ""


@dataclass(frozen=True)
class _Case:
    """One run of a comparison."""

    scenario: Scenario
    overrides: tuple[str, ...]
    out: Path


def run_comparison(options: CompareOptions, say: Callable[[str], None]) -> Path:
    """Run every combination that is not finished yet and write the comparison.

    Args:
        options: What to compare.
        say: Takes a line of progress.

    Returns:
        The path of the comparison's page.

    Raises:
        ConfigError: An impossible family or budget (before anything runs), or ``out`` is
            not empty.
        Interrupted: Ctrl-C; can be continued with ``resume``.
        SynthwardError: A run failed; in the class of its exit code.
    """
    from synth_common.reporting.compare import write_comparison

    cases = _cases(options)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for path in options.out.iterdir())
    except OSError as err:
        raise StorageError(f"cannot use {options.out}: {err.strerror}") from err
    if found and not options.resume:
        raise ConfigError(
            f"--out {options.out} is not empty (holds {', '.join(found[:3])}); choose another, "
            "or continue with --resume"
        )
    log = FactLog(options.out / "facts.jsonl")
    runs: list[Sequence[Fact]] = []
    for number, case in enumerate(cases):
        say(f"[{number + 1}/{len(cases)}] {case.out.name}")
        if not _finished(case.out):
            _run_case(options, case)
        facts = list(read_facts(case.out / "facts.jsonl"))
        if number == 0:
            log.extend(fact for fact in facts if fact.name in _COPIED)
            log.append(Fact("run.command", options.command, "public", _SOURCE))
        log.append(_row_fact(case, facts))
        if case.scenario.privacy.private:
            runs.append(facts)
    log.append(
        *_together(cases[0].scenario, runs),
        Fact("run.id", options.out.name, "public", _SOURCE),
        Fact("run.finished", datetime.now(UTC).isoformat(timespec="seconds"), "public", _SOURCE),
    )
    return write_comparison(options.out)


def _cases(options: CompareOptions) -> list[_Case]:
    """Every combination, validated before the first one runs."""
    cases: dict[str, _Case] = {}
    for family in options.families:
        for budget in options.epsilons:
            overrides = (
                *options.overrides,
                f"generator.family={family}",
                f"privacy.epsilon={budget}",
            )
            scenario = load_scenario(options.scenario, overrides, options.seed)
            name = f"{scenario.generator.family}-eps{scenario.privacy.epsilon:g}"
            cases[name] = _Case(scenario, overrides, options.out / name)
    return list(cases.values())


def _finished(out: Path) -> bool:
    """Whether a run directory holds a run that came to its end."""
    log = out / "facts.jsonl"
    return log.exists() and any(fact.name == "run.finished" for fact in read_facts(log))


def _run_case(options: CompareOptions, case: _Case) -> None:
    """One run in a process of its own; its failure becomes ours."""
    command = [sys.executable, "-m", "synth_sim.cli", "run", options.scenario]
    command += ["--out", str(case.out)]
    for override in case.overrides:
        command += ["--set", override]
    if options.seed is not None:
        command += ["--seed", str(options.seed)]
    if (case.out / "scenario.toml").exists():
        command.append("--resume")
    try:
        code = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    if code:
        kinds = {cls.exit_code: cls for cls in _subclasses(SynthwardError)}
        raise kinds.get(code, SynthwardError)(
            f"run {case.out.name} ended with exit code {code}; finished runs are kept. "
            f"Continue with the same command and --out {options.out} --resume"
        )


def _subclasses(cls: type[SynthwardError]) -> list[type[SynthwardError]]:
    """A class and everything below it."""
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]


def _row_fact(case: _Case, facts: Sequence[Fact]) -> Fact:
    """One line of the table: means over the sites, and the strongest attack on any."""
    row: dict[str, Any] = {
        "family": case.scenario.generator.family,
        "epsilon": case.scenario.privacy.epsilon,
        "seed": case.scenario.seed,
        "unit": case.scenario.privacy.unit,
        "delta": case.scenario.privacy.delta,
        "noise": case.scenario.privacy.noise,
        **_privacy_columns(facts),
        **_quality_columns(facts),
        **_utility_columns(facts),
        **_attack_columns(facts),
        **_cost_columns(facts),
        "report": f"{case.out.name}/report.html",
    }
    # What was not measured has no column: the page then says NOT RECORDED.
    row = {name: value for name, value in row.items() if value is not None}
    detail = {"aggregation": "mean over sites; membership: the highest AUC of any site and attack"}
    return Fact("compare.row", row, "site-local", _SOURCE, detail=detail)


def _together(scenario: Scenario, runs: Sequence[Sequence[Fact]]) -> list[Fact]:
    """What all private runs cost a hospital that bore every one of them.

    Trying settings on the same patients and keeping the best is tuning on private data; the
    ledger of a real site charges each try, and so does this sum.
    """
    histories: dict[str, list[Use]] = {}
    for facts in runs:
        for fact in _last(facts, "privacy.site"):
            uses = [Use(**use) for use in fact.value["history"]]
            histories.setdefault(fact.site or "", []).extend(uses)
    if not histories:
        return []
    terms = scenario.privacy
    spent = {name: epsilon(uses, terms.delta, terms.accountant) for name, uses in histories.items()}
    most = max(spent, key=spent.__getitem__)
    value = {"epsilon": spent[most], "site": most, "runs": len(runs), "unit": terms.unit}
    return [Fact("compare.together", value, "public", _SOURCE, detail={"delta": terms.delta})]


def _mean(values: Sequence[Any]) -> float | None:
    """Mean of the numbers among ``values``; None without one."""
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    return sum(numbers) / len(numbers) if numbers else None


def _privacy_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    spent = [f.value["epsilon"] for f in _last(facts, "privacy.site")]
    return {"epsilon_spent": max(spent, key=float, default=None)}


def _quality_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """Each distance in each feature space, diversity, and pixel scores where there are any."""
    columns: dict[str, Any] = {}
    for metric in _METRICS:
        found = _last(facts, f"quality.{metric}")
        for encoder in dict.fromkeys(str(f.detail.get("encoder")) for f in found):
            space = "radiomics" if encoder.startswith("radiomics") else "network"
            same = [f for f in found if f.detail.get("encoder") == encoder]
            columns[f"{metric}_{space}"] = _mean([f.value for f in same])
            columns[f"{metric}_{space}_floor"] = _mean([f.detail.get("floor") for f in same])
    for metric in ("ms_ssim_diversity", "inception_score"):
        columns[metric] = _mean([f.value for f in _last(facts, f"quality.{metric}")])
    for score in ("ssim", "psnr"):
        values = [f.value.get(score) for f in _last(facts, "quality.reconstruction")]
        columns[score] = _mean(values)
    return columns


def _utility_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """Pooled balanced accuracy and Dice by what was trained on, with their intervals."""
    columns: dict[str, Any] = {}
    for fact in _last(facts, "utility.classification"):
        if fact.site is None:
            trained_on = fact.detail.get("trained_on")
            columns[f"utility_{trained_on}"] = fact.value.get("balanced_accuracy")
            columns[f"utility_{trained_on}_interval"] = fact.detail.get("interval")
    for fact in _last(facts, "utility.segmentation"):
        if fact.site is None:
            trained_on = fact.detail.get("trained_on")
            columns[f"dice_{trained_on}"] = fact.value.get("dice")
            columns[f"dice_{trained_on}_interval"] = fact.detail.get("interval")
            if trained_on == "synthetic":
                columns["dice_ratio_to_real"] = fact.value.get("ratio_to_real")
                columns["dice_ratio_to_real_interval"] = fact.detail.get("ratio_interval")
    return columns


def _attack_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """The strongest attack on any site."""
    attacks = [
        f for f in _last(facts, "membership.attack") if isinstance(f.value.get("auc"), int | float)
    ]
    if not attacks:
        return {"membership_auc": None}
    worst = max(attacks, key=lambda fact: float(fact.value["auc"]))
    return {
        "membership_auc": worst.value["auc"],
        "membership_auc_interval": worst.value.get("auc_interval"),
        "membership_tpr_at_1pct_fpr": worst.value.get("tpr_at_1pct_fpr"),
        "membership_attack": worst.value.get("attack"),
    }


def _cost_columns(facts: Sequence[Fact]) -> dict[str, Any]:
    """Seconds, memory, bytes sent and rounds."""
    seconds = {f.detail.get("phase"): f.value for f in facts if f.name == "run.seconds"}
    rounds = {f.round: f.value for f in facts if f.name == "federation.round"}
    peak = [f.value for f in facts if f.name == "run.peak_memory_bytes"]
    ended = [f.value for f in facts if f.name == "run.rounds"]
    return {
        "seconds": seconds.get("total"),
        "training_seconds": seconds.get("training"),
        "peak_memory_bytes": peak[-1] if peak else None,
        "bytes_sent": sum(v["bytes_down"] + v["bytes_up"] for v in rounds.values()),
        "rounds": ended[-1]["completed"] if ended else None,
    }


def _last(facts: Sequence[Fact], name: str) -> list[Fact]:
    """The facts of a name, a repeated recording (a resumed run) counted once."""
    from synth_common.reporting.factbook import FactBook

    return FactBook(facts).all(name)
