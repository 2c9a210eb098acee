"""Uniform federated averaging that refuses what it cannot trust to be a model.

Every site counts the same: weighting by patients would let exact counts leave a hospital.
Replies are taken as they arrive, in the order of site names, so that memory holds one sum
whatever the number of sites (see :mod:`synth_server.aggregation` for other rules) and the result
does not depend on who was fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from synth_common import messages
from synth_common.errors import DataError, FederationError
from synth_common.flower import (
    ArrayRecord,
    ConfigRecord,
    Grid,
    Message,
    MetricRecord,
    Strategy,
    arrays_of,
    state_of,
    tensor_in,
)
from synth_common.messages import Header, Remembered
from synth_common.plan import Plan
from synth_server.aggregation import aggregate
from synth_server.run_settings import AggregationConfig

NO_REPLY, BAD_REPLY, OFFLINE = "NoReply", "BadReply", "Offline"
OWN_CODES = (NO_REPLY, BAD_REPLY, OFFLINE)
"""Codes of failures that the coordinator finds out itself."""
_SPENT = "BudgetError"
_LONGEST = 500


@dataclass(frozen=True)
class Failure:
    """A site that did not take part in a round, and why.

    ``code`` names a class of the error tree, or is one of :data:`OWN_CODES`.
    """

    site: str
    code: str
    reason: str


def cut(reason: str) -> str:
    """A reason that is fit for a line and a report, however much of it a peer sent."""
    return reason if len(reason) <= _LONGEST else reason[:_LONGEST] + "..."


@dataclass
class Outcome:
    """What a round brought: who replied with what, who failed, and how many bytes came.

    Attributes:
        replies: Public values by site.
        failures: Who did not take part, and why.
        statistics: Released statistics by site and name.
        bytes_down: Bytes of tensors sent.
        bytes_up: Bytes of tensors received.
        ended: Why training ends here, or None.
    """

    replies: dict[str, messages.Values] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    statistics: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    ended: str | None = None


@dataclass
class Memory:
    """What the coordinator remembers of the sites between rounds; all of it was released.

    Attributes:
        heads: Hash of the ledger entry seen last, by site. The site checks it, so that a
            rolled-back ledger is noticed.
        histograms: Noisy label histogram by site.
        counts: Noisy patients per class, of all sites, from the sum of a release; else empty.
    """

    heads: dict[str, str] = field(default_factory=dict)
    histograms: dict[str, list[float]] = field(default_factory=dict)
    counts: list[float] = field(default_factory=list)

    def shares(self) -> tuple[float, ...]:
        """Share of every class over all sites, from what was released; empty without any."""
        columns = [[n] for n in self.counts] or zip(*self.histograms.values(), strict=True)
        counts = [max(0.0, sum(column)) for column in columns]
        total = sum(counts)
        return tuple(c / total for c in counts) if total > 0 else ()


class UniformAverage(Strategy):
    """FedAvg with equal weights, checks on every reply, and failures by name.

    Attributes:
        sites: Site name by node id.
        min_sites: Fewest usable replies a round may be made of.
        outcome: What the last round brought.
        spent: Sites that reported a spent privacy budget; they are not asked again.
        memory: What must outlive this process: the ledger entry seen last of every site, and
            its released histogram.
        plan: The plan.
        on_ask: Called with a site's name as its message goes out.
        on_reply: Called with a site's name as its reply is taken, and why it was refused, or None.
        enrolled: Names of the sites that are enrolled now; None where nobody enrols.
        present: Names of the sites that can be asked now; None asks all. Who is absent fails
            the round by name, without a wait for the timeout.
        aggregation: How replies become one model.
        largest_update: Longest step from the tensors sent that a reply may have taken, in
            Euclidean norm; None allows any that is finite.
        on_judged: Called with a site's name as it has answered that it judged the generator.
    """

    def __init__(self, sites: Mapping[int, str], min_sites: int, run_id: str, plan: Plan) -> None:
        self.meet(sites)
        self.min_sites = min_sites
        self.outcome = Outcome()
        self.spent: set[str] = set()
        self.on_ask: Callable[[str], None] = lambda name: None
        self.on_reply: Callable[[str, str | None], None] = lambda name, refused: None
        self.enrolled: Callable[[], Collection[str]] | None = None
        self.present: Callable[[], Collection[str]] | None = None
        self.aggregation = AggregationConfig(largest_update=0.0)
        self.largest_update: float | None = None
        self.on_judged: Callable[[str], None] = lambda name: None
        self.memory = Memory()
        self.plan = plan
        self._header = Header(run_id, 0, plan.digest())
        self._sent: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._arrays = ArrayRecord()
        self._asked: list[str] = []

    def meet(self, sites: Mapping[int, str]) -> None:
        """Know these sites (name by node id) from now on; spent ones are remembered by name.

        Raises:
            FederationError: Two have one name.
        """
        if len(set(sites.values())) != len(sites):
            raise FederationError(f"site names must differ, got {sorted(sites.values())}")
        self.sites = dict(sorted(sites.items(), key=lambda item: item[1]))

    @property
    def run_id(self) -> str:
        """The run that is asked for."""
        return self._header.run_id

    @property
    def round(self) -> int:
        """The round asked for last."""
        return self._header.round

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message with the current tensors to every site that still has budget."""
        names = [name for name in self.sites.values() if name not in self.spent]
        return self._ask("train", server_round, arrays, config.get("timeout"), names)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No evaluation by sites after each round; see :meth:`ask_evaluation` for the last."""
        return ()

    def ask_evaluation(self, server_round: int, arrays: ArrayRecord) -> Iterable[Message]:
        """One message with the final tensors to every site, spent or not."""
        return self._ask("evaluate", server_round, arrays, None, self.sites.values())

    def _ask(
        self,
        kind: str,
        server_round: int,
        arrays: ArrayRecord,
        timeout: object,
        names: Iterable[str],
    ) -> Iterator[Message]:
        """Begin a round and give out its messages one by one."""
        self._header = Header(self._header.run_id, server_round, self._header.plan_digest)
        self._sent = {name: _form(tensor_in(arrays, name)) for name in arrays}
        self._arrays = arrays
        self.outcome = Outcome()
        self._asked = self._reachable(names)
        self.outcome.bytes_down = arrays.count_bytes() * len(self._asked)
        ttl = float(timeout) if isinstance(timeout, int | float) else None
        nodes = {name: node for node, name in self.sites.items()}
        shares = self.memory.shares()

        def give() -> Iterator[Message]:
            for name in self._asked:
                self.on_ask(name)
                known = Remembered(self.memory.heads.get(name, ""), shares)
                content = messages.request(self._header, arrays, self.plan, known)
                yield Message(content, nodes[name], kind, ttl=ttl, group_id=str(server_round))

        return give()

    def _reachable(self, names: Iterable[str]) -> list[str]:
        """The names that can be asked; the others fail the round."""
        wanted = list(names)
        if self.present is None:
            return wanted
        here = set(self.present())
        for name in wanted:
            if name not in here:
                self._fail(name, OFFLINE, "the site was not connected when the round began")
        return [name for name in wanted if name in here]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the rule makes of the usable replies: by default, their uniform average.

        Returns:
            The model and how many sites are in it; (None, None) when too few sites have
            budget left, which ends training in good order (``outcome.ended``).

        Raises:
            FederationError: Fewer than ``min_sites`` usable replies; names every failed
                site with its reason.
        """
        total = aggregate(self.aggregation)
        for name, message in self._in_order(replies):
            reply = self._usable(name, message)
            if reply is not None:
                total.add(reply)
        for failure in self.outcome.failures:
            if failure.code == _SPENT:
                self.spent.add(failure.site)
        if total.count < self.min_sites:
            if total.count + len(self.spent) >= self.min_sites:
                self.outcome.ended = "budget spent"
                return None, None
            raise FederationError(self._too_few(server_round, total.count))
        dtypes = {name: dtype for name, (dtype, _) in self._sent.items()}
        return arrays_of(total.result(dtypes)), MetricRecord({"sites": total.count})

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Note which sites acknowledged; their figures stay with them."""
        for name, message in self._in_order(replies):
            if message.has_error():
                self._fail(name, messages.error_code(message), "the site reported this error code")
            else:
                self.outcome.replies[name] = {}
                self.on_judged(name)
        return MetricRecord({"sites": len(self.outcome.replies)})

    def summary(self) -> None:
        """Nothing to log: the run's facts say it all."""

    def _in_order(self, replies: Iterable[Message]) -> Iterator[tuple[str, Message]]:
        """Replies by site name; one that overtakes another waits. Notes who is missing."""
        asked, due = self._asked, set(self._asked)
        waiting: dict[str, Message] = {}
        position = 0
        for message in replies:
            node = message.metadata.src_node_id
            name = self.sites.get(node)
            if name is None or name not in due:
                self._fail(name or f"node {node}", BAD_REPLY, "a reply that was not asked for")
                continue
            due.discard(name)
            waiting[name] = message
            while position < len(asked) and asked[position] in waiting:
                yield asked[position], waiting.pop(asked[position])
                position += 1
        for name in asked[position:]:
            if name in waiting:
                yield name, waiting.pop(name)
            else:
                self._fail(name, NO_REPLY, self._silence(name))

    def _silence(self, name: str) -> str:
        """Why no reply came from a site that was asked."""
        if self.enrolled is not None and name not in self.enrolled():
            return "the site was revoked, or its enrolment expired, while the round ran"
        return "no reply before the round's timeout"

    def _usable(self, name: str, message: Message) -> Iterator[tuple[str, Tensor]] | None:
        """The tensors of a reply one by one, or None with a failure noted."""
        if message.has_error():
            self._fail(name, messages.error_code(message), "the site reported this error code")
            return None
        try:
            values = messages.stated_in(message)
            arrays, statistics = self._checked(name, message), self._statistics(message)
        except DataError as err:
            self._fail(name, BAD_REPLY, str(err))
            return None
        self.outcome.replies[name], self.outcome.statistics[name] = values, statistics
        self.on_reply(name, None)
        if values.get("ledger_head"):
            self.memory.heads[name] = str(values["ledger_head"])
        if "label_histogram" in statistics:
            self.memory.histograms[name] = statistics["label_histogram"].tolist()
        return _taken(arrays)

    def _statistics(self, message: Message) -> dict[str, Tensor]:
        """Refuse (DataError) statistics that the plan does not name, or that are no numbers."""
        state = state_of(messages.statistics_in(message))
        wanted = {"label_histogram"} if self.plan.release.label_histogram is not None else set()
        shape = (len(self.plan.generator.classes),)
        for name, value in state.items():
            if name not in wanted or tuple(value.shape) != shape or value.dtype != torch.float32:
                raise DataError(f"statistic {name!r} of shape {tuple(value.shape)} is not planned")
            if not bool(torch.isfinite(value).all()):
                raise DataError(f"statistic {name!r} holds NaN or infinity")
        return state

    def _checked(self, site: str, message: Message) -> ArrayRecord:
        """Refuse (DataError) a reply of another round or site, or that is not such a model.

        Every tensor is decoded here and let go again: one is in memory, and not a model.
        """
        header = messages.header_of(message)
        if header != self._header:
            raise DataError(f"reply of {header}, expected {self._header}")
        if messages.values_in(message).get("site", site) != site:
            raise DataError("the reply names another site")
        arrays = messages.arrays_in(message)
        missing, unknown = sorted(self._sent - arrays.keys()), sorted(arrays.keys() - self._sent)
        if missing or unknown:
            raise DataError(f"tensors missing {missing}, unknown {unknown}")
        for name, (dtype, shape) in self._sent.items():
            claim = (arrays[name].dtype, tuple(arrays[name].shape))
            if claim != (str(dtype).removeprefix("torch."), shape):
                raise DataError(f"tensor {name} is {claim}, expected {(str(dtype), shape)}")
        self.outcome.bytes_up += arrays.count_bytes()
        squares = 0.0
        for name in self._sent:
            value = tensor_in(arrays, name)
            # The claim above may lie about the bytes, so the decoded tensor is checked too.
            if _form(value) != self._sent[name]:
                raise DataError(f"tensor {name} does not hold what its description says")
            if not bool(torch.isfinite(value).all()):
                raise DataError(f"tensor {name} holds NaN or infinity")
            if self.largest_update is not None:
                sent = tensor_in(self._arrays, name)
                squares += float((value.to(torch.float64) - sent).square().sum())
        self._require_near(math.sqrt(squares))
        return arrays

    def _require_near(self, moved: float) -> None:
        """Refuse (DataError) a reply that moved further than any training could have."""
        if self.largest_update is not None and moved > self.largest_update:
            raise DataError(
                f"the update has norm {moved:.4g}, and the plan's steps and learning rate allow "
                f"{self.largest_update:.4g}"
            )

    def _fail(self, site: str, code: str, reason: str) -> None:
        # A peer may have chosen names in it, as long as it likes.
        self.outcome.failures.append(Failure(site, code, cut(reason)))
        self.on_reply(site, code)

    def _too_few(self, server_round: int, usable: int) -> str:
        named = "; ".join(f"{f.site}: {f.code} ({f.reason})" for f in self.outcome.failures)
        return (
            f"round {server_round}: {usable} usable replies, but federation.min_sites = "
            f"{self.min_sites}. Failed: {named or 'none; fewer sites than that were asked'}"
        )


def _form(value: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    """What a tensor must have in common with the one sent under its name."""
    return value.dtype, tuple(value.shape)


def _taken(arrays: ArrayRecord) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a record one by one, each taken out of it, which frees its bytes."""
    for name in list(arrays):
        value = tensor_in(arrays, name)
        del arrays[name]
        yield name, value
