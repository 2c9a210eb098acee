"""How much a message of the coordinator may weigh: no more than the plans known here can need.

A coordinator, or whoever has taken it over, could otherwise fill the memory of a hospital's
machine with one message. The tensors that travel follow from the plan alone.
"""

from __future__ import annotations

from pathlib import Path

from synth_common.errors import SynthwardError
from synth_common.plan import Plan
from synth_common.privacy.ledger import Ledger

_PER_TENSOR = 4096  # name, shape and form of a tensor, and the heads of its pieces
_LEAST = 2**16


class Allowance:
    """Bytes that the tensors of a message may have.

    Args:
        ledger_path: The site's ledger, which holds the plans that its operator approved; it is
            read at each call, because approvals come and go while the service runs.
        agreed: The plan in the coordinator's kit, approved or not: a message under it is read,
            so that it can be refused for what it asks.
    """

    def __init__(self, ledger_path: Path, agreed: Plan) -> None:
        self._ledger_path = ledger_path
        self._sizes = {agreed.digest(): weight(agreed)}
        self._agreed = agreed.digest()

    def __call__(self) -> int:
        """The most that a plan which holds now can need."""
        known = [self._agreed]
        try:
            with Ledger.read(self._ledger_path) as ledger:
                for digest, text in ledger.approved().items():
                    if digest not in self._sizes:
                        self._sizes[digest] = weight(Plan.from_json(text))
                    known.append(digest)
        except SynthwardError:
            pass  # a damaged ledger: the message's own answer says so
        return max(self._sizes[digest] for digest in known)


def weight(plan: Plan) -> int:
    """Most bytes of the tensors that travel under a plan, as they are sent."""
    from synth_common.generators import build_generator

    state = build_generator(plan.generator, 0, plan.pretraining).shared_state()
    tensors = sum(value.numel() * value.element_size() + _PER_TENSOR for value in state.values())
    return _LEAST + tensors
