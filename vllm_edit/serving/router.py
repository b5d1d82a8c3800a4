"""The router: a pure ASGI middleware, innermost in vLLM's server, that decides what answers each request.

It asks who is there, lets through an allow-list of (method, path), turns the `model` field into the exact adapter (put
into the engine first) or an IKE prefix, gives every answer an id, and leaves the answer's stream alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import MutableMapping
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_edit.errors import Corrupt, EditError, Incompatible, NotFound, Unavailable
from vllm_edit.rollout.decision import Choice
from vllm_edit.serving import bodies
from vllm_edit.serving.admin.admission import CALLER, admitted
from vllm_edit.serving.alias import Asking
from vllm_edit.serving.answer import Answer, new_id
from vllm_edit.serving.caller import Forbidden, Unauthorized, identify
from vllm_edit.serving.compat.engine import EngineRefusedError
from vllm_edit.serving.residency import AdapterStore
from vllm_edit.serving.service import Service
from vllm_edit.serving.spoken import spoken
from vllm_edit.serving.usage import Usage
from vllm_edit.store.answer_rows import PROMPT_LENGTH

logger = logging.getLogger(__name__)

ID_HEADER = "X-VLLM-Edit-Id"
INFERENCE = frozenset({bodies.COMPLETIONS, bodies.CHAT, bodies.RESPONSES})
MODELS = "/v1/models"
MOST_ADMIN_BYTES = 2**20
UNASKED = frozenset({("GET", "/health"), ("GET", "/ping"), ("POST", "/ping"), ("GET", "/version")})
"""What whoever reaches the port may have: it tells nothing of tenants and patches."""
_FOREIGN = ("x-amzn-sagemaker-", "x-vllm-edit-")
# The last makes vLLM answer with the load of the whole server: what all other tenants are doing.
_TOLD = ("authorization", "x-request-id", "endpoint-load-metrics-format")
_STRIPPED = (*_FOREIGN, *_TOLD, "content-length", "transfer-encoding")
_STATUS = (
    (Unauthorized, HTTPStatus.UNAUTHORIZED),
    (Forbidden, HTTPStatus.FORBIDDEN),
    (NotFound, HTTPStatus.NOT_FOUND),
    (Incompatible, HTTPStatus.CONFLICT),
    (Corrupt, HTTPStatus.INTERNAL_SERVER_ERROR),
    (EngineRefusedError, HTTPStatus.SERVICE_UNAVAILABLE),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (bodies.TooLarge, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (EditError, HTTPStatus.BAD_REQUEST),
)


class Router:
    """`holder.vllm_edit` is the `Service`, which exists once the engine does; until then nothing is answered."""

    def __init__(self, app: ASGIApp, holder: Any) -> None:
        self.app, self._holder = app, holder
        self._secret = secrets.token_bytes(32)  # salts of one server's prefix cache; nobody else needs to know it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, self._until_shutdown(receive), send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "websockets are not served"})
        else:
            service: Service | None = self._holder.service
            sender = _Headers(send, {ID_HEADER: new_id()})
            if service is None:
                await _refuse(HTTPStatus.SERVICE_UNAVAILABLE, "the server is still starting")(scope, receive, sender)
                return
            await self._http(service, scope, receive, sender)

    def _until_shutdown(self, receive: Receive) -> Receive:
        """`receive` of the server's life: at its end, what is not written yet is."""

        async def wrapped() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._holder.service is not None:
                await self._holder.service.close()
            return message

        return wrapped

    async def _http(self, service: Service, scope: Scope, receive: Receive, send: _Headers) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        method, headers = scope["method"], Headers(scope=scope)
        try:
            if (method, path) in UNASKED:
                await self.app(_without(scope, _FOREIGN), receive, send)
                return
            asking = _asking(service, scope, headers)
            if path in INFERENCE and method == "POST":
                asking.caller.require("serve", "ask the model")
                await self._infer(service, path, headers, scope, receive, send)
            elif (method, path) == ("GET", MODELS):
                asking.caller.require("serve", "ask the model")
                await JSONResponse(_models(service, asking))(scope, receive, send)
            elif admitted(method, path, asking.caller, service.watcher.current.snapshot):
                raw = await _read(receive, MOST_ADMIN_BYTES)
                if raw is not None:
                    caller = _asking(service, scope, headers).caller  # the body may have taken its time
                    if not admitted(method, path, caller, service.watcher.current.snapshot):
                        raise _not_served(method, path)
                    inner, replay = _replayed(scope, receive, raw)
                    await self.app({**inner, CALLER: caller}, replay, send)
            else:
                raise _not_served(method, path)
        except EditError as error:
            await self._deny(service, _status(error), str(error), scope, send)

    async def _infer(
        self, service: Service, route: str, headers: Headers, scope: Scope, receive: Receive, send: _Headers
    ) -> None:
        raw = await _read(receive, service.settings.max_body_bytes)
        if raw is None:
            return  # the client went away
        usage = Usage(route)
        # Who asks, and when, is as of now: a body may take its time, and a key be revoked meanwhile.
        asking = _asking(service, scope, headers)
        asking.caller.require("serve", "ask the model")
        body = _parse(raw)
        asked = body.get("model")
        if asked is not None and not isinstance(asked, str):
            raise EditError(f"model must be a string, got {type(asked).__name__}")
        bodies.refuse(route, body)
        choice = await service.watcher.resolve(asked, replace(asking, body=body))
        catalogue = service.watcher.current
        answer = Answer.of(
            send.extra[ID_HEADER],
            route,
            asked,
            choice,
            key=asking.caller.key,
            generation=catalogue.generation,
        )
        # Nothing in scope is the base: with its salt, too, the tenant's base requests share their cached prompts.
        salt = self._salt(choice.tenant, body.get("cache_salt"))
        async with AsyncExitStack() as held:  # what the answer needs until it has ended
            try:
                answer.prompt = _prompt(service, route, body)
                model = await _ready(service, choice, route, body, answer, held) or catalogue.bases[0]
                bodies.force(route, body, model, salt, answer.id)
                content = json.dumps(body).encode()
            except RecursionError:
                raise EditError("the body is nested too deeply; send a flatter one") from None
            except EditError as error:  # what was decided cannot be applied: of a rollout's arm, that is its failure
                answer.refuse(_status(error), usage.seconds)
                service.answers.begin(answer)
                service.answers.finish(answer)
                raise

            answer.router_seconds = usage.seconds
            service.metrics.router_seconds.observe(answer.router_seconds)
            service.metrics.requests.labels(answer.mode, answer.arm or "", answer.reason).inc()
            service.answers.begin(answer)
            if service.settings.expose:
                send.extra |= {"X-VLLM-Edit-Adapter": answer.adapter or model, "X-VLLM-Edit-Mode": answer.mode}
                send.extra |= {"X-VLLM-Edit-Tokens": str(answer.ike_tokens)}
            inner, replay = _replayed(scope, receive, content)
            try:
                await self.app(inner, *usage.around(replay, send))
            finally:  # also when the client went away, or the answer broke off
                answer.end(usage)
                service.answers.finish(answer)

    def _salt(self, tenant: str | None, client: Any) -> str:
        """Salt of the prefix cache, so that no tenant can time another's prompts: HMAC(secret, tenant, client's)."""
        if client is not None and not isinstance(client, str):
            raise EditError(f"cache_salt must be a string, got {type(client).__name__}")
        text = json.dumps([tenant, client])
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    async def _deny(self, service: Service, status: HTTPStatus, message: str, scope: Scope, send: Send) -> None:
        service.metrics.refused.labels(str(int(status))).inc()
        await _refuse(status, message)(scope, _nothing, send)


def _asking(service: Service, scope: Scope, headers: Headers) -> Asking:
    """Who asks now.

    Raises:
        Unauthorized: nobody, or somebody that it is not.
    """
    now = datetime.now(UTC)
    caller = identify(headers, _peer(scope), service.watcher.current.snapshot, service.settings, now)
    return Asking(caller, now, headers)


def _prompt(service: Service, route: str, body: bodies.Body) -> str | None:
    """The request's text for the log, where the operator wants that; before a prefix is put into it."""
    if not service.settings.log_prompts:
        return None
    try:
        return "\n".join(spoken(route, body, service.decode))[:PROMPT_LENGTH]
    except EditError:  # embeddings: there is nothing to write down
        return None


async def _ready(
    service: Service, choice: Choice, route: str, body: bodies.Body, answer: Answer, held: AsyncExitStack
) -> str | None:
    """Make ready what was chosen: the adapter, in the engine as long as `held`, or the prefix in `body`.

    Returns the adapter's name; None where the base model answers.
    """
    if choice.mode == "weights" and choice.adapter is not None:
        source = await _narrowed(service, choice.adapter, route, body, answer)
        if answer.adapter is not None:
            await held.enter_async_context(service.residency.lease(answer.adapter, source, choice.adapter))
            return answer.adapter
    elif choice.mode == "ike" and choice.adapter is not None:
        answer.ike_tokens = await _prefixed(service, choice.adapter, route, body, answer)
        service.metrics.ike_tokens.inc(answer.ike_tokens)
    return None


async def _narrowed(service: Service, name: str, route: str, body: bodies.Body, answer: Answer) -> AdapterStore | None:
    """Enter into `answer` what of the patch answers in mode weights; returns where its adapter comes from."""
    index = await service.scopes.index(name)
    if index is None:
        return None
    narrowed = await service.scopes.narrow(name, index, spoken(route, body, service.decode))
    answer.narrow(narrowed)
    return narrowed.source


async def _prefixed(service: Service, name: str, route: str, body: bodies.Body, answer: Answer) -> int:
    """Put the patch's IKE prefix into `body`; returns the number of tokens added."""
    index = await service.scopes.index(name)
    if index is None:
        return await service.prefixes.insert(name, route, body)
    scopes, found = service.scopes, index
    units = await scopes.mentioned(found, spoken(route, body, service.decode))
    narrowed = scopes.told(found, units)
    answer.narrow(narrowed)
    if route != bodies.COMPLETIONS:  # one conversation: what any turn mentions is in scope
        return await service.prefixes.insert(name, route, body, lambda _: narrowed.edits or ())
    return await service.prefixes.insert(
        name, route, body, lambda prompt: scopes.told(found, found.mentioned([prompt])).edits or ()
    )


class _Headers:
    """`send` with extra headers on the answer's start; bodies pass unbuffered."""

    def __init__(self, send: Send, extra: dict[str, str]) -> None:
        self._send, self.extra = send, extra

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in self.extra.items():
                headers[name] = value
        await self._send(message)


def _models(service: Service, asking: Asking) -> dict[str, Any]:
    """`/v1/models`: names that the caller may ask for, without paths."""
    common = {"object": "model", "created": service.started, "owned_by": "vllm-edit"}
    length = {"max_model_len": service.max_model_len}
    names = service.watcher.current.listed(asking)
    return {"object": "list", "data": [{"id": name, **common, **length} for name in names]}


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None if the client went away."""
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise bodies.TooLarge(f"the body exceeds {limit} bytes; send a shorter request")
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def _parse(raw: bytes) -> bodies.Body:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise EditError(f"the body is not JSON: {str(error)[:120]}") from None
    if not isinstance(body, dict):
        raise EditError(f"the body must be a JSON object, got {type(body).__name__}")
    return body


def _replayed(scope: Scope, receive: Receive, content: bytes) -> tuple[Scope, Receive]:
    """Scope and receive for this body; after it, `receive` is the client's again (it tells a disconnect)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    inner = _without(scope, _STRIPPED)
    inner["headers"].append((b"content-length", str(len(content)).encode()))
    return inner, replay


def _without(scope: Scope, prefixes: tuple[str, ...]) -> MutableMapping[str, Any]:
    """The scope without headers that begin so: what a client must not tell vLLM."""
    kept = [
        (name, value) for name, value in scope["headers"] if not name.decode("latin-1").lower().startswith(prefixes)
    ]
    return {**scope, "headers": kept}


def _refuse(status: HTTPStatus, message: str) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = "".join(word.capitalize() for word in status.phrase.split())
    error = {"message": message, "type": f"{kind}Error", "param": None, "code": int(status)}
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None
    return JSONResponse({"error": error}, status_code=int(status), headers=headers)


def _peer(scope: Scope) -> str | None:
    """The address that the connection comes from."""
    client = scope.get("client")
    return client[0] if client else None


def _not_served(method: str, path: str) -> NotFound:
    return NotFound(f"{method} {path[:80]!r} is not served here")


def _status(error: EditError) -> HTTPStatus:
    return next(status for kind, status in _STATUS if isinstance(error, kind))


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
