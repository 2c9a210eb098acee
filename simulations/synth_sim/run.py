"""One simulated federation from start to report.

A run lives in one directory and can be continued after anything that stopped it: sites
keep ledgers and paid replies, the server a checkpoint per round, and facts are appended
as they are measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from synth_common.errors import ConfigError, Interrupted, StorageError
from synth_common.facts import Fact, FactLog, read_facts
from synth_server.lock import LOCK, locked
from synth_server.progress import Reporter, reporter
from synth_sim.scenario import Scenario, load_scenario, save_scenario
from synth_sim.transport import Engine

if TYPE_CHECKING:
    from synth_common.energy import EnergyMeter
    from synth_server.checkpoint import Checkpoint
    from synth_server.rounds import Ended
    from synth_sim.federate import Federation

_SOURCE = "synth_sim.run.run_scenario"


@dataclass(frozen=True)
class RunOptions:
    """How to run, apart from what.

    Attributes:
        out: The run directory.
        engine: Transport between server and sites.
        resume: Continue what is in ``out``.
        command: Command line, for the report.
        say: Takes a line about what is beginning.
        keep_updates: Write down every site's update of every round, for an audit.
    """

    out: Path
    engine: Engine = "inprocess"
    resume: bool = False
    command: str = ""
    say: Callable[[str], None] = lambda line: None
    keep_updates: bool = False


def run_scenario(scenario: Scenario, options: RunOptions) -> Path:
    """Prepare the sites, train, evaluate and report. Returns the path of ``report.html``.

    Args:
        scenario: What to run; on resume it must be the run's own.
        options: Where and how.

    Raises:
        ConfigError: ``out`` is in use, not empty, or holds another run.
        DataError: Images are missing; like missing weights, refused before ``out`` is made.
        Interrupted: Ctrl-C; the run can be continued.
        SynthwardError: Whatever stopped the run; see its class.
    """
    _require_inputs(scenario, options)
    with _held(options):
        try:
            return _run(scenario, options)
        except KeyboardInterrupt:
            raise Interrupted(
                "stopped; what was finished is kept. Continue with: synth-sim run "
                f"{options.out / 'scenario.toml'} --out {options.out} --resume"
            ) from None


def _require_inputs(scenario: Scenario, options: RunOptions) -> None:
    """Refuse what is bound to fail for want of images, weights or an engine."""
    from synth_common.evaluation.encoder_file import file_encoder
    from synth_common.flower import require_ray
    from synth_sim.prepare import require_data
    from synth_sim.weights import initial_generator

    if options.engine == "ray":
        require_ray()
    if not options.resume:  # a run that was prepared has images of its own
        require_data(scenario)
        initial_generator(scenario)
    file_encoder(scenario.evaluation)


def load_run(out: Path) -> Scenario:
    """The scenario of a run directory. Raises ConfigError where there is none."""
    path = out / "scenario.toml"
    if not path.is_file():
        raise ConfigError(f"{out} holds no run (no scenario.toml)")
    return load_scenario(str(path))


@contextmanager
def _held(options: RunOptions) -> Iterator[None]:
    """Own the run directory: made if missing, empty unless resumed, locked."""
    out = options.out
    try:
        if not options.resume:
            out.mkdir(parents=True, exist_ok=True)
        elif not (out / "scenario.toml").is_file():
            raise ConfigError(f"--resume: {out} holds no run (no scenario.toml); check --out")
        found = sorted(path.name for path in out.iterdir() if path.name != LOCK)
    except OSError as err:
        raise StorageError(f"cannot use {out} as run directory: {err.strerror}") from err
    if found == ["scenario.toml"]:  # a start that failed before it had any data
        found = []
    if found and not options.resume:
        raise ConfigError(
            f"--out {out} is not empty (holds {', '.join(found[:3])}); "
            "choose another directory, or continue the run in it with --resume"
        )
    with locked(out):
        yield


def _run(scenario: Scenario, options: RunOptions) -> Path:
    """The run behind the lock."""
    from synth_common.reporting.report import write_report
    from synth_server.checkpoint import load_latest
    from synth_server.record import energy_meter
    from synth_sim.federate import federate

    began = time.perf_counter()
    log = FactLog(options.out / "facts.jsonl")
    known = _known(scenario, options, log)
    if "run.finished" in known:
        options.say(f"the run in {options.out} is finished; only its report is written anew")
    else:
        if "run.id" not in known:
            options.say("reading the images and dealing them to the sites")
            _prepare(scenario, options, log)
        run_id, digest = scenario.run_id(), scenario.plan.digest()
        checkpoint = load_latest(options.out / "checkpoints", run_id, digest)
        completed = 0 if checkpoint is None else checkpoint.round
        if options.resume:
            _resumed(scenario, options, log, None if checkpoint is None else completed)
        with (
            reporter(scenario.training.rounds, completed) as tell,
            energy_meter(scenario.plan) as meter,
        ):
            run = _open(scenario, options, log, tell, checkpoint)
            initial = run.course.generator.shared_state()
            state = initial if checkpoint is None else dict(checkpoint.state)
            ended, judging = federate(run, options.engine, (completed, state))
            _finish(run, options, ended, (began, judging), meter)
    _state(scenario, options)
    return write_report(options.out)


def _state(scenario: Scenario, options: RunOptions) -> None:
    """Play the sites' operators: each states what the run charged, signed with its own key."""
    from synth_client.statement import write_simulated
    from synth_sim.prepare import site_directories

    if scenario.privacy.private:
        sites = site_directories(scenario, options.out).values()
        write_simulated(sites, options.out / "statements", scenario.run_id())


def _resumed(scenario: Scenario, options: RunOptions, log: FactLog, completed: int | None) -> None:
    """Say and record where a stopped run goes on: after ``completed`` rounds, None before any."""
    from synth_server.record import resumed_fact

    fact = resumed_fact(scenario.plan, completed)
    at, rounds = fact.value["at"], scenario.training.rounds
    options.say(f"resuming at {at}" + (f" of {rounds}" if at.startswith("round") else ""))
    log.append(fact)


def _known(scenario: Scenario, options: RunOptions, log: FactLog) -> set[str]:
    """Names of facts recorded before; refuses to resume what is another run."""
    if not options.resume:
        save_scenario(scenario, options.out / "scenario.toml")
        return set()
    stored = load_run(options.out)
    if stored.run_id() != scenario.run_id():
        raise ConfigError(
            f"--resume: {options.out} holds a run of scenario {stored.name!r} with other settings "
            "or seed; leave --set and --seed out, or choose another --out"
        )
    return {fact.name for fact in read_facts(log.path)} if log.path.exists() else set()


def _prepare(scenario: Scenario, options: RunOptions, log: FactLog) -> None:
    """Make the sites and record everything known before training, in one write."""
    from synth_server.record import generator_fact, pretraining_fact, seconds_fact
    from synth_sim.prepare import prepare_sites
    from synth_sim.record import run_facts
    from synth_sim.weights import initial_generator

    began = time.perf_counter()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    generator = initial_generator(scenario)
    facts = prepare_sites(scenario, options.out)
    facts += run_facts(scenario, options.engine, options.command)
    facts += [generator_fact(generator), pretraining_fact(scenario.pretraining)]
    facts.append(Fact("run.started", started, "public", _SOURCE))
    facts.append(seconds_fact("data", time.perf_counter() - began))
    log.extend(facts)


def _open(
    scenario: Scenario, options: RunOptions, log: FactLog, tell: Reporter, kept: Checkpoint | None
) -> Federation:
    """Load the sites and build the generator with its public initial weights."""
    from synth_client.site import load_site
    from synth_server.coordination import Coordination
    from synth_server.strategy import Memory
    from synth_sim.federate import Federation
    from synth_sim.prepare import site_directories
    from synth_sim.release import prices
    from synth_sim.weights import initial_generator

    sites = [load_site(path) for path in site_directories(scenario, options.out).values()]
    plan = scenario.plan
    course = Coordination(
        plan=plan,
        run_id=scenario.run_id(),
        seed=scenario.seed,
        folder=options.out,
        log=log,
        tell=tell,
        generator=initial_generator(scenario),
        prices=lambda release: prices(plan, sites, release),
        story=lambda site: options.out / "sites" / site / "errors.log",
        memory=Memory() if kept is None else kept.memory,
        released=kept is not None,
    )
    return Federation(scenario, course, sites, options.keep_updates)


def _finish(
    run: Federation,
    options: RunOptions,
    ended: Ended,
    clock: tuple[float, float],
    meter: EnergyMeter,
) -> None:
    """Judge the pooled result, gather the sites' facts, and close the run in one write."""
    from synth_client.site import privacy_facts
    from synth_server.record import energy_fact, time_facts, weights_fact
    from synth_sim.judge import pooled_utility, write_grids
    from synth_sim.record import peak_memory_fact

    scenario, course = run.scenario, run.course
    began, judging = clock
    start = time.perf_counter()
    course.generator.eval()
    tell = partial(course.tell.stage, "evaluation, all sites")
    facts = pooled_utility(scenario, run.sites, course.generator, course.memory.shares(), tell)
    tell("pictures for the report")
    facts += write_grids(scenario, run.sites, course.generator, run.out)
    for site in run.sites:
        facts += privacy_facts(site, scenario.plan, scenario.run_id())
        facts += list(read_facts(site.facts.path)) if site.facts.path.exists() else []
    rounds = {
        "planned": scenario.training.rounds,
        "completed": ended.completed,
        "ended": ended.reason,
    }
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts += [
        Fact("run.rounds", rounds, "public", _SOURCE),
        weights_fact(course.generator),
        peak_memory_fact(options.engine),
        energy_fact(meter, options.resume),
        *time_facts(
            course.log.path,
            judging + time.perf_counter() - start,
            time.perf_counter() - began,
        ),
        Fact("run.finished", now, "public", _SOURCE),
    ]
    course.log.extend(facts)
