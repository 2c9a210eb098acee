"""A hospital's Flower app: its actions, and nothing of a failure leaves but its code.

The same app runs in process, in Ray's workers and in a deployed node; only ``resolve``
differs. A message brings a plan, and the site's ledger says whether its operator approved
it; the evaluation settings are the hospital's own.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from synth_common import messages
from synth_common.errors import SynthwardError
from synth_common.flower import (
    ClientApp,
    Context,
    Message,
    RecordDict,
    state_of,
)

if TYPE_CHECKING:
    from synth_client.evaluate import SiteEvaluation
    from synth_client.site import Site


@dataclass(frozen=True)
class SiteApp:
    """What one node needs to play a site.

    Attributes:
        resolve: Finds this node's site from Flower's context.
        evaluation: How this site judges the final generator.
        threads: Processor threads of this process, or None to leave them. Float sums
            depend on it, so a simulation sets it for equal results on every engine.
        worked: Hears of every message with its answer, before that leaves; None for nobody.
    """

    resolve: Callable[[Context], Site]
    evaluation: SiteEvaluation
    threads: int | None = None
    worked: Callable[[Message, Message], None] | None = None

    def query(self, message: Message, context: Context) -> Message:
        """Answer with the site's public name."""
        return self._answer(message, context, lambda site: _acknowledged({"site": site.name}))

    def train(self, message: Message, context: Context) -> Message:
        """Train one round; answer with what passed the egress gate."""
        return self._answer(message, context, lambda site: self._train(message, site))

    def roll_call(self, message: Message, context: Context) -> Message:
        """Say whether the site could take part in the release now; costs nothing."""
        return self._answer(message, context, lambda site: self._roll_call(message, site))

    def release(self, message: Message, context: Context) -> Message:
        """Give the site's part of the release; answer with what passed the egress gate."""
        return self._answer(message, context, lambda site: self._release(message, site))

    def evaluate(self, message: Message, context: Context) -> Message:
        """Judge the final generator on the site's own data; the answer is always "done"."""
        return self._answer(message, context, lambda site: self._evaluate(message, site))

    def _answer(
        self, message: Message, context: Context, work: Callable[[Site], RecordDict]
    ) -> Message:
        reply = self._guarded(message, context, work)
        if self.worked is not None:
            self.worked(message, reply)
        return reply

    def _guarded(
        self, message: Message, context: Context, work: Callable[[Site], RecordDict]
    ) -> Message:
        """What the work made, or the class of what went wrong."""
        site = None
        try:
            if self.threads is not None:
                import torch

                torch.set_num_threads(self.threads)
            site = self.resolve(context)
            return Message(work(site), reply_to=message)
        except Exception as err:  # whatever it is, its text must stay here
            if site is not None:
                _note(site, err)
            return messages.error_reply(message, err)

    def _train(self, message: Message, site: Site) -> RecordDict:
        from synth_client.round import RoundRequest, train_round

        header = messages.header_of(message)
        request = RoundRequest(
            header.run_id,
            header.round,
            messages.plan_in(message),
            state_of(messages.arrays_in(message)),
            messages.remembered_in(message).anchor or None,
        )
        return messages.reply(header, train_round(site, request))

    def _roll_call(self, message: Message, site: Site) -> RecordDict:
        from synth_client.release import ready

        header = messages.header_of(message)
        return messages.acknowledgement(ready(site, messages.plan_in(message), header.run_id))

    def _release(self, message: Message, site: Site) -> RecordDict:
        from synth_client.release import ReleaseRequest, release_embedding

        header, attempt = messages.header_of(message), messages.attempt_in(message)
        request = ReleaseRequest(
            header.run_id,
            attempt.number,
            attempt.participants,
            messages.plan_in(message),
            messages.remembered_in(message).anchor or None,
        )
        return messages.reply(header, release_embedding(site, request))

    def _evaluate(self, message: Message, site: Site) -> RecordDict:
        from synth_client.approval import require_approved, require_keepable
        from synth_client.evaluate import evaluate_site
        from synth_client.outbox import Outbox, require_run_id
        from synth_common.privacy.ledger import Ledger

        header, plan = messages.header_of(message), messages.plan_in(message)
        require_run_id(header.run_id)
        with Ledger.read(site.ledger_path) as ledger:
            require_approved(ledger, plan)
            require_keepable(site, plan, ledger.budget)
        state = state_of(messages.arrays_in(message))
        shares = messages.remembered_in(message).shares
        own = Outbox(site).site_state(header.run_id, header.round)
        evaluation = replace(self.evaluation, shares=shares, site_state=own)
        try:
            evaluate_site(site, plan, evaluation, state)
        except Exception as err:  # whether it fails may depend on the holdout
            _note(site, err)
        return _acknowledged({"site": site.name, "round": header.round, "done": 1})


def _acknowledged(values: Mapping[str, float | int | str]) -> RecordDict:
    """Values that passed the egress gate, and no tensor."""
    from synth_common.privacy.egress import acknowledge

    return messages.acknowledgement(acknowledge(values))


def _note(site: Site, err: Exception) -> None:
    """Keep the whole story of a failure where its owner can read it."""
    expected = isinstance(err, SynthwardError)
    story = (
        f"{type(err).__name__}: {err}\n" if expected else "".join(traceback.format_exception(err))
    )
    try:
        with (site.directory / "errors.log").open("a", encoding="utf-8") as handle:
            handle.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {story}")
    except OSError:
        return  # a full disk must not hide the error that is being answered


def make_client_app(app: SiteApp) -> ClientApp:
    """Flower's app of a site. It survives cloudpickle, as Ray needs, if ``resolve`` does."""
    client = ClientApp()
    client.query()(app.query)
    client.train()(app.train)
    client.query("release")(app.roll_call)
    client.train("release")(app.release)
    client.evaluate()(app.evaluate)
    return client
