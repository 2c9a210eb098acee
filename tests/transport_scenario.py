"""One small federation, run by its coordinator over each of the three transports.

The plan, the sites' data, keys and seeds, the run's name and the coordinator's code are the same;
only the way of a message differs. ``noise = "simulation"`` makes the results comparable. A real
site refuses it, so these say in ``site.json`` that they are simulated, and the plan goes to the
coordinator without the check of ``synth-server init``. Everything else is what is deployed:
enrolment, mutual authentication over TLS, a process of ``synth-client start`` per site.

As a program it runs the coordinator on Ray: ``python transport_scenario.py FOLDER``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import service_sites
from deployment_scenario import NAMES, free_port, hospitals
from enrolment_scenario import Federation, found
from site_scenario import deployed_plan, site_values, write_settings
from small_sites import OPERATOR, approve, release_plan, small_site

from synth_client.app import SiteApp
from synth_client.approval import open_budget
from synth_client.evaluate import SiteEvaluation
from synth_client.site import save_site
from synth_common.evaluation.config import EvaluationConfig
from synth_common.flower import Grid, PassingGrid
from synth_common.plan import Plan
from synth_common.privacy.ledger import Budget
from synth_server import deployment
from synth_server.attendance import Sites
from synth_server.deployed_run import Link
from synth_server.deployment import Deployment
from synth_server.network import open_network
from synth_server.rounds import discover_sites
from synth_server.service import ServiceOptions, coordinate
from synth_server.settings import ServerFolder, ServerSettings, load_settings
from synth_sim.transport import Engine, PartitionSites, open_grid

ROUNDS = 2


def plan() -> Plan:
    """A masked release of all sites, and two private rounds from there."""
    made = release_plan(rounds=ROUNDS, warm_steps=2)
    sites = made.federation.model_copy(update={"min_sites": len(NAMES)})
    return made.model_copy(update={"federation": sites})


def federation(folder: Path) -> Federation:
    """Three enrolled hospitals with drawn patients, which say that they are simulated."""
    made = found(folder, f"127.0.0.1:{free_port()}", deployed_plan())
    made.enrol(*NAMES)
    for seed, name in enumerate(NAMES):
        made.accept(name)
        write_settings(made.site(name), site_values(site={"name": name}))
        site = small_site(folder / "drawn", name, seed)
        site = replace(site, directory=made.site(name))
        save_site(site)
        open_budget(site.ledger_path, Budget(8.0, 1e-5), OPERATOR)
        approve(site, plan())
    return made


class _Simulated(PassingGrid):
    """A simulation's grid with a roster: every site is there."""

    def __init__(self, inner: Grid) -> None:
        super().__init__(inner)
        self.sites: Mapping[int, str] = discover_sites(inner, 120.0)

    def online(self) -> Mapping[str, float]:
        """Everybody, heard just now."""
        return dict.fromkeys(self.sites.values(), 0.0)


def simulated(engine: Engine, directories: tuple[Path, ...]) -> Link:
    """The sites of these directories on one of the simulation's engines."""
    app = SiteApp(PartitionSites(directories), SiteEvaluation(EvaluationConfig(), 0), threads=1)

    @contextmanager
    def link(_folder: ServerFolder, _settings: ServerSettings) -> Iterator[Sites]:
        with open_grid(engine, app, len(directories)) as grid:
            roster = _Simulated(grid)
            yield Sites(roster, roster)

    return link


def run(made: Federation, link: Link) -> Path:
    """Run the coordinator to its report; returns the folder of checkpoints."""
    settings = load_settings(made.folder)
    quick = settings.run.model_copy(
        update={"evaluate": False, "traversals": 0, "patience_s": 120.0}
    )
    chosen = settings.model_copy(update={"run": quick})
    given: Callable[[int], str] = lambda size: "5" * (2 * size)  # noqa: E731
    before, deployment.secrets.token_hex = deployment.secrets.token_hex, given
    try:
        coordinate(
            Deployment(made.folder, chosen, plan()), ServiceOptions(), link, service_sites.reporter
        )
    finally:
        deployment.secrets.token_hex = before
    return made.folder.run / "checkpoints"


def simulate(made: Federation, engine: Engine) -> Path:
    """Run it on one of the simulation's engines."""
    return run(made, simulated(engine, tuple(made.site(name) for name in NAMES)))


def deploy(made: Federation) -> Path:
    """Run it with a process per hospital, over the network."""
    with hospitals(made):
        return run(made, open_network)


if __name__ == "__main__":
    simulate(Federation(Path(sys.argv[1]), ""), "ray")
