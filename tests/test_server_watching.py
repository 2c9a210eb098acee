"""What the coordinator shows of a run: public numbers, on this machine, and no more."""

from __future__ import annotations

import http.client
import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from needs import CHROMIUM
from PIL import Image

from synth_common.errors import ConfigError, FederationError
from synth_common.facts import Fact
from synth_server import board as board_module
from synth_server import trackers
from synth_server.board import Board, read_state
from synth_server.events import EVENTS
from synth_server.loopback import served
from synth_server.metrics import PHASES, render_metrics
from synth_server.service_cli import describe
from synth_server.status_page import render_page
from synth_server.trackers import TrackedLog, scalars

NASTY = 'St. "Mary" <b>\\ & Söhne'


def _fact(name: str, value: Any, scope: str = "public", **more: Any) -> Fact:
    return Fact(name, value, scope, "test", **more)  # type: ignore[arg-type]


def _round(number: int) -> list[Fact]:
    value = {"replies": ["east", NASTY], "seconds": 1.5, "bytes_down": 200, "bytes_up": 100}
    return [
        _fact("federation.round", value, round=number),
        _fact("privacy.epsilon", 0.5 * number, site="east", round=number),
        _fact("privacy.epsilon", math.inf, site=NASTY, round=number),
        _fact("training.health", {"spread": 0.25 * number}, "released", round=number),
        _fact("training.loss", 123.456, "site-local", site="east", round=number),
        _fact("samples.grid", "samples/synthetic.png", "released", detail={"kind": "synthetic"}),
    ]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """Two rounds of two sites, one of them gone."""
    (tmp_path / "samples").mkdir()
    pixels = np.zeros((8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "samples" / "synthetic.png")
    made = Board(tmp_path, {"name": "Small", "id": "r1", "planned": 3, "target_epsilon": 4.0})
    made.recall(_round(1))
    made.begin("round", 2)
    made.heard({"east": 0.5}, ["east", NASTY])
    made.asked("east")
    made.asked(NASTY)
    made.replied("east", None)
    made.replied(NASTY, "NoReply")
    made.take(_round(2))
    return made


def _parsed_metrics(text: str) -> dict[tuple[str, str], float]:
    """A strict reader of Prometheus' text format: (name, labels) to value."""
    found: dict[tuple[str, str], float] = {}
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert kind in ("gauge", "counter")
            assert (kind == "counter") == name.endswith("_total")
            typed.add(name)
        elif not line.startswith("# HELP "):
            match = re.fullmatch(
                r'(\w+)(?:\{((?:\w+="(?:[^"\\]|\\["\\n])*",?)+)\})? ([-+]?(?:[\d.e+-]+|Inf|NaN))',
                line,
            )
            assert match is not None, line
            assert match[1] in typed
            assert (match[1], match[2] or "") not in found
            found[match[1], match[2] or ""] = float(match[3])
    assert text.endswith("\n")
    return found


def test_metrics_are_read_by_a_strict_parser_and_hold_the_numbers(board: Board) -> None:
    found = _parsed_metrics(render_metrics(board.snapshot()))
    nasty = NASTY.replace("\\", "\\\\").replace('"', '\\"')
    assert found["synthward_rounds_completed", ""] == 2
    assert found["synthward_bytes_total", 'direction="up"'] == 200
    assert found["synthward_site_epsilon", 'site="east"'] == 1.0
    assert found["synthward_site_epsilon", f'site="{nasty}"'] == math.inf
    assert found["synthward_site_connected", 'site="east"'] == 1
    assert found["synthward_site_connected", f'site="{nasty}"'] == 0
    assert found["synthward_site_failures_total", f'site="{nasty}"'] == 1
    phases = {labels: v for (name, labels), v in found.items() if name == "synthward_phase"}
    assert phases == {f'phase="{phase}"': float(phase == "round") for phase in PHASES}


def test_a_fresh_board_has_no_number_that_nobody_knows(tmp_path: Path) -> None:
    fresh = Board(tmp_path, {"name": "Small", "id": "r", "planned": 3, "target_epsilon": math.inf})
    fresh.heard({}, ["east"])
    text = render_metrics(fresh.snapshot())
    assert "site_epsilon" not in text
    assert "round_seconds" not in text
    assert "No image was released yet" in render_page(fresh.snapshot(), tmp_path)


def test_a_look_that_fails_does_not_end_the_refreshing(
    board: Board, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(board_module, "_TICK_SECONDS", 0.01)
    again = threading.Event()

    def look() -> None:
        if "a fault" in caplog.text:
            again.set()
        raise ValueError("a fault")

    with board.refreshed(look):
        assert again.wait(10.0)


def test_state_and_events_are_strict_json_and_hold_nothing_of_a_site(
    board: Board, tmp_path: Path
) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = (tmp_path / EVENTS).read_text().splitlines()
    events = [json.loads(line, parse_constant=refuse) for line in lines]
    kinds = [event["event"] for event in events]
    assert kinds == ["phase", "connected", "asked", "asked", "reply", "failure", "round"]
    assert events[-1]["epsilon"] == {"east": 1.0, NASTY: "inf"}
    state = json.loads((tmp_path / "state.json").read_text(), parse_constant=refuse)
    assert state["sites"][NASTY]["failure"] == "NoReply"
    everything = "".join(path.read_text() for path in tmp_path.glob("*.json*"))
    assert "123.456" not in everything
    assert "123.456" not in render_page(board.snapshot(), tmp_path)
    assert read_state(tmp_path) == state


def test_an_error_is_on_the_board_and_the_command_says_all_of_it(
    board: Board, tmp_path: Path
) -> None:
    board.end("failed", FederationError("round 3: 1 sites are connected"))
    state = {**(read_state(tmp_path) or {}), "running": False}
    text = "\n".join(describe(state))
    assert "failed, 2 of 3 rounds completed" in text
    assert f"{NASTY}: not connected; failed (NoReply); epsilon inf" in text
    assert "FederationError: round 3" in text
    assert "FederationError: round 3" in render_page(board.snapshot(), tmp_path)


class _Tags(HTMLParser):
    """Every tag with its attributes, and whether they close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_self_contained_and_escapes_names(board: Board, tmp_path: Path) -> None:
    page = render_page(board.snapshot(), tmp_path)
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert {tag for tag, _ in tags.tags} & {"script", "iframe", "link", "form", "a"} == set()
    targets = [a[k] or "" for _, a in tags.tags for k in ("src", "href") if k in a]
    assert all(t.startswith(("data:image/png", "#")) for t in targets)
    assert "<b>" not in page
    ids = [a["id"] for _, a in tags.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {"epsilon", "health"} <= {i.split("-")[0] for i in ids if i}
    (refresh,) = [a for _, a in tags.tags if a.get("http-equiv") == "refresh"]
    assert refresh["content"] == "5"


def _get(port: int, path: str, host: str | None = None, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Host": host} if host else {}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_only_known_pages_are_read_and_only_under_this_machines_own_name() -> None:
    with served("--metrics", 0, {"/metrics": lambda: ("text/plain", b"42\n")}) as port:
        assert _get(port, "/metrics") == (200, b"42\n")
        assert _get(port, "/metrics", f"localhost:{port}") == (200, b"42\n")
        assert _get(port, "/metrics", method="HEAD") == (200, b"")
        assert _get(port, "/")[0] == 404
        assert _get(port, "/metrics", "evil.example.org")[0] == 403  # DNS rebinding
        assert _get(port, "/metrics", method="POST")[0] == 501
        with (
            pytest.raises(ConfigError, match=rf"--status-page {port}.*choose another"),
            served("--status-page", port, {}),
        ):
            pass


def test_trackers_get_public_and_released_facts_and_no_others(tmp_path: Path) -> None:
    class Sink:
        def __init__(self) -> None:
            self.got: list[str] = []

        def take(self, facts: list[Fact]) -> None:
            self.got += [fact.name for fact in facts]

    sink = Sink()
    log = TrackedLog(tmp_path / "facts.jsonl", [sink])  # type: ignore[list-item]
    log.extend(_round(1))
    assert "training.loss" in (tmp_path / "facts.jsonl").read_text()
    assert "training.loss" not in sink.got
    assert len(sink.got) == 5


def test_scalars_are_finite_and_named_by_fact_and_site() -> None:
    found = dict(pair for fact in _round(2) for pair in scalars(fact))
    assert found["federation.round/bytes_up"] == 100.0
    assert found["privacy.epsilon/east"] == 1.0
    assert found["training.health/spread"] == 0.5
    assert not [name for name in found if "Mary" in name]  # its epsilon is infinite
    assert all(math.isfinite(value) for value in found.values())


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, options in (
        ("torch.utils.tensorboard", (tmp_path / "board", None)),
        ("mlflow.tracking", (None, "file:nowhere")),
    ):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        extra = module.split(".")[0].replace("torch", "tensorboard")
        with (
            pytest.raises(ConfigError, match=rf"pip install 'synthward\[{extra}\]'"),
            trackers.trackers(tmp_path, "Small", options, print),
        ):
            pass


def test_a_tracker_that_fails_later_is_given_up_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, *_arguments: object) -> None:
            self.tries = 0

        def take(self, facts: list[Fact]) -> None:
            raise OSError("no route to host")

        def close(self) -> None:
            pytest.fail("it was given up")

    said: list[str] = []
    monkeypatch.setattr(trackers, "MlflowSink", Broken)
    with trackers.trackers(tmp_path, "Small", (None, "http://tracker"), said.append) as sinks:
        log = TrackedLog(tmp_path / "facts.jsonl", sinks)
        log.extend(_round(1))
        log.extend(_round(2))
    assert said == ["--mlflow http://tracker failed and is not used any more: no route to host"]


def test_tensorboard_reads_what_was_written(board: Board, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with trackers.trackers(tmp_path, "Small", (tmp_path / "board", None), pytest.fail) as sinks:
        TrackedLog(tmp_path / "facts.jsonl", sinks).extend([*_round(1), *_round(2)])
    read = EventAccumulator(str(tmp_path / "board"))
    read.Reload()
    tags = read.Tags()
    assert [(s.step, s.value) for s in read.Scalars("privacy.epsilon/east")] == [(1, 0.5), (2, 1.0)]
    assert not [tag for tag in tags["scalars"] if "loss" in tag]
    assert tags["images"] == ["samples.grid"]


@pytest.mark.filterwarnings("ignore")  # MLflow's own use of its database
def test_mlflow_reads_what_was_written(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.chdir(tmp_path)  # MLflow makes mlruns/ in the current folder
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with trackers.trackers(tmp_path, "Small", (None, uri), pytest.fail) as sinks:
        TrackedLog(tmp_path / "facts.jsonl", sinks).extend([*_round(1), _fact("run.id", "r1")])
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("Small")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["privacy.epsilon/east"] == 0.5
    assert run.data.params == {"run.id": "r1"}
    assert run.info.status == "FINISHED"
    assert not [name for name in run.data.metrics if "loss" in name]


@pytest.fixture
def shown(board: Board, tmp_path: Path) -> Iterator[tuple[int, list[str]]]:
    """The page on a port, and the paths that were asked for."""
    asked: list[str] = []

    def page() -> tuple[str, bytes]:
        asked.append("/")
        return "text/html; charset=utf-8", render_page(board.snapshot(), tmp_path).encode()

    with served("--status-page", 0, {"/": page}) as port:
        yield port, asked


def _chromium(profile: Path, *more: str) -> list[str]:
    return [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update"),
        *("--enable-logging=stderr", f"--user-data-dir={profile}", "--window-size=500,1200"),
        *more,
    ]


@pytest.mark.browser
def test_a_browser_shows_the_page_and_asks_for_nothing_but_the_page_again(
    shown: tuple[int, list[str]], tmp_path: Path
) -> None:
    port, asked = shown
    url = f"http://127.0.0.1:{port}/"
    command = _chromium(tmp_path / "profile", "--dump-dom", url)
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert "CONSOLE" not in done.stderr
    assert "in a round" in done.stdout
    assert "2 of 3" in done.stdout
    before = len(asked)
    stays = subprocess.Popen(
        _chromium(tmp_path / "other", "--remote-debugging-port=0", url), stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while len(asked) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        stays.terminate()
        stays.wait(timeout=30)
    assert len(asked) >= before + 2


@pytest.mark.browser
def test_nothing_on_the_page_is_wider_than_a_narrow_window(board: Board, tmp_path: Path) -> None:
    text = render_page(board.snapshot(), tmp_path)
    # A copy that may run a script measures itself, and complains, so that we know we would hear.
    measure = (
        "<script>const d=document.documentElement;console.error('heard');"
        "d.dataset.overflow=d.scrollWidth-d.clientWidth;d.dataset.height=d.scrollHeight;</script>"
    )
    text = re.sub(r"<meta http-equiv[^>]+>", "", text).replace("</body>", f"{measure}</body>")
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    command = _chromium(tmp_path / "profile", "--dump-dom", page.as_uri())
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    assert "heard" in done.stderr
    found = re.search(r'data-overflow="(-?\d+)" data-height="(\d+)"', done.stdout)
    assert found is not None
    assert int(found[1]) <= 0
    assert int(found[2]) > 800
