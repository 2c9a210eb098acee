"""The tutorial of a server and three hospitals, typed as it stands, on fewer drawn patients.

What the page tells to replace is replaced: the real radiographs by the drawn hospitals that it
names.
Beside that the federation is made smaller (patients, features of the plan, steps of the evaluation)
and the ports are free ones.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import pytest
from deployment_scenario import free_port
from test_enrolment_howto import Reader

from synth_common.facts import read_facts
from synth_common.reporting.factbook import FactBook

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "three-hospitals.md"
DRAWN = {"guangzhou-east": "north", "guangzhou-west": "river", "bethesda": "hill"}
_EVALUATION = """
[evaluation]
synthetic_images = 24
max_images = 24
diversity_pairs = 4
encoder_steps = 1
classifier_steps = 2
classifier_batch = 8
utility_seeds = 1
bootstrap = 20

[compute]
device = "cpu"
threads = 1
"""


def _smaller_scenario() -> str:
    """The scenario of the drawn hospitals with a twentieth of its patients."""
    text = (resources.files("synth_sim") / "scenarios" / "phantom-hospitals.toml").read_text()
    fewer = re.sub(r"(patients = )(\d{3,})", lambda found: f"{found[1]}{int(found[2]) // 20}", text)
    assert fewer != text
    return fewer


def _replaced(text: str, port: int, page: int) -> str:
    """The page with what a reader without the real images puts in their place."""
    changes = {
        **DRAWN,
        "chest-xray-hospitals": "./drawn.toml",
        "localhost:8443": f"localhost:{port}",
        "--status-page 8081": f"--status-page {page}",
        "generator.features=3000": (
            "generator.features=40 --set generator.frequencies=4 --set generator.refine_steps=3"
            " --set privacy.accountant=rdp"
        ),
        "settings north 1500": "settings north 72",
        "settings river 1500": "settings river 54",
        "settings hill 250": "settings hill 54",
        "[budget]\nepsilon = 8.0\n": f"[budget]\nepsilon = 8.0\n{_EVALUATION}",
    }
    for old, new in changes.items():
        assert old in text, f"the page does not say {old!r} any more"
        text = text.replace(old, new)
    return text


class _Typist(Reader):
    """Types blocks, each in a shell that knows what the first one set."""

    def __init__(self, folder: Path, first: str) -> None:
        super().__init__(folder)
        self._first = first
        command = folder / "synth-sim"
        command.write_text((folder / "synth-client").read_text().replace("_client", "_sim"))
        command.chmod(0o755)

    def block(self, text: str, sites: str | None = None, answer: str = "") -> str:
        chosen = "" if sites is None else f'sites="{sites}"\n'
        return self.type(f"set -e\n{self._first}{chosen}{text}", answer)

    @contextmanager
    def terminal(self, text: str) -> Iterator[subprocess.Popen[bytes]]:
        """A command that goes on, with what it says in a file."""
        log = self.folder / f"{abs(hash(text))}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["sh", "-c", f"{self._first}exec {text.strip()}"],
                cwd=self.folder, env=self.environment, stdout=out, stderr=out,
            )  # fmt: skip
        process.args = log
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=240)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_leads_from_nothing_to_a_report(tmp_path: Path) -> None:
    port, page = free_port(), free_port()
    text = _replaced(PAGE.read_text(), port, page)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    first, deal, found, enrol, agree, serve, join, shown = blocks
    (tmp_path / "drawn.toml").write_text(_smaller_scenario())
    typist = _Typist(tmp_path, first)
    typist.block(deal)
    told = re.search(r"(?:[0-9A-F]{2}:){31}[0-9A-F]{2}", typist.block(found))
    assert told is not None
    make, enlist, accept = enrol.splitlines(keepends=True)
    typist.block(make)
    typist.block(enlist)
    for name in DRAWN.values():  # a person answers each question as it comes
        typist.block(accept, name, told.group())
    for name in DRAWN.values():
        said = typist.block(agree, name, "y")
    assert "the data set's epsilon goes from 0.000 to" in said
    assert "the data set's epsilon goes from 0.000 to" in text.replace("\n", " ")
    doctor, start = join.splitlines()
    with typist.terminal(serve) as server:
        _shown(page, server)
        assert "PROBLEM" not in typist.block(doctor)
        one, two, three = (start.replace("hill", name) for name in DRAWN.values())
        with typist.terminal(one), typist.terminal(two), typist.terminal(three) as hospital:
            for name in DRAWN.values():
                _shown(page, server, f'<th scope="row">{name}</th>')
            assert server.wait(timeout=900) == 0, Path(server.args).read_text()
            stop = "synth-client stop --site hill"
            assert f"`{stop}`" in text
            typist.block(stop)
            hospital.wait(timeout=240)
            lines = Path(hospital.args).read_text()
    happened = _numberless(lines)
    for line in shown.splitlines():  # the same events, with other times and numbers
        assert _numberless(line.partition(" ")[2]) in happened, line
    assert "`synth-client budget --site hill`" in text
    assert "release" in typist.block("synth-client budget --site hill")
    assert "coordinator/run/report.html" in Path(server.args).read_text()
    report = json.loads((tmp_path / "coordinator/run/report.json").read_text())
    assert {site["name"] for site in report["privacy"]["sites"]} == set(DRAWN.values())
    book = FactBook(read_facts(tmp_path / "coordinator/run/facts.jsonl"))
    (released,) = book.all("release.embedding")
    assert (released.value["sites"], released.value["attempts"]) == (sorted(DRAWN.values()), 1)
    spent = max(fact.value for fact in book.all("privacy.epsilon"))
    assert released.value["epsilon"] == pytest.approx(spent)
    assert "NOT RECORDED" in (tmp_path / "coordinator/run/report.html").read_text()


def _numberless(text: str) -> str:
    """The text with every run's name and every number made alike."""
    return re.sub(r"\b[0-9a-f]{16}\b|\d[\d.]*", "#", text)


def _shown(page: int, server: subprocess.Popen[bytes], words: str = "") -> None:
    """Wait until the status page says so."""
    until = time.monotonic() + 300
    while True:
        try:
            shown = urllib.request.urlopen(f"http://127.0.0.1:{page}/", timeout=30).read().decode()
        except OSError:
            shown = None
        if shown is not None and words in shown:
            return
        assert server.poll() is None, Path(server.args).read_text()
        assert time.monotonic() < until, words
        time.sleep(0.1)
