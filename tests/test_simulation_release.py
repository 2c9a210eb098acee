"""A run with a release: what it leaves behind, how it goes on, what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from release_scenario import learn, learner, scenario  # noqa: F401

from synth_client.app import SiteApp
from synth_common.errors import BudgetError, DataError, Interrupted
from synth_common.facts import read_facts
from synth_common.generators import build_generator
from synth_common.generators.vae import VAE
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.egress import state_digest
from synth_common.privacy.ledger import Ledger
from synth_common.privacy.release_noise import release_noise
from synth_common.randomness import derive_seed
from synth_common.reporting.ethics import write_ethics
from synth_common.reporting.factbook import FactBook
from synth_server.checkpoint import load_latest
from synth_server.release import Releasing
from synth_sim import federate
from synth_sim.run import RunOptions, load_run, run_scenario
from synth_sim.scenario import Scenario

ROOT = Path(__file__).resolve().parents[1]


def _charged(out: Path) -> dict[str, int]:
    """Uses in each site's ledger."""
    found = {}
    for path in sorted((out / "sites").iterdir()):
        with Ledger.read(path / "ledger.sqlite") as ledger:
            found[path.name] = len(ledger.reservations())
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends where the sites would judge; raises Interrupted."""

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(federate, "evaluate_sites", stop)


def _until_judged(wanted: Scenario, out: Path, resume: bool = False) -> None:
    with pytest.raises(Interrupted):
        run_scenario(wanted, RunOptions(out, resume=resume, command="synth-sim run tiny"))


@pytest.mark.usefixtures("learner")
def test_a_run_of_one_release_goes_on_after_a_stop_and_pays_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, out = scenario(tmp_path), tmp_path / "run"

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "learn_release", stop)
        _until_judged(wanted, out)
    assert (out / "checkpoints" / "release.safetensors").exists()
    assert _charged(out) == {"alpha": 1, "beta": 1, "gamma": 1}
    with monkeypatch.context() as patch:
        patch.setattr(federate, "evaluate_sites", stop)
        patch.setattr(SiteApp, "release", lambda *_: pytest.fail("asked again"))
        _until_judged(wanted, out, resume=True)
    learnt = load_latest(out / "checkpoints")
    assert learnt is not None
    assert learnt.round == 0
    # What was learnt is kept, too: nobody learns a second time.
    monkeypatch.setattr(VAE, "learn_release", lambda *_: pytest.fail("learnt again"))
    report = run_scenario(wanted, RunOptions(out, resume=True))
    assert _charged(out) == {"alpha": 1, "beta": 1, "gamma": 1}
    _check_report(out, report.read_text(), learnt.memory.shares())


def _check_report(out: Path, page: str, shares: tuple[float, ...]) -> None:
    told = json.loads((out / "report.json").read_text())
    release = told["privacy"]["release"]
    assert release["sites"] == ["alpha", "beta", "gamma"]
    assert release["attempts"] == 1
    assert 1.9 < release["epsilon"] <= 2.0 < release["epsilon_if_all_others_collude"]
    assert told["privacy"]["trust_model"]["name"] == "secure-aggregation"
    assert [site["epsilon"] for site in told["privacy"]["sites"]] == [release["epsilon"]] * 3
    assert [site["epsilon_by_round"][0]["round"] for site in told["privacy"]["sites"]] == [0] * 3
    found = told["data"]["label_shares"]["shares"]
    assert [found["normal"], found["lesion"]] == pytest.approx(list(shares))
    assert {entry["round"] for entry in told["training"]["health"]} == {0}
    schema = json.loads((ROOT / "docs/reference/report.schema.json").read_text())
    wrong = jsonschema.Draft202012Validator(schema).iter_errors(told)
    assert sorted({(re.sub(r"\[\d+\]", "", e.json_path), e.message) for e in wrong}) == []
    assert told["other"] == []
    assert told["run"]["weights"] == _final_weights(out)
    assert told["run"]["roles"]["sites"] == ["alpha", "beta", "gamma"]
    assert "nothing travelled" in told["security"]["link"]
    assert list(told["security"]["egress"]["statistics"]) == ["masked_embedding"]
    assert told["run"]["energy"]["gpu_joules"] is None or torch.cuda.is_available()
    assert (
        "RAPL" in told["run"]["energy"]["method"]
        or "not measured" in told["run"]["energy"]["method"]
    )
    ethics = json.loads(
        write_ethics(out, None, out / "ethics").with_suffix(".json").read_text(encoding="utf-8")
    )
    rows = [row for group in ethics["groups"] for field in group["fields"] for row in field["rows"]]
    assert all(row["recorded"] is (row["value"] != "NOT RECORDED") for row in rows)
    unknown = {row["fact"] for row in rows if not row["recorded"]}
    # What this run cannot know is stated by people, or found by an audit or a release.
    other = ("charter: ", "site charter: ", "audit.", "release.marking", "compare.together")
    energy, none = "run.energy/cpu_joules", "samples.traversal"
    assert [f for f in unknown if not f.startswith((*other, energy, none, "fairness."))] == []
    for words in (
        "The release before the first round",
        "conspired with the coordinator",
        "at most one of the others",
        "All of it was learnt from one release",
        "No round was planned",
    ):
        assert words in page
    assert "NOT RECORDED:" not in page.split("<footer>")[0]


def _final_weights(out: Path) -> str:
    """SHA-256 of the weights in the last checkpoint, as the release and its papers name them."""
    checkpoint = load_latest(out / "checkpoints")
    assert checkpoint is not None
    return state_digest(checkpoint.state)


@pytest.mark.usefixtures("learner", "quick")
def test_rounds_follow_a_release_within_the_whole_target(tmp_path: Path) -> None:
    wanted = scenario(tmp_path, "training.rounds=1", "release.embedding.share=0.5")
    out = tmp_path / "run"
    _until_judged(wanted, out)
    book = FactBook(read_facts(out / "facts.jsonl"))
    (released,) = book.all("release.embedding")
    assert released.value["epsilon"] <= 1.0
    assert "In training rounds a patient trusts the own hospital" in released.value["meaning"]
    (round_,) = book.all("federation.round")
    assert round_.round == 1
    for name in ("alpha", "beta", "gamma"):
        with Ledger.read(out / "sites" / name / "ledger.sqlite") as ledger:
            assert [use.purpose for use in ledger.history()] == ["embedding", "training"]


@pytest.mark.usefixtures("learner", "quick")
def test_a_budget_that_bears_no_release_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    tight = [f"partition.sites.{i}.budget_epsilon=0.05" for i in range(3)]
    out = tmp_path / "run"
    with pytest.raises(BudgetError, match="0 sites can take part"):
        run_scenario(scenario(tmp_path, *tight), RunOptions(out))
    failed = FactBook(read_facts(out / "facts.jsonl")).all("federation.failure")
    assert [(f.site, f.round, f.value["code"]) for f in failed] == [
        (name, 0, "BudgetError") for name in ("alpha", "beta", "gamma")
    ]
    assert _charged(out) == {"alpha": 0, "beta": 0, "gamma": 0}


@pytest.mark.usefixtures("learner", "quick")
def test_the_price_of_a_release_is_that_of_every_attempt_with_its_own_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small budget makes the second attempt noisier than the first, not the first one."""
    tight = [f"partition.sites.{i}.budget_epsilon=0.9" for i in range(4)]
    own = ["privacy.epsilon=1", "release.embedding.spare_attempts=1", *tight]
    wanted, out, lost = scenario(tmp_path, *own, sites=4), tmp_path / "run", []
    take = Releasing._take

    def losing(self: Releasing, name: str, *arguments: object) -> None:
        if name == "beta" and not lost:
            lost.append(name)
            raise DataError("lost by the test")
        take(self, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Releasing, "_take", losing)
    _until_judged(wanted, out)
    book = FactBook(read_facts(out / "facts.jsonl"))
    (fact,) = book.all("release.embedding")
    assert (fact.value["attempts"], len(fact.value["sites"])) == (2, 3)
    with Ledger.read(out / "sites" / "alpha" / "ledger.sqlite") as ledger:
        first, second = ledger.history()
    assert first.noise_multiplier == release_noise(wanted.plan) < 0.9 * second.noise_multiplier
    assert fact.value["noise_multiplier"] == second.noise_multiplier
    terms = wanted.plan.privacy
    charged = epsilon([first, second], terms.delta, terms.accountant)
    assert fact.value["epsilon"] == pytest.approx(charged) == pytest.approx(0.9, rel=0.01)
    # Of four sites one may collude: three honest ones share the planned noise, later two.
    planned, more = first.noise_multiplier**2, second.noise_multiplier**2
    left = (planned / 3) ** 0.5, (planned / 2 + more - planned) ** 0.5
    alone = epsilon([Use(n, 1.0, 1) for n in left], terms.delta, terms.accountant)
    assert fact.value["epsilon_if_all_others_collude"] == pytest.approx(alone, rel=1e-4)


_RAY = """
import sys
from pathlib import Path
from release_scenario import learn, scenario
from synth_common.generators.vae import VAE
from synth_sim.run import RunOptions, run_scenario
VAE.learn_release = learn
folder = Path(sys.argv[1])
run_scenario(scenario(folder), RunOptions(folder / "run", engine="ray"))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "learner")
def test_both_engines_release_the_same_sum(tmp_path: Path) -> None:
    """The keys differ, the masks differ, and the sum does not."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'synthward[ray]')")
    _until_judged(scenario(tmp_path / "one"), tmp_path / "one" / "run")
    done = subprocess.run(  # in a process of its own: Ray warns in threads
        [sys.executable, "-c", _RAY, str(tmp_path / "many")],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (load_latest(tmp_path / name / "run/checkpoints") for name in ("one", "many"))
    assert first is not None
    assert second is not None
    assert first.memory.counts == second.memory.counts
    assert all(bool((first.state[k] == second.state[k]).all()) for k in first.state)


@pytest.mark.usefixtures("learner", "quick")
@pytest.mark.parametrize(("epsilon", "scope"), [("8", "released"), ("inf", "site-local")])
def test_class_shares_are_released_only_where_a_release_was_charged(
    tmp_path: Path, epsilon: str, scope: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_scenario(scenario(tmp_path, f"privacy.epsilon={epsilon}"), RunOptions(out))
    (shares,) = FactBook(read_facts(out / "facts.jsonl")).all("data.label_shares")
    assert shares.scope == scope


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("family", ["embedding", "vae", "gan"])
def test_every_family_learns_from_a_release_of_the_sites(tmp_path: Path, family: str) -> None:
    out = tmp_path / "run"
    settings = [f"generator.family={family}", "release.embedding.warm_steps=3"]
    with pytest.raises(Interrupted):
        run_scenario(scenario(tmp_path, *settings), RunOptions(out))
    state = load_latest(out / "checkpoints").state
    fresh = build_generator(load_run(out).generator, derive_seed(load_run(out).seed, "generator"))
    assert any(not torch.equal(value, state[k]) for k, value in fresh.shared_state().items())
    assert set(_charged(out).values()) == {1}
