"""What an operator sets in the environment; vLLM's plugin interface passes nothing else to every process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

STORE = "VLLM_EDIT_STORE"
EXPOSE = "VLLM_EDIT_EXPOSE"
ADMIN_TOKEN = "VLLM_EDIT_ADMIN_TOKEN"
ALLOW_OPEN = "VLLM_EDIT_ALLOW_OPEN"


@dataclass(frozen=True)
class Settings:
    """store: the store's URL; without it the plugin only cures the CPU defect.
    expose: answer headers also say adapter, mode and IKE tokens (not in a blinded test).
    admin_token: needed for `/v1/edits`; without it those routes only read.
    allow_open: serve without keys on an address that is not loopback.
    """

    store: str | None = None
    expose: bool = False
    admin_token: str | None = field(default=None, repr=False)
    allow_open: bool = False
    poll_seconds: float = 0.05
    max_body_bytes: int = 32 * 2**20
    max_answers: int = 100_000

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        env = os.environ if environment is None else environment
        return cls(
            store=env.get(STORE) or None,
            expose=env.get(EXPOSE) == "1",
            admin_token=env.get(ADMIN_TOKEN) or None,
            allow_open=env.get(ALLOW_OPEN) == "1",
        )
