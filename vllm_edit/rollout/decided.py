"""What a server did because a limit of a rollout was exceeded."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from vllm_edit.rollout.guardrails import LimitResult


@dataclass(frozen=True)
class Decision:
    """A limit that was exceeded. A limit acts once in a rollout's life.

    Attributes:
        result: The numbers that decided.
        at: The time, by the registry's clock.
        server: The server that acted, `host:pid`.
    """

    result: LimitResult
    at: datetime
    server: str
