"""Sticky hashing: the same key always falls into the same bucket, in every process and on every machine."""

from __future__ import annotations

from hashlib import sha256
from typing import Literal

BUCKETS = 10_000

Purpose = Literal["enrol", "side", "unit"]
"""Each purpose hashes apart, so that what one hash decides says nothing about the other: with one hash for both, the
keys that a small ramp enrols would all be on one side (Unleash had that bias: unleash-client-node, PR 533)."""


def bucket(salt: str, rollout: str, purpose: Purpose, key: str) -> int:
    """The key's bucket in [0, 10,000): the first 8 bytes of SHA-256 modulo 10,000 (bias below 10⁻¹⁵)."""
    return int.from_bytes(_digest(salt, rollout, purpose, key)[:8], "big") % BUCKETS


def pseudonym(salt: str, rollout: str, key: str) -> str:
    """What stands for the key in the log of outcomes: the key itself may be a person's name."""
    return _digest(salt, rollout, "unit", key)[:16].hex()


def _digest(salt: str, rollout: str, purpose: Purpose, key: str) -> bytes:
    # A rollout's name holds no colon, a salt neither, so no two of these texts coincide. A key from a JSON body can
    # hold half a surrogate pair, which has no strict UTF-8.
    return sha256(f"{salt}:{rollout}:{purpose}:{key}".encode("utf-8", "surrogatepass")).digest()
