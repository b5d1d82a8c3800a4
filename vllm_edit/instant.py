"""Times with their zone that every database can store, because they exist in UTC too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime


def in_utc(time: datetime) -> datetime:
    """The same time in UTC.

    Raises:
        ValueError: UTC has no such time, as for the last hours of 9999 in New York.
    """
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("expected a time within the years 1 to 9999 in UTC") from None


def is_instant(time: datetime) -> bool:
    """True if the time has a zone and exists in UTC."""
    try:
        return time.tzinfo is not None and in_utc(time).tzinfo is UTC
    except ValueError:
        return False


def _exists_in_utc(time: datetime) -> datetime:
    in_utc(time)
    return time


Instant = Annotated[AwareDatetime, AfterValidator(_exists_in_utc)]
"""A time in the zone in which it was given."""
