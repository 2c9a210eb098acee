"""A throw-away authority, enrolled keys and nodes in threads, for tests of the link.

Run as a program it is one node in a process of its own, which a test can kill:
``python link_peers.py FOLDER NAME PORT [HOST]``. What it does is in FOLDER/NAME.diary.
"""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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

QUICK = Pace(poll_seconds=0.05, lease_seconds=20.0, timeout_seconds=5.0)
STATE = {
    "w": torch.arange(700_000, dtype=torch.float32),
    "b": torch.tensor(1.5),
    "empty": torch.zeros(0, 2),
    **{f"layer{n}": torch.full((5_000,), n, dtype=torch.float64) for n in range(20)},
}


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


class Authority:
    """Signs certificates for a test's server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._key = folder, new_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self._certificate = self._sign(
            self._name, self._key, timedelta(days=-1), timedelta(days=30), None
        )
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(self, name, key, begins, ends, names) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(names is None, None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=names is not None,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=names is None,
                    crl_sign=names is None,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )
        if names is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def server(
        self,
        *,
        host: str = "127.0.0.1",
        begins: timedelta = timedelta(days=-1),
        ends: timedelta = timedelta(days=30),
    ) -> tuple[Path, Path]:
        """Files of a server's certificate and key."""
        key = new_key()
        try:
            names: list[x509.GeneralName] = [x509.IPAddress(ip_address(host))]
        except ValueError:
            names = [x509.DNSName(host)]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._sign(subject, key, begins, ends, names)
        paths = self.folder / f"{host}.crt", self.folder / f"{host}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(pem(key))
        return paths


@dataclass
class Register:
    """A doorkeeper whose book is a dict."""

    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)
    refused: dict[bytes, str] = field(default_factory=dict)

    def verdict(self, public_key: bytes) -> Verdict:
        if public_key in self.refused:
            return Verdict(None, self.refused[public_key])
        for name, key in self.keys.items():
            if public_pem(key) == public_key:
                return Verdict(name, None)
        return Verdict(None, "unknown key; enrol first")

    def names(self) -> Mapping[str, bytes]:
        known = {name: public_pem(key) for name, key in self.keys.items()}
        return {name: key for name, key in known.items() if key not in self.refused}

    def revoke(self, name: str) -> None:
        self.refused[public_pem(self.keys[name])] = f"{name} was revoked on 2026-01-01"


@dataclass
class Diary:
    """A node's events."""

    lines: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def connected(self) -> None:
        self.lines.append("connected")

    def disconnected(self, reason: str) -> None:
        self.lines.append("disconnected")
        self.reasons.append(reason)

    def asked(self, message: Message) -> None:
        self.lines.append("asked")

    def answered(self, message: Message, reply: Message) -> None:
        self.lines.append("answered")

    def unwanted(self, message: Message) -> None:
        self.lines.append("unwanted")


@dataclass
class World:
    """What a test of the link stands on."""

    authority: Authority
    register: Register
    listener: Listener

    def coordinator(self, port: int) -> Coordinator:
        return Coordinator("127.0.0.1", port, self.authority.pem)


def make_world(folder: Path, names: tuple[str, ...] = ("east", "north", "west"), **limits) -> World:
    folder.mkdir(exist_ok=True)
    authority = Authority(folder)
    certificate, key = authority.server()
    listener = Listener("127.0.0.1", 0, certificate, key, **limits)
    return World(authority, Register({name: new_key() for name in names}), listener)


class Node:
    """A node in a thread."""

    def __init__(self, coordinator: Coordinator, key, app: ClientApp, pace: Pace = QUICK) -> None:
        self.diary, self.error = Diary(), None
        self._stop = threading.Event()
        self._given = (coordinator, key, app, self.diary, self._stop.is_set, pace)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            serve_node(*self._given)
        except Exception as err:
            self.error = err

    def stop(self) -> None:
        self._stop.set()
        self.thread.join(20.0)
        assert not self.thread.is_alive()


@contextmanager
def serving(world: World, app: ClientApp | None = None) -> Iterator[tuple[LinkGrid, dict]]:
    """A coordinator and a node in a thread for every enrolled site, all online."""
    with open_link(world.listener, world.register) as grid:
        nodes = {
            name: Node(world.coordinator(grid.port), key, app or doubling())
            for name, key in world.register.keys.items()
        }
        try:
            wait_for(grid, len(nodes), 20.0)
            yield grid, nodes
        finally:
            for node in nodes.values():
                node.stop()


class Relay:
    """A wire between a node and the coordinator that can be cut, or go silent.

    Attributes:
        passed: Bytes that came through from the coordinator.
    """

    def __init__(self, port: int) -> None:
        self._target, self._open = port, True
        self.passed, self._most = 0, math.inf
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        self._pairs: list[socket.socket] = []

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._pairs += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                if one.getpeername()[1] == self._target:
                    self.passed += len(data)
                if self.passed > self._most:
                    continue  # half-open: bytes vanish, and nobody is told
                other.sendall(data)
        except OSError:
            return

    def silent_after(self, passed: int) -> None:
        """Let nothing through, in neither direction, once more than so much has passed."""
        self._most = passed

    def heal(self) -> None:
        """Work again, on new connections."""
        self._most = math.inf
        self.cut()

    def cut(self) -> None:
        pairs, self._pairs = self._pairs, []
        for end in pairs:
            with suppress(OSError):  # it was closed by its peer
                end.shutdown(socket.SHUT_RDWR)  # wakes who reads from it
            end.close()

    def close(self) -> None:
        self._open = False
        self._listener.close()
        self.cut()


def doubling(pause: float = 0.0) -> ClientApp:
    """Answers with the tensors doubled."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        time.sleep(pause)
        state = state_of(message.content.array_records["arrays"])
        doubled = arrays_of({name: 2 * value for name, value in state.items()})
        values = ConfigRecord({"node": context.node_id})
        return Message(RecordDict({"arrays": doubled, "values": values}), reply_to=message)

    return app


@contextmanager
def running(world: World, port: int, apps: dict[str, ClientApp], pace: Pace = QUICK):
    nodes = {
        name: Node(world.coordinator(port), world.register.keys[name], app, pace)
        for name, app in apps.items()
    }
    try:
        yield nodes
    finally:
        for node in nodes.values():
            node.stop()


def waiting_for(event: threading.Event, slow: str, world: World) -> dict[str, ClientApp]:
    """Apps of which one answers only after ``event``."""

    def slow_app() -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            assert event.wait(30.0)
            return doubling()(message, context)

        return app

    return {name: slow_app() if name == slow else doubling() for name in world.register.keys}


def same_port(world: World, port: int) -> World:
    return replace(world, listener=replace(world.listener, port=port))


def questions(grid: LinkGrid, state: Mapping[str, torch.Tensor], kind: str = "train"):
    """One message with the same tensors to every enrolled site."""
    content = RecordDict({"arrays": arrays_of(state)})
    return [Message(content, node, kind, group_id="1") for node in grid.sites]


def eventually(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def wait_for(grid: LinkGrid, count: int, seconds: float = 20.0) -> None:
    """Until so many sites are online."""
    eventually(lambda: len(grid.online()) >= count, seconds)


def store_is_empty(grid) -> bool:
    state = grid._state
    return not (
        grid._store.store
        or grid._store._pieces
        or grid._store.kept
        or state.message_ins_store
        or state.message_res_store
        or state._object_push_sessions
    )


def write_node(folder: Path, world: World, name: str) -> None:
    """What the program below needs to be a node."""
    (folder / f"{name}.key").write_bytes(pem(world.register.keys[name]))
    (folder / "ca.crt").write_bytes(world.authority.pem)


def _killable(folder: Path, name: str) -> ClientApp:
    """Like ``doubling``, but its first life never ends its first message."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        begun = folder / f"{name}.begun"
        if not begun.exists():
            begun.write_text("training")
            time.sleep(600.0)
        answer = doubling()
        return answer(message, context)

    return app


@dataclass
class _Written(Diary):
    """A diary that can be read from another process."""

    path: Path = Path()

    def disconnected(self, reason: str) -> None:
        super().disconnected(reason)
        self._write(f"disconnected {reason}")

    def answered(self, message: Message, reply: Message) -> None:
        super().answered(message, reply)
        self._write("answered")

    def _write(self, line: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{line}\n")


def main() -> None:
    folder, name, port, *host = sys.argv[1:]
    place = Path(folder)
    key = serialization.load_pem_private_key((place / f"{name}.key").read_bytes(), None)
    at = host[0] if host else "127.0.0.1"
    coordinator = Coordinator(at, int(port), (place / "ca.crt").read_bytes())
    diary = _Written(path=place / f"{name}.diary")
    diary.path.touch()
    serve_node(coordinator, key, _killable(place, name), diary, lambda: False, QUICK)


if __name__ == "__main__":
    main()
