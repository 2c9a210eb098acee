"""The site's ledger: every use of private data, before it happens.

One file per data set of a site. A round is *reserved* before the data is touched and
*committed* before anything leaves; a reservation without a commit (the process died in
between) stays spent. Entries say what was used (noise, rate, steps), not what it cost:
cost is recomputed from the whole history, so composition over rounds, retries and runs
cannot be forgotten. The operator's own decisions, the lifetime budget and the approved
plans, are entries too, each with a name and a reason. How entries are kept safe is in
:mod:`chain`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from synth_common.clock import Moment
from synth_common.errors import BudgetError, ConfigError, LedgerError, PlanError
from synth_common.plan import Accountant, Unit
from synth_common.privacy.accounting import Use, epsilon
from synth_common.privacy.chain import Chain, Entry

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a run's id looks like: fit for a line, and for a part of a file's name."""


@dataclass(frozen=True)
class RoundKey:
    """What a reservation is for.

    Attributes:
        run_id: The run.
        round: 1-based round; 0 for the release before the first.
        request: SHA-256 of what the server sent, so that a repeated message is known.
        plan: Digest of the plan it was sent under.
        attempt: 1-based attempt at the release; 0 for a round.
    """

    run_id: str
    round: int
    request: str
    plan: str
    attempt: int = 0

    def __str__(self) -> str:
        """For messages."""
        return f"attempt {self.attempt} at the release" if self.attempt else f"round {self.round}"


@dataclass(frozen=True)
class Reservation:
    """Private data is about to be used.

    Attributes:
        number: Entry in the ledger.
        key: What for.
        attempt: 1 for the first time this round was begun, 2 for the second, and so on.
        uses: Every mechanism that will run.
        unit: Whose presence they hide.
        time: UTC, ISO 8601.
        hash: The entry's hash.
        moment: When, by both clocks.
    """

    number: int
    key: RoundKey
    attempt: int
    uses: tuple[Use, ...]
    unit: Unit
    time: str
    hash: str
    moment: Moment


@dataclass(frozen=True)
class Commit:
    """A reply (SHA-256 ``reply``) may leave for entry ``reservation``."""

    number: int
    key: RoundKey
    reservation: int
    reply: str


@dataclass(frozen=True)
class Budget:
    """The most a data set may ever cost one unit: (epsilon, delta) by the given accountant.

    What hides a patient hides each of the patient's images, but not the other way round: a
    budget per patient takes no use that hides images only.
    """

    epsilon: float
    delta: float
    accountant: Accountant = "prv"
    unit: Unit = "patient"

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ConfigError(f"budget_epsilon = {self.epsilon}: must be above 0")
        if not 0 < self.delta < 1:
            raise ConfigError(f"budget_delta = {self.delta}: must be between 0 and 1")


@dataclass(frozen=True)
class Decision:
    """Who decided something about the ledger, and why."""

    operator: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("operator", "reason"):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name} is empty; a decision about a budget or plan needs one")


@dataclass(frozen=True)
class BudgetSet:
    """A lifetime budget, who set it, why and when."""

    budget: Budget
    decision: Decision
    time: str


@dataclass(frozen=True)
class PlanDecision:
    """An approval, and what became of it.

    Attributes:
        digest: The plan's digest.
        plan: The plan as canonical JSON.
        decision: Who approved it and why.
        time: When, UTC.
        revoked: Who took it back and why, and when; None while it holds.
    """

    digest: str
    plan: str
    decision: Decision
    time: str
    revoked: tuple[Decision, str] | None = None


class Ledger:
    """An open and verified ledger. Use :meth:`hold` to write, :meth:`read` to look."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        if not chain.entries or chain.entries[0].kind != "open":
            raise LedgerError(f"{chain.path} does not begin with an entry that opens a data set")
        self._reservations = [_reservation(e) for e in chain.entries if e.kind == "reserve"]
        self._commits = [_commit(e) for e in chain.entries if e.kind == "commit"]

    @staticmethod
    def create(path: Path, data_set: str) -> bool:
        """Open a ledger for ``data_set`` at ``path``; False if it is there, left as it is.

        The first entry holds a random salt, so that no hash of the chain, some of which a
        coordinator keeps, can be matched against guesses of what was written.

        Raises:
            StorageError: The file cannot be written.
        """
        Chain.create(path)
        with Chain.hold(path) as chain:
            if chain.entries:
                return False
            chain.append("open", {"data_set": data_set, "salt": secrets.token_hex(32)})
        return True

    @classmethod
    @contextmanager
    def hold(cls, path: Path) -> Iterator[Ledger]:
        """Open the ledger as its only writer and verify the whole of it.

        Raises:
            LedgerHeldError: Another process holds it.
            LedgerError: It is missing or older than its anchor, or an entry was altered,
                removed or re-ordered; names the first.
            StorageError: The file cannot be read or written.
        """
        with Chain.hold(path) as chain:
            yield cls(chain)

    @classmethod
    @contextmanager
    def read(cls, path: Path) -> Iterator[Ledger]:
        """The verified ledger for looking at, while a round may be writing to it."""
        with Chain.read(path) as chain:
            yield cls(chain)

    # ------------------------------------------------------------------ what it says

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, as they are kept."""
        return self._chain.entries

    @property
    def data_set(self) -> str:
        """The data set whose uses are written here."""
        return str(self.entries[0].body["data_set"])

    @property
    def head(self) -> str:
        """Hash of the last entry."""
        return self._chain.head

    def require(self, head: str) -> None:
        """Refuse to go on if an entry that others saw is not here.

        Raises:
            LedgerError: ``head`` is the hash of no entry: this is an older or another copy.
        """
        if all(entry.hash != head for entry in self.entries):
            raise LedgerError(
                f"{self._chain.path} holds no entry {head[:12]}..., which the coordinator saw: it "
                "is an older or another copy; restore the newest backup"
            )

    def budgets(self) -> list[BudgetSet]:
        """Every lifetime budget that was ever set, oldest first; the last one holds."""
        found = []
        for entry in self._of("budget"):
            terms = entry.body["budget"]
            epsilon, delta = float(terms["epsilon"]), terms["delta"]
            budget = Budget(epsilon, delta, terms["accountant"], terms["unit"])
            found.append(BudgetSet(budget, _decision(entry), entry.time))
        return found

    @property
    def budget(self) -> Budget:
        """The lifetime budget that holds now.

        Raises:
            BudgetError: None was ever set.
        """
        budgets = self.budgets()
        if not budgets:
            raise BudgetError(
                f"no budget was set for data set {self.data_set!r}; its operator sets one with "
                "synth-client budget --site NAME --set EPSILON --reason TEXT"
            )
        return budgets[-1].budget

    def plans(self) -> list[PlanDecision]:
        """Every plan that was ever approved, oldest first, revoked ones included."""
        found: list[PlanDecision] = []
        for entry in self.entries:
            if entry.kind == "approve":
                body = entry.body
                found.append(
                    PlanDecision(body["digest"], body["plan"], _decision(entry), entry.time)
                )
            elif entry.kind == "revoke":
                revoked = (_decision(entry), entry.time)
                found = [
                    replace(plan, revoked=revoked)
                    if plan.digest == entry.body["digest"] and plan.revoked is None
                    else plan
                    for plan in found
                ]
        return found

    def approved(self) -> dict[str, str]:
        """Plans that hold, canonical JSON by digest, in the order of their approval."""
        return {plan.digest: plan.plan for plan in self.plans() if plan.revoked is None}

    def reservations(self, run_id: str | None = None) -> list[Reservation]:
        """Every reservation, committed or not; of one run if ``run_id`` is given."""
        return [r for r in self._reservations if run_id in (None, r.key.run_id)]

    def commits(self, run_id: str | None = None) -> list[Commit]:
        """Every commit; of one run if ``run_id`` is given."""
        return [c for c in self._commits if run_id in (None, c.key.run_id)]

    def history(self, run_id: str | None = None) -> list[Use]:
        """Every reserved use, committed or not; of one run if ``run_id`` is given."""
        return [use for r in self.reservations(run_id) for use in r.uses]

    def committed(self, key: RoundKey) -> Commit | None:
        """The commit of exactly this key, or None."""
        return next((c for c in self.commits(key.run_id) if c.key == key), None)

    def committed_rounds(self, run_id: str) -> int:
        """How many different rounds of a run were committed; a release is none."""
        return len({commit.key.round for commit in self.commits(run_id)} - {0})

    def _of(self, kind: str) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry.kind == kind)

    def require_one_plan(self, key: RoundKey) -> None:
        """Refuse a run that was begun under another plan: their histories would mix.

        Raises:
            PlanError: Names both.
        """
        others = {r.key.plan for r in self.reservations(key.run_id)} - {key.plan}
        if others:
            raise PlanError(
                f"run {key.run_id} was begun under plan {others.pop()[:12]}, and {key.plan[:12]} "
                "is asked for; another plan needs another run"
            )

    # ------------------------------------------------------------------ what is written

    def set_budget(self, budget: Budget, decision: Decision) -> None:
        """Set the lifetime budget. Only the site's operator may; no message reaches this.

        Raises:
            ConfigError: It is per patient, but earlier uses hid images only.
        """
        if budget.unit == "patient" and any(r.unit == "image" for r in self._reservations):
            raise ConfigError(
                "budget unit = 'patient': the ledger holds uses that hid one image at a time, so "
                "what a patient lost is unknown; keep the unit 'image'"
            )
        terms = {**asdict(budget), "epsilon": str(budget.epsilon)}  # inf is no JSON number
        self._chain.append("budget", {"budget": terms, "decision": asdict(decision)})

    def approve(self, digest: str, plan: str, decision: Decision) -> None:
        """Write that the operator agreed to the plan (canonical JSON) of this digest."""
        body = {"digest": digest, "plan": plan, "decision": asdict(decision)}
        self._chain.append("approve", body)

    def revoke(self, digest: str, decision: Decision) -> None:
        """Write that the plan of this digest holds no longer.

        Raises:
            ConfigError: It is not approved.
        """
        if digest not in self.approved():
            raise ConfigError(f"plan {digest[:12]} is not approved, so it cannot be revoked")
        self._chain.append("revoke", {"digest": digest, "decision": asdict(decision)})

    def reserve(self, key: RoundKey, uses: Sequence[Use], unit: Unit) -> Reservation:
        """Write that ``uses`` are about to happen; from here on they count as spent.

        Raises:
            BudgetError: History plus ``uses`` would exceed the lifetime budget, or there is
                none, or it is stated per patient and ``unit`` is the image. Nothing is written.
            PlanError: The run was begun under another plan.
        """
        budget = self.budget
        self.require_one_plan(key)
        if budget.unit == "patient" and unit == "image":
            raise BudgetError(
                "the budget is stated per patient, and privacy.unit = 'image' hides less: a "
                "patient with several images would lose more than is charged"
            )
        total = epsilon([*self.history(), *uses], budget.delta, budget.accountant)
        if total > budget.epsilon:
            spent = epsilon(self.history(), budget.delta, budget.accountant)
            raise BudgetError(
                f"budget_epsilon = {budget.epsilon:.4g}: {spent:.4g} is spent and "
                f"{key} would bring it to {total:.4g} at delta {budget.delta:g}"
            )
        before = [r for r in self.reservations(key.run_id) if r.key.round == key.round]
        body = {
            "key": asdict(key),
            "attempt": len(before) + 1,
            "unit": unit,
            "uses": [asdict(use) for use in uses],
        }
        reservation = _reservation(self._chain.append("reserve", body))
        self._reservations.append(reservation)
        return reservation

    def commit(self, reservation: Reservation, reply: str) -> Commit:
        """Write that the reply with SHA-256 ``reply`` may leave for this reservation."""
        body = {"key": asdict(reservation.key), "reservation": reservation.number, "reply": reply}
        commit = _commit(self._chain.append("commit", body))
        self._commits.append(commit)
        return commit


def _reservation(entry: Entry) -> Reservation:
    """A reservation from its entry."""
    body = entry.body
    return Reservation(
        number=entry.number,
        key=RoundKey(**body["key"]),
        attempt=body["attempt"],
        uses=tuple(Use(**use) for use in body["uses"]),
        unit=body["unit"],
        time=entry.time,
        hash=entry.hash,
        moment=entry.moment,
    )


def _commit(entry: Entry) -> Commit:
    """A commit from its entry."""
    body = entry.body
    return Commit(entry.number, RoundKey(**body["key"]), body["reservation"], body["reply"])


def _decision(entry: Entry) -> Decision:
    """Who decided, from an entry."""
    return Decision(**entry.body["decision"])
