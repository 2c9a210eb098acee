"""Kill a coordinator at lines of the modules that ask, add up and keep; run by a test.

``python tests/crash_coordinator.py FOLDER STRIDE`` plays a run of two rounds once undisturbed and
notes every line that it passes. Then, for every STRIDE-th of these lines and all lines of some
functions, a forked child plays the run and kills itself (SIGKILL) there, the second time it comes
by if it does; another child goes on from what is left on the disk, and the parent compares. There
is no noise, which nothing here depends on, so that a run is quick. Prints how many kills there
were and the functions they fell into; an AssertionError names the line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from service_sites import Hospitals, run, settings, small_plan

from synth_common.facts import read_facts
from synth_common.plan import Plan
from synth_common.privacy.egress import state_digest
from synth_common.privacy.ledger import Ledger
from synth_common.privacy.training import LocalResult, PrivateTrainer, Steps
from synth_common.reporting import report
from synth_server import (
    aggregation,
    checkpoint,
    coordinate,
    coordination,
    deployed_run,
    deployment,
    rounds,
    strategy,
)
from synth_server.checkpoint import load_latest
from synth_server.service import ServiceOptions

WATCHED = {
    module.__file__
    for module in (
        aggregation, checkpoint, coordinate, coordination, deployed_run, deployment, rounds,
        strategy,
    )
}  # fmt: skip
ALWAYS = {
    "aggregate_train",
    "add",
    "result",
    "run_rounds",
    "after_round",
    "keep",
    "save_checkpoint",
}
"""Functions every line of which gets its kill: between rounds, and in the middle of one."""
Place = tuple[str, str, int]
"""File, function and line."""


def quick_training(self: PrivateTrainer, steps: Steps, kept: object) -> LocalResult:
    """Stands in for the steps: moves the weights as the site and the round decide."""
    rng = torch.Generator().manual_seed(steps.seed % 2**31 + steps.first)
    with torch.no_grad():
        for parameter in self._generator.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=1e-3)
    return LocalResult(1.0, 0.5, {})


def plan() -> Plan:
    """Two rounds of three sites."""
    base = small_plan(epsilon="inf").model_dump()
    base["training"]["rounds"] = 2
    return Plan.model_validate(base)


def play(folder: Path, resume: bool = False) -> None:
    """One process of a coordinator, its sites in it."""
    chosen = settings(run={"gather_s": 0, "patience_s": 5, "evaluate": False, "traversals": 0})
    options = ServiceOptions(resume=resume)
    run(folder / "server", Hospitals(folder / "hospitals", plan()), plan(), options, chosen)


def passed(action: Callable[[], None]) -> dict[Place, int]:
    """How often a child passes each line of watched modules, in the order of first passes."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        seen: Counter[Place] = Counter()
        _traced(action, lambda place: seen.update([place]))
        with os.fdopen(into, "w") as handle:
            json.dump([[*place, times] for place, times in seen.items()], handle)
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as handle:
        found = json.load(handle)
    assert os.waitpid(child, 0)[1] == 0, "the undisturbed run failed"
    return {(file, function, line): times for file, function, line, times in found}


def _traced(action: Callable[[], None], at: Callable[[Place], object]) -> None:
    """Run an action and call ``at`` at every line of watched modules."""

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., object] | None:
        code = frame.f_code
        if code.co_filename not in WATCHED:
            return None
        if event == "line":
            at((code.co_filename, code.co_name, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(None)


def killed_at(wanted: Place, nth: int, action: Callable[[], None]) -> bool:
    """Fork a child that dies at the ``nth`` pass of a line; False if it lived to the end."""
    child = os.fork()
    if child == 0:
        times = 0

        def at(place: Place) -> None:
            nonlocal times
            times += place == wanted
            if times == nth:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            _traced(action, at)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def lived(action: Callable[[], None]) -> bool:
    """Whether a child that does this ends well."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def check(folder: Path, expected: str, where: Place) -> None:
    """What must hold once the run has gone on to its end."""
    kept = load_latest(folder / "server" / "run" / "checkpoints")
    assert kept is not None, f"{where}: no checkpoint"
    assert (kept.round, state_digest(kept.state)) == (2, expected), f"{where}: another model"
    facts = list(read_facts(folder / "server" / "run" / "facts.jsonl"))
    rounds_told = {fact.round for fact in facts if fact.name == "federation.round"}
    assert rounds_told == {1, 2}, f"{where}: rounds told {rounds_told}"
    for name in ("east", "north", "west"):
        path = folder / "hospitals" / "sites" / name / "ledger.sqlite"
        with Ledger.read(path) as ledger:
            charged = [made.key.round for made in ledger.reservations()]
        assert charged == [1, 2], f"{where}: {name} was charged for rounds {charged}"


def main(folder: Path, stride: int) -> None:
    """Kill at the chosen lines, one after the other."""
    torch.set_num_threads(1)
    PrivateTrainer.run = quick_training  # type: ignore[method-assign]
    report.write_report = lambda run_dir: run_dir / "report.html"
    # One name for all runs, so that all train alike.
    deployment.secrets.token_hex = lambda size: "0" * (2 * size)
    fresh = folder / "fresh"
    fresh.mkdir()
    Hospitals(fresh / "hospitals", plan())
    whole = folder / "whole"
    shutil.copytree(fresh, whole)
    warm = folder / "warm"
    shutil.copytree(fresh, warm)
    play(warm)  # what a run imports late is imported here, and not again by every child
    places = passed(lambda: play(whole))
    kept = load_latest(whole / "server" / "run" / "checkpoints")
    assert kept is not None
    expected = state_digest(kept.state)
    kills, functions = 0, set()
    for where in [w for i, w in enumerate(places) if w[1] in ALWAYS or i % stride == 0]:
        place = folder / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(fresh, place)
        nth = min(2, places[where])
        assert killed_at(where, nth, lambda: play(folder / "place")), f"{where} was not passed"
        kills += 1
        functions.add(where[1])
        facts = place / "server" / "run" / "facts.jsonl"
        begun = facts.exists() and any(f.name == "run.started" for f in read_facts(facts))
        assert lived(lambda begun=begun: play(folder / "place", resume=begun)), where
        check(place, expected, where)
    sys.stdout.write(f"{kills} kills in {' '.join(sorted(functions))}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
