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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from synth_client import lock
from synth_client.budget import balance
from synth_client.enrolled import Enrolled, read_enrolled
from synth_client.events import SiteEvents
from synth_client.settings import SiteSettings, load_settings
from synth_client.site import Site, load_site
from synth_common.errors import Interrupted, SynthwardError

if TYPE_CHECKING:
    from synth_client.evaluate import SiteEvaluation
    from synth_common.flower import ClientApp

Say = Callable[[str], None]
Serve = Callable[["Connection", "ClientApp", SiteEvents, Callable[[], bool]], None]
"""Answers messages with an app until the last argument says to stop."""

_FLAG = "stop"
_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Connection:
    """What a node needs to reach its coordinator.

    Attributes:
        directory: Of the site; holds its node key.
        enrolled: Where the coordinator is, and its certificate authority.
        proxy: ``http://HOST:PORT``, or None.
    """

    directory: Path
    enrolled: Enrolled
    proxy: str | None


def start(directory: Path, name: str, say: Say, serve: Serve) -> None:
    """Run the service of site ``name`` until its operator or the coordinator ends it.

    Args:
        directory: Of the site, prepared and enrolled.
        name: The site.
        say: Gets one line per message, connection and end.
        serve: The node.

    Raises:
        ConfigError, DataError, LedgerError, BudgetError: The site is not ready; nothing was
            answered.
        RunningError: It runs already.
        Interrupted: A message was abandoned.
        SynthwardError: As ``serve``: the coordinator turns this site away.
    """
    settings, enrolled = load_settings(directory, name), read_enrolled(directory, name)
    with lock.hold(directory):
        account = balance(directory / "ledger.sqlite")
        site = _site(directory, settings)
        app = _app(site, settings, enrolled)
        events = SiteEvents(directory, say)
        with _stopping(directory, events) as stopping:
            events.started(
                f"site {name} started; epsilon {account.spent:.4f} spent, "
                f"{account.remaining:.4f} remains"
            )
            connection = Connection(directory, enrolled, settings.server.proxy)
            _serve(events, lambda: serve(connection, app, events, stopping))


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


def _app(site: Site, settings: SiteSettings, enrolled: Enrolled) -> ClientApp:
    """The app of the simulation, for one site."""
    from synth_client.app import SiteApp, make_client_app
    from synth_common.flower import quiet_logs

    quiet_logs()
    evaluation = _evaluation(site, settings, enrolled)
    return make_client_app(SiteApp(lambda _: site, evaluation, settings.compute.threads))


def _evaluation(site: Site, settings: SiteSettings, enrolled: Enrolled) -> SiteEvaluation:
    """How the site judges the final generator, by its operator's settings."""
    from synth_client.evaluate import SiteEvaluation
    from synth_client.holdout import image_target
    from synth_common.images.sources import load_source

    reference = settings.data.reference
    images = None
    if reference is not None:
        target = image_target(enrolled.plan.generator)
        images = load_source(reference, target, site.directory).images
    return SiteEvaluation(settings.evaluation, site.seed, images)


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
    from synth_common.errors import RunningError
    from synth_common.reporting.files import replace_text

    if lock.holder(directory) is None:
        raise RunningError(f"the service of {directory.name} does not run; nothing to stop")
    replace_text(directory / _FLAG, how + "\n")


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
                signal.raise_signal(signal.SIGINT)
                return

    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, hear) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    watcher = threading.Thread(target=watch, daemon=True)
    if main:
        watcher.start()
    try:
        yield lambda: signalled.is_set() or stop_asked(directory) is not None
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)
        (directory / _FLAG).unlink(missing_ok=True)
