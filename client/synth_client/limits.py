"""What a site's operator allows beside the budget: how often, when, and with how many patients.

How often and when is checked before anything is charged; with how many patients, when images
are prepared and when the service starts, because the coordinator sees a refusal. A reply that
was paid for is sent again at any time, because nothing is used for it.

Rounds are counted in the ledger, which no message and no restart can shorten, by
:func:`synth_common.clock.may_be_within`: a wall clock that jumps brings no round more while
the machine runs. Not protected: the hours, which are the wall clock's, and the count after
the machine was restarted with a clock that was set forward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from synth_common.clock import Moment, may_be_within
from synth_common.errors import LimitError
from synth_common.plan import StrictModel

if TYPE_CHECKING:
    from synth_common.privacy.ledger import Reservation

DAY = 24 * 3600.0
_HOURS = re.compile(r"([01]\d|2[0-3])-([01]\d|2[0-4])")


@dataclass(frozen=True)
class Hours:
    """A window of the day by the wall clock, from ``start`` o'clock until ``end`` o'clock.

    ``start`` after ``end`` is a window over midnight.
    """

    start: int
    end: int

    @staticmethod
    def parse(text: str) -> Hours:
        """The window of ``"20-06"``. Raises ValueError for anything else."""
        found = _HOURS.fullmatch(text)
        if found is None or int(found[1]) == int(found[2]) % 24:
            raise ValueError(
                "expected two different hours of the day as HH-HH, for example 20-06 for eight in "
                "the evening until six in the morning; leave the key out for any time"
            )
        return Hours(int(found[1]), int(found[2]))

    def cover(self, hour: int) -> bool:
        """Whether the window holds the hour (0 to 23) that has begun."""
        if self.start < self.end:
            return self.start <= hour < self.end
        return hour >= self.start or hour < self.end


class Limits(StrictModel):
    """Section ``[limits]`` of a site's settings.

    Attributes:
        rounds_per_day: Most rounds, and attempts at a release, in any 24 hours, those that
            were interrupted included; None for as many as are asked for.
        hours: When a round may begin, ``"20-06"`` by this machine's local time; None for any
            time. A round that has begun is finished.
        min_patients: Fewest training patients (images, where the source knows no patients).
    """

    rounds_per_day: Annotated[int, Field(ge=1)] | None = None
    hours: str | None = None
    min_patients: Annotated[int, Field(ge=1)] = 1

    @field_validator("hours")
    @classmethod
    def _window(cls, value: str | None) -> str | None:
        if value is not None:
            Hours.parse(value)
        return value

    def require_patients(self, patients: int) -> None:
        """Refuse (LimitError) a site with too few patients to train on."""
        if patients < self.min_patients:
            raise LimitError(
                f"limits.min_patients = {self.min_patients}: the site has {patients} training "
                "patients; add patients (synth-client prepare --replace), or lower the limit in "
                "site.toml"
            )

    def require_room(self, reservations: Sequence[Reservation], now: Moment) -> None:
        """Refuse a round beyond the number of a day, or outside of the hours.

        Args:
            reservations: All of the ledger.
            now: When the round would begin.

        Raises:
            LimitError: Names the limit, and when there will be room.
        """
        used = used_within_a_day(reservations, now)
        if self.rounds_per_day is not None and used >= self.rounds_per_day:
            raise LimitError(
                f"limits.rounds_per_day = {self.rounds_per_day}: {used} rounds were begun in the "
                "last 24 hours; wait, or raise the limit in site.toml and start again"
            )
        local: datetime = now.wall.astimezone()
        if self.hours is not None and not Hours.parse(self.hours).cover(local.hour):
            raise LimitError(
                f"limits.hours = {self.hours}: it is {local:%H:%M} at this site; wait, or change "
                "the hours in site.toml and start again"
            )


def used_within_a_day(reservations: Sequence[Reservation], now: Moment) -> int:
    """Rounds and attempts at a release that were begun in the last 24 hours, in doubt counted."""
    return sum(may_be_within(reservation.moment, now, DAY) for reservation in reservations)
