"""What a federation over a network costs: seconds per round, server memory, a long run.

Usage: python simulations/benchmarks/deployment.py [overhead|memory|soak] [--rounds N] ...

The coordinator runs in this process, the sites in others, over TLS on loopback, with the
strategy and the checks of a real run. Training is a pause of fixed length and a copy of the
tensors, so that all that is measured is the link. A site has a process of its own where time
is measured; for memory all sites are threads of one other process.

- ``overhead``: seconds of a round beyond the training, 3 sites, a model of 2 MB.
- ``memory``: the coordinator's peak memory beyond what it holds before the first round,
  over the size of the model, for several numbers of sites: of the link alone, and of a
  whole round with checks, sum and average.
- ``soak``: rounds in a row, with the coordinator's memory along the way.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from synth_common import messages
from synth_common.enrolment import Verdict
from synth_common.flower import (
    ClientApp,
    ConfigRecord,
    Context,
    Message,
    RecordDict,
    arrays_of,
    state_of,
)
from synth_common.flower.link import LinkGrid, Listener, open_link
from synth_common.flower.node import Coordinator, Pace, serve_node
from synth_common.plan import FederationPlan, GeneratorPlan, Plan, PrivacyPlan, TrainingPlan
from synth_server.strategy import UniformAverage

_MEGABYTE = 10**6
_TIMEOUT = 600.0
_EXCHANGES = 3  # the peak is that of all of them


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for loopback, which is its own authority, and its key."""
    key, now = ec.generate_private_key(ec.SECP384R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    paths = folder / "server.crt", folder / "server.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(_pem(key))
    return paths


@dataclass(frozen=True)
class _Enrolled:
    """A doorkeeper of fixed keys."""

    keys: dict[str, bytes]

    def verdict(self, public_key: bytes) -> Verdict:
        for name, key in self.keys.items():
            if key == public_key:
                return Verdict(name, None)
        return Verdict(None, "unknown key")

    def names(self) -> dict[str, bytes]:
        return self.keys


class _Quiet:
    """Events that nobody reads."""

    def connected(self) -> None:
        """Nothing."""

    def disconnected(self, reason: str) -> None:
        print("disconnected:", reason, file=sys.stderr)

    def asked(self, message: Message) -> None:
        """Nothing."""

    def answered(self, message: Message, reply: Message) -> None:
        """Nothing."""

    def unwanted(self, message: Message) -> None:
        print("an answer was not taken", file=sys.stderr)


def _sites(port: int, authority: bytes, keys: Sequence[bytes], seconds: float) -> None:
    """The body of a process with sites in it: the same tensors come back after a while."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        time.sleep(seconds)
        header = messages.header_of(message)
        state = state_of(messages.arrays_in(message))
        moved = {name: value * 1.0001 for name, value in state.items()}
        content = RecordDict(
            {
                messages.ARRAYS: arrays_of(moved),
                messages.HEADER: ConfigRecord(asdict(header)),
            }
        )
        return Message(content, reply_to=message)

    coordinator = Coordinator("127.0.0.1", port, authority)
    parent = os.getppid()

    def serve(key: bytes) -> None:
        private = serialization.load_pem_private_key(key, None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise SystemExit("the key is of another kind")
        serve_node(coordinator, private, app, _Quiet(), lambda: os.getppid() != parent, Pace())

    threads = [threading.Thread(target=serve, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def _federation(sites: int, seconds: float, together: bool = False) -> Iterator[LinkGrid]:
    """A coordinator here and ``sites`` online, each in a process, or together in one."""
    keys = {f"site-{n}": ec.generate_private_key(ec.SECP384R1()) for n in range(sites)}
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = _self_signed(Path(folder))
        listener = Listener("127.0.0.1", 0, certificate, key, spool=Path(folder))
        with open_link(listener, _Enrolled({n: _public(k) for n, k in keys.items()})) as grid:
            secrets = [_pem(key) for key in keys.values()]
            shared = [secrets] if together else [[secret] for secret in secrets]
            authority = certificate.read_bytes()
            processes = [
                spawn.Process(
                    target=_sites, args=(grid.port, authority, mine, seconds), daemon=True
                )
                for mine in shared
            ]
            for process in processes:
                process.start()
            try:
                while len(grid.online()) < sites:
                    time.sleep(0.05)
                yield grid
            finally:
                for process in processes:
                    process.kill()
                    process.join()


def _model(megabytes: float, tensors: int) -> dict[str, torch.Tensor]:
    """Tensors of this size together."""
    values = int(megabytes * _MEGABYTE / 4 / tensors)
    return {f"layer{n}.weight": torch.randn(values) for n in range(tensors)}


def _plan(sites: int) -> Plan:
    return Plan(
        generator=GeneratorPlan(size=32),
        training=TrainingPlan(rounds=1, steps_per_round=1, patients_per_step=16, device="cpu"),
        privacy=PrivacyPlan(epsilon=2.0, accountant="rdp", noise="simulation", spare_rounds=0),
        federation=FederationPlan(min_sites=sites),
    )


class _Rounds:
    """Rounds as a coordinator makes them: ask, check, add up, average."""

    def __init__(self, grid: LinkGrid, sites: int, state: dict[str, torch.Tensor]) -> None:
        self._grid, self._state, self._sites = grid, state, sites
        self._strategy = UniformAverage(grid.sites, sites, "benchmark", _plan(sites))
        self._number = 0

    def one(self) -> float:
        """Seconds of one round."""
        self._number += 1
        began = time.perf_counter()
        config = ConfigRecord({"timeout": _TIMEOUT})
        strategy, grid = self._strategy, self._grid
        sent, self._state = arrays_of(self._state), {}
        asked = strategy.configure_train(self._number, sent, config, grid)
        replies = grid.send_and_receive(asked, timeout=_TIMEOUT)
        del asked, sent
        averaged, _ = strategy.aggregate_train(self._number, replies)
        if averaged is None or len(strategy.outcome.replies) != self._sites:
            raise SystemExit(f"the round failed: {strategy.outcome.failures}")
        self._state = state_of(averaged, empty=True)
        return time.perf_counter() - began


def _resident() -> float:
    """Megabytes that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / _MEGABYTE


def overhead(sites: int, megabytes: float, tensors: int, seconds: float, rounds: int) -> None:
    """Print seconds per round beyond the training."""
    with _federation(sites, seconds) as grid:
        run = _Rounds(grid, sites, _model(megabytes, tensors))
        run.one()
        beyond = [run.one() - seconds for _ in range(rounds)]
    print(f"{sites} sites, {megabytes:g} MB in {tensors} tensors, {seconds:g} s of training:")
    print(
        f"seconds beyond the training, {rounds} rounds: median {statistics.median(beyond):.2f}, "
        f"most {max(beyond):.2f}"
    )


class _Peak:
    """The most that this process held since this object was made, beyond what it held then."""

    def __init__(self) -> None:
        gc.collect()
        self.before = _resident()
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's mark of the peak

    def beyond(self) -> float:
        """Megabytes."""
        status = Path("/proc/self/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024 / _MEGABYTE - self.before


def _link_alone(grid: LinkGrid, model: dict[str, torch.Tensor]) -> None:
    """One exchange whose answers are read array by array and thrown away."""
    content = RecordDict(
        {
            messages.ARRAYS: arrays_of(model),
            messages.HEADER: ConfigRecord(asdict(messages.Header("benchmark", 0, ""))),
        }
    )
    asked = (Message(content, node, "train") for node in grid.sites)
    for reply in grid.send_and_receive(asked, timeout=_TIMEOUT):
        arrays = messages.arrays_in(reply)
        for name in list(arrays):
            arrays.pop(name).numpy()


def _measure_memory(
    whole: bool, sites: int, megabytes: float, tensors: int, told: Connection
) -> None:
    """Tell the coordinator's peak in models, and the seconds of an exchange."""
    with _federation(sites, 0.0, together=True) as grid:
        small = _Rounds(grid, sites, _model(0.01, tensors))
        small.one()  # imports and pools: not measured
        peak, seconds = _Peak(), []
        run = _Rounds(grid, sites, _model(megabytes, tensors)) if whole else None
        for _ in range(_EXCHANGES):
            began = time.perf_counter()
            if run is None:
                _link_alone(grid, _model(megabytes, tensors))
            else:
                run.one()
            seconds.append(time.perf_counter() - began)
        told.send((peak.beyond() / megabytes, statistics.median(seconds)))


def memory(counts: Sequence[int], megabytes: float, tensors: int) -> None:
    """Print the table of peaks, in multiples of the model; each in a process of its own."""
    print(f"coordinator's peak memory over a model of {megabytes:g} MB in {tensors} tensors")
    print("(the model and its serialised copy are among it)")
    print(f"{'sites':>5} {'link alone':>12} {'whole round':>12} {'s a round':>10}")
    spawn = multiprocessing.get_context("spawn")
    for count in counts:
        peaks, seconds = [], 0.0
        for whole in (False, True):
            heard, told = spawn.Pipe(duplex=False)
            given = (whole, count, megabytes, tensors, told)
            process = spawn.Process(target=_measure_memory, args=given)
            process.start()
            told.close()
            peak, seconds = heard.recv()
            peaks.append(peak)
            process.join()
        print(f"{count:>5} {peaks[0]:>12.2f} {peaks[1]:>12.2f} {seconds:>10.1f}", flush=True)


def soak(sites: int, megabytes: float, tensors: int, rounds: int) -> None:
    """Print the coordinator's memory after every tenth of the rounds."""
    with _federation(sites, 0.0) as grid:
        run = _Rounds(grid, sites, _model(megabytes, tensors))
        marks: list[float] = []
        for number in range(1, rounds + 1):
            run.one()
            if number % max(1, rounds // 10) == 0:
                gc.collect()
                marks.append(_resident())
                print(f"round {number:>5}: {marks[-1]:8.1f} MB", flush=True)
    settled = marks[1:] or marks
    print(f"growth after the first tenth: {100 * (settled[-1] / settled[0] - 1):+.1f} %")


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["overhead", "memory", "soak"])
    parser.add_argument("--sites", default=None, help="number of sites; several for memory")
    parser.add_argument("--megabytes", type=float, default=None, help="size of the model")
    parser.add_argument("--tensors", type=int, default=20, help="tensors of the model")
    parser.add_argument("--seconds", type=float, default=1.0, help="pretended training")
    parser.add_argument("--rounds", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "overhead":
        size, rounds = given.megabytes or 2.0, given.rounds or 10
        overhead(int(given.sites or 3), size, given.tensors, given.seconds, rounds)
    elif given.what == "memory":
        counts = [int(n) for n in (given.sites or "2,4,8").split(",")]
        memory(counts, given.megabytes or 50.0, given.tensors)
    else:
        soak(int(given.sites or 3), given.megabytes or 2.0, given.tensors, given.rounds or 200)


if __name__ == "__main__":
    main()
