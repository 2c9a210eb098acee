"""The coordinator's side of a release: roll-call, sum, lost sites, restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sites import OPERATOR, approve, enrolled_sites, other_numpy, release_plan

from synth_client import release as site_release
from synth_client.app import SiteApp, make_client_app
from synth_client.evaluate import SiteEvaluation
from synth_client.site import save_site
from synth_common import messages
from synth_common.errors import AttemptSpentError, CheckpointError, ConfigError, FederationError
from synth_common.evaluation.config import EvaluationConfig
from synth_common.flower import ArrayRecord, ConfigRecord, Grid, Message, PassingGrid, RecordDict
from synth_common.generators.embedding import build_embedding
from synth_common.images.drawn import drawn_images
from synth_common.plan import Plan
from synth_common.privacy.ledger import Budget, Ledger
from synth_common.privacy.statistics import embedding_sum
from synth_common.randomness import SimulationNoise
from synth_server.release import Releasing
from synth_server.release_store import AttemptBook, load_release, save_release
from synth_server.rounds import discover_sites
from synth_server.strategy import UniformAverage
from synth_sim.transport import InProcessGrid, PartitionSites

NAMES = ("east", "north", "south", "west")
SIZE = build_embedding(release_plan().generator).size


class Meddling(PassingGrid):
    """A grid that changes or drops what passes."""

    def __init__(self, inner: Grid, change: Callable[[Message, Message], Message | None]) -> None:
        super().__init__(inner)
        self.change = change
        self.asked: list[tuple[str, int]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for message in messages:
            self.asked.append((message.metadata.message_type, message.metadata.dst_node_id))
            for reply in self._inner.send_and_receive([message], timeout=timeout):
                changed = self.change(message, reply)
                if changed is not None:
                    yield changed


class Federation:
    """Enrolled sites in process, and a coordinator that can be restarted."""

    def __init__(self, folder: Path, plan: Plan, names: tuple[str, ...] = NAMES) -> None:
        self.plan, self.folder = plan, folder / "checkpoints"
        self.sites = enrolled_sites(folder, names)
        for site in self.sites:
            save_site(site)
            approve(site, plan)
        places = PartitionSites(tuple(site.directory for site in self.sites))
        app = SiteApp(places, SiteEvaluation(EvaluationConfig(), seed=1))
        self.inner = InProcessGrid(make_client_app(app), len(names))
        self.grid = Meddling(self.inner, lambda _, reply: reply)

    def coordinator(self) -> Releasing:
        names = discover_sites(self.inner, 5.0)
        strategy = UniformAverage(names, 2, "run", self.plan)
        return Releasing(self.grid, strategy, AttemptBook(self.folder))

    def charged(self) -> dict[str, list[int]]:
        """Attempts that each site was charged for."""
        found = {}
        for site in self.sites:
            with Ledger.read(site.ledger_path) as ledger:
                found[site.name] = [r.key.attempt for r in ledger.reservations("run")]
        return found

    def exact(self, names: Iterable[str] = NAMES) -> np.ndarray:
        embedding = build_embedding(self.plan.generator)
        return sum(
            embedding_sum(s.train, embedding, self.plan.generator, 4, SimulationNoise(0))
            for s in self.sites
            if s.name in names
        )

    def error(self, release, names: Iterable[str] = NAMES) -> float:
        """Spread of the sum around the truth, over the stated noise."""
        return float((release.vector.numpy() - self.exact(names)).std() / release.sigma)


def drop(kind: str, node: int, times: int = 1) -> Callable[[Message, Message], Message | None]:
    """Lose the first replies of one kind from one node."""
    left = [times]

    def change(message: Message, reply: Message) -> Message | None:
        meta = message.metadata
        if meta.message_type == kind and meta.dst_node_id == node and left[0]:
            left[0] -= 1
            return None
        return reply

    return change


@pytest.mark.parametrize("trust", ["secure-aggregation", "local"])
def test_the_coordinator_gets_the_sum_with_the_stated_noise(tmp_path, trust):
    federation = Federation(tmp_path, release_plan(trust))
    asking = federation.coordinator()
    release = asking.run()
    assert federation.error(release) == pytest.approx(1.0, rel=0.1)
    assert release.sites == sorted(NAMES)
    assert (release.attempts, release.messages, asking.failures) == (1, 4, [])
    assert federation.charged() == {name: [1] for name in NAMES}
    assert [kind for kind, _ in federation.grid.asked] == ["query.release"] * 4 + [
        "train.release"
    ] * 4


def test_a_coordinator_whose_numpy_draws_other_features_asks_nobody(tmp_path, monkeypatch):
    federation = Federation(tmp_path, release_plan())
    other_numpy(monkeypatch)
    with pytest.raises(ConfigError, match="NumPy"):
        federation.coordinator()
    assert federation.grid.asked == []


def test_local_noise_is_larger_by_the_root_of_the_sites(tmp_path):
    sums = [
        Federation(tmp_path / trust, release_plan(trust, **more)).coordinator().run()
        for trust, more in [("secure-aggregation", {"colluders": 0}), ("local", {})]
    ]
    assert sums[1].sigma / sums[0].sigma == pytest.approx(2.0, rel=1e-3)


def test_a_site_that_does_not_answer_the_roll_call_costs_nobody_anything(tmp_path):
    federation = Federation(tmp_path, release_plan())
    federation.grid.change = drop("query.release", 2)
    asking = federation.coordinator()
    release = asking.run()
    assert release.sites == ["east", "south", "west"]
    assert release.attempts == 1
    assert [(f.site, f.code) for f in asking.failures] == [("north", "NoReply")]
    assert federation.charged() == {"east": [1], "north": [], "south": [1], "west": [1]}
    assert federation.error(release, release.sites) == pytest.approx(1.0, rel=0.1)


def test_a_lost_site_ends_the_attempt_and_the_next_is_charged_anew(tmp_path):
    federation = Federation(tmp_path, release_plan(spare_attempts=1))
    federation.grid.change = drop("train.release", 2)
    asking = federation.coordinator()
    release = asking.run()
    assert (release.attempts, release.messages) == (2, 7)
    assert release.sites == ["east", "south", "west"]
    (failure,) = asking.failures
    assert (failure.site, failure.code) == ("north", "NoReply")
    assert "attempt 1" in failure.reason
    # The lost reply was charged as well: it may have been seen.
    assert federation.charged() == {"east": [1, 2], "north": [1], "south": [1, 2], "west": [1, 2]}
    assert federation.error(release, release.sites) == pytest.approx(1.0, rel=0.1)


def test_without_a_spare_attempt_the_sites_refuse_a_second_one_by_name(tmp_path):
    federation = Federation(tmp_path, release_plan())
    federation.grid.change = drop("train.release", 2)
    with pytest.raises(FederationError, match=r"0 sites can take part.* needs 3.*BudgetError"):
        federation.coordinator().run()


def test_too_few_sites_are_refused_before_anyone_is_charged(tmp_path):
    federation = Federation(tmp_path, release_plan(), NAMES[:3])
    federation.grid.change = drop("query.release", 3)
    with pytest.raises(FederationError, match=r"2 sites can take part.* needs 3.*south: NoReply"):
        federation.coordinator().run()
    assert federation.charged() == {name: [] for name in NAMES[:3]}


def test_a_local_sum_goes_on_without_a_lost_site(tmp_path):
    federation = Federation(tmp_path, release_plan("local"))
    federation.grid.change = drop("train.release", 2)
    release = federation.coordinator().run()
    assert (release.sites, release.attempts) == (["east", "south", "west"], 1)
    assert federation.error(release, release.sites) == pytest.approx(1.0, rel=0.1)


# ------------------------------------------------------------------ replies that are no part of it


def _other_vector(tensor: torch.Tensor) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[messages.STATISTICS] = ArrayRecord({"masked_embedding": tensor})

    return change


def _other_value(name: str, value: object) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[messages.VALUES] = ConfigRecord({**content[messages.VALUES], name: value})

    return change


def _without_value(name: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        values = dict(content[messages.VALUES])
        del values[name]
        content[messages.VALUES] = ConfigRecord(values)

    return change


def _other_name(content: RecordDict) -> None:
    (array,) = content[messages.STATISTICS].values()
    content[messages.STATISTICS] = ArrayRecord({"embedding": array})


def _other_run(content: RecordDict) -> None:
    content[messages.HEADER] = ConfigRecord({**content[messages.HEADER], "run_id": "other"})


@pytest.mark.parametrize(
    "change",
    [
        _other_vector(torch.zeros(3, dtype=torch.int64)),
        _other_vector(torch.zeros(SIZE)),
        _other_value("attempt", 2),
        _other_value("site", "east"),
        _other_value("noise_share", "much"),
        _other_value("noise_share", 1),
        _other_value("noise_share", 1e200),
        *(
            _other_value(name, value)
            for name in ("noise_share", "noise_multiplier")
            for value in ("x", -1.0, 0.0, float("nan"), float("inf"))
        ),
        _without_value("noise_share"),
        _without_value("noise_multiplier"),
        _other_name,
        _other_run,
    ],
)
def test_a_reply_that_is_no_part_of_the_attempt_is_left_out_by_name(tmp_path, change):
    federation = Federation(tmp_path, release_plan(spare_attempts=1))

    def meddle(message: Message, reply: Message) -> Message:
        meta = message.metadata
        if (meta.message_type, meta.dst_node_id) == ("train.release", 2):
            change(reply.content)
        return reply

    federation.grid.change = meddle
    asking = federation.coordinator()
    release = asking.run()
    assert [(f.site, f.code) for f in asking.failures] == [("north", "BadReply")]
    assert release.sites == ["east", "south", "west"]
    assert federation.error(release, release.sites) == pytest.approx(1.0, rel=0.1)
    assert set(release.noise_multipliers) == set(release.sites)


def test_the_bytes_of_an_attempt_that_failed_are_counted(tmp_path):
    federation = Federation(tmp_path, release_plan(spare_attempts=1))
    federation.grid.change = drop("train.release", 2)
    release = federation.coordinator().run()
    vectors = 3 + 3
    assert vectors * 8 * SIZE <= release.bytes_up < vectors * (8 * SIZE + 1000)


def test_values_beyond_the_modulus_are_no_part_of_a_sum(tmp_path):
    federation = Federation(tmp_path, release_plan(spare_attempts=1, modulus_bits=60))

    def meddle(message: Message, reply: Message) -> Message:
        meta = message.metadata
        if (meta.message_type, meta.dst_node_id) == ("train.release", 2):
            _other_vector(torch.full((SIZE,), 2**61))(reply.content)
        return reply

    federation.grid.change = meddle
    asking = federation.coordinator()
    assert federation.error(asking.run(), ["east", "south", "west"]) == pytest.approx(1, rel=0.1)
    assert "more bits" in asking.failures[0].reason


# ------------------------------------------------------------------ restarts


def test_an_attempt_that_a_dead_coordinator_left_is_finished_for_nothing(tmp_path):
    federation = Federation(tmp_path, release_plan())

    def die(message: Message, reply: Message) -> Message:
        if (message.metadata.message_type, message.metadata.dst_node_id) == ("train.release", 3):
            raise KeyboardInterrupt
        return reply

    federation.grid.change = die
    with pytest.raises(KeyboardInterrupt):
        federation.coordinator().run()
    before = federation.charged()
    assert [len(attempts) for attempts in before.values()] == [1, 1, 1, 0]
    federation.grid.change = lambda _, reply: reply
    release = federation.coordinator().run()
    assert federation.charged() == {name: [1] for name in NAMES}
    assert federation.error(release) == pytest.approx(1.0, rel=0.1)


def test_a_site_that_died_within_an_attempt_is_asked_for_another_one(tmp_path, monkeypatch):
    federation = Federation(tmp_path, release_plan(spare_attempts=1))
    use, died = site_release._use, []

    def dying(site, *arguments):
        if site.name == "north" and not died:
            died.append(site.name)
            raise KeyboardInterrupt
        return use(site, *arguments)

    monkeypatch.setattr(site_release, "_use", dying)
    with pytest.raises(KeyboardInterrupt):
        federation.coordinator().run()
    asking = federation.coordinator()
    release = asking.run()
    assert release.sites == sorted(NAMES)  # it is there: only the number was used up
    assert [(f.site, f.code) for f in asking.failures] == [("north", "AttemptSpentError")]
    assert federation.charged() == {name: [1, 2] for name in NAMES}


@pytest.mark.parametrize("epsilon", [8.0, float("inf")])
def test_a_site_that_finds_every_number_used_up_is_left_out(tmp_path, epsilon):
    """It is asked twice, and leaves an attempt to the others; they may be unlimited."""
    plan = release_plan(spare_attempts=2)
    plan = plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"epsilon": epsilon})})
    federation = Federation(tmp_path, plan)
    for site in federation.sites:
        with Ledger.hold(site.ledger_path) as ledger:
            ledger.set_budget(Budget(epsilon, 1e-5), OPERATOR)

    def refuse(message: Message, reply: Message) -> Message:
        meta = message.metadata
        if (meta.message_type, meta.dst_node_id) != ("train.release", 2):
            return reply
        asked.append(meta.message_type)
        assert len(asked) < 5, "asked without end"
        return messages.error_reply(message, AttemptSpentError("as ever"))

    asked: list[str] = []
    federation.grid.change = refuse
    asking = federation.coordinator()
    release = asking.run()
    assert [(f.site, f.code) for f in asking.failures] == [("north", "AttemptSpentError")] * 2
    assert (release.sites, release.attempts) == (["east", "south", "west"], 3)
    assert release.bytes_up >= 9 * 8 * SIZE


def test_a_coordinator_that_forgot_its_attempts_finds_a_number_that_nobody_used(tmp_path):
    federation = Federation(tmp_path, release_plan(spare_attempts=1))
    federation.coordinator().run()
    (federation.folder / "release-attempts.json").unlink()
    federation.grid.change = drop("query.release", 2)  # other participants than before
    asking = federation.coordinator()
    release = asking.run()
    assert release.attempts == 2
    assert {f.code for f in asking.failures} == {"NoReply", "AttemptSpentError"}


def test_a_kept_release_is_whole_or_refused(tmp_path):
    federation = Federation(tmp_path, release_plan())
    release = federation.coordinator().run()
    path = save_release(federation.folder, release)
    digest = federation.plan.digest()
    again = load_release(federation.folder, "run", digest)
    assert torch.equal(again.vector, release.vector)
    assert again.facts() == release.facts()
    assert load_release(tmp_path, "run", digest) is None
    with pytest.raises(CheckpointError, match="belongs to run run"):
        load_release(federation.folder, "other", digest)
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            load_release(federation.folder, "run", digest)
    (federation.folder / "release-attempts.json").write_text("[{}]")
    with pytest.raises(CheckpointError, match="release-attempts"):
        AttemptBook(federation.folder)


def test_a_drawn_mask_is_where_its_probability_is_above_a_half():
    plan = release_plan().generator.model_copy(update={"with_mask": True})
    drawn = np.array([[[[1.5, 0.25], [0.5, -1.0]], [[0.5, 0.51], [0.49, 1.0]]]], dtype=np.float32)
    images = drawn_images(plan, drawn, np.zeros(1, dtype=np.int64))
    assert images.images.tolist() == [[[[1.0, 0.25], [0.5, 0.0]]]]
    assert images.masks is not None
    assert images.masks.tolist() == [[[0, 1], [0, 1]]]
