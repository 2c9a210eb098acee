"""The strategy averages uniformly, in a fixed order, and refuses what is not a model."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
import torch
from small_sites import small_plan

from synth_common import messages
from synth_common.errors import BudgetError, FederationError, LedgerHeldError
from synth_common.flower import (
    ArrayRecord,
    ClientApp,
    ConfigRecord,
    Context,
    Error,
    Message,
    RecordDict,
    Strategy,
    arrays_of,
    open_run,
    state_of,
)
from synth_common.messages import Header
from synth_common.privacy.egress import Outgoing
from synth_server.strategy import UniformAverage
from synth_sim.transport import InProcessGrid

State = dict[str, torch.Tensor]
RUN, PLAN = "run-1", small_plan()
DIGEST = PLAN.digest()


def _state(seed: int = 0, size: int = 4) -> State:
    rng = torch.Generator().manual_seed(seed)
    return {
        "b": torch.randn(size, 3, generator=rng),
        "a": torch.randn(size, generator=rng) * 1e-3,
    }


def _strategy(sites: int = 3, min_sites: int = 2) -> UniformAverage:
    return UniformAverage({i + 1: f"site-{i}" for i in range(sites)}, min_sites, RUN, PLAN)


def _ask(strategy: UniformAverage, round_: int = 1, state: State | None = None) -> list[Message]:
    open_run()
    grid = InProcessGrid(ClientApp(), 1)
    arrays = arrays_of(state or _state())
    return list(strategy.configure_train(round_, arrays, ConfigRecord(), grid))


def _answer(
    asked: Message,
    state: State,
    header: Header | None = None,
    values: dict[str, float | int | str] | None = None,
) -> Message:
    header = header or Header(RUN, int(asked.metadata.group_id), DIGEST)
    return Message(messages.reply(header, Outgoing(state, values or {})), reply_to=asked)


def test_the_average_is_uniform_and_equals_a_slow_numpy_mean() -> None:
    strategy = _strategy()
    replies = [_state(seed) for seed in (1, 2, 3)]
    asked = _ask(strategy)
    arrays, metrics = strategy.aggregate_train(
        1, [_answer(m, s) for m, s in zip(asked, replies, strict=True)]
    )
    assert arrays is not None
    assert metrics is not None
    assert metrics["sites"] == 3
    averaged = state_of(arrays)
    for name, value in averaged.items():
        slow = np.zeros(value.shape, dtype=np.float64)
        for index in np.ndindex(*value.shape):
            slow[index] = sum(float(r[name][index]) for r in replies) / 3
        assert value.dtype == torch.float32
        np.testing.assert_array_equal(value.numpy(), slow.astype(np.float32))


def test_claimed_sizes_do_not_weigh() -> None:
    strategy = _strategy(2)
    asked = _ask(strategy)
    first, second = _state(1), _state(2)
    replies = [
        _answer(asked[0], first, values={"num-examples": 10_000}),
        _answer(asked[1], second, values={"num-examples": 1}),
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    torch.testing.assert_close(state_of(arrays)["a"], (first["a"] + second["a"]) / 2)


def test_the_result_does_not_depend_on_the_order_of_replies() -> None:
    results = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        strategy = _strategy(4)
        asked = _ask(strategy)
        replies = [_answer(asked[i], _state(10 + i)) for i in order]
        arrays, _ = strategy.aggregate_train(1, replies)
        assert arrays is not None
        results.append(state_of(arrays))
        assert list(strategy.outcome.replies) == [f"site-{i}" for i in range(4)]
    for other in results[1:]:
        for name in other:
            assert torch.equal(results[0][name], other[name])


def _broken(kind: str) -> State:
    state = _state(5)
    if kind == "nan":
        state["a"][2] = float("nan")
    elif kind == "inf":
        state["b"][0, 0] = float("-inf")
    elif kind == "shape":
        state["a"] = torch.zeros(5)
    elif kind == "dtype":
        state["a"] = state["a"].double()
    elif kind == "missing":
        del state["a"]
    elif kind == "unknown":
        state["extra"] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("nan", "tensor a holds NaN"),
        ("inf", "tensor b holds NaN"),
        ("shape", "tensor a is"),
        ("dtype", "tensor a is"),
        ("missing", r"missing \['a'\]"),
        ("unknown", r"unknown \['extra'\]"),
    ],
)
def test_one_bad_reply_is_left_out_and_its_site_named(kind: str, names: str) -> None:
    strategy = _strategy()
    asked = _ask(strategy)
    good = [_state(1), _state(2)]
    replies = [
        _answer(asked[0], good[0]),
        _answer(asked[1], _broken(kind)),
        _answer(asked[2], good[1]),
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    torch.testing.assert_close(state_of(arrays)["a"], (good[0]["a"] + good[1]["a"]) / 2)
    (failure,) = strategy.outcome.failures
    assert (failure.site, failure.code) == ("site-1", "BadReply")
    with pytest.raises(AssertionError, match=names):
        raise AssertionError(failure.reason)


def test_an_update_that_no_training_could_have_made_is_left_out_and_its_site_named() -> None:
    """Its length is that over all tensors together, from the model that was sent."""
    strategy, sent = _strategy(), _state()
    strategy.largest_update = 1.0
    asked = _ask(strategy, state=sent)

    def moved(by: float) -> State:
        return {k: v + by * torch.ones_like(v) / v.numel() ** 0.5 for k, v in sent.items()}

    replies = [_answer(m, moved(by)) for m, by in zip(asked, (0.69, 0.73, -0.69), strict=True)]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    torch.testing.assert_close(state_of(arrays)["a"], sent["a"])
    (failure,) = strategy.outcome.failures
    assert (failure.site, failure.code) == ("site-1", "BadReply")
    assert "the update has norm 1.03" in failure.reason
    strategy.largest_update = None
    arrays, _ = strategy.aggregate_train(1, _again(strategy, sent, 50.0))
    assert arrays is not None


def _again(strategy: UniformAverage, sent: State, by: float) -> list[Message]:
    return [_answer(m, {k: v + by for k, v in sent.items()}) for m in _ask(strategy, state=sent)]


@pytest.mark.parametrize(
    "header", [Header("other", 1, DIGEST), Header(RUN, 2, DIGEST), Header(RUN, 1, "other")]
)
def test_replies_of_another_run_round_or_plan_are_refused(header: Header) -> None:
    strategy = _strategy(2, min_sites=2)
    asked = _ask(strategy)
    replies = [_answer(asked[0], _state(1)), _answer(asked[1], _state(2), header)]
    with pytest.raises(FederationError, match="site-1: BadReply"):
        strategy.aggregate_train(1, replies)


@pytest.mark.parametrize(
    "values",
    [
        {"epsilon": "none of your business"},
        {"epsilon": float("nan")},
        {"epsilon": -1.0},
        {"noise_multiplier": "1"},
        {"steps": 2.5},
        {"ledger_head": "\x1b[2J"},
        {"ledger_head": "0" * 100_000},
        {"ledger_head": 7},
    ],
)
def test_a_reply_that_states_no_numbers_is_left_out(values: dict[str, float | int | str]) -> None:
    strategy = _strategy(2, min_sites=1)
    asked = _ask(strategy)
    strategy.aggregate_train(
        1, [_answer(asked[0], _state(1), values=values), _answer(asked[1], _state(2))]
    )
    assert list(strategy.outcome.replies) == ["site-1"]
    assert strategy.memory.heads == {}
    (failure,) = strategy.outcome.failures
    assert failure.reason == f"the public value {next(iter(values))!r} is not of its kind"


def test_values_that_nobody_asked_for_are_not_kept() -> None:
    strategy = _strategy(1, min_sites=1)
    (asked,) = _ask(strategy)
    told = {"epsilon": 1.0, "steps": 3, "site": "site-0", "ledger_head": "ab", "note": "x" * 10_000}
    strategy.aggregate_train(1, [_answer(asked, _state(1), values=told)])
    assert strategy.outcome.replies == {"site-0": {k: v for k, v in told.items() if k != "note"}}


def test_the_reason_of_a_failure_is_short_whatever_a_peer_sent() -> None:
    strategy = _strategy(2, min_sites=1)
    asked = _ask(strategy)
    liar = _answer(asked[0], _state(1), Header("r" * 100_000, 1, DIGEST))
    strategy.aggregate_train(1, [liar, _answer(asked[1], _state(2))])
    (failure,) = strategy.outcome.failures
    assert len(failure.reason) < 600


def _described(header: str) -> bytes:
    """An array file whose header says anything."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "header",
    [
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70},), }}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), ",
        "(" * 500,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }",
    ],
)
def test_an_array_file_that_cannot_be_read_is_refused(header: str) -> None:
    strategy = _strategy(2, min_sites=1)
    asked = _ask(strategy)
    liar = _answer(asked[0], _state(1))
    liar.content.array_records["arrays"]["a"].data = _described(header)
    strategy.aggregate_train(1, [liar, _answer(asked[1], _state(2))])
    assert [f.site for f in strategy.outcome.failures] == ["site-0"]
    assert strategy.outcome.failures[0].reason == "array 'a' cannot be decoded"


def test_a_description_that_lies_about_its_bytes_is_refused() -> None:
    strategy = _strategy(2, min_sites=1)
    asked = _ask(strategy)
    liar = _answer(asked[0], _state(1))
    wrong = arrays_of({"a": torch.zeros(9)})["a"]
    record = liar.content.array_records["arrays"]["a"]
    record.data = wrong.data
    strategy.aggregate_train(1, [liar, _answer(asked[1], _state(2))])
    assert [f.site for f in strategy.outcome.failures] == ["site-0"]
    assert "description" in strategy.outcome.failures[0].reason


def test_too_few_replies_stop_the_round_and_name_every_failed_site() -> None:
    strategy = _strategy(4, min_sites=3)
    asked = _ask(strategy)
    replies = [
        _answer(asked[0], _state(1)),
        messages.error_reply(asked[1], LedgerHeldError("/data/hospital/Jane Doe")),
        _answer(asked[2], _broken("nan")),
    ]
    with pytest.raises(FederationError) as caught:
        strategy.aggregate_train(1, replies)
    text = str(caught.value)
    assert "site-1: LedgerHeldError" in text
    assert "site-2: BadReply" in text
    assert "site-3: NoReply" in text
    assert "site-0" not in text
    assert "min_sites = 3" in text
    assert "Jane" not in text


def test_a_site_that_was_revoked_meanwhile_is_told_from_a_silent_one() -> None:
    strategy = _strategy(3, min_sites=1)
    strategy.enrolled = lambda: {"site-0", "site-2"}
    asked = _ask(strategy)
    strategy.aggregate_train(1, [_answer(asked[0], _state())])
    told = {failure.site: failure.reason for failure in strategy.outcome.failures}
    assert told == {
        "site-1": "the site was revoked, or its enrolment expired, while the round ran",
        "site-2": "no reply before the round's timeout",
    }


def test_only_the_code_of_an_error_travels() -> None:
    asked = _ask(_strategy())[0]
    known = messages.error_reply(asked, BudgetError("patient Jane Doe"))
    unknown = messages.error_reply(asked, ValueError("patient Jane Doe"))
    assert known.error.reason == "BudgetError"
    assert unknown.error.reason == messages.UNKNOWN_ERROR
    assert "Jane" not in repr(known) + repr(unknown)


def test_free_text_of_a_foreign_error_is_not_passed_on() -> None:
    strategy = _strategy(2, min_sites=1)
    asked = _ask(strategy)
    foreign = Message(Error(2, "FileNotFoundError: /phi/Jane Doe.png"), reply_to=asked[0])
    strategy.aggregate_train(1, [foreign, _answer(asked[1], _state(1))])
    (failure,) = strategy.outcome.failures
    assert failure.code == messages.UNKNOWN_ERROR
    assert "Jane" not in failure.reason


def test_spent_sites_are_not_asked_again_and_end_training_in_good_order() -> None:
    strategy = _strategy(3, min_sites=2)
    asked = _ask(strategy)
    spent = [messages.error_reply(asked[0], BudgetError("spent"))]
    spent += [_answer(m, _state(i)) for i, m in enumerate(asked[1:])]
    arrays, _ = strategy.aggregate_train(1, spent)
    assert arrays is not None
    assert vars(strategy.outcome)["ended"] is None

    second = _ask(strategy, 2)
    assert [m.metadata.dst_node_id for m in second] == [2, 3]
    replies = [
        messages.error_reply(second[0], BudgetError("spent")),
        _answer(second[1], _state(1)),
    ]
    assert strategy.aggregate_train(2, replies) == (None, None)
    ended: str | None = vars(strategy.outcome)["ended"]
    assert ended == "budget spent"
    everyone = list(strategy.ask_evaluation(2, arrays_of(_state())))
    assert [m.metadata.dst_node_id for m in everyone] == [1, 2, 3]


def test_a_second_reply_and_a_strangers_reply_do_not_count() -> None:
    strategy = _strategy(2, min_sites=2)
    asked = _ask(strategy)
    stranger = Message(RecordDict(), 77, "train", group_id="1")
    replies = [
        _answer(asked[0], _state(1)),
        _answer(asked[0], _state(9)),
        _answer(stranger, _state(9)),
        _answer(asked[1], _state(2)),
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    expected = (_state(1)["a"] + _state(2)["a"]) / 2
    torch.testing.assert_close(state_of(arrays)["a"], expected)
    assert {f.site for f in strategy.outcome.failures} == {"site-0", "node 77"}


def test_two_sites_of_one_name_are_refused() -> None:
    with pytest.raises(FederationError, match="differ"):
        UniformAverage({1: "a", 2: "a"}, 1, RUN, PLAN)


def test_memory_does_not_grow_with_the_number_of_sites() -> None:
    def peak(sites: int) -> int:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            state = {"w": torch.full((250_000,), float(context.node_id))}
            return Message(
                messages.reply(messages.header_of(message), Outgoing(state, {})),
                reply_to=message,
            )

        strategy = _strategy(sites)
        grid = InProcessGrid(app, sites)
        asked = strategy.configure_train(
            1, arrays_of({"w": torch.zeros(250_000)}), ConfigRecord(), grid
        )
        tracemalloc.start()
        arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(asked))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert arrays is not None
        assert state_of(arrays)["w"][0] == (sites + 1) / 2
        return top

    # A reply is 1 MB; were they all held at once, 24 sites would need 20 MB more than 4.
    gc.disable()
    try:
        assert peak(24) < peak(4) + 2_000_000
    finally:
        gc.enable()


def test_flowers_own_loop_can_run_the_strategy() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        state = state_of(messages.arrays_in(message))
        moved = {k: v + 1.0 + context.node_id for k, v in state.items()}
        header = messages.header_of(message)
        return Message(messages.reply(header, Outgoing(moved, {})), reply_to=message)

    strategy: Strategy = _strategy(2)
    grid = InProcessGrid(app, 2)
    result = strategy.start(grid, arrays_of({"w": torch.zeros(2)}), num_rounds=3)
    assert isinstance(result.arrays, ArrayRecord)
    assert torch.equal(state_of(result.arrays)["w"], torch.full((2,), 7.5))


def test_a_reply_is_added_up_without_being_held_as_a_model() -> None:
    values, tensors = 50_000, 20
    model = {f"w{n}": torch.full((values,), float(n)) for n in range(tensors)}
    size = 4 * values * tensors
    strategy = _strategy(2)
    list(
        strategy.configure_train(1, arrays_of(model), ConfigRecord(), InProcessGrid(ClientApp(), 2))
    )
    header = Header(strategy.run_id, 1, strategy.plan.digest())
    replies = []
    for node in strategy.sites:
        asked = Message(RecordDict(), node, "train")
        replies.append(Message(messages.reply(header, Outgoing(model, {})), reply_to=asked))
    gc.disable()  # what waits for the collector is held, too
    tracemalloc.start()
    arrays, _ = strategy.aggregate_train(1, iter(replies))
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gc.enable()
    assert arrays is not None
    assert torch.equal(state_of(arrays)["w7"], model["w7"])
    # Torch's memory is not traced; numpy's is, from which every tensor here is made.
    assert top < 1.5 * size, f"{top / size:.2f} models"
