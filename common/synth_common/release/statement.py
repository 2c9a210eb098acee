"""A site's privacy statement: what one run charged its patients, signed with the site's own key.

The coordinator cannot write it: it holds no ledger, and no key of a site. The site cannot write
it for another run or plan: both are in the signed text, and the plan's digest is its subject.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import AwareDatetime, Field

from synth_common.errors import ConfigError, VerificationError
from synth_common.plan import Accountant, SiteName, StrictModel, TrustModel, Unit
from synth_common.release import dsse
from synth_common.release.names import PLAN
from synth_common.validation import validate

KIND = "urn:synthward:privacy-statement:1"
_Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Amount = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


_TERMS = (
    "delta",
    "unit",
    "trust_model",
    "accountant",
    "clip_norm",
    "max_images_per_patient",
    "noise",
)
"""What a statement repeats of the plan's ``privacy`` section."""


class StatedUse(StrictModel):
    """Private steps of one kind (:class:`synth_common.privacy.accounting.Use`)."""

    noise_multiplier: _Amount
    sample_rate: Annotated[float, Field(gt=0.0, le=1.0)]
    steps: Annotated[int, Field(ge=1)]
    purpose: str


class PrivacyStatement(StrictModel):
    """What a run charged the patients of one site.

    Attributes:
        format: Of this statement.
        site: The site.
        run_id: The run.
        plan_digest: SHA-256 of the plan it was made under.
        epsilon: Of this run alone, every attempt and interrupted round included.
        epsilon_all_runs: Of everything in the site's ledger composed, at the same delta.
        delta: Of both.
        unit: Whose presence is hidden.
        adjacency: Neighbouring data sets, in words.
        trust_model: Whom a patient must trust.
        trust_meaning: The same in words.
        accountant: What composed the uses.
        uses: What ran in this run, equal kinds added up.
        rounds: Different rounds whose reply may have left; 0 for a release alone.
        clip_norm: The most that one unit can move a training step's sum.
        max_images_per_patient: Images of one patient that count.
        noise: Where the noise was drawn.
        simulated: Whether the site is a part of a simulation.
        ledger_head: Hash of the last entry of the site's ledger.
        ledger_entries: How many entries it has.
        made: When the statement was made.
    """

    format: Literal["synthward-privacy-statement-1"] = "synthward-privacy-statement-1"
    site: SiteName
    run_id: Annotated[str, Field(min_length=1, max_length=64)]
    plan_digest: _Hex32
    epsilon: _Amount
    epsilon_all_runs: _Amount
    delta: Annotated[float, Field(gt=0.0, lt=1.0)]
    unit: Unit
    adjacency: str
    trust_model: TrustModel
    trust_meaning: str
    accountant: Accountant
    uses: Annotated[tuple[StatedUse, ...], Field(min_length=1)]
    rounds: Annotated[int, Field(ge=0)]
    clip_norm: _Amount
    max_images_per_patient: Annotated[int, Field(ge=1)]
    noise: Literal["secure", "simulation"]
    simulated: bool
    ledger_head: _Hex32
    ledger_entries: Annotated[int, Field(ge=1)]
    made: AwareDatetime

    def differences(self, plan_text: str) -> list[str]:
        """In which of the plan's terms the statement says something else, in words.

        Numbers and names are compared, and not their wording, which other versions may put
        otherwise; and the plan as it was written, which other versions may read otherwise.

        Args:
            plan_text: The plan as canonical JSON.

        Raises:
            ValueError, KeyError, TypeError: It is no plan.
        """
        terms = json.loads(plan_text)["privacy"]
        own = self.model_dump(mode="json")
        pairs = {key: (own[key], terms[key]) for key in _TERMS}
        pairs["plan_digest"] = (self.plan_digest, digest_of_plan(plan_text))
        return [
            f"{key} = {its!r} against {own!r}" for key, (its, own) in pairs.items() if its != own
        ]


def digest_of_plan(text: str) -> str:
    """SHA-256 of a plan's canonical JSON, as :meth:`synth_common.plan.Plan.digest` has it."""
    return hashlib.sha256(text.encode()).hexdigest()


def sign_statement(statement: PrivacyStatement, key: Ed25519PrivateKey) -> str:
    """The statement as a file, signed with the site's key; its subject is the plan."""
    values = statement.model_dump(mode="json")
    return dsse.sign(KIND, {PLAN: statement.plan_digest}, values, key)


def read_statement(text: str, where: str) -> tuple[PrivacyStatement, str]:
    """The statement in a file of :func:`sign_statement`, and the public key that signed it.

    Raises:
        VerificationError: It is malformed, was edited, or is signed for another plan.
    """
    signed = dsse.read_signed(text, KIND, where)
    try:
        statement = validate(PrivacyStatement, signed.predicate, where)
    except ConfigError as err:
        raise VerificationError(str(err)) from err
    if dict(signed.subject) != {PLAN: statement.plan_digest}:
        raise VerificationError(f"{where}: what is signed is not the plan that it speaks of")
    return statement, signed.key
