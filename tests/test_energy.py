"""Energy: what the counters moved, and an honest nothing where there is no counter."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from synth_common import energy
from synth_common.energy import EnergyMeter
from synth_common.reporting.factbook import MISSING
from synth_common.software import code_value, digest_of


def _package(powercap: Path, number: int, name: str, microjoules: int, turn: int) -> Path:
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{turn}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_processors_are_counted_over_turns_and_parts_are_not_counted_twice(tmp_path: Path) -> None:
    first = _package(tmp_path, 0, "package-0", 900_000, 999_999)
    second = _package(tmp_path, 1, "package-1", 0, 999_999)
    board = _package(tmp_path, 2, "psys", 5, 999_999)
    with EnergyMeter(accelerator=False, powercap=tmp_path) as meter:
        first.write_text("100000")  # over the end of the counter: 200,000 microjoules
        meter.look()
        first.write_text("400000")
        second.write_text("250000")
        board.write_text("800000")
        value = meter.fact("all of it", "tests").value
    assert value["cpu_joules"] == pytest.approx(0.2 + 0.3 + 0.25, abs=0.06)
    assert meter.fact("x", "y").value["cpu_joules"] == 0.8  # rounded to a tenth
    assert value["gpu_joules"] is None
    assert "RAPL counters of package-0, package-1" in value["method"]
    assert "none was used" in value["method"]
    assert value["covers"].startswith("all of it; the whole machine")
    assert not [t for t in threading.enumerate() if t.name == "energy"]


def test_a_watcher_sees_every_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_EVERY_S", 0.001)
    counter = _package(tmp_path, 0, "package-0", 1_000_000, 9_999_999)
    seen = threading.Event()
    with EnergyMeter(accelerator=False, powercap=tmp_path) as meter:
        look = meter.look

        def noticed() -> None:
            look()
            seen.set()

        monkeypatch.setattr(meter, "look", noticed)
        for microjoules in (9_000_000, 3_000_000):  # 8 joules, then 4 more over the end
            with counter.open("r+") as handle:  # of one length: no reader sees half a number
                handle.write(str(microjoules))
            for _ in range(2):  # the second look began after the counter moved
                seen.clear()
                assert seen.wait(20)
        assert meter.fact("x", "y").value["cpu_joules"] == 12.0


@pytest.mark.parametrize("broken", ["absent", "empty", "words", "lost"])
def test_what_cannot_be_read_is_not_recorded_and_says_why(broken: str, tmp_path: Path) -> None:
    folder = tmp_path / "powercap"
    if broken != "absent":
        folder.mkdir()
    if broken in ("words", "lost"):
        counter = _package(folder, 0, "package-0", 1, 99)
        if broken == "words":
            counter.write_text("none")
    with EnergyMeter(accelerator=False, powercap=folder) as meter:
        if broken == "lost":
            counter.unlink()
        value = meter.fact("x", "y").value
    assert value["cpu_joules"] == MISSING
    assert "not measured" in value["method"]
    assert str(folder) in value["method"]


def test_accelerators_are_the_difference_or_a_reason(tmp_path: Path) -> None:
    counts: list[Mapping[str, float]] = [
        {"GPU 0": 1000.0, "GPU 1": 0.0},
        {"GPU 0": 251_000.0, "GPU 1": 50_000.0},
    ]
    with EnergyMeter(True, tmp_path, lambda: counts.pop(0)) as meter:
        value = meter.fact("x", "y").value
    assert value["gpu_joules"] == 300.0
    assert "NVML energy counters of GPU 0, GPU 1" in value["method"]

    def refused() -> Mapping[str, float]:
        raise OSError("NVML: no driver")

    with EnergyMeter(True, tmp_path, refused) as meter:
        value = meter.fact("x", "y").value
    assert value["gpu_joules"] == MISSING
    assert "not measured, NVML: no driver" in value["method"]


def test_the_programs_digest_is_over_path_and_content_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "a.py"
    file.write_text("x = 1")
    (tmp_path / "a.pyc").write_text("compiled")
    line = f"{hashlib.sha256(b'x = 1').hexdigest()}  one/deep/a.py\n"
    assert digest_of({"one": tmp_path}) == hashlib.sha256(line.encode()).hexdigest()
    before = digest_of({"one": tmp_path})
    file.rename(tmp_path / "deep" / "b.py")
    assert digest_of({"one": tmp_path}) != before
    value = code_value()
    assert value["version"]
    assert value["sha256"] != digest_of({})
