"""Sticky hashing: the same key always falls into the same bucket, in every process and on every machine."""

from __future__ import annotations

import math
from hashlib import sha256
from typing import Literal

from vllm_edit.errors import EditError

BUCKETS = 10_000

Purpose = Literal["enrol", "side", "unit", "holdout", "range"]
"""Each purpose has an independent hash: with a shared hash, all keys that a small ramp enrols would be on one side
(Unleash had that bias: unleash-client-node, PR 533)."""


def bucket(salt: str, rollout: str, purpose: Purpose, sticky_key: str) -> int:
    """Return the key's bucket in [0, 10,000): the first 8 bytes of SHA-256 modulo 10,000 (bias below 10⁻¹⁵).

    Args:
        salt: The salt of the rollout; for a holdout and a range that of the tenant.
        rollout: The rollout's name; for a holdout and a range the tenant's.
        purpose: What the bucket is for.
        sticky_key: The sticky key as text.
    """
    return int.from_bytes(_digest(salt, rollout, purpose, sticky_key)[:8], "big") % BUCKETS


def pseudonym(salt: str, rollout: str, sticky_key: str) -> str:
    """Return the key's pseudonym for the log of outcomes, since the key itself may be a person's name."""
    return _digest(salt, rollout, "unit", sticky_key)[:16].hex()


def buckets_of(percent: float) -> int:
    """Convert a percentage to buckets of 0.01 % each."""
    if not math.isfinite(percent) or not 0 <= percent <= 100 or abs(percent * 100 - round(percent * 100)) > 1e-6:
        raise EditError(f"expected 0 to 100 per cent with at most two decimals; got {percent!r}")
    return round(percent * BUCKETS / 100)


def _digest(salt: str, rollout: str, purpose: Purpose, sticky_key: str) -> bytes:
    # Names of rollouts and salts contain no colon, so these texts are unique. A key from a JSON body can contain a lone
    # surrogate, which strict UTF-8 cannot encode.
    return sha256(f"{salt}:{rollout}:{purpose}:{sticky_key}".encode("utf-8", "surrogatepass")).digest()
