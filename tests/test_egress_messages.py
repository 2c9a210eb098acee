"""Every message of a whole run, looked through: nothing undeclared leaves a site."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from release_scenario import learner  # noqa: F401
from release_scenario import scenario as release_scenario
from safetensors.torch import load_file
from simulation_scenario import write_tiny

from synth_client import round as rounds
from synth_client.app import SiteApp
from synth_common import messages
from synth_common.errors import FederationError, SynthwardError
from synth_common.flower import ArrayRecord, ConfigRecord, Message
from synth_common.generators import build_generator
from synth_common.generators.embedding import build_embedding
from synth_common.plan import Plan
from synth_common.privacy import egress
from synth_sim import transport
from synth_sim.run import RunOptions, run_scenario
from synth_sim.scenario import Scenario, load_scenario


def undeclared(message: Message, plan: Plan) -> list[str]:
    """What a reply holds that no declaration covers; empty if it may leave."""
    if message.has_error():
        known = {*messages._CODES, messages.UNKNOWN_ERROR}
        return [] if message.error.reason in known else [f"error text {message.error.reason!r}"]
    state = build_generator(plan.generator, 0).shared_state()
    allowed: dict[str, Iterable[str]] = {
        messages.ARRAYS: state,
        messages.STATISTICS: _statistics(plan),
        messages.HEADER: ("run_id", "round", "plan_digest"),
        messages.VALUES: egress.PUBLIC_VALUES,
    }
    found = []
    for name, record in message.content.items():
        kind = ArrayRecord if name in (messages.ARRAYS, messages.STATISTICS) else ConfigRecord
        if name not in allowed or type(record) is not kind:
            found.append(f"record {name!r} of {type(record).__name__}")
            continue
        found += [f"{name}.{key}" for key in record if key not in set(allowed[name])]
        if name == messages.ARRAYS:
            found += [
                f"{name}.{key} has shape {record[key].shape}"
                for key in record
                if tuple(record[key].shape) != tuple(state[key].shape)
            ]
        if name == messages.STATISTICS:
            shapes = _statistics(plan)
            found += [
                f"{name}.{key} is {record[key].dtype} {record[key].shape}"
                for key in record
                if (record[key].dtype, tuple(record[key].shape)) != shapes.get(key)
            ]
        if name == messages.VALUES:
            found += [f"{key} is {value!r}" for key, value in record.items() if _odd(value)]
    return found


def _statistics(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of the statistics that a plan lets leave, by name."""
    planned: dict[str, tuple[str, tuple[int, ...]]] = {}
    if plan.release.label_histogram:
        planned["label_histogram"] = ("float32", (len(plan.generator.classes),))
    if plan.release.embedding:
        local = plan.privacy.trust_model == "local"
        size = build_embedding(plan.generator).size
        planned["embedding" if local else "masked_embedding"] = ("int64", (size,))
    assert set(planned) <= set(egress.STATISTICS)
    return planned


def _odd(value: Any) -> bool:
    """Public values are single numbers and short names; nothing is hidden in a long text."""
    return not isinstance(value, int | float | str) or len(str(value)) > 64


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Every message that any site sends, as it was sent."""
    seen: list[Message] = []
    deliver = transport.delivered

    def watch(message: Message, message_id: str, *, move: bool = False) -> Message:
        copied = deliver(message, message_id, move=move)
        if move:  # on the way back from a site
            seen.append(deliver(copied, message_id))
        return copied

    monkeypatch.setattr(transport, "delivered", watch)
    return seen


def _scenario(folder: Path, *overrides: str) -> Scenario:
    return load_scenario(
        str(write_tiny(folder)), ["release.label_histogram=6.0", "privacy.epsilon=8", *overrides]
    )


def test_a_whole_run_sends_nothing_that_was_not_declared(
    tmp_path: Path, replies: list[Message]
) -> None:
    scenario = _scenario(tmp_path)
    run_scenario(scenario, RunOptions(tmp_path / "run"))
    kinds = [sorted(m.content) for m in replies if not m.has_error()]
    assert len(replies) == 2 * (1 + scenario.training.rounds + 1)  # name, rounds, evaluation
    assert ["arrays", "header", "statistics", "values"] in kinds
    assert [undeclared(message, scenario.plan) for message in replies] == [[]] * len(replies)
    released = [m for m in replies if messages.statistics_in(m)]
    assert len(released) == 2  # once a site, with its first round


def test_a_sites_own_normalisation_is_in_no_message_either_way(
    tmp_path: Path, replies: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    request = messages.request

    def watched(header: Any, arrays: ArrayRecord, *rest: Any) -> Any:
        sent.extend(arrays)
        return request(header, arrays, *rest)

    monkeypatch.setattr(messages, "request", watched)
    scenario = _scenario(tmp_path, "generator.site_normalisation=true")
    run_scenario(scenario, RunOptions(tmp_path / "run"))
    own = build_generator(scenario.generator, 0).site_state()
    kept = list((tmp_path / "run" / "sites" / "alpha" / "kept").rglob("*.safetensors"))
    stored = load_file(kept[-1])
    assert own
    assert {f"site.{name}" for name in own} <= stored.keys()  # trained and kept, but not sent
    assert [undeclared(message, scenario.plan) for message in replies] == [[]] * len(replies)
    names = {key for m in replies for record in m.content.array_records.values() for key in record}
    assert names
    assert sent
    assert not (names | set(sent)) & own.keys()
    values = {stored[f"site.{name}"].numpy().tobytes() for name in own}
    replied = {
        array.numpy().tobytes()
        for m in replies
        for record in m.content.array_records.values()
        for array in record.values()
    }
    assert not values & replied


@pytest.mark.usefixtures("learner")
@pytest.mark.parametrize("trust", ["secure-aggregation", "local"])
def test_a_release_sends_one_vector_of_its_trust_model_and_no_other_word(
    tmp_path: Path, replies: list[Message], monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    """One site is lost on the way, so that a second attempt is walked, too."""
    lost = []
    release = SiteApp.release

    def losing(self: SiteApp, message: Message, context: Any) -> Message:
        reply = release(self, message, context)
        if trust != "local" and not lost and messages.values_in(reply).get("site") == "beta":
            lost.append(reply)
            return messages.error_reply(message, RuntimeError("patient Jane Doe"))
        return reply

    monkeypatch.setattr(SiteApp, "release", losing)
    planned = release_scenario(tmp_path, "release.embedding.spare_attempts=1", sites=4, trust=trust)
    run_scenario(planned, RunOptions(tmp_path / "run"))
    assert [undeclared(message, planned.plan) for message in replies] == [[]] * len(replies)
    vectors = [m for m in replies if messages.statistics_in(m)]
    assert len(vectors) == (4 if trust == "local" else 3 + 3)
    # A vector of the other trust model would be noticed.
    other = release_scenario(tmp_path, trust="local" if trust != "local" else "secure-aggregation")
    assert all(undeclared(message, other.plan) for message in vectors)


def test_failures_send_a_code_and_no_word(
    tmp_path: Path, replies: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("patient Jane Doe, /data/jane.dcm, intensity 0.31")

    monkeypatch.setattr(rounds, "_use", fail)
    scenario = _scenario(tmp_path)
    with pytest.raises(SynthwardError, match="UnexpectedError"):
        run_scenario(scenario, RunOptions(tmp_path / "run"))
    failed = [m for m in replies if m.has_error()]
    assert len(failed) == 2
    assert all(undeclared(message, scenario.plan) == [] for message in replies)
    assert all("Jane" not in repr(message.error) for message in failed)


def _with_value(leak: dict[str, Any]) -> Any:
    """A site that puts a value beside its public ones, past the gate."""
    acknowledgement = messages.acknowledgement

    def leaking(outgoing: egress.Outgoing) -> Any:
        content = acknowledgement(outgoing)
        content[messages.VALUES] = ConfigRecord({**content[messages.VALUES], **leak})
        return content

    return leaking


@pytest.mark.parametrize(
    "leak", [{"loss": 0.3}, {"examples": 17}, {"labels": [3, 14]}, {"site": "x" * 200}]
)
def test_the_walk_notices_what_passes_beside_the_gate(
    tmp_path: Path, replies: list[Message], monkeypatch: pytest.MonkeyPatch, leak: dict[str, Any]
) -> None:
    monkeypatch.setattr(messages, "acknowledgement", _with_value(leak))
    scenario = _scenario(tmp_path, "training.rounds=1")
    # A site name of 200 letters is refused by the coordinator, too.
    with contextlib.suppress(FederationError):
        run_scenario(scenario, RunOptions(tmp_path / "run"))
    assert any(undeclared(message, scenario.plan) for message in replies)
