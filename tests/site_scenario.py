"""A hospital that was enrolled with a coordinator and prepared drawn images, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w
from enrolment_scenario import Federation, found

from synth_client.approval import approve
from synth_client.prepare import Prepared, prepare_site
from synth_client.settings import load_settings
from synth_client.site import load_site
from synth_common.plan import Plan
from synth_common.privacy.ledger import Decision

OPERATOR = Decision("operator", "test")


def deployed_plan(**sections: dict[str, Any]) -> Plan:
    """Three short rounds on 28 px, with the operating system's noise."""
    values: dict[str, dict[str, Any]] = {
        "generator": {"size": 28, "width": 8, "latent_dim": 4},
        "training": {
            "rounds": 3, "steps_per_round": 2, "patients_per_step": 6, "device": "cpu",
        },
        "privacy": {"epsilon": 4.0, "accountant": "rdp", "spare_rounds": 1},
        "federation": {"min_sites": 1},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Plan.model_validate(values)


def site_values(**sections: dict[str, Any]) -> dict[str, Any]:
    """A ``site.toml`` with drawn patients."""
    source = {"kind": "phantom", "name": "drawn", "patients": 40, "images_per_patient": [1, 2]}
    values: dict[str, Any] = {
        "site": {"name": "north"},
        "data": {"nominal_patients": 30, "source": source},
        "budget": {"epsilon": 8.0, "accountant": "rdp"},
        "evaluation": {
            "synthetic_images": 24, "max_images": 24, "diversity_pairs": 4, "encoder_steps": 1,
            "classifier_steps": 2, "classifier_batch": 8, "utility_seeds": 1, "bootstrap": 20,
        },
        "compute": {"device": "cpu", "threads": 1},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values


def write_settings(directory: Path, values: dict[str, Any]) -> None:
    (directory / "site.toml").write_text(tomli_w.dumps(values))


def prepare(directory: Path, plan: Plan, **options: Any) -> Prepared:
    settings = load_settings(directory, directory.name)
    return prepare_site(directory, settings, plan, OPERATOR, lambda _: None, **options)


def enrolled(
    path: Path, address: str = "127.0.0.1:8443", plan: Plan | None = None, **sections: Any
) -> tuple[Federation, Path]:
    """A coordinator, and site ``north`` that it enrolled; nothing is prepared."""
    path.mkdir(exist_ok=True)
    federation = found(path, address, plan or deployed_plan())
    federation.enrol("north")
    federation.accept("north")
    directory = federation.site("north")
    write_settings(directory, site_values(**sections))
    return federation, directory


def ready_site(path: Path, **given: Any) -> tuple[Federation, Path, Plan]:
    """The same, prepared, with the coordinator's plan approved."""
    federation, directory = enrolled(path, **given)
    plan = given.get("plan") or deployed_plan()
    prepare(directory, plan)
    approve(load_site(directory), plan, OPERATOR)
    return federation, directory, plan
