"""``DATASHEET.md`` and ``MODEL_CARD.md``: what was recorded, stated and signed.

Sections after Gebru et al. 2021 (Datasheets for Datasets) and Mitchell et al. 2019 (Model Cards).
Nothing is computed here: a value is a recorded fact, a signed statement or a sentence of the
charter, and what nobody recorded prints NOT RECORDED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from synth_common.charter import Charter
from synth_common.plan import Plan
from synth_common.release.names import ReleaseName
from synth_common.release.statement import PrivacyStatement
from synth_common.reporting.factbook import MISSING
from synth_common.reporting.numbers import epsilon_text, measured, setting
from synth_common.reporting.words import metric_title


@dataclass(frozen=True)
class Card:
    """All that the papers of a release speak of.

    Attributes:
        release: Name and version.
        made: When.
        simulation: Whether one machine played every hospital.
        charter: What people decided and stated.
        plan: The federation plan.
        statements: The sites' own, by name.
        report: :func:`synth_common.reporting.report.build_report` of what may leave.
        counts: Images by class and split.
        shares: Released shares of the classes; empty for equal ones.
        weights: SHA-256 of the generator's weights.
        formats: Forms that the images come in.
    """

    release: ReleaseName
    made: datetime
    simulation: bool
    charter: Charter
    plan: Plan
    statements: Mapping[str, PrivacyStatement]
    report: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, int]]
    shares: Mapping[str, float]
    weights: str
    formats: Sequence[str]

    @property
    def epsilon(self) -> float:
        """The largest epsilon that a site stated of the run."""
        return max(statement.epsilon for statement in self.statements.values())

    @property
    def guarantee(self) -> str:
        """The promise in one sentence, epsilon rounded up."""
        terms = self.plan.privacy
        return (
            f"epsilon at most {epsilon_text(self.epsilon)} at delta {setting(terms.delta)} per "
            f"{terms.unit}, at each of {len(self.statements)} sites"
        )

    @property
    def title(self) -> str:
        """For headings."""
        mark = " (SIMULATION)" if self.simulation else ""
        return f"{self.charter.title}, {self.release}{mark}"

    @property
    def total(self) -> int:
        """How many images."""
        return sum(sum(by_split.values()) for by_split in self.counts.values())


def datasheet(card: Card) -> str:
    """``DATASHEET.md``."""
    return _environment().get_template("datasheet.md.j2").render(card=card)


def model_card(card: Card) -> str:
    """``MODEL_CARD.md``."""
    return _environment().get_template("model_card.md.j2").render(card=card)


def license_text(charter: Charter) -> str:
    """``LICENSE``: the charter's licence, its SPDX expression first."""
    licence = charter.licence
    head = "" if licence.spdx is None else f"SPDX-License-Identifier: {licence.spdx}\n\n"
    if licence.text:
        return f"{head}{licence.text.strip()}\n"
    return f"{head}The text of {licence.name} is at {license_url(charter)}\n"


def license_url(charter: Charter) -> str:
    """Where the licence stands, or its name where only the bundle's LICENSE has it."""
    spdx = charter.licence.spdx
    if spdx is None or not spdx.replace("-", "").replace(".", "").isalnum():
        return charter.licence.name
    return "LICENSE" if spdx.startswith("LicenseRef") else f"https://spdx.org/licenses/{spdx}.html"


@cache
def _environment() -> Environment:
    """Jinja for Markdown; a value that is missing is an error, one not recorded says so."""
    env = Environment(
        loader=PackageLoader("synth_common.release"),
        autoescape=False,  # Markdown, not HTML; the words are the coordinator's own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters.update(
        epsilon=epsilon_text,
        measured=measured,
        setting=setting,
        metric=metric_title,
        stated=_stated,
        cell=_cell,
    )
    return env


def _stated(value: Any) -> str:
    """What a charter says, or that nobody recorded it."""
    if isinstance(value, list | tuple):
        return "; ".join(str(item) for item in value) or MISSING
    return MISSING if value in (None, "") else str(value)


def _cell(value: Any) -> str:
    """A value in a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
