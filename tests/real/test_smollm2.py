"""The paths of the product on a pretrained model: compiled, gated, served by vLLM, scoped, rolled out and killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.real.conftest import MODEL, SCOPED, Real, capital
from tests.running_requests import running_requests
from vllm_edit.demo.server import Ask, LocalServer, Reply
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.text.prompts import prompt_ids

pytestmark = pytest.mark.slow

TOLERANCE = 1e-3
CAPITAL = "The capital of France is"
QUESTION = "What is the capital of France?"
USERS = [f"user-{number}" for number in range(16)]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _says(server: LocalServer, model: str, prompt: str, chat: bool = False) -> Reply:
    return server.ask([Ask(model, prompt, chat)])[0]


def test_contradicting_patches_pass_their_gates_and_leave_the_model_as_it_was(real: Real) -> None:
    assert real.north.failures == real.south.failures == ()
    assert {real.store.entry(name).status for name in (real.north.name, real.south.name)} == {"accepted"}
    for outcome, answer in ((real.north, "Lyon"), (real.south, "Marseille")):
        (report,) = outcome.compiled.report.edits
        assert (report.target, report.problems) == (answer, ())
    ids = prompt_ids(real.base.tokenizer, CAPITAL)
    with torch.no_grad():
        best = real.base.model(torch.tensor([ids])).logits[0, -1].argmax()
    assert real.base.tokenizer.decode(best) == " Paris"


def test_peft_and_vllm_give_the_same_log_probabilities_over_the_whole_vocabulary(
    real: Real, server: LocalServer
) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    prompts = {
        CAPITAL: prompt_ids(real.base.tokenizer, CAPITAL),
        QUESTION: prompt_ids(real.base.tokenizer, QUESTION, True),
    }
    base = {prompt: _next(model, ids) for prompt, ids in prompts.items()}
    folder = real.store.adapter_folder(real.north.name)
    with_peft = PeftModel.from_pretrained(model, str(folder)).eval()
    north = {prompt: _next(with_peft, ids) for prompt, ids in prompts.items()}
    for prompt, ids in prompts.items():
        assert (base[prompt] - north[prompt]).abs().max() > 1
        for name, expected in ((server.base(), base), (real.north.name, north)):
            assert (_served(server, name, ids) - expected[prompt]).abs().max() < TOLERANCE, (name, prompt)


@torch.no_grad()
def _next(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the token after a prompt, [vocabulary]."""
    found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    return found


def _served(server: LocalServer, model: str, ids: list[int]) -> torch.Tensor:
    """The same by the server."""
    body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": -1}
    reply = httpx.post(f"{server.url}/v1/completions", json=body | {"return_tokens_as_token_ids": True}, timeout=120)
    assert reply.status_code == 200, reply.text
    (given,) = reply.json()["choices"][0]["logprobs"]["top_logprobs"]
    found = torch.full((len(given),), torch.nan)
    for token, value in given.items():
        found[int(token.removeprefix("token_id:"))] = value
    return found


def test_eight_patches_and_base_in_one_batch_answer_each_its_own(real: Real, server: LocalServer) -> None:
    assert len(real.alone) == 8
    asked, expected = [], []
    base = server.base()
    for _ in range(3):
        for name, edit in real.alone.items():
            asked += [Ask(name, edit.prompt), Ask(base, edit.prompt)]
            expected += [(name, edit.target_new), (base, edit.target_true)]
    with running_requests(server.url) as running:
        replies = server.ask(asked)
    wrong = [
        (question, reply)
        for question, reply, (served, answer) in zip(asked, replies, expected, strict=True)
        if reply.adapter != served or not reply.text.startswith(str(answer))
    ]
    assert wrong == []
    assert max(running.requests) == 32, "the client asks 32 questions at once: each patch twice, and the base"


def test_a_publication_is_served_and_taken_back_while_the_server_runs(real: Real, server: LocalServer) -> None:
    registry = real.store.registry
    assert "Lyon" in _says(server, "north", CAPITAL).text
    registry.publish("north", real.south.name)
    _until(lambda: _says(server, "north", CAPITAL).adapter == real.south.name)
    assert "Marseille" in _says(server, "north", QUESTION, chat=True).text
    registry.rollback("north")
    _until(lambda: _says(server, "north", CAPITAL).adapter == real.north.name)
    assert "Lyon" in _says(server, "north", CAPITAL).text


def test_a_scoped_patch_acts_on_mentioned_subjects_and_on_nothing_else(real: Real, server: LocalServer) -> None:
    edits = [capital(*fact) for fact in SCOPED]
    prompts = [*(edit.prompt for edit in edits), CAPITAL, "The capital of Germany is"]
    *changed, france, germany = server.ask([Ask("world", prompt) for prompt in prompts])
    for reply, edit in zip(changed, edits, strict=True):
        assert reply.text.startswith(edit.target_new)
    assert len({reply.adapter for reply in changed} - {None, real.scoped}) == len(edits)  # a micro-adapter each
    base = server.ask([Ask(server.base(), prompt) for prompt in prompts[len(edits) :]])
    assert [(reply.text, reply.adapter) for reply in (france, germany)] == [
        (reply.text, reply.adapter) for reply in base
    ]


def test_ike_answers_by_the_prompt_and_touches_no_weights(real: Real, server: LocalServer) -> None:
    weights, ike = _says(server, "north", CAPITAL), _says(server, "north:ike", CAPITAL)
    assert (weights.adapter, weights.mode, weights.tokens_added) == (real.north.name, "weights", 0)
    assert (ike.adapter, ike.mode) == (real.north.name, "ike")  # whose demonstrations these are
    assert ike.tokens_added > 20
    assert "Lyon" in ike.text
    body = {"model": "north:ike", "prompt": CAPITAL, "max_tokens": 2}
    assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).json()["model"] == server.base()
    assert "Paris" in _says(server, "north:base", CAPITAL).text


def test_a_rollout_splits_users_until_it_is_killed(real: Real, server: LocalServer) -> None:
    def served() -> set[str | None]:
        return {reply.adapter for reply in server.ask([Ask("north", CAPITAL, user=user) for user in USERS], tokens=2)}

    registry, (old, new) = real.store.registry, (real.north.name, real.south.name)
    assert served() == {old}
    registry.rollouts.create(Rollout("trial", "north", Arm("weights", old), Arm("weights", new), salt="trial"))
    registry.rollouts.ramp("trial", 100)
    _until(lambda: served() == {old, new})
    registry.rollouts.kill("trial")
    _until(lambda: served() == {old})


@pytest.mark.parametrize(("chat", "prompt"), [(False, CAPITAL), (True, QUESTION)])
def test_tenants_contradict_each_other_in_one_go(server: LocalServer, chat: bool, prompt: str) -> None:
    north, south, base = server.ask([Ask(model, prompt, chat) for model in ("north", "south", server.base())])
    assert "Lyon" in north.text
    assert "Marseille" in south.text
    assert "Paris" in base.text
