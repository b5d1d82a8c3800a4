"""The users that may take part in a rollout: a range of the tenant's users, without its holdout."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vllm_edit.errors import EditError
from vllm_edit.names import shown
from vllm_edit.rollout.buckets import BUCKETS, bucket, buckets_of
from vllm_edit.rollout.sticky import StickyKey

_RANGE = re.compile(r"(?P<low>\d{1,3}(?:\.\d{1,6})?)%?\.\.(?P<high>\d{1,3}(?:\.\d{1,6})?)%?")


@dataclass(frozen=True)
class Audience:
    """Users by two hashes of the tenant, which are the same for all of its rollouts.

    Rollouts whose ranges do not overlap never share a user, and a user of the holdout is in none of them. Both hashes
    are independent of those of the rollouts, so an audience is split as all users would be.

    Attributes:
        low, high: The range, in buckets (of 10,000); `high` is not part of it.
        holdout: Buckets (of 10,000) of users who take part in no rollout.
        salt: The tenant's salt; empty until the registry enters the rollout.
    """

    low: int = 0
    high: int = BUCKETS
    holdout: int = 0
    salt: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= BUCKETS:
            raise EditError(f"expected a range of users like 0..40; got {self.low / 100:g}..{self.high / 100:g}")
        if not 0 <= self.holdout < BUCKETS:
            raise EditError(f"expected a holdout of 0 to below 100 per cent; got {self.holdout / 100:g}")

    def __str__(self) -> str:
        """The range as a person writes it."""
        return f"{self.low * 100 / BUCKETS:g}..{self.high * 100 / BUCKETS:g}"

    def admits(self, tenant: str, sticky_key: StickyKey) -> bool:
        """True if the key is in the range and not in the holdout."""
        if bucket(self.salt, tenant, "holdout", str(sticky_key)) < self.holdout:
            return False
        return self.low <= bucket(self.salt, tenant, "range", str(sticky_key)) < self.high

    def overlaps(self, other: Audience) -> bool:
        """True if a user could be in both ranges."""
        return self.low < other.high and other.low < self.high


def parse_range(text: str) -> Audience:
    """Parse a range of users in per cent: `0..40`."""
    match = _RANGE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise EditError(f"expected a range of users in per cent, like 0..40; got {shown(text)}")
    return Audience(buckets_of(float(match["low"])), buckets_of(float(match["high"])))
