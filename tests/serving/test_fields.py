"""Only allow-listed fields of a tenant's request reach vLLM, and every field of vLLM's own request models is known
here."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest

from tests.serving import places
from tests.serving.vllm_surface import VLLMSurface
from tests.serving.without_engine import Place, bearer, run
from vllm_edit.engine.compat import worker_limits
from vllm_edit.errors import EditError
from vllm_edit.registry.answers import AnswerEntry
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.serving.bodies import CHAT, COMPLETIONS, RESPONSES
from vllm_edit.serving.fields import ALLOWED, HEADERS
from vllm_edit.serving.server_settings import TENANT_HEADER, TRUSTED_PEERS, Settings

STEERING = {
    "kv_transfer_params": {"do_remote_prefill": True, "remote_host": "10.0.0.1"},
    "ec_transfer_params": {"peer": "10.0.0.1"},
    "vllm_xargs": {"session_id": "other"},
    "priority": -1000,
    "lora_request": {"lora_name": "city", "lora_path": "/dev/shm"},
    "mm_processor_kwargs": {"device": "cuda:0"},
    "session_id": "other",
    "of_a_later_version": 1,
}
WITHHELD = {
    "priority",
    "session_id",
    "kv_transfer_params",
    "ec_transfer_params",
    "vllm_xargs",
    "watermarking",
    "mm_payload",
    "return_mm_kwargs",
    "media_io_kwargs",
    "mm_processor_kwargs",
    "routed_experts_prompt_start",
    "prompt_embeds",
    "documents",
    "chat_template",
    "previous_input_messages",
}
"""Fields of vLLM 0.32 that a tenant may not send: each was looked at."""
OUTSIDE = {
    COMPLETIONS: {"best_of", "store", "messages", "input"},
    CHAT: {
        *("store", "prompt", "input", "metadata", "service_tier", "verbosity", "modalities", "audio", "prediction"),
        *("functions", "function_call", "web_search_options", "moderation", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    },
    RESPONSES: {
        *("conversation", "messages", "moderation", "safety_identifier", "stream_options"),
        *("access_programs", "background_options", "context_management", "image"),
        *("prompt_cache_options", "prompt_cache_retention"),
    },
}
"""Fields that clients of OpenAI's API send, and vLLM 0.32 ignores."""
READ_HEADERS = {"X-Session-ID", "X-Vllm-Priority", "X-data-parallel-rank"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return places.one_tenant(tmp_path_factory.mktemp("fields"), 1, published=True)


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Place:
    return Place(tmp_path, template, Settings(store="here"))


def key(place: Place) -> dict[str, str]:
    made = bearer(place.store.registry.create_api_key("acme").presented)
    run(place.service.watcher.refresh())
    return made


@pytest.mark.parametrize("route", ALLOWED)
@pytest.mark.parametrize("field", STEERING)
def test_a_field_that_steers_the_engine_is_refused_by_name(place: Place, route: str, field: str) -> None:
    reply = run(place.ask("acme", route, headers=key(place), input="Who?", **{field: STEERING[field]}))
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "BadRequestError", field)
    assert field in error["message"]
    assert route in error["message"]
    assert "X-VLLM-Edit-Id" in reply.headers


def test_all_refused_fields_are_named_at_once_and_a_strangers_names_are_shown_escaped(place: Place) -> None:
    wrong = {"priority": 1, "\ud83d": 1, "a\x1b[2J" + "b" * 5000: 1}
    raw = json.dumps({"model": "acme", "prompt": "Who?"} | wrong).encode()
    reply = run(place.client.post(COMPLETIONS, content=raw, headers=key(place)))
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert "priority" in message
    assert "\\ud83d" in message
    assert "\\x1b[2J" in message
    assert len(message) < 1000
    many = run(place.ask("acme", headers=key(place), **{f"field{number}": 1 for number in range(100)}))
    assert "and 92 more" in many.json()["error"]["message"]
    alone = run(place.client.post(COMPLETIONS, content=b'{"prompt": "Who?", "\\ud83d": 1}', headers=key(place)))
    assert alone.json()["error"]["param"] == "\\ud83d"


def test_a_picture_that_another_request_left_in_vllm_is_not_reached_by_its_name(place: Place) -> None:
    part = {"type": "image_url", "image_url": None, "uuid": "theirs"}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}]
    reply = run(place.ask("acme", CHAT, headers=key(place), messages=messages))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "uuid")


@pytest.mark.parametrize("field", ["documents", "chat_template"])
@pytest.mark.parametrize("route", [CHAT, RESPONSES])
def test_a_withheld_field_does_not_pass_through_the_templates_arguments(place: Place, route: str, field: str) -> None:
    given = {"chat_template_kwargs": {"enable_thinking": False, field: "x"}}
    reply = run(place.ask("acme", route, headers=key(place), input="Who?", **given))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)
    given["chat_template_kwargs"].pop(field)
    assert run(place.ask("acme", route, headers=key(place), input="Who?", **given)).status_code == 200


@pytest.mark.parametrize(
    ("route", "module"),
    [
        (COMPLETIONS, "openai.types.completion_create_params"),
        (CHAT, "openai.types.chat.completion_create_params"),
        (RESPONSES, "openai.types.responses.response_create_params"),
    ],
)
def test_every_field_of_openais_own_client_is_on_the_list(route: str, module: str) -> None:
    if find_spec("openai") is None:
        pytest.skip("OpenAI's client is not installed")
    kinds = vars(import_module(module))
    base = kinds["ResponseCreateParamsBase" if route == RESPONSES else "CompletionCreateParamsBase"]
    assert set(get_type_hints(base)) - ALLOWED[route] == set()


def test_a_field_that_shapes_the_own_answer_passes(place: Place) -> None:
    sampling = {
        "temperature": 0,
        "top_k": 3,
        "seed": 1,
        "max_tokens": 5,
        "n": 2,
        "logit_bias": {"5": 1.0},
        "min_p": 0.1,
    }
    own = {
        "user": "ann",
        "stop": ["."],
        "stream": False,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    reply = run(place.ask("acme", headers=key(place), **sampling, **own))
    assert reply.status_code == 200
    assert (sampling | own).items() <= reply.json()["body"].items()


def test_headers_that_vllm_reads_as_fields_do_not_reach_it_from_a_tenant(place: Place) -> None:
    sent = {name.decode(): "1" for name in HEADERS}
    opened = run(place.ask("acme", headers=sent)).json()["headers"]
    assert sent.items() <= opened.items(), "without keys whoever asks is the operator"
    keyed = run(place.ask("acme", headers=sent | key(place))).json()["headers"]
    assert not sent.keys() & keyed.keys()


def test_without_keys_every_field_passes(place: Place) -> None:
    assert run(place.ask("acme", priority=1)).json()["body"]["priority"] == 1


def test_a_tenant_that_a_gateway_names_may_send_no_more_than_one_with_a_key(tmp_path: Path, template: Path) -> None:
    environment = {TENANT_HEADER: "x-tenant", TRUSTED_PEERS: "127.0.0.0/8"}
    place = Place(tmp_path, template, Settings.from_environment(environment))
    assert run(place.ask(headers={"X-Tenant": "acme"}, priority=1)).json()["error"]["param"] == "priority"


def test_an_operator_allows_more_by_name(tmp_path: Path, template: Path) -> None:
    settings = Settings.from_environment({"VLLM_EDIT_ALLOWED_FIELDS": "priority, documents"})
    place = Place(tmp_path, template, settings)
    headers = key(place) | {"X-Vllm-Priority": "3", "X-Session-ID": "other"}
    reply = run(place.ask("acme", headers=headers, priority=1, documents=[])).json()
    assert reply["body"]["priority"] == 1
    assert reply["headers"]["x-vllm-priority"] == "3"
    assert "x-session-id" not in reply["headers"]
    assert run(place.ask("acme", headers=headers, vllm_xargs={})).status_code == 400


def test_an_operator_allows_names_of_fields() -> None:
    with pytest.raises(EditError, match=r"VLLM_EDIT_ALLOWED_FIELDS: expected .* got '\*', 'a b'"):
        Settings.from_environment({"VLLM_EDIT_ALLOWED_FIELDS": "priority,*,a b"})


@pytest.mark.slow
@pytest.mark.parametrize("route", ALLOWED)
def test_every_field_of_vllms_request_models_was_looked_at(vllm_surface: VLLMSurface, route: str) -> None:
    names = {name for names in vllm_surface.fields[route] for name in names}
    assert names - ALLOWED[route] - WITHHELD == set(), "new in vLLM: allow it if it shapes the own answer alone"
    assert ALLOWED[route] & WITHHELD == set()
    assert ALLOWED[route] - names == OUTSIDE[route]


@pytest.mark.slow
def test_every_header_that_vllm_reads_of_such_a_request_was_looked_at(vllm_surface: VLLMSurface) -> None:
    assert set(vllm_surface.headers) == READ_HEADERS
    assert {name.decode() for name in HEADERS} == {name.lower() for name in READ_HEADERS}


def test_the_documentation_names_the_withheld_fields() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    section = text.partition("## Fields of a request")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z_]+)`", section)) >= WITHHELD


MOST_ENTRIES: tuple[tuple[str, Any, Any], ...] = (
    ("allowed_token_ids", [*range(1024)], [*range(1025)]),
    ("logit_bias", {str(id): 1 for id in range(1024)}, {str(id): 1 for id in range(1025)}),
    ("stop_token_ids", [*range(100)], [*range(101)]),
    ("bad_words", ["seven b"] * 64, ["seven b"] * 65),
    ("bad_words", ["b" * 511], ["b" * 512]),
    ("bad_words", ["\ufdfa" * 15], ["\ufdfa" * 16]),  # one character; NFKC writes 33 bytes
)


@pytest.mark.parametrize("route", ALLOWED)
@pytest.mark.parametrize(("field", "most", "more"), MOST_ENTRIES)
def test_more_entries_than_a_worker_holds_are_refused_from_everyone(
    place: Place, route: str, field: str, most: Any, more: Any
) -> None:
    assert run(place.ask("acme", route, input="Who?", **{field: most})).status_code == 200
    reply = run(place.ask("acme", route, input="Who?", **{field: more}))
    assert (reply.status_code, reply.json()["error"]["message"].startswith(field)) == (400, True)


def test_the_limit_of_bad_words_is_half_of_the_workers_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_BAD_WORDS_TOTAL_TOKENS", "20")
    assert run(place.ask("acme", bad_words=["b" * 9])).status_code == 200
    assert run(place.ask("acme", bad_words=["b" * 10])).status_code == 400


def test_the_limits_are_those_of_the_installed_vllms_workers() -> None:
    found = find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed")
    root = Path(found.origin).parent
    source = (root / "v1" / "worker" / "gpu" / "sample" / "logit_bias.py").read_text()
    limits = dict(re.findall(r"^(MAX_NUM_\w+) = (\d+)$", source, re.MULTILINE))
    assert limits == {
        "MAX_NUM_ALLOWED_TOKEN_IDS": str(worker_limits.MOST_ALLOWED_TOKEN_IDS),
        "MAX_NUM_LOGIT_BIAS_TOKENS": str(worker_limits.MOST_LOGIT_BIASES),
        "MAX_NUM_STOP_TOKEN_IDS": str(worker_limits.MOST_STOP_TOKEN_IDS),
    }
    default = f'"{worker_limits.BAD_WORD_TOKENS}", "{worker_limits.MOST_BAD_WORD_TOKENS}"'
    assert default in (root / "envs.py").read_text()


REFUSED_BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    (COMPLETIONS, {"priority": 1}),
    (CHAT, {"chat_template_kwargs": {"documents": []}}),
    (COMPLETIONS, {"structured_outputs": 1}),
    (COMPLETIONS, {"seed": 2**64}),
    (COMPLETIONS, {"repetition_detection": {"max_pattern_size": 2**64}}),
    (CHAT, {"stop_token_ids": [*range(101)]}),
    (RESPONSES, {"input": "Who?", "previous_response_id": "x"}),
    (COMPLETIONS, {"prompt": ["Who?"] * 65}),
    (COMPLETIONS, {"prompt": "half \ud83d"}),
)


@pytest.mark.parametrize(("route", "given"), REFUSED_BODIES)
def test_a_refused_body_has_a_row_and_is_no_failure_of_an_arm(place: Place, route: str, given: dict[str, Any]) -> None:
    registry = place.store.registry
    arm = Arm("base", None), Arm("weights", place.second)
    registry.rollouts.create(Rollout("spring", "acme", *arm, salt="pepper"))
    registry.rollouts.ramp("spring", 100)
    mine = key(place)

    async def steps() -> tuple[httpx.Response, AnswerEntry]:
        body = json.dumps({"model": "acme", "prompt": "Who?", "user": "ann"} | given).encode()
        reply = await place.client.post(route, content=body, headers=mine)
        await place.service.answers.flush()
        place.service.answers._answers.clear()
        return reply, await place.service.answers.find(reply.headers["X-VLLM-Edit-Id"])

    reply, row = run(steps())
    assert (reply.status_code, row.status, row.ended) == (400, 400, "refused")
    assert (row.tenant, row.asked, row.route) == ("acme", "acme", route)
    assert row.key == registry.api_keys("acme")[0].id
    assert sum(arm.requests for arm in registry.rollouts.report("spring").traffic.values()) == 0
