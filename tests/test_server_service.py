"""A coordinator with sites that come, go, lie and answer: what it keeps and how it goes on."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import jsonschema
import pytest
import torch
from service_sites import Hospitals, events, release_plan, run, settings, small_plan

from synth_common import messages
from synth_common.errors import (
    ConfigError,
    FederationError,
    Interrupted,
    LedgerHeldError,
    TrainingError,
)
from synth_common.facts import read_facts
from synth_common.flower import Message, arrays_of
from synth_common.privacy.accounting import epsilon
from synth_common.privacy.ledger import Ledger
from synth_common.reporting.factbook import FactBook
from synth_server import deployed_run
from synth_server.checkpoint import load_latest
from synth_server.service import ServiceOptions, run_state
from synth_server.stopping import Stopper

ROOT = Path(__file__).resolve().parents[1]
PLAN = small_plan(accountant="rdp")
AGAIN = ServiceOptions(resume=True)


def _book(folder: Path) -> FactBook:
    return FactBook(read_facts(folder / "run" / "facts.jsonl"))


def _final(folder: Path) -> dict[str, torch.Tensor]:
    kept = load_latest(folder / "run" / "checkpoints")
    assert kept is not None
    return dict(kept.state)


def _charges(hospitals: Hospitals) -> dict[str, int]:
    found = {}
    for name, directory in hospitals.directories.items():
        with Ledger.read(directory / "ledger.sqlite") as ledger:
            found[name] = len(ledger.reservations())
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Hospitals]:
    folder = tmp_path_factory.mktemp("finished")
    hospitals = Hospitals(folder / "hospitals", PLAN)
    run(folder / "server", hospitals, PLAN)
    return folder / "server", hospitals


def test_a_run_leaves_its_report_samples_checkpoints_and_events(
    finished: tuple[Path, Hospitals],
) -> None:
    folder, hospitals = finished
    for name in ("report.html", "samples/synthetic.png", "samples/traversal-1.png", "state.json"):
        assert (folder / "run" / name).is_file(), name
    assert [c.name for c in sorted((folder / "run/checkpoints").iterdir())] == [
        f"round-{n:04d}.safetensors" for n in (1, 2, 3)
    ]
    rounds = events(folder, "round")
    assert [event["round"] for event in rounds] == [1, 2, 3]
    assert all(set(event["epsilon"]) == {"east", "north", "west"} for event in rounds)
    assert all(event["bytes_up"] > 0 and event["seconds"] > 0 for event in rounds)
    assert [kind for _, kind in hospitals.asked].count("evaluate") == 3
    assert len(events(folder, "reply")) == 9 + 3
    state = run_state(folder)
    assert state is not None
    assert (state["phase"], state["running"], state["completed"]) == ("finished", False, 3)


def test_the_report_holds_what_replies_stated_and_nothing_that_stays_at_a_site(
    finished: tuple[Path, Hospitals],
) -> None:
    folder, hospitals = finished
    told = json.loads((folder / "run" / "report.json").read_text())
    schema = json.loads((ROOT / "docs/reference/report.schema.json").read_text())
    wrong = jsonschema.Draft202012Validator(schema).iter_errors(told)
    assert [(e.json_path, e.message) for e in wrong] == []
    assert told["run"]["simulation"] is False
    assert told["run"]["rounds"] == {"planned": 3, "completed": 3, "ended": "completed"}
    for site in told["privacy"]["sites"]:
        with Ledger.read(hospitals.directories[site["name"]] / "ledger.sqlite") as ledger:
            assert site["ledger_head"] == ledger.head
        assert 0 < site["epsilon"] <= site["target_epsilon"]
        assert [entry["round"] for entry in site["epsilon_by_round"]] == [1, 2, 3]
        assert site["budget_epsilon"] == site["history"] == "NOT RECORDED"
    assert told["membership"]["attacks"] == told["training"]["losses"] == []
    assert told["other"] == []
    assert told["run"]["roles"]["coordinator"] == told["run"]["scenario"]["name"]
    assert "signed with the key of an enrolled site" in told["security"]["link"]
    assert told["security"]["egress"]["tensors"].endswith("in each of 3 rounds")
    assert len(told["run"]["weights"]) == len(told["run"]["code"]["sha256"]) == 64
    assert "the whole machine" in told["run"]["energy"]["covers"]
    scopes = {fact.scope for fact in read_facts(folder / "run" / "facts.jsonl")}
    assert scopes == {"public", "released"}
    assert "One machine played every hospital" not in (folder / "run/report.html").read_text()


def test_a_run_is_not_started_twice_and_a_finished_one_is_only_reported(
    finished: tuple[Path, Hospitals],
) -> None:
    folder, hospitals = finished
    with pytest.raises(ConfigError, match="synth-server resume"):
        run(folder, hospitals, PLAN)
    asked = len(hospitals.asked)
    (folder / "run" / "report.html").unlink()
    run(folder, hospitals, PLAN, AGAIN)
    assert (folder / "run" / "report.html").is_file()
    assert len(hospitals.asked) == asked
    other = small_plan(accountant="rdp", epsilon=3.0)
    with pytest.raises(ConfigError, match="not the plan that run"):
        run(folder, hospitals, other, AGAIN)


def test_there_is_nothing_to_resume_before_a_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run to resume"):
        run(tmp_path / "server", Hospitals(tmp_path / "h", PLAN), PLAN, AGAIN)


def test_who_is_missing_is_named_when_patience_ends_and_the_run_can_go_on(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)
    hospitals.away = {"north", "west"}
    with pytest.raises(FederationError, match=r"1 sites are connected.*missing: north, west"):
        run(tmp_path / "server", hospitals, PLAN)
    assert hospitals.asked == []
    state = run_state(tmp_path / "server")
    assert state is not None
    assert state["phase"] == "failed"
    assert "missing: north, west" in state["error"]
    assert load_latest(tmp_path / "server/run/checkpoints").round == 0  # type: ignore[union-attr]
    hospitals.away = set()
    run(tmp_path / "server", hospitals, PLAN, AGAIN)
    assert _book(tmp_path / "server").value("run.rounds")["completed"] == 3


def test_a_fault_of_ours_ends_the_run_as_failed_and_shows_its_class_alone(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)

    def break_down(name: str, reply: Message) -> Message:
        raise ZeroDivisionError("a secret")

    hospitals.on_reply = break_down
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "server", hospitals, PLAN)
    state = run_state(tmp_path / "server")
    assert state is not None
    assert (state["phase"], state["error"]) == ("failed", "ZeroDivisionError")


def test_a_site_that_goes_is_named_and_one_that_comes_joins_at_the_next_round(
    tmp_path: Path,
) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)
    hospitals.away = {"west"}

    def change(name: str, reply: Message) -> Message:
        if name == "north" and hospitals.away == {"west"}:  # in round 1
            hospitals.away = {"east"}
        return reply

    hospitals.on_reply = change
    run(tmp_path / "server", hospitals, PLAN)
    book = _book(tmp_path / "server")
    replies = [fact.value["replies"] for fact in book.all("federation.round")]
    assert replies == [["east", "north"], ["north", "west"], ["north", "west"]]
    gone = [(f.site, f.round, f.value["code"]) for f in book.all("federation.failure")]
    assert gone == [
        ("east", 2, "Offline"), ("east", 3, "Offline"), ("west", 1, "Offline")
    ]  # fmt: skip


def _failing_once(hospitals: Hospitals, failures: dict[str, BaseException | None]) -> None:
    """The first reply of each of these sites is lost (None), or is an error."""
    pending = dict(failures)

    def fail(name: str, reply: Message) -> Message | None:
        if name not in pending:
            return reply
        error = pending.pop(name)
        assert hospitals.request is not None
        return None if error is None else messages.error_reply(hospitals.request, error)

    hospitals.on_reply = fail


def test_a_round_that_lost_too_many_replies_is_asked_again_and_paid_once(
    tmp_path: Path, finished: tuple[Path, Hospitals]
) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)
    _failing_once(hospitals, {"east": None, "west": LedgerHeldError("busy")})
    said = run(tmp_path / "server", hospitals, PLAN)
    assert any("waiting for east (NoReply), west (LedgerHeldError)" in line for line in said)
    assert _book(tmp_path / "server").value("run.rounds")["completed"] == 3
    assert _charges(hospitals) == {"east": 3, "north": 3, "west": 3}
    assert [e["round"] for e in events(tmp_path / "server", "round failed")] == [1]


def test_a_round_that_no_wait_can_mend_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)
    _failing_once(hospitals, {"east": TrainingError("nan"), "west": TrainingError("nan")})
    with pytest.raises(TrainingError, match="round 1: 1 usable replies"):
        run(tmp_path / "server", hospitals, PLAN)
    assert len(hospitals.asked) == 3  # nobody was charged for another try


def test_an_absurd_update_is_refused_by_name_and_the_round_goes_on(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)

    def push(name: str, reply: Message) -> Message:
        if name == "west":
            header, values = messages.header_of(reply), messages.values_in(reply)
            state = {k: v.clone() for k, v in _of(reply).items()}
            first = next(k for k, v in state.items() if v.is_floating_point())
            state[first].flatten()[0] = 1e6
            reply.content["arrays"] = arrays_of(state)
            assert header.round == int(reply.metadata.group_id)
            assert values["site"] == "west"
        return reply

    def _of(reply: Message) -> dict[str, torch.Tensor]:
        from synth_common.flower import state_of

        return state_of(messages.arrays_in(reply))

    def only_training(name: str, reply: Message) -> Message:
        return push(name, reply) if reply.metadata.message_type == "train" else reply

    hospitals.on_reply = only_training
    run(tmp_path / "server", hospitals, PLAN)
    book = _book(tmp_path / "server")
    failures = book.all("federation.failure")
    assert [(f.site, f.value["code"]) for f in failures] == [("west", "BadReply")] * 3
    assert all(re.search(r"norm 1e\+06.*allow", f.value["reason"]) for f in failures)
    assert [f.value["replies"] for f in book.all("federation.round")] == [["east", "north"]] * 3


def test_stop_finishes_the_reply_it_has_and_resume_ends_with_the_same_model(
    tmp_path: Path, finished: tuple[Path, Hospitals], monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)
    stoppers: list[Stopper] = []
    enter = Stopper.__enter__

    def remember(self: Stopper) -> Stopper:
        stoppers.append(self)
        return enter(self)

    monkeypatch.setattr(Stopper, "__enter__", remember)

    def stop(name: str, reply: Message) -> Message:
        if name == "north" and reply.metadata.group_id == "2" and len(stoppers) == 1:
            stoppers[0].stop()
        return reply

    hospitals.on_reply = stop
    with pytest.raises(Interrupted, match="synth-server resume"):
        run(tmp_path / "server", hospitals, PLAN)
    assert hospitals.asked[-1][0] == "north"  # west was not asked any more
    state = run_state(tmp_path / "server")
    assert state is not None
    assert (state["phase"], state["completed"]) == ("stopped", 1)
    run(tmp_path / "server", hospitals, PLAN, AGAIN)
    assert _charges(hospitals) == {"east": 3, "north": 3, "west": 3}
    book = _book(tmp_path / "server")
    assert [f.value for f in book.all("run.resumed")] == [{"at": "round 2"}]
    assert book.value("run.rounds")["completed"] == 3
    assert _final(tmp_path / "server").keys() == _final(finished[0]).keys()


def test_a_run_that_goes_on_at_the_evaluation_waits_for_the_sites_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospitals, folder = Hospitals(tmp_path / "h", PLAN), tmp_path / "server"

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deployed_run, "evaluate_sites", stop)
        with pytest.raises(Interrupted):
            run(folder, hospitals, PLAN)
    looks = iter(range(1000))

    def later(self: Hospitals) -> dict[str, float]:
        return dict.fromkeys(self.sites.values(), 0.1) if next(looks) > 3 else {}

    monkeypatch.setattr(Hospitals, "online", later)
    asked = len(hospitals.asked)
    patient = settings(run={"gather_s": 60.0, "traversals": 0})
    run(folder, hospitals, PLAN, AGAIN, patient)
    assert hospitals.asked[asked:] == [(name, "evaluate") for name in ("east", "north", "west")]
    assert [f.value for f in _book(folder).all("run.resumed")] == [{"at": "the evaluation"}]
    assert _book(folder).all("federation.failure") == []


def test_a_port_that_is_taken_is_named_before_the_run_begins(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--metrics {port}"):
            run(tmp_path / "server", hospitals, PLAN, ServiceOptions(metrics=port))
    assert not (tmp_path / "server" / "run" / "facts.jsonl").exists()


@pytest.mark.parametrize("away", [set(), {"west"}])
def test_a_release_is_made_once_and_its_price_comes_from_the_replies(
    tmp_path: Path, away: set[str]
) -> None:
    names = ("east", "north", "south", "west")
    plan = release_plan()
    hospitals = Hospitals(tmp_path / "h", plan, names)
    hospitals.away = away
    run(tmp_path / "server", hospitals, plan)
    book = _book(tmp_path / "server")
    (released,) = book.all("release.embedding")
    there = [name for name in names if name not in away]
    assert released.value["sites"] == there
    assert {f.site for f in book.all("privacy.epsilon")} == set(there)
    spent = max(f.value for f in book.all("privacy.epsilon"))
    assert released.value["epsilon"] == pytest.approx(spent)
    assert released.value["epsilon_if_all_others_collude"] > spent
    gone = [(f.site, f.round, f.value["code"]) for f in book.all("federation.failure")]
    assert gone == [("west", 0, "Offline")] * len(away)


def test_an_attempt_that_lost_a_site_is_in_the_price_as_in_the_ledgers(tmp_path: Path) -> None:
    names = ("east", "north", "south", "west")
    plan = release_plan(spare_attempts=1)
    hospitals = Hospitals(tmp_path / "h", plan, names)
    lost: list[str] = []

    def lose(name: str, reply: Message) -> Message | None:
        if name == "south" and reply.metadata.message_type == "train.release" and not lost:
            lost.append(name)
            return None
        return reply

    hospitals.on_reply = lose
    run(tmp_path / "server", hospitals, plan)
    (released,) = _book(tmp_path / "server").all("release.embedding")
    assert (released.value["attempts"], released.value["sites"]) == (2, ["east", "north", "west"])
    spent = []
    for directory in hospitals.directories.values():
        with Ledger.read(directory / "ledger.sqlite") as ledger:
            terms = plan.privacy
            spent.append(epsilon(ledger.history(), terms.delta, terms.accountant))
    assert released.value["epsilon"] == pytest.approx(max(spent))
    assert released.value["epsilon_if_all_others_collude"] > max(spent)


def test_a_rule_that_cannot_hold_with_so_few_sites_says_so_at_the_start(tmp_path: Path) -> None:
    hospitals = Hospitals(tmp_path / "h", PLAN)
    chosen = settings(aggregation={"rule": "trimmed-mean"})
    said = run(tmp_path / "server", hospitals, PLAN, chosen=chosen)
    assert any("trim = 0.1 of 2 replies leaves nobody out" in line for line in said)
    assert any(
        "leaves nobody out" in str(e["text"]) for e in events(tmp_path / "server", "warning")
    )
