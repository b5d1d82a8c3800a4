"""vLLM's two entry points into this package, both named `vllm_edit`.

vLLM fails open: it logs and skips a plugin whose *import* fails or whose factory raises. So this module imports
nothing that can fail, and all checks run inside `register`, `attach_router` and `init_state`, whose exceptions stop the
server.
"""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.datastructures import State
    from vllm.v1.engine.async_llm import AsyncLLM


def register() -> None:
    """`vllm.general_plugins`: runs in every process of vLLM, possibly more than once.

    Always fixes the CPU defect. With a store configured (`VLLM_EDIT_STORE`), also refuses an environment in which the
    router would not be active.
    """
    from vllm_edit.engine.compat import cpu_lora_mask, families, wrapped
    from vllm_edit.serving.server_settings import Settings

    cpu_lora_mask.cure()
    families.register()
    wrapped.install()
    if Settings.from_environment().store is not None:
        from vllm_edit.serving import startup

        startup.check_environment()


class Endpoint:
    """`vllm.endpoint_plugins`: our router in vLLM's API server."""

    name = "vllm_edit"
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """Put the router innermost, around vLLM's routes, and add the admin routes. Without a store, do nothing."""
        from vllm_edit.serving.server_settings import Settings

        if Settings.from_environment().store is None:
            return
        from vllm_edit.serving import startup

        startup.attach(app)

    async def init_state(self, engine_client: AsyncLLM | None, state: State, args: Namespace) -> None:
        """Check the engine against the store's site, then let the router serve."""
        from vllm_edit.serving.server_settings import Settings

        if Settings.from_environment().store is None:
            return
        from vllm_edit.serving import startup

        await startup.start(engine_client, state, args)


def endpoint() -> Endpoint:
    return Endpoint()
