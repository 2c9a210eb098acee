"""A site's service: it dials the coordinator and answers, until its operator ends it.

The first signal (SIGTERM, Ctrl-C), and ``synth-client stop --after-round``, let the message
be finished that is being worked on: what the ledger has reserved for it is spent, so its
reply should leave. A second signal, and ``stop --now``, abandon it: what was reserved stays
spent, nothing more leaves, and a reply that was kept is sent again for free when it is asked
for again.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal, Protocol

from synth_client import lock
from synth_client.allowance import Allowance
from synth_client.budget import balance
from synth_client.enrol import load_node_key
from synth_client.events import SiteEvents
from synth_client.kit import load_kit
from synth_client.settings import SiteSettings, load_settings
from synth_client.site import Site, load_site
from synth_common.address import parse_address
from synth_common.errors import Interrupted, RunningError, SynthwardError
from synth_common.reporting.files import replace_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from synth_client.evaluate import SiteEvaluation
    from synth_common.enrolment import Kit
    from synth_common.flower import ClientApp
    from synth_common.flower.node import Coordinator

Say = Callable[[str], None]


class Serve(Protocol):
    """:func:`synth_common.flower.node.serve_node`, or what plays it in a test."""

    def __call__(
        self,
        coordinator: Coordinator,
        key: ec.EllipticCurvePrivateKey,
        app: ClientApp,
        events: SiteEvents,
        stopping: Callable[[], bool],
    ) -> None:
        """Take part until told to stop."""


_FLAG = "stop"
_WATCH_SECONDS = 0.5


def start(directory: Path, name: str, say: Say, serve: Serve | None = None) -> None:
    """Run the service of site ``name`` until its operator or the coordinator ends it.

    Args:
        directory: Of the site, prepared and enrolled.
        name: The site.
        say: Gets one line per message, connection and end.
        serve: The node; by default the one that dials the coordinator.

    Raises:
        ConfigError, DataError, EnrolmentError, LedgerError, BudgetError: The site is not ready;
            nothing was answered.
        LimitError: Fewer training patients than ``limits.min_patients``.
        RunningError: It runs already.
        RefusedError: The coordinator turns this site away.
        Interrupted: A message was abandoned.
    """
    settings, kit, key = (
        load_settings(directory, name),
        load_kit(directory),
        load_node_key(directory),
    )
    with lock.hold(directory):
        account = balance(directory / "ledger.sqlite")
        site = _site(directory, settings)
        # Here, and not in an answer: whether one patient more is there is nobody else's business.
        settings.limits.require_patients(site.train.unit_count())
        events = SiteEvents(directory, say)
        app = _app(site, settings, kit, events)
        with _stopping(directory, events) as stopping:
            events.started(
                f"site {name} started; epsilon {account.spent:.4f} spent, "
                f"{account.remaining:.4f} remains"
            )
            server = coordinator_of(directory, settings, kit)
            node = serve or _node(Allowance(directory / "ledger.sqlite", kit.plan))
            _serve(events, lambda: node(server, key, app, events, stopping))


def coordinator_of(directory: Path, settings: SiteSettings, kit: Kit) -> Coordinator:
    """Where the site's coordinator is, and the only authority whose certificates it takes."""
    from synth_common.flower.node import Coordinator

    address = parse_address(kit.address)
    authority = (directory / "ca.crt").read_bytes()
    return Coordinator(address.host, address.port, authority, settings.server.proxy)


def _node(most_bytes: Callable[[], int]) -> Serve:
    """The node that dials the coordinator; imported late, because Flower is slow to import."""
    from synth_common.flower.node import Pace, serve_node

    return partial(serve_node, pace=Pace(most_bytes=most_bytes))


def _serve(events: SiteEvents, work: Callable[[], None]) -> None:
    """Run the node, and say how it ended."""
    try:
        work()
    except KeyboardInterrupt:
        lost = events.state.working_on
        if lost is None:
            events.stopped("stopped")
            return
        words = f"stopped; {lost} was abandoned, and what was reserved for it stays spent"
        events.stopped(words, abandoned=lost)
        raise Interrupted(words) from None
    except SynthwardError as err:
        events.stopped(f"ended: {err}", error=type(err).__name__)
        raise
    except BaseException as err:
        events.stopped(f"ended: {type(err).__name__}", error=type(err).__name__)
        raise
    events.stopped("stopped")


def _site(directory: Path, settings: SiteSettings) -> Site:
    """The prepared site, under the operator's limits and on the operator's device."""
    return replace(load_site(directory), limits=settings.limits, device=settings.compute.device)


def _app(site: Site, settings: SiteSettings, kit: Kit, events: SiteEvents) -> ClientApp:
    """The app of the simulation, for one site."""
    from synth_client.app import SiteApp, make_client_app
    from synth_common.flower import quiet_logs

    quiet_logs()
    evaluation, threads = _evaluation(site, settings, kit), settings.compute.threads
    return make_client_app(SiteApp(lambda _: site, evaluation, threads, events.worked))


def _evaluation(site: Site, settings: SiteSettings, kit: Kit) -> SiteEvaluation:
    """How the site judges the final generator, by its operator's settings."""
    from synth_client.evaluate import SiteEvaluation
    from synth_client.holdout import image_target
    from synth_common.evaluation.encoder_file import file_encoder
    from synth_common.images.sources import load_source

    reference = settings.data.reference
    images = None
    if reference is not None:
        target = image_target(kit.plan.generator)
        images = load_source(reference, target, site.directory).images
    config = settings.evaluation
    if config.encoder_file is not None:  # a relative path starts at the folder of site.toml
        file = site.directory / config.encoder_file.expanduser()
        config = config.model_copy(update={"encoder_file": file})
        file_encoder(config)  # a wrong file is refused now, not after the last round
    return SiteEvaluation(config, site.seed, images)


# ---------------------------------------------------------------------- how it is ended


def ask_to_stop(directory: Path, how: Literal["after-round", "now"]) -> None:
    """Have the service of the site in ``directory`` end.

    Args:
        directory: Of the site.
        how: ``after-round`` finishes what is being worked on; ``now`` abandons it.

    Raises:
        RunningError: It does not run.
        StorageError: The disk refused.
    """
    if lock.holder(directory) is None:
        raise RunningError(f"the service of {directory.name} does not run; nothing to stop")
    replace_text(directory / _FLAG, how + "\n")


def wait_for_end(directory: Path, seconds: float) -> None:
    """Wait until the service of the site in ``directory`` has ended.

    Raises:
        RunningError: It runs still after so many seconds.
    """
    until = time.monotonic() + seconds
    while lock.holder(directory) is not None:
        if time.monotonic() > until:
            raise RunningError(
                f"the service of {directory.name} still runs after {seconds:g} s; it finishes what "
                "it works on, see synth-client status, or abandon that with stop --now"
            )
        time.sleep(0.1)


def stop_asked(directory: Path) -> str | None:
    """How the service was asked to end; None if it was not."""
    try:
        return (directory / _FLAG).read_text().strip() or None
    except OSError:
        return None


@contextmanager
def _stopping(directory: Path, events: SiteEvents) -> Iterator[Callable[[], bool]]:
    """Whether to stop, by signals and by the flag of :func:`ask_to_stop`.

    Signal handlers are the main thread's; elsewhere (a test, an embedding program) the flag
    alone is heard.
    """
    (directory / _FLAG).unlink(missing_ok=True)  # of a service that has ended
    signalled, over = threading.Event(), threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        if signalled.is_set() or stop_asked(directory) == "now":
            raise KeyboardInterrupt
        signalled.set()
        if events.busy:
            events.say(f"finishing {events.state.working_on} first; once more to abandon it")

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            if stop_asked(directory) == "now":
                # To the main thread, so that it does not go on sleeping or waiting for a peer.
                signal.pthread_kill(me, signal.SIGINT)
                return

    me = threading.get_ident()
    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, hear) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    watcher = threading.Thread(target=watch, daemon=True)
    if main:
        watcher.start()
    try:
        yield lambda: (signalled.is_set() or stop_asked(directory) is not None) and not events.busy
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        (directory / _FLAG).unlink(missing_ok=True)
