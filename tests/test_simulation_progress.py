"""Progress: plain lines in a pipe, never wrapped; a live bar on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from synth_server.progress import PlainReporter, reporter


def test_a_pipe_gets_one_line_per_round_with_epsilon_and_time_left() -> None:
    text = io.StringIO()
    with reporter(4, console=Console(file=text, force_terminal=False, width=20)) as tell:
        assert isinstance(tell, PlainReporter)
        tell.site("north")
        tell.stage("evaluation 1/2, north", "membership attacks")
        tell.round(1, {"north": 1.234, "south": "inf"})
        tell.note("a warning that is a good deal longer than the console [red]is wide[/red]")
    lines = text.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "evaluation 1/2, north: membership attacks"
    assert lines[1].startswith("round 1/4: epsilon north 1.23, south inf, about 0:0")
    assert lines[2].endswith("[red]is wide[/red]")


def test_many_sites_are_summed_up_by_the_highest() -> None:
    lines: list[str] = []
    PlainReporter(lines.append, 2, 0).round(1, {f"s{i}": i / 10 for i in range(9)})
    assert "epsilon up to 0.80" in lines[0]


def test_an_epsilon_that_nobody_reported_is_said_to_be_missing() -> None:
    lines: list[str] = []
    PlainReporter(lines.append, 2, 0).round(1, {})
    assert "NOT RECORDED" in lines[0]


def test_a_terminal_sees_round_site_and_epsilon() -> None:
    text = io.StringIO()
    with reporter(3, 1, Console(file=text, force_terminal=True, width=120)) as tell:
        tell.site("north")
        tell.round(2, {"north": 2.5})
        tell.note("noted")
    shown = text.getvalue()
    assert "2/3" in shown
    assert "north 2.50" in shown
    assert "noted" in shown


def test_a_terminal_sees_the_stage_of_the_evaluation() -> None:
    text = io.StringIO()
    with reporter(3, 3, Console(file=text, force_terminal=True, width=120)) as tell:
        tell.stage("evaluation 1/1, north", "reconstructions")
    assert "evaluation 1/1, north: reconstructions" in text.getvalue()
