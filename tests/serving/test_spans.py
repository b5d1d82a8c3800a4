"""OpenTelemetry spans of requests: what the router decided, as parent of vLLM's own span; off by default."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

from tests.serving import places
from tests.serving.without_engine import Place, run
from vllm_edit.rollout.draft import draft
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.spans import Spans

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


class Traced(Place):
    """A place whose spans are read from `spans`."""

    def __init__(self, folder: Path, template: Path) -> None:
        super().__init__(folder, template, Settings(store="here"))
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.service.spans = Spans(provider.get_tracer("test"))

    @property
    def span(self) -> ReadableSpan:
        """The only span."""
        (found,) = self.exporter.get_finished_spans()
        return found

    @property
    def attributes(self) -> Mapping[str, Any]:
        assert self.span.attributes is not None
        return self.span.attributes


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose tenant acme is served the patch `capital`."""
    return places.one_tenant(tmp_path_factory.mktemp("spans"), 1, published=True)


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Traced:
    return Traced(tmp_path, template)


def test_a_span_says_what_the_router_decided(place: Traced) -> None:
    reply = run(place.ask("acme:ike"))
    assert reply.status_code == 200
    answer = place.service.answers.get(reply.headers["X-VLLM-Edit-Id"])
    assert answer is not None
    assert answer.ike_tokens > 0
    expected = {
        "http.route": "/v1/completions",
        "http.response.status_code": 200,
        "vllm_edit.id": answer.id,
        "vllm_edit.tenant": "acme",
        "vllm_edit.adapter": place.second,
        "vllm_edit.patch": place.second,
        "vllm_edit.mode": "ike",
        "vllm_edit.reason": answer.reason,
        "vllm_edit.generation": answer.generation,
        "vllm_edit.ike_tokens": answer.ike_tokens,
        "vllm_edit.ended": "whole",
    }
    assert dict(place.attributes) == expected
    assert (place.span.name, place.span.kind.name, place.span.status.status_code.name) == (
        "vllm_edit /v1/completions", "SERVER", "UNSET",
    )  # fmt: skip
    assert "Who?" not in place.span.to_json(), "no text of a prompt"


def test_a_rollouts_arm_is_an_attribute(place: Traced) -> None:
    registry = place.store.registry
    made = draft(
        "spring", "acme", resolve=place.store.resolve, served=registry.served, treatment="base", control=None, split=50,
        metrics=(), users={"ann": "treatment"}, order=("user-field",), user_header="x-user-id",
        session_header="x-session-id", salt="pepper", alpha=0.05,
    )  # fmt: skip
    registry.rollouts.create(made)
    registry.rollouts.ramp("spring", 100)
    run(place.service.watcher.refresh())
    assert run(place.ask("acme", user="ann")).status_code == 200
    shown = {name: place.attributes.get(f"vllm_edit.{name}") for name in ("arm", "mode", "rollout", "adapter")}
    assert shown == {"arm": "treatment", "mode": "base", "rollout": "spring", "adapter": None}


def test_the_span_is_between_the_clients_and_that_of_vllm(place: Traced) -> None:
    from vllm.tracing import extract_trace_context, extract_trace_headers

    headers = run(place.ask("acme", headers=TRACED)).json()["headers"]
    context = place.span.context
    assert context is not None
    assert place.span.parent is not None
    assert (format_trace_id(context.trace_id), format_span_id(place.span.parent.span_id)) == (TRACE, PARENT)
    seen = get_current_span(extract_trace_context(extract_trace_headers(headers))).get_span_context()
    assert (seen.trace_id, seen.span_id) == (context.trace_id, context.span_id)
    assert headers["tracestate"] == "vendor=1"


def test_a_client_without_a_trace_begins_one(place: Traced) -> None:
    headers = run(place.ask("acme")).json()["headers"]
    assert place.span.parent is None
    assert place.span.context is not None
    assert format_span_id(place.span.context.span_id) in headers["traceparent"]


@pytest.mark.parametrize(("model", "status", "error"), [("nobody", 404, "UNSET"), (3, 400, "UNSET")])
def test_a_refused_request_has_a_span_with_its_status(place: Traced, model: Any, status: int, error: str) -> None:
    assert run(place.ask(model)).status_code == status
    assert place.attributes["http.response.status_code"] == status
    assert place.span.status.status_code.name == error
    assert place.span.events == (), "messages may quote prompts"


def test_a_patch_that_the_engine_refuses_is_an_error_with_its_adapter(place: Traced) -> None:
    place.slots.refuse = True
    status = run(place.ask("acme")).status_code
    assert status >= 500
    assert place.attributes["http.response.status_code"] == status
    assert place.attributes["vllm_edit.adapter"] == place.second
    assert place.attributes["vllm_edit.ended"] == "refused"
    assert place.span.status.status_code.name == "ERROR"


def test_without_an_endpoint_there_is_no_span_and_the_headers_stay(tmp_path: Path, template: Path) -> None:
    place = Place(tmp_path, template, Settings(store="here"))
    headers = run(place.ask("acme", headers=TRACED)).json()["headers"]
    assert {name: headers[name] for name in TRACED} == TRACED
    assert Spans.of(None)._tracer is None
    assert Spans.of("http://collector:4317")._tracer is not None
