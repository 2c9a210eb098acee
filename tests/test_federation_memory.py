"""What the coordinator remembers: ledger heads that find a roll-back, and released histograms."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_sites import approve, small_plan, small_site

from synth_client.app import SiteApp, make_client_app
from synth_client.evaluate import SiteEvaluation
from synth_client.site import save_site
from synth_common.errors import CheckpointError, DataError, FederationError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.synthetic import class_labels
from synth_common.generators import build_generator
from synth_common.plan import Plan, ReleasePlan
from synth_server.checkpoint import Checkpoint, load_latest, save_checkpoint
from synth_server.rounds import State, discover_sites, run_rounds
from synth_server.strategy import Memory, UniformAverage
from synth_sim.transport import InProcessGrid, PartitionSites


def _federation(folder: Path, plan: Plan) -> tuple[InProcessGrid, State]:
    """Two sites that approved the plan, and the weights to start from."""
    directories = []
    for seed, name in enumerate(("north", "south")):
        site = small_site(folder, name, seed)
        save_site(site)
        approve(site, plan)
        directories.append(site.directory)
    app = SiteApp(PartitionSites(tuple(directories)), SiteEvaluation(EvaluationConfig(), seed=1))
    state = build_generator(plan.generator, seed=3).shared_state()
    return InProcessGrid(make_client_app(app), 2), state


def _strategy(grid: InProcessGrid, plan: Plan) -> UniformAverage:
    return UniformAverage(discover_sites(grid, 5.0), 2, "run", plan)


def test_a_ledger_rolled_back_with_its_anchor_is_found_by_what_the_coordinator_saw(
    tmp_path: Path,
) -> None:
    """Also by a coordinator that was restarted from its checkpoint in between."""
    plan = small_plan(accountant="rdp")
    grid, state = _federation(tmp_path, plan)
    ledger = tmp_path / "north" / "ledger.sqlite"
    for name in ("ledger.sqlite", "ledger.head"):
        shutil.copy(ledger.with_name(name), tmp_path / name)
    strategy, seen = _strategy(grid, plan), []

    def after(result) -> None:
        seen.append(result)
        for name in ("ledger.sqlite", "ledger.head"):
            shutil.copy(tmp_path / name, ledger.with_name(name))
        checkpoint = Checkpoint("run", result.round, plan.digest(), result.state, strategy.memory)
        save_checkpoint(tmp_path / "checkpoints", checkpoint)

    with pytest.raises(FederationError, match="north: LedgerError"):
        run_rounds(grid, strategy, plan, (0, state), after)
    assert len(seen) == 1
    assert set(strategy.memory.heads) == {"north", "south"}
    stored = load_latest(tmp_path / "checkpoints")
    restarted = _strategy(grid, plan)
    restarted.memory = stored.memory
    with pytest.raises(FederationError, match="north: LedgerError"):
        run_rounds(grid, restarted, plan, (1, dict(stored.state)), after)


def test_histograms_of_all_sites_become_shares_and_outlive_a_restart(tmp_path: Path) -> None:
    plan = small_plan(accountant="rdp")
    plan = plan.model_copy(update={"release": ReleasePlan(label_histogram=2.0)})
    grid, state = _federation(tmp_path / "sites", plan)
    strategy = _strategy(grid, plan)
    run_rounds(grid, strategy, plan, (0, state), lambda _result: None)
    assert set(strategy.memory.histograms) == {"north", "south"}
    assert sum(strategy.memory.shares()) == pytest.approx(1.0)
    memory = Memory({"north": "a" * 64}, {"north": [30.0, -4.0], "south": [10.0, 14.0]})
    assert memory.shares() == (0.8, 0.2)
    assert Memory(histograms={"north": [-1.0, -2.0]}).shares() == ()
    assert Memory().shares() == ()
    path = save_checkpoint(tmp_path, Checkpoint("run", 1, "plan", {"w": torch.zeros(1)}, memory))
    assert load_latest(tmp_path).memory == memory
    content = path.read_bytes()
    path.write_bytes(content.replace(b"30.0", b"90.0"))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_latest(tmp_path)


def test_labels_come_in_the_released_shares() -> None:
    plan = small_plan()
    assert class_labels(plan, 10, (0.75, 0.25)).tolist() == [0] * 8 + [1] * 2
    assert class_labels(plan, 4).tolist() == [0, 1, 0, 1]
    for shares in ((1.0,), (0.5, 0.4)):
        with pytest.raises(DataError, match="class shares"):
            class_labels(plan, 4, shares)
