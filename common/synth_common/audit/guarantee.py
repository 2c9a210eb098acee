"""The guarantee that an audit's figures stand beside: of a patient, or none at all."""

from __future__ import annotations

from typing import NamedTuple

from synth_common.audit.policy import AuditPolicy
from synth_common.audit.released_model import ReleasedModel
from synth_common.images.imageset import ImageSet


class Guarantee(NamedTuple):
    """Epsilon and delta of one patient, and where they were recorded or stated."""

    epsilon: float
    delta: float
    origin: str


def patient_guarantee(
    policy: AuditPolicy, model: ReleasedModel | None, members: ImageSet
) -> Guarantee | str:
    """The model's recorded guarantee, else the policy's stated one; why there is none.

    Attacks score patients. The epsilon of a run whose unit was the image is no bound for a
    patient with several, so it stands beside nothing.

    Args:
        policy: With what is stated.
        model: With what its run recorded.
        members: The images it was trained on.
    """
    if model is None or model.epsilon is None:
        if policy.stated is not None:
            return Guarantee(policy.stated.epsilon, policy.stated.delta, "stated in the policy")
        return "no epsilon is recorded or stated (stated.epsilon of the policy)"
    patients = members.unit_count()
    if model.plan.privacy.unit == "image" and patients < len(members):
        return (
            f"the epsilon of {model.origin} is that of one image; the members' {len(members):,} "
            f"images are of {patients:,} patients, and a patient's was never bounded"
        )
    delta = model.plan.privacy.delta
    return Guarantee(model.epsilon, delta, f"recorded by the run in {model.origin}")
