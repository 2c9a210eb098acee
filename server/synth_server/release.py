"""The release before the first round: one message of every site, and of them the sum alone.

First a roll-call, which costs nothing: sites that know already that they cannot take part are left
out before anyone is charged. Then one attempt: every participant sends its noisy vector, and the
vectors are added up as they come. Under secure aggregation a sum with a vector missing is
noise, so an attempt that loses a site is given up and another one made, with fresh masks and
fresh noise, without that site. Sites are charged for every attempt that they began.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from synth_common import messages
from synth_common.errors import DataError, FederationError
from synth_common.flower import Grid, Message, RecordDict, state_of
from synth_common.generators.embedding import build_embedding
from synth_common.messages import Attempt, Header, Remembered
from synth_common.privacy.secure_sum import Lattice, RunningSum
from synth_server.release_store import AttemptBook, Release
from synth_server.strategy import BAD_REPLY, NO_REPLY, OFFLINE, Failure, UniformAverage, cut

_SPENT = "AttemptSpentError"


@dataclass
class _Round:
    """What one attempt brought."""

    total: RunningSum
    replies: dict[str, messages.Values] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    bytes_up: int = 0


@dataclass
class _Effort:
    """What all attempts took."""

    began: float
    messages: int = 0
    bytes_up: int = 0


class Releasing:
    """Asks the sites for a release until one attempt is whole.

    Args:
        grid: Where the sites are.
        strategy: Knows the sites' names and what the coordinator remembers of them; its plan
            has a release.
        book: Remembers attempts over restarts.

    Attributes:
        failures: Every site that failed a roll-call or an attempt, in order.
        embedding: What the vectors are made of.

    Raises:
        FederationError: The plan has no release.
        ConfigError: The installed NumPy draws other random features than the sites'.
    """

    def __init__(self, grid: Grid, strategy: UniformAverage, book: AttemptBook) -> None:
        plan = strategy.plan
        if plan.release.embedding is None:
            raise FederationError("release.embedding: the plan has no release to ask for")
        self.failures: list[Failure] = []
        self._grid, self._strategy, self._book, self._plan = grid, strategy, book, plan
        self._nodes = {name: node for node, name in strategy.sites.items()}
        self._header = Header(strategy.run_id, 0, plan.digest())
        settings = plan.release.embedding
        self.embedding = build_embedding(plan.generator)
        self._size = self.embedding.size
        self._lattice = Lattice(settings.scale_bits, settings.modulus_bits)
        self._masked = plan.privacy.trust_model == "secure-aggregation"

    def run(self) -> Release:
        """The sum, and what it took.

        An attempt that an earlier process left unfinished is asked for once more, as it was:
        who answered it already answers again for nothing. A site may find a new number used
        up once, by an attempt that the coordinator forgot; at the second it is left out.

        Raises:
            FederationError: Fewer sites than the sum needs; names every failed one.
        """
        effort = _Effort(time.perf_counter())
        lost: set[str] = set()
        excused: set[str] = set()
        attempt = self._book.unfinished(set(self._nodes))
        while True:
            new = attempt is None
            attempt = attempt or self._next(lost)
            self._book.add(attempt)
            made = self._ask(attempt)
            effort.messages += len(attempt.participants)
            effort.bytes_up += made.bytes_up
            if self._whole(made):
                return self._release(attempt, made, effort)
            # A site that began the attempt before is there; it is the number that is used up.
            used_up = {failure.site for failure in made.failures if failure.code == _SPENT}
            lost |= {failure.site for failure in made.failures} - used_up
            if new:
                lost |= used_up & excused
                excused |= used_up
            attempt = None

    def _next(self, lost: set[str]) -> Attempt:
        """A new attempt, among the sites that answer a roll-call."""
        asked = self._connected(name for name in self._nodes if name not in lost)
        contents = {name: messages.roll_call(self._header, self._plan) for name in asked}
        present = []
        for name, reply in self._answers("query.release", contents):
            if reply is None:
                self._fail(name, NO_REPLY, "no answer to the roll-call before the timeout")
            elif reply.has_error():
                self._fail(name, messages.error_code(reply), "the site's answer to the roll-call")
            else:
                present.append(name)
        least = self._plan.release_sites
        if len(present) < least:
            named = "; ".join(f"{f.site}: {f.code} ({f.reason})" for f in self.failures)
            raise FederationError(
                f"release: {len(present)} sites can take part, and its sum needs {least} "
                f"(privacy.trust_model = {self._plan.privacy.trust_model}). "
                f"Failed: {named or 'none; there are no more sites'}"
            )
        return Attempt(self._book.next_number, tuple(sorted(present)))

    def _connected(self, names: Iterable[str]) -> list[str]:
        """The names that can be asked now; the others fail."""
        present = self._strategy.present
        here = set(self._nodes) if present is None else set(present())
        wanted = list(names)
        for name in wanted:
            if name not in here:
                self._fail(name, OFFLINE, "the site was not connected at the roll-call")
        return [name for name in wanted if name in here]

    def _ask(self, attempt: Attempt) -> _Round:
        """One attempt: ask all participants, add up what comes."""
        made = _Round(RunningSum(self._size, self._lattice))
        heads = self._strategy.memory.heads
        contents = {
            name: messages.release_request(
                self._header, self._plan, Remembered(heads.get(name, "")), attempt
            )
            for name in attempt.participants
        }
        before = len(self.failures)
        for name, reply in self._answers("train.release", contents):
            where = f"attempt {attempt.number} at the release"
            if reply is None:
                self._fail(name, NO_REPLY, f"{where}: no reply before the timeout")
            elif reply.has_error():
                self._fail(name, messages.error_code(reply), f"{where}: the site's own error code")
            else:
                try:
                    self._take(name, reply, attempt, made)
                except DataError as err:
                    self._fail(name, BAD_REPLY, f"{where}: {err}")
        made.failures = self.failures[before:]
        return made

    def _answers(
        self, kind: str, contents: dict[str, RecordDict]
    ) -> Iterator[tuple[str, Message | None]]:
        """The replies to one message per site as they come, and None for who stays silent."""
        timeout = self._plan.federation.round_timeout_s

        def give() -> Iterator[Message]:
            for name, content in contents.items():
                self._strategy.on_ask(name)
                yield Message(content, self._nodes[name], kind, ttl=timeout)

        waiting = {self._nodes[name]: name for name in contents}
        for message in self._grid.send_and_receive(give(), timeout=timeout):
            name = waiting.pop(message.metadata.src_node_id, None)
            if name is not None:  # an answer nobody waits for adds nothing
                yield name, message
        for name in waiting.values():
            yield name, None

    def _take(self, name: str, message: Message, attempt: Attempt, made: _Round) -> None:
        """Add a reply to the sum; refuse (DataError) what is not a part of this attempt."""
        header, values = messages.header_of(message), messages.stated_in(message)
        if header != self._header or values.get("attempt") != attempt.number:
            raise DataError(f"a reply of {header}, attempt {values.get('attempt')}")
        if values.get("site") != name:
            raise DataError("the reply names another site")
        arrays = messages.statistics_in(message)
        made.bytes_up += arrays.count_bytes()
        # More noise than the grid has room for, no honest site adds.
        most = self._lattice.room(len(attempt.participants)) / self._lattice.scale
        self._require_noise(values, "noise_share", most)
        self._require_noise(values, "noise_multiplier", math.inf)
        made.total.add(self._words(state_of(arrays, empty=True)))
        made.replies[name] = values
        if values.get("ledger_head"):
            self._strategy.memory.heads[name] = str(values["ledger_head"])

    def _require_noise(self, values: messages.Values, name: str, most: float) -> None:
        """Refuse (DataError) what is no amount of noise, or none where the plan is private."""
        value = values.get(name)
        if not isinstance(value, float) or not math.isfinite(value) or not 0.0 <= value <= most:
            raise DataError(f"{name} is no finite number from 0 to {most:.4g}")
        if self._plan.privacy.private and value == 0.0:
            raise DataError(f"{name} = 0: the plan is private, and asks for noise")

    def _words(self, state: dict[str, Tensor]) -> np.ndarray:
        """The vector of a reply; refuses (DataError) any other."""
        wanted = "masked_embedding" if self._masked else "embedding"
        if set(state) != {wanted}:
            raise DataError(f"holds {sorted(state)}, expected {wanted}")
        value = state[wanted]
        if value.dtype != torch.int64 or tuple(value.shape) != (self._size,):
            raise DataError(f"{wanted} is {value.dtype} {tuple(value.shape)}")
        words: np.ndarray = value.numpy().view(np.uint64)
        if (self._lattice.reduced(words) != words).any():
            raise DataError(f"{wanted} holds values of more bits than the plan's")
        return words

    def _whole(self, made: _Round) -> bool:
        """Whether the sum can be used: all masks cancel, or there are none."""
        if self._masked:
            return not made.failures
        if made.total.count >= self._plan.release_sites:
            return True
        named = "; ".join(f"{f.site}: {f.code} ({f.reason})" for f in made.failures)
        raise FederationError(
            f"release: {made.total.count} usable replies, but federation.min_sites = "
            f"{self._plan.release_sites}. Failed: {named}"
        )

    def _release(self, attempt: Attempt, made: _Round, effort: _Effort) -> Release:
        """The finished release."""
        shares = _numbers(made.replies, "noise_share")
        return Release(
            run_id=self._header.run_id,
            plan_digest=self._header.plan_digest,
            vector=torch.from_numpy(made.total.vector()),
            attempts=attempt.number,
            noise_shares=shares,
            noise_multipliers=_numbers(made.replies, "noise_multiplier"),
            sigma=math.hypot(*shares.values()),
            messages=effort.messages,
            bytes_up=effort.bytes_up,
            seconds=time.perf_counter() - effort.began,
            epsilons=_numbers(made.replies, "epsilon"),
        )

    def _fail(self, site: str, code: str, reason: str) -> None:
        self.failures.append(Failure(site, code, cut(reason)))


def _numbers(replies: dict[str, messages.Values], name: str) -> dict[str, float]:
    """One public value of the replies that hold it as a number, by site in order of names."""
    found = {site: replies[site].get(name) for site in sorted(replies)}
    return {site: float(value) for site, value in found.items() if isinstance(value, float | int)}
