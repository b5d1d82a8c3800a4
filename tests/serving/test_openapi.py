"""Every request that our OpenAPI description allows, and many others, are answered without a server error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from tests.serving import places
from tests.serving.without_engine import Place, bearer, make_app, run
from vllm_edit.serving.server_settings import Settings
from vllm_edit.store.maintenance import problems_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("openapi")
    return Place(folder, places.one_tenant(folder / "template", 1, published=True), Settings(store="here"))


@pytest.fixture(scope="module")
def admin(place: Place) -> dict[str, str]:
    key = bearer(place.store.registry.create_api_key(None).presented)
    run(place.service.watcher.refresh())
    return key


@pytest.fixture(scope="module")
def tenant(place: Place) -> dict[str, str]:
    key = bearer(place.store.registry.create_api_key("acme").presented)
    run(place.service.watcher.refresh())
    return key


def every_operation(place: Place, admin: dict[str, str], examples: int, check: Callable[[Any], None]) -> int:
    """Run `check` on requests drawn from the description of every operation; returns how many operations there are."""
    schema = schemathesis.openapi.from_asgi("/v1/edits/openapi.json", make_app(place.holder), headers=admin)
    operations = [found.ok() for found in schema.get_all_operations()]
    for operation in operations:
        strategy = st.one_of(operation.as_strategy(), operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        how = settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        how(given(case=strategy)(lambda case: check(case)))()
    return len(operations)


def test_no_description_of_a_request_makes_the_server_fail(place: Place, admin: dict[str, str]) -> None:
    seen: Counter[int] = Counter()

    def check(case: Any) -> None:
        reply = case.call(headers=admin)
        assert reply.status_code < 500, (case.as_curl_command(), reply.text)
        assert "x-vllm-edit-id" in reply.headers
        seen[reply.status_code] += 1

    assert every_operation(place, admin, 20, check) >= 20
    assert {200, 400, 404} <= set(seen), "some are answered, some are refused"


def test_a_tenants_key_is_refused_for_every_request(
    place: Place, admin: dict[str, str], tenant: dict[str, str]
) -> None:
    def check(case: Any) -> None:
        reply = case.call(headers=tenant)
        outcome = case.method == "POST" and case.formatted_path == "/v1/edits/outcomes"
        assert reply.status_code in ((200, 400, 404) if outcome else (403, 404)), (case.as_curl_command(), reply.text)

    every_operation(place, admin, 5, check)


def test_it_is_whole_and_consistent_afterwards(place: Place) -> None:
    assert place.store.registry.active("acme") is not None or place.store.registry.history("acme")
    assert problems_of(place.store) == []
    assert place.store.registry.verify_audit().problems == ()
