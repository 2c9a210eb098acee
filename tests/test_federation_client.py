"""A site's app over the in-process grid: what a message makes it do, and what gets out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from small_sites import approve, blobs, small_plan, small_site

from synth_client.app import SiteApp, make_client_app
from synth_client.evaluate import SiteEvaluation, evaluate_site
from synth_client.site import Site, load_site, save_site
from synth_common import messages
from synth_common.errors import FederationError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.evaluation.synthetic import balanced_labels, sample_images
from synth_common.facts import read_facts
from synth_common.flower import Context, Grid, Message, RecordDict, arrays_of
from synth_common.generators import build_generator
from synth_common.messages import Header
from synth_common.plan import Plan
from synth_common.privacy.ledger import Ledger
from synth_server.rounds import Ended, RoundResult, discover_sites, evaluate_sites, run_rounds
from synth_server.strategy import UniformAverage
from synth_sim.transport import InProcessGrid, PartitionSites

_CONFIG = EvaluationConfig(
    synthetic_images=24,
    max_images=24,
    diversity_pairs=4,
    encoder_steps=1,
    classifier_steps=2,
    classifier_batch=8,
    utility_seeds=1,
    bootstrap=20,
)


def _directories(tmp_path: Path, *sites: Site) -> tuple[Path, ...]:
    for site in sites:
        save_site(site)
    return tuple(site.directory for site in sites)


def _grid(plan: Plan, directories: tuple[Path, ...]) -> InProcessGrid:
    for directory in directories:
        if directory.is_dir():
            approve(load_site(directory), plan)
    app = SiteApp(PartitionSites(directories), SiteEvaluation(_CONFIG, seed=1))
    return InProcessGrid(make_client_app(app), len(directories))


def _plan() -> Plan:
    return small_plan(accountant="rdp")


def _strategy(grid: Grid, plan: Plan, min_sites: int = 2) -> UniformAverage:
    return UniformAverage(discover_sites(grid, 5.0), min_sites, "run", plan)


def _every_value(message: Message) -> str:
    """Everything of a message that is not a tensor, as text."""
    if message.has_error():
        return repr(message.error)
    return repr([dict(r) for r in message.content.config_records.values()])


def test_sites_are_known_by_their_own_names_in_order(tmp_path: Path) -> None:
    sites = [small_site(tmp_path, name) for name in ("south", "north")]
    grid = _grid(_plan(), _directories(tmp_path, *sites))
    assert discover_sites(grid, 5.0) == {2: "north", 1: "south"}


def test_two_sites_of_one_name_are_refused(tmp_path: Path) -> None:
    first, second = small_site(tmp_path / "a"), small_site(tmp_path / "b")
    with pytest.raises(FederationError, match="'north' is unusable or taken"):
        discover_sites(_grid(_plan(), _directories(tmp_path, first, second)), 5.0)


def test_a_node_without_a_site_is_named_by_code_only(tmp_path: Path) -> None:
    grid = _grid(_plan(), (tmp_path / "secret-folder",))
    with pytest.raises(FederationError, match=r"node 1 .*DataError") as caught:
        discover_sites(grid, 5.0)
    assert "secret" not in str(caught.value)


def test_rounds_train_privately_and_resume_from_any_round(tmp_path: Path) -> None:
    plan = _plan()
    state = build_generator(plan.generator, seed=3).shared_state()

    def train(folder: Path, pause: bool) -> Ended:
        sites = [small_site(folder, name, seed) for seed, name in enumerate(("north", "south"))]
        directories = _directories(folder, *sites)
        grid = _grid(plan, directories)
        kept: list[RoundResult] = []
        ended = None
        if pause:

            def stop(result: RoundResult) -> None:
                kept.append(result)
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                run_rounds(grid, _strategy(grid, plan), plan, (0, dict(state)), stop)
            grid = _grid(plan, directories)
        start = (kept[0].round, kept[0].state) if kept else (0, dict(state))
        ended = run_rounds(grid, _strategy(grid, plan), plan, start, kept.append)
        assert [result.round for result in kept] == [1, 2, 3]
        return ended

    whole, paused = train(tmp_path / "whole", False), train(tmp_path / "paused", True)
    assert (whole.completed, whole.reason) == (3, "completed")
    assert all(torch.equal(whole.state[k], paused.state[k]) for k in state)
    assert any(not torch.equal(whole.state[k], state[k]) for k in state)


def test_evaluation_stays_at_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan()
    site = small_site(tmp_path)
    grid = _grid(plan, _directories(tmp_path, site))
    seen: list[Message] = []
    original = grid.send_and_receive

    def watched(messages_: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for reply in original(messages_, timeout=timeout):
            seen.append(reply)
            yield reply

    monkeypatch.setattr(grid, "send_and_receive", watched)
    state = build_generator(plan.generator, seed=3).shared_state()
    outcome = evaluate_sites(grid, _strategy(grid, plan, 1), Ended(state, 3, "completed"), 5.0)
    assert list(outcome.replies) == ["north"]
    recorded = list(read_facts(site.directory / "facts.jsonl"))
    names = {fact.name for fact in recorded}
    assert {"quality.ms_ssim_diversity", "quality.reconstruction", "membership.attack"} <= names
    assert {fact.scope for fact in recorded} == {"site-local"}
    reply = seen[-1]
    assert messages.values_in(reply) == {"site": "north", "round": 3, "done": 1}
    assert not reply.content.array_records


def test_what_a_site_measures_of_use_stays_with_it_too(tmp_path: Path) -> None:
    plan, site = _plan(), small_site(tmp_path)
    config = EvaluationConfig(
        synthetic_images=8,
        site_utility=True,
        utility_seeds=1,
        classifier_steps=2,
        bootstrap=20,
        group_minimum=1,
        anomaly_normal="left",
        anomaly_neighbours=1,
        augmentation_shares=(0.5,),
    )
    state = build_generator(plan.generator, seed=3).shared_state()
    evaluate_site(site, plan, SiteEvaluation(config, 0), state)
    recorded = [f for f in read_facts(site.directory / "facts.jsonl") if "trained_at" in f.detail]
    assert {f.name for f in recorded} == {
        "utility.classification",
        "fairness.group",
        "utility.augmentation",
        "utility.anomaly",
    }
    assert {(f.scope, f.site, f.detail["trained_at"]) for f in recorded} == {
        ("site-local", "north", "north")
    }
    real = next(f for f in recorded if f.detail["trained_on"] == "real")
    assert real.detail["n_train"] == len(site.train)
    assert real.detail["n_test"] == len(site.holdout)


@pytest.mark.parametrize("run_id", ["../../elsewhere", "/etc", "..", ""])
def test_an_evaluation_looks_into_no_other_folder(tmp_path: Path, run_id: str) -> None:
    plan = _plan()
    site = small_site(tmp_path)
    grid = _grid(plan, _directories(tmp_path, site))
    state = build_generator(plan.generator, seed=3).shared_state()
    header = Header(run_id, 1, plan.digest())
    asked = Message(messages.request(header, arrays_of(state), plan), 1, "evaluate")
    (reply,) = grid.send_and_receive([asked])
    assert messages.error_code(reply) == "PrivacyError"


def test_a_failure_leaves_as_a_code_and_its_story_stays(tmp_path: Path) -> None:
    plan = _plan()
    site = small_site(tmp_path)
    grid = _grid(plan, _directories(tmp_path, site))
    header = Header("run", 99, plan.digest())
    state = build_generator(plan.generator, seed=3).shared_state()
    asked = Message(messages.request(header, arrays_of(state), plan), 1, "train")
    (reply,) = grid.send_and_receive([asked])
    assert messages.error_code(reply) == "PrivacyError"
    assert reply.error.code == 1004
    assert "99" not in _every_value(reply)
    assert "round 99" in (site.directory / "errors.log").read_text()


def test_an_unexpected_exception_leaves_no_word(tmp_path: Path) -> None:
    def resolve(context: Context) -> Site:
        raise RuntimeError("/data/Jane Doe.dcm is broken")

    app = make_client_app(SiteApp(resolve, SiteEvaluation(_CONFIG, seed=1)))
    (reply,) = InProcessGrid(app, 1).send_and_receive([Message(RecordDict(), 1, "query")])
    assert messages.error_code(reply) == messages.UNKNOWN_ERROR
    assert "Jane" not in _every_value(reply)


def test_a_message_without_a_header_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    site = small_site(tmp_path)
    grid = _grid(_plan(), _directories(tmp_path, site))
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, "train")])
    assert messages.error_code(reply) == "DataError"
    with Ledger.hold(site.ledger_path) as ledger:
        assert ledger.history() == []


def test_the_app_survives_cloudpickle_as_ray_needs(tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    site = small_site(tmp_path)
    app = SiteApp(PartitionSites(_directories(tmp_path, site)), SiteEvaluation(_CONFIG, seed=1))
    copied = cloudpickle.loads(cloudpickle.dumps(make_client_app(app)))
    assert discover_sites(InProcessGrid(copied, 1), 5.0) == {1: "north"}


@pytest.mark.parametrize("family", ["vae", "gan"])
def test_a_synthetic_image_depends_on_its_label_and_seed_alone(family: str) -> None:
    plan = small_plan(family)
    generator = build_generator(plan.generator, seed=1)
    labels = balanced_labels(plan, 200)
    many = sample_images(generator, labels, seed=4)
    few = sample_images(generator, labels[:3], seed=4)
    torch.testing.assert_close(
        torch.from_numpy(few.images), torch.from_numpy(many.images[:3]), rtol=0, atol=1e-5
    )
    assert (sample_images(generator, labels[:1], seed=5).images != few.images[:1]).any()
    assert labels.tolist()[:4] == [0, 1, 0, 1]
    assert len(sample_images(generator, labels[:0], seed=4)) == 0


def test_masks_are_born_with_their_images() -> None:
    plan = small_plan()
    generator_plan = plan.generator.model_copy(update={"with_mask": True})
    generator = build_generator(generator_plan, seed=1)
    images = sample_images(generator, balanced_labels(plan, 4), seed=4)
    assert images.channels == 1
    assert images.masks is not None
    assert set(images.masks.ravel().tolist()) <= {0, 1}


def test_no_reply_of_a_whole_run_holds_a_number_that_was_not_declared(tmp_path: Path) -> None:
    from synth_common.privacy.egress import PUBLIC_VALUES

    plan = _plan()
    sites = [small_site(tmp_path, name, seed) for seed, name in enumerate(("north", "south"))]
    grid = _grid(plan, _directories(tmp_path, *sites))
    strategy = _strategy(grid, plan)
    state = build_generator(plan.generator, seed=3).shared_state()
    results: list[RoundResult] = []
    run_rounds(grid, strategy, plan, (0, state), results.append)
    for result in results:
        for values in result.outcome.replies.values():
            assert values.keys() <= PUBLIC_VALUES.keys()
            assert 0 < float(values["epsilon"]) <= plan.privacy.epsilon
            assert math.isfinite(float(values["noise_multiplier"]))


def test_blobs_are_what_the_tests_think() -> None:
    assert blobs(6).unit_count() == 3
