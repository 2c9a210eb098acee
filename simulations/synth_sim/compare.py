"""Generators and budgets side by side: one run each, on the same data and seeds.

Every run is a fresh process, so that its peak memory and seconds are its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

from synth_common.errors import ConfigError, Interrupted, StorageError, SynthwardError
from synth_common.facts import Fact, FactLog, read_facts
from synth_common.privacy.accounting import Use, epsilon
from synth_sim.compare_rows import last_facts, row_fact, summary_facts
from synth_sim.recipes import recipe_of
from synth_sim.scenario import Scenario, load_scenario

_SOURCE = "synth_sim.compare.run_comparison"
_COPIED = ("run.scenario", "run.seed", "run.versions", "run.device", "data.classes", "data.shape")


@dataclass(frozen=True)
class CompareOptions:
    """What to compare and where.

    Attributes:
        scenario: Packaged name or TOML file.
        out: Directory; one sub-directory per run.
        generators: Families, or names of :data:`synth_sim.recipes.RECIPES`.
        epsilons: Budgets as text; ``inf`` trains without privacy.
        overrides: Further ``section.key=value`` for every run; they overrule a recipe's defaults,
            but neither what makes it what it is nor the budget.
        seeds: Every combination runs once with each; empty for the scenario's own seed.
        resume: Keep finished runs, continue interrupted ones.
        command: Command line, for the report.
    """

    scenario: str
    out: Path
    generators: tuple[str, ...]
    epsilons: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    resume: bool = False
    command: str = ""


@dataclass(frozen=True)
class _Case:
    """One run of a comparison."""

    generator: str
    scenario: Scenario
    overrides: tuple[str, ...]
    seed: int | None
    out: Path


def parse_seeds(text: str | None) -> tuple[int, ...]:
    """Seeds from ``1,2,3``; none from None. Raises ConfigError for what is no list of seeds."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise ConfigError(f"--seeds {text!r}: give different whole numbers from 0, as in 1,2,3")
    return tuple(int(part) for part in parts)


def run_comparison(options: CompareOptions, say: Callable[[str], None]) -> Path:
    """Run every combination that is not finished yet and write the comparison.

    Args:
        options: What to compare.
        say: Takes a line of progress.

    Returns:
        The path of the comparison's page.

    Raises:
        ConfigError: An unknown generator or impossible budget (before anything runs), or ``out`` is
            not empty.
        DataError: Images are missing (before anything runs).
        Interrupted: Ctrl-C; can be continued with ``resume``.
        SynthwardError: A run failed; in the class of its exit code.
    """
    from synth_common.reporting.compare import write_comparison
    from synth_sim.prepare import require_data

    cases = _cases(options)
    if not all((case.out / "scenario.toml").exists() for case in cases):
        require_data(cases[0].scenario)  # every case reads the same
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
    rows: list[Fact] = []
    for number, case in enumerate(cases):
        say(f"[{number + 1}/{len(cases)}] {case.out.name}")
        if not _finished(case.out):
            _run_case(options, case)
        facts = list(read_facts(case.out / "facts.jsonl"))
        if number == 0:
            log.extend(fact for fact in facts if fact.name in _COPIED)
            log.append(Fact("run.command", options.command, "public", _SOURCE))
        report = f"{case.out.name}/report.html"
        rows.append(row_fact(case.generator, case.scenario, facts, report))
        log.append(rows[-1])
        if case.scenario.privacy.private:
            runs.append(facts)
    log.append(
        *summary_facts(rows),
        *_together(cases[0].scenario, runs),
        Fact("run.id", options.out.name, "public", _SOURCE),
        Fact("run.finished", datetime.now(UTC).isoformat(timespec="seconds"), "public", _SOURCE),
    )
    return write_comparison(options.out)


def _cases(options: CompareOptions) -> list[_Case]:
    """Every combination, validated before the first one runs."""
    cases: dict[str, _Case] = {}
    combinations = product(options.generators, options.epsilons, options.seeds or (None,))
    for generator, budget, seed in combinations:
        recipe = recipe_of(generator)
        for override in options.overrides:
            key, _, value = (part.strip(" \"'") for part in override.partition("="))
            if key == "generator.family" and f"{key}={value}" not in recipe.settings:
                raise ConfigError(
                    f"--set {override}: a run called {generator} is not of that family; choose "
                    "families by --generators"
                )
        wanted = (*recipe.overrides(options.overrides), f"privacy.epsilon={budget}")
        try:
            scenario = load_scenario(options.scenario, wanted, seed)
        except ConfigError as err:
            raise ConfigError(f"--generators {generator} at epsilon {budget}: {err}") from err
        name = f"{generator}-eps{scenario.privacy.epsilon:g}"
        if len(options.seeds) > 1:
            name += f"-seed{seed}"
        cases[name] = _Case(generator, scenario, wanted, seed, options.out / name)
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
    if case.seed is not None:
        command += ["--seed", str(case.seed)]
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


def _together(scenario: Scenario, runs: Sequence[Sequence[Fact]]) -> list[Fact]:
    """What all private runs cost a hospital that bore every one of them.

    Trying settings on the same patients and keeping the best is tuning on private data; the
    ledger of a real site charges each try, and so does this sum.
    """
    histories: dict[str, list[Use]] = {}
    for facts in runs:
        for fact in last_facts(facts, "privacy.site"):
            uses = [Use(**use) for use in fact.value["history"]]
            histories.setdefault(fact.site or "", []).extend(uses)
    if not histories:
        return []
    terms = scenario.privacy
    spent = {name: epsilon(uses, terms.delta, terms.accountant) for name, uses in histories.items()}
    most = max(spent, key=spent.__getitem__)
    value = {"epsilon": spent[most], "site": most, "runs": len(runs), "unit": terms.unit}
    return [Fact("compare.together", value, "public", _SOURCE, detail={"delta": terms.delta})]
