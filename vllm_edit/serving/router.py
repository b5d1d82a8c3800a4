"""The router: a pure ASGI middleware, innermost in vLLM's server, that decides what answers each request.

It authenticates the caller, admits an allow-list of (method, path), resolves the `model` field to an exact adapter
(loaded into the engine first) or an IKE prefix, gives every answer an id, and passes the stream on unbuffered.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_edit.errors import EditError, NotFound
from vllm_edit.json_value import JSONObject, JSONValue
from vllm_edit.serving import bodies, fields
from vllm_edit.serving.admin.authorization import CALLER, admitted, in_console
from vllm_edit.serving.answer import Answer, new_id
from vllm_edit.serving.caller import SignedOut, identify, identify_session
from vllm_edit.serving.console.cookies import session_of
from vllm_edit.serving.console.signed_out import signed_out
from vllm_edit.serving.error_responses import Unforeseen, client_message, field_of, refusal, status_of
from vllm_edit.serving.inner_app import InnerApp
from vllm_edit.serving.messages import FOREIGN, Sender, nothing, peer_of, read_body, replayed, without
from vllm_edit.serving.model_field import Asking
from vllm_edit.serving.prepare import LONG, logged_prompt, ready
from vllm_edit.serving.service import Holder, Service
from vllm_edit.serving.spans import RequestSpan
from vllm_edit.serving.surrogates import check, refuse_unpaired_surrogates
from vllm_edit.serving.usage import Usage

logger = logging.getLogger(__name__)

ID_HEADER = "X-VLLM-Edit-Id"
INFERENCE = frozenset({bodies.COMPLETIONS, bodies.CHAT, bodies.RESPONSES})
MODELS = "/v1/models"
MOST_ADMIN_BYTES = 2**20
UNASKED = frozenset({("GET", "/health"), ("GET", "/ping"), ("POST", "/ping"), ("GET", "/version")})
"""Public endpoints. They reveal nothing about tenants or patches."""


class Router:
    """`holder.service` is the `Service`, which exists once the engine is up; until then every request gets a 503."""

    def __init__(self, app: ASGIApp, holder: Holder) -> None:
        self.app, self._holder = app, holder
        holder.inner = InnerApp(app)
        self._secret = secrets.token_bytes(32)  # for the salts of this server's prefix cache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            if self._holder.inner is not None:
                self._holder.inner.outer = scope.get("app")
            await self.app(scope, self._until_shutdown(receive), send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "websockets are not served"})
        else:
            service: Service | None = self._holder.service
            sender = Sender(send, {ID_HEADER: new_id()})
            if service is None:
                await refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server is still starting")(scope, receive, sender)
                return
            await self._http(service, scope, receive, sender)

    def _until_shutdown(self, receive: Receive) -> Receive:
        """Wrap the lifespan's `receive` so that the service is closed, and its queue written, at shutdown."""

        async def wrapped() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._holder.service is not None:
                await self._holder.service.close()
            return message

        return wrapped

    async def _http(self, service: Service, scope: Scope, receive: Receive, send: Sender) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        method, headers = scope["method"], Headers(scope=scope)
        in_full = False
        try:
            if (method, path) in UNASKED:
                await self.app(without(scope, FOREIGN), receive, send)
                return
            check(path, "path")
            asking = _asking(service, scope, headers, path)
            in_full = asking.caller.tenant is None  # an administrator, or anyone on a server without keys
            if path in INFERENCE and method == "POST":
                asking.caller.require("serve", "ask the model")
                with service.spans.request(path, headers) as span:
                    await self._infer(service, path, headers, scope, receive, send, span)
            elif (method, path) == ("GET", MODELS):
                asking.caller.require("serve", "ask the model")
                await JSONResponse(_models(service, asking))(scope, receive, send)
            elif admitted(method, path, asking.caller, service.watcher.current.snapshot):
                raw = await read_body(receive, MOST_ADMIN_BYTES)
                if raw is not None:
                    caller = _asking(service, scope, headers, path).caller  # the key may have been revoked meanwhile
                    if not admitted(method, path, caller, service.watcher.current.snapshot):
                        raise _not_served(method, path)
                    inner, replay = replayed(scope, receive, raw)
                    await self.app({**inner, CALLER: caller}, replay, send)
            else:
                raise _not_served(method, path)
        except SignedOut:
            service.metrics.refused.labels(str(int(HTTPStatus.UNAUTHORIZED))).inc()
            await signed_out(scope)(scope, nothing, send)
        except EditError as error:
            if (said := client_message(error, in_full=in_full)) != str(error):
                logger.error("%s %s: %s", method, path, error)
            service.metrics.refused.labels(str(int(status_of(error)))).inc()
            await refusal(status_of(error), said, field_of(error))(scope, nothing, send)
        except Exception as error:  # the server's default answer would have no id
            if send.begun:
                raise
            said = client_message(_unforeseen(send.extra[ID_HEADER], error), in_full=in_full)
            service.metrics.refused.labels(str(int(HTTPStatus.INTERNAL_SERVER_ERROR))).inc()
            await refusal(HTTPStatus.INTERNAL_SERVER_ERROR, said)(scope, nothing, send)

    async def _infer(
        self,
        service: Service,
        route: str,
        headers: Headers,
        scope: Scope,
        receive: Receive,
        send: Sender,
        span: RequestSpan,
    ) -> None:
        raw = await read_body(receive, service.settings.body_bytes(service.max_model_len))
        if raw is None:
            return  # the client went away
        usage = Usage(route)
        # Authenticate again: the key may have been revoked while the body was being read.
        asking = _asking(service, scope, headers, route)
        asking.caller.require("serve", "ask the model")
        body = _parse(raw)
        asked = body.get("model")
        if asked is not None and not isinstance(asked, str):
            raise EditError(f"model must be a string, got {type(asked).__name__}")
        of_tenant = asking.caller.tenant is not None
        if of_tenant:
            scope = without(scope, fields.withheld_headers(service.settings.allowed_fields))
        choice = await service.watcher.resolve(asked, replace(asking, body=body))
        catalogue = service.watcher.current
        answer = Answer.of(
            send.extra[ID_HEADER],
            route,
            asked,
            choice,
            key=asking.caller.api_key_id,
            generation=catalogue.generation,
        )
        answer.assignment = None  # a body that no mode serves is not a failure of an arm
        # A request with nothing in scope also gets the tenant's salt, so it shares the tenant's cached base prompts.
        salt = self._salt(choice.tenant, body.get("cache_salt"))
        async with AsyncExitStack() as held:  # leases until the answer has ended
            try:
                long = len(raw) > LONG
                await _check(service, route, raw, body, of_tenant=of_tenant, long=long)
                answer.assignment = choice.assignment
                answer.prompt = await logged_prompt(service, route, body, long=long)
                adapter = await ready(service, choice, route, body, answer, held, long=long)
                model = adapter or catalogue.bases[0]
                bodies.force(route, body, model, salt, answer.id)
                content = json.dumps(body).encode()
            except RecursionError:
                raise EditError("the body is nested too deeply; send a flatter one") from None
            except EditError as error:  # counts as a failure of a rollout's arm, unless no arm could answer
                _refused(service, answer, error, usage, span)
                raise
            except Exception as error:  # an unexpected error counts as a failure too
                unforeseen = _unforeseen(answer.id, error)
                _refused(service, answer, unforeseen, usage, span)
                raise unforeseen from error

            answer.router_seconds = usage.seconds
            service.metrics.router_seconds.observe(answer.router_seconds)
            service.metrics.requests.labels(answer.mode, answer.arm or "", answer.reason).inc()
            copy = service.shadows.draw(choice, route, raw)
            service.shadows.interrupt()
            service.answers.begin(answer)
            if service.settings.expose:
                send.extra |= {"X-VLLM-Edit-Adapter": answer.adapter or model, "X-VLLM-Edit-Mode": answer.mode}
                send.extra |= {"X-VLLM-Edit-Tokens": str(answer.ike_tokens)}
            elif choice.assignment is not None:  # vLLM reports the adapter's name, which would reveal the arm
                send.renamed = (model, choice.tenant or model)
            span.describe(answer)
            inner, replay = replayed(span.carried(scope), receive, content)
            seen = usage.around(replay, send if copy is None else copy.around(send))
            try:
                await self.app(inner, *seen)
            except Exception as error:
                if usage.status is not None:  # the answer has begun, so the connection is closed
                    raise
                unforeseen = _unforeseen(answer.id, error)
                said = client_message(unforeseen, in_full=asking.caller.tenant is None)
                await refusal(status_of(unforeseen), said)(inner, nothing, seen[1])
            finally:  # also when the client disconnects or the answer is interrupted
                answer.end(usage)
                if answer.failed:
                    service.metrics.failed.inc()
                span.describe(answer)
                service.answers.finish(answer)
                if copy is not None:
                    service.shadows.offer(copy, answer)

    def _salt(self, tenant: str | None, client: JSONValue) -> str:
        """Salt of the prefix cache, HMAC(secret, tenant, client's salt): no tenant can time another's prompts."""
        if client is not None and not isinstance(client, str):
            raise EditError(f"cache_salt must be a string, got {type(client).__name__}")
        text = json.dumps([tenant, client])
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


async def _check(service: Service, route: str, raw: bytes, body: bodies.Body, *, of_tenant: bool, long: bool) -> None:
    """Raise `EditError` for a body that no mode serves. A `long` body is read in a thread."""
    bodies.refuse(route, body)
    if of_tenant:
        fields.refuse(route, body, service.settings.allowed_fields)
    bodies.refuse_too_many(body, service.max_model_len, service.max_prompts)
    if long:
        await service.texts.run(refuse_unpaired_surrogates, raw, body)
    else:
        refuse_unpaired_surrogates(raw, body)


def _refused(service: Service, answer: Answer, error: EditError, usage: Usage, span: RequestSpan) -> None:
    """Log a request that the router refused."""
    answer.refuse(error, usage.seconds)
    span.describe(answer)
    service.answers.begin(answer)
    service.answers.finish(answer)


def _unforeseen(id: str, error: Exception) -> Unforeseen:
    """Log the trace with the answer's id, and return an error for the client."""
    logger.exception("%s failed", id)
    return Unforeseen(f"{type(error).__name__}: {error}")


def _not_served(method: str, path: str) -> NotFound:
    return NotFound(f"{method} {path[:80]!r} is not served here")


def _asking(service: Service, scope: Scope, headers: Headers, path: str) -> Asking:
    """Authenticate the caller, as of now.

    Raises:
        Unauthorized: the credentials are missing or invalid.
    """
    now, snapshot = datetime.now(UTC), service.watcher.current.snapshot
    if CALLER in scope:  # the console asks the model for a person whom this router has admitted
        return Asking(scope[CALLER], now, headers)
    if in_console(path):
        return Asking(identify_session(session_of(service, headers), snapshot, now), now, headers)
    return Asking(identify(headers, peer_of(scope), snapshot, service.settings, now), now, headers)


def _models(service: Service, asking: Asking) -> JSONObject:
    """The response of `/v1/models`: names that the caller may request, without paths."""
    common: JSONObject = {"object": "model", "created": service.started, "owned_by": "vllm-edit"}
    length = {"max_model_len": service.max_model_len}
    names = service.watcher.current.listed(asking)
    return {"object": "list", "data": [{"id": name, **common, **length} for name in names]}


def _parse(raw: bytes) -> bodies.Body:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise EditError(f"the body is not JSON: {str(error)[:120]}") from None
    if not isinstance(body, dict):
        raise EditError(f"the body must be a JSON object, got {type(body).__name__}")
    return body
