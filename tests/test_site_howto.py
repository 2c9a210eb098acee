"""The how-to of a site, followed with the commands as they stand on the page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from site_scenario import deployed_plan, enrolled
from test_enrolment_howto import Reader

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "run-a-site.md"
SOURCE = 'kind = "folder"\nname = "scans"\npath = "/data/scans"\n'
DRAWN = 'kind = "phantom"\nname = "drawn"\npatients = 400\nimages_per_patient = [1, 1]\n'


@pytest.mark.slow  # eight processes
def test_the_page_leads_from_an_enrolled_site_to_one_that_is_ready(tmp_path: Path) -> None:
    text = PAGE.read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    settings, prepare, approve, doctor, start, shown, unit, look, stop = [b for _, b in blocks]
    _, directory = enrolled(tmp_path / "made", plan=deployed_plan())
    reader = Reader(tmp_path)
    home = tmp_path / "synthward/sites/north"
    shutil.copytree(directory, home)
    assert SOURCE in settings
    (home / "site.toml").write_text(settings.replace(SOURCE, DRAWN))
    assert "train     300 patients" in reader.type(prepare)
    assert "approved" in reader.type(approve, answer="y")
    assert "PROBLEM" not in reader.type(f"{doctor.strip()} --offline")
    assert start == "synth-client start --site north\n"
    assert "round 1 of run" in shown
    reader.type(unit)
    assert "ExecStart=" in (tmp_path / "synthward-north.service").read_text()
    out = reader.type(look)
    assert "NOT RUNNING: never started" in out
    assert "rounds     0 in 24 hours, at most 48" in out
    assert "--after-round" in stop
