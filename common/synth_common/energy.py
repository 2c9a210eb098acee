"""What a run consumed, where the machine tells: RAPL for processors, NVML for NVIDIA GPUs.

Nothing is estimated. A counter that cannot be read leaves NOT RECORDED, with the reason in the
fact. Both counters belong to the machine: other programs' share is in them, and the fact says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from synth_common.facts import Fact

POWERCAP: Final = Path("/sys/class/powercap")
_MISSING: Final = "NOT RECORDED"
_EVERY_S: Final = 60.0
"""RAPL's counters start anew after some 10 minutes at the least; each turn must be seen."""

GpuCounter = Callable[[], Mapping[str, float]]
"""Millijoules since the driver was loaded, by GPU; raises OSError with the reason."""


@dataclass(frozen=True)
class _Zone:
    """A processor package's counter (Linux, Documentation/power/powercap/powercap.rst).

    Attributes:
        name: ``package-0`` and so on.
        counter: The file of the counter, microjoules.
        turn: Microjoules after which it starts at 0 again.
    """

    name: str
    counter: Path
    turn: int

    def read(self) -> int:
        """The counter, microjoules."""
        return int(self.counter.read_text(encoding="ascii"))


class EnergyMeter(AbstractContextManager["EnergyMeter"]):
    """Reads the counters while its context lasts.

    Args:
        accelerator: Whether the run uses GPUs; if not, their energy is not applicable.
        powercap: Where the processors' counters lie.
        gpus: Reads the GPUs' counters; default: NVML.
    """

    def __init__(
        self, accelerator: bool, powercap: Path = POWERCAP, gpus: GpuCounter | None = None
    ) -> None:
        self._accelerator, self._gpus = accelerator, gpus or nvml_millijoules
        self._zones, self._no_zone = _zones(powercap)
        self._microjoules = dict.fromkeys((z.name for z in self._zones), 0)
        self._last: dict[str, int] = {}
        self._gpu_start: Mapping[str, float] = {}
        self._no_gpu = ""
        self._began = time.monotonic()
        self._over = threading.Event()
        self._held = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> EnergyMeter:
        """Begin to count."""
        self._began = time.monotonic()
        self.look()
        if self._zones:
            self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)
            self._thread.start()
        if self._accelerator:
            try:
                self._gpu_start = dict(self._gpus())
            except OSError as err:
                self._no_gpu = str(err)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop to watch."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Add what the processors' counters moved since they were read last."""
        with self._held:
            for zone in self._zones:
                try:
                    now = zone.read()
                except (OSError, ValueError) as err:
                    self._zones, self._no_zone = [], f"{zone.counter}: {err}"
                    return
                before = self._last.get(zone.name, now)
                self._microjoules[zone.name] += (now - before) % zone.turn
                self._last[zone.name] = now

    def fact(self, covers: str, source: str) -> Fact:
        """Fact ``run.energy``: joules since the context began.

        Args:
            covers: What the counters' time covers, in words.
            source: Who records it.
        """
        self.look()
        cpu, how_cpu = self._processors()
        gpu, how_gpu = self._accelerators()
        value = {
            "cpu_joules": cpu,
            "gpu_joules": gpu,
            "method": f"Processors: {how_cpu}. Accelerators: {how_gpu}.",
            "covers": f"{covers}; the whole machine, whatever else ran on it",
            "seconds": round(time.monotonic() - self._began, 3),
        }
        return Fact("run.energy", value, "public", source)

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_S):
            self.look()

    def _processors(self) -> tuple[Any, str]:
        """Joules, and how they were measured or why not."""
        if not self._zones:
            return _MISSING, f"not measured, {self._no_zone}"
        names = ", ".join(zone.name for zone in self._zones)
        return round(sum(self._microjoules.values()) / 1e6, 1), f"RAPL counters of {names}"

    def _accelerators(self) -> tuple[Any, str]:
        if not self._accelerator:
            return None, "none was used"
        if not self._no_gpu:
            try:
                now = self._gpus()
                moved = {name: now[name] - before for name, before in self._gpu_start.items()}
                how = f"NVML energy counters of {', '.join(moved)}"
                return round(sum(moved.values()) / 1e3, 1), how
            except (OSError, KeyError) as err:
                self._no_gpu = str(err)
        return _MISSING, f"not measured, {self._no_gpu}"


def _zones(powercap: Path) -> tuple[list[_Zone], str]:
    """The readable counters of all processor packages, or why there are none."""
    found, why = [], f"{powercap} holds no counter of a processor package"
    for folder in sorted(powercap.glob("*-rapl:*")) if powercap.is_dir() else []:
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
            if not name.startswith("package"):  # a part of one, or of the whole board
                continue
            turn = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
            zone = _Zone(name, folder / "energy_uj", turn + 1)
            zone.read()
        except (OSError, ValueError) as err:
            why = f"{folder / 'energy_uj'} cannot be read ({err})"
            return [], why
        found.append(zone)
    return found, why


def nvml_millijoules() -> Mapping[str, float]:
    """Every NVIDIA GPU's energy since its driver was loaded, millijoules.

    Raises:
        OSError: nvidia-ml-py is not installed, or there is no driver, or the GPU does not count.
    """
    try:
        import pynvml
    except ImportError as err:
        raise OSError("nvidia-ml-py is not installed (pip install 'synthward[energy]')") from err
    try:
        pynvml.nvmlInit()
        try:
            handles = [
                pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())
            ]
            return {
                f"GPU {i}": float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
                for i, handle in enumerate(handles)
            }
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as err:
        raise OSError(f"NVML: {err}") from err
