"""OpenTelemetry spans of requests: children of the client's span, and parents of vLLM's own.

vLLM sets the tracer provider of its server if it is started with `--otlp-traces-endpoint`. Without that flag there are
no spans, and nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from starlette.datastructures import MutableHeaders
from starlette.types import Scope

from vllm_edit.errors import EditError
from vllm_edit.serving.answer import Answer
from vllm_edit.serving.error_responses import status_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_ATTRIBUTES = ("id", "tenant", "adapter", "patch", "mode", "arm", "reason", "generation", "ike_tokens", "ended")
"""The fields of an answer that its span has, as `vllm_edit.<field>`."""


class RequestSpan:
    """A request's span; without a span every method does nothing."""

    def __init__(self, span: Span | None = None) -> None:
        self._span = span

    def describe(self, answer: Answer) -> None:
        """Set the attributes that are known of the answer. Texts of prompts and answers are no attributes."""
        if self._span is None:
            return
        for name in _ATTRIBUTES:
            value = getattr(answer, name)
            if value is not None:
                self._span.set_attribute(f"vllm_edit.{name}", value)
        if answer.assignment is not None:
            self._span.set_attribute("vllm_edit.rollout", answer.assignment.rollout)
        if answer.status is not None:
            self.end(answer.status)

    def end(self, status: int) -> None:
        """Set the status of the response. Statuses of 500 and above are errors."""
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("http.response.status_code", int(status))
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)

    def carried(self, scope: Scope) -> Scope:
        """Return the scope with this span as the parent in its headers, where vLLM reads it."""
        if self._span is None:
            return scope
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carried = {**scope, "headers": list(scope["headers"])}
        headers = MutableHeaders(scope=carried)
        del headers["tracestate"]
        TraceContextTextMapPropagator().inject(headers, set_span_in_context(self._span))
        return carried


class Spans:
    """Starts a span for each request; without a tracer there are none."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer

    @classmethod
    def of(cls, endpoint: str | None) -> Self:
        """The spans of a server, after vLLM has set its tracer provider.

        Args:
            endpoint: where vLLM sends spans (`--otlp-traces-endpoint`); None for nowhere.
        """
        if endpoint is None:
            return cls()
        from opentelemetry import trace

        return cls(trace.get_tracer("vllm_edit"))

    @contextmanager
    def request(self, route: str, headers: Mapping[str, str]) -> Iterator[RequestSpan]:
        """The span of the request that the block answers. An error of the block gives the span its status.

        Args:
            route: the path, for the span's name.
            headers: the request's headers; `traceparent` names the client's span.
        """
        if self._tracer is None:
            yield RequestSpan()
            return
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        # Messages of errors may quote prompts, so no exception is recorded.
        with self._tracer.start_as_current_span(
            f"vllm_edit {route}",
            parent,
            SpanKind.SERVER,
            {"http.route": route},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            found = RequestSpan(span)
            try:
                yield found
            except EditError as error:
                found.end(status_of(error))
                raise
            except Exception:
                found.end(500)
                raise
