"""The in-process grid keeps Flower's contract: copies, ids, one reply each, streaming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from synth_common.errors import DataError
from synth_common.flower import (
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    Grid,
    Message,
    RecordDict,
    arrays_of,
    open_run,
    state_of,
)
from synth_sim import transport
from synth_sim.transport import InProcessGrid, PartitionSites


def _app(seen: list[int]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        seen.append(partition)
        message.content.array_records["arrays"].pop("w", None)  # hostile: changes its input
        message.content["config"] = ConfigRecord({"partition": partition})
        return Message(
            RecordDict({"config": ConfigRecord({"partition": partition})}), reply_to=message
        )

    return app


def _messages(nodes: list[int], content: RecordDict) -> list[Message]:
    return [Message(content, node, "train", group_id="1") for node in nodes]


def _content() -> RecordDict:
    return RecordDict({"arrays": arrays_of({"w": torch.ones(3)})})


def test_a_site_cannot_change_what_the_server_or_another_site_holds() -> None:
    grid = InProcessGrid(_app([]), 2)
    content = _content()
    list(grid.send_and_receive(_messages([1, 2], content)))
    assert list(content) == ["arrays"]
    assert torch.equal(state_of(content.array_records["arrays"])["w"], torch.ones(3))


def test_replies_name_their_request_their_site_and_the_group() -> None:
    grid: Grid = InProcessGrid(_app([]), 3)
    ids = list(grid.push_messages(_messages([3, 1], _content())))
    replies = list(grid.pull_messages(ids))
    assert len(set(ids)) == 2
    assert [r.metadata.reply_to_message_id for r in replies] == ids
    assert [r.metadata.src_node_id for r in replies] == [3, 1]
    assert {r.metadata.group_id for r in replies} == {"1"}
    assert all(r.metadata.message_id for r in replies)
    assert [r.content.config_records["config"]["partition"] for r in replies] == [2, 0]


def test_a_reply_is_given_out_once() -> None:
    seen: list[int] = []
    grid = InProcessGrid(_app(seen), 2)
    ids = list(grid.push_messages(_messages([1], _content())))
    assert len(list(grid.pull_messages(ids))) == 1
    assert list(grid.pull_messages(ids)) == []
    assert seen == [0]


def test_sites_run_one_by_one_as_their_replies_are_taken() -> None:
    seen: list[int] = []
    replies = iter(InProcessGrid(_app(seen), 3).send_and_receive(_messages([1, 2, 3], _content())))
    assert seen == []
    next(replies)
    assert seen == [0]
    next(replies)
    assert seen == [0, 1]


def test_a_message_to_nobody_is_refused() -> None:
    grid = InProcessGrid(_app([]), 2)
    with pytest.raises(ValueError, match="node 9"):
        grid.push_messages(_messages([9], _content()))


def test_nodes_and_run_follow_flowers_interface() -> None:
    grid = InProcessGrid(_app([]), 4)
    assert len(list(grid.get_node_ids())) == 4
    assert [node.node_id for node in grid.get_nodes()] == list(grid.get_node_ids())
    grid.set_run(open_run(7))
    assert grid.run.run_id == 7
    made = grid.create_message(_content(), "train", 1, "2")
    assert (made.metadata.dst_node_id, made.metadata.group_id) == (1, "2")


def test_every_site_is_opened_once_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(transport, "load_site", lambda path: opened.append(path) or str(path))
    directories = tuple(Path(f"site-{number}") for number in range(100))
    sites = PartitionSites(directories)
    for _ in range(3):
        for number, directory in enumerate(directories):
            config = {"partition-id": number}
            context = Context(1, number, config, RecordDict(), {})
            assert sites(context) == str(directory)
    assert opened == list(directories)


@pytest.mark.parametrize(
    "value", [torch.randn(2, 3), torch.tensor(1.5), torch.arange(4), torch.zeros(0, 2)]
)
def test_tensors_survive_flowers_records_exactly(value: torch.Tensor) -> None:
    back = state_of(arrays_of({"b": value, "a": value}))
    assert list(back) == ["a", "b"]
    assert back["a"].dtype == value.dtype
    assert torch.equal(back["a"], value)


def test_bytes_that_are_no_array_are_refused_without_their_content() -> None:
    record = arrays_of({"w": torch.ones(3)})
    record["w"].data = b"patient Jane Doe"
    with pytest.raises(DataError) as caught:
        state_of(record)
    assert "Jane" not in str(caught.value)
    record["w"].data = b""
    with pytest.raises(DataError):
        state_of(record)


def test_flower_is_switched_quiet_before_it_is_imported() -> None:
    import os

    from flwr.supercore import telemetry

    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert "synthward" in os.environ["FLWR_HOME"]


def test_an_empty_record_is_an_empty_state() -> None:
    assert state_of(ArrayRecord()) == {}
