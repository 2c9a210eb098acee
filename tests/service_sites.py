"""A coordinator's folder and sites in this process, for tests of the service."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import small_sites
from small_sites import approve, small_plan, small_site

from synth_client.app import SiteApp, make_client_app
from synth_client.enrol import agree, make_key
from synth_client.evaluate import SiteEvaluation
from synth_client.site import save_site
from synth_common.evaluation.config import EvaluationConfig
from synth_common.flower import Grid, Message, PassingGrid
from synth_common.plan import Plan
from synth_server.attendance import Sites
from synth_server.deployment import Deployment
from synth_server.progress import PlainReporter
from synth_server.service import ServiceOptions, coordinate
from synth_server.settings import ServerFolder, ServerSettings
from synth_sim.transport import InProcessGrid, PartitionSites

NAMES = ("east", "north", "west")
EVALUATION = EvaluationConfig(
    synthetic_images=8, max_images=8, diversity_pairs=2, encoder_steps=1, classifier_steps=1,
    classifier_batch=8, utility_seeds=1, bootstrap=20,
)  # fmt: skip
__all__ = ["NAMES", "Hospitals", "release_plan", "run", "settings", "small_plan"]


def release_plan(**release: object) -> Plan:
    """One masked release, and little learning."""
    return small_sites.release_plan(warm_steps=2, **release)


def settings(**changes: object) -> ServerSettings:
    """Settings without long waits."""
    values: dict[str, object] = {
        "name": "Small federation",
        "address": "localhost:8443",
        "bind": "127.0.0.1:8443",
        "run": {"gather_s": 0.0, "patience_s": 0.5, "retry_s": 0.05, "traversals": 1},
        **changes,
    }
    return ServerSettings.model_validate(values)


class Hospitals(PassingGrid):
    """Sites in this process with a roster: a test decides who is connected, and what happens.

    Attributes:
        sites: Name by node id.
        away: Names of sites that are not connected.
        asked: Names and kinds of all messages, in order.
        request: The message that is being answered.
        on_reply: Called with a site's name and its reply before it is given out; may change the
            reply, raise, or return None to lose it.
    """

    def __init__(self, folder: Path, plan: Plan, names: tuple[str, ...] = NAMES) -> None:
        self.directories = {name: folder / "sites" / name for name in names}
        if not folder.exists():
            self._make(folder, plan, names)
        app = SiteApp(
            PartitionSites(tuple(self.directories.values())), SiteEvaluation(EVALUATION, seed=1)
        )
        super().__init__(InProcessGrid(make_client_app(app), len(names)))
        self.sites: Mapping[int, str] = {i + 1: name for i, name in enumerate(names)}
        self.away: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.request: Message | None = None
        self.on_reply: Callable[[str, Message], Message | None] = lambda name, reply: reply

    def _make(self, folder: Path, plan: Plan, names: tuple[str, ...]) -> None:
        public = {}
        for seed, name in enumerate(names):
            budget = 8.0 if plan.privacy.private else math.inf
            site = small_site(folder / "sites", name, seed, budget)
            save_site(site)
            approve(site, plan)
            public[name] = make_key(site.directory)
        for name, directory in self.directories.items():
            agree(directory, {other: key for other, key in public.items() if other != name})

    def online(self) -> Mapping[str, float]:
        """Who is connected."""
        return {name: 0.1 for name in self.sites.values() if name not in self.away}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies of connected sites, as the test lets them through."""
        for message in messages:
            name = self.sites[message.metadata.dst_node_id]
            self.request = message
            self.asked.append((name, message.metadata.message_type))
            (reply,) = self._inner.send_and_receive([message], timeout=timeout)
            given = self.on_reply(name, reply)
            if given is not None:
                yield given

    @contextmanager
    def link(self, _folder: ServerFolder, _settings: ServerSettings) -> Iterator[Sites]:
        """As the coordinator opens it."""
        grid: Grid = self
        yield Sites(grid, self)


@contextmanager
def reporter(rounds: int, completed: int) -> Iterator[PlainReporter]:
    yield PlainReporter(_said.append, rounds, completed)


_said: list[str] = []


def run(
    folder: Path,
    hospitals: Hospitals,
    plan: Plan,
    options: ServiceOptions | None = None,
    chosen: ServerSettings | None = None,
) -> list[str]:
    """Run a coordinator in ``folder``; returns what it said."""
    _said.clear()
    folder.mkdir(exist_ok=True)
    server = ServerFolder(folder)
    deployment = Deployment(server, chosen or settings(), plan)
    coordinate(
        deployment,
        replace(options or ServiceOptions(), command="synth-server start"),
        hospitals.link,
        reporter,
    )
    return list(_said)


def events(folder: Path, kind: str | None = None) -> list[dict[str, object]]:
    """The events of a run."""
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [event for event in found if kind in (None, event["event"])]
