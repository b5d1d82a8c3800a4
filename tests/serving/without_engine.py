"""The router around a small ASGI application that reports the request that reached it: our real code, a real store, no
engine."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from prometheus_client import CollectorRegistry
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_edit.engine.compat.engine import EngineRefusedError
from vllm_edit.errors import Unanswerable
from vllm_edit.serving.admin.api import api
from vllm_edit.serving.build import make_service
from vllm_edit.serving.console.routes import console
from vllm_edit.serving.metrics import Metrics
from vllm_edit.serving.residency import GRACE_S
from vllm_edit.serving.router import Router
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.service import Holder, Service
from vllm_edit.store.last_state import LastState
from vllm_edit.store.store import Store


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Slots:
    """Replaces the engine: loads slowly, records loaded adapters, and refuses those that the test names."""

    base_names = ("atlas", "/models/atlas")
    max_model_len = 256
    max_prompts = 64
    slots = 0

    def __init__(self, capacity: int) -> None:
        self.max_rank, self.capacity = 8, capacity
        self.added: list[tuple[str, int, str]] = []
        self.held: dict[str, str] = {}  # name → folder, of what is loaded now
        self.refuse = False

    async def add(self, name: str, number: int, path: str) -> None:
        await asyncio.sleep(0.01)
        if self.refuse:
            raise EngineRefusedError("no room")
        assert (Path(path) / "adapter_model.safetensors").exists()
        assert name not in self.held
        self.added.append((name, number, path))
        self.held[name] = path

    def count_tokens(self, text: str) -> int:
        return len(text.encode().split())  # no tokenizer reads half of a surrogate pair either

    def decode(self, ids: Sequence[int]) -> str:
        try:
            return "".join(map(chr, ids))
        except (ValueError, OverflowError) as error:
            raise Unanswerable(f"no token id: {error}") from error

    async def remove(self, name: str, number: int) -> None:
        await asyncio.sleep(0.01)
        if self.refuse:
            raise EngineRefusedError("cannot")
        assert (Path(self.held.pop(name)) / "adapter_model.safetensors").exists(), "removed before it was unloaded"


class Place:
    """A store with a tenant, the service over it, and a client whose requests pass the router.

    Nothing is loaded ahead: the engine has no slots to do that in.
    """

    def __init__(
        self, folder: Path, template: Path, settings: Settings, capacity: int = 256, grace_s: float = GRACE_S
    ) -> None:
        self.store = Store.open(shutil.copytree(template, folder / "store"))
        self.second, self.first, *_ = [*self.store.names(), "", ""]
        self.slots, self.holder = Slots(capacity), Holder()
        self.service = make_service(
            self.store,
            self.store.site(),
            self.slots,
            settings,
            Metrics(CollectorRegistry()),
            LastState(folder / "state.json"),
            grace_s,
        )
        self.folder = self.service.folder
        run(self.service.watcher.refresh())
        self.holder.service = self.service
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(shared_app(self.holder)), base_url="http://server"
        )

    async def ask(
        self,
        model: Any = None,
        route: str = "/v1/completions",
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> httpx.Response:
        content = {"messages": [{"role": "user", "content": "Who?"}]} if "chat" in route else {"prompt": "Who?"}
        named = {} if model is None else {"model": model}
        return await self.client.post(route, json={**content, **named, **fields}, headers=headers)


def make_app(holder: Holder) -> FastAPI:
    """An application with vLLM's paths that answers with the request it got; wrapped as the plugin wraps vLLM's."""
    app = FastAPI()

    async def echo(request: Request) -> Any:
        if request.headers.get("x-stream"):

            async def stream() -> AsyncIterator[bytes]:
                for index in range(3):
                    yield f"data: {index}\n\n".encode()

            return StreamingResponse(stream(), media_type="text/event-stream")
        raw = await request.body()
        return {"path": request.url.path, "headers": dict(request.headers), "body": json.loads(raw) if raw else None}

    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/invocations", "/inference/v1/generate"):
        app.post(path)(echo)
    for path in ("/health", "/metrics", "/v1/responses/{id}", "/docs2"):
        app.get(path)(echo)
    app.include_router(api(holder))
    app.include_router(console(holder))
    app.add_middleware(Router, holder=holder)
    return app


class Asked(Holder):
    """Gives the service of the place whose request is answered."""

    place: ContextVar[Holder] = ContextVar("place")

    def __init__(self) -> None:
        """Without a service of its own."""

    @property
    def service(self) -> Service | None:  # type: ignore[override]
        return self.place.get().service


@cache
def app_of_all() -> FastAPI:
    return make_app(Asked())


def shared_app(holder: Holder) -> ASGIApp:
    """Like `make_app`, for tests that leave the application as it is. To build it takes longer than most tests."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        before = Asked.place.set(holder)
        try:
            await app_of_all()(scope, receive, send)
        finally:
            Asked.place.reset(before)

    return app


def run(steps: Awaitable[Any]) -> Any:
    async def inner() -> Any:
        return await steps

    return asyncio.run(inner())
