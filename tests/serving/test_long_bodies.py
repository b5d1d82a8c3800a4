"""A long body delays no other request: it is read in a thread, or refused by its size alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.serving import places
from tests.serving.without_engine import Place, run
from vllm_edit.engine.compat.engine import Engine
from vllm_edit.serving.server_settings import Settings

LONG_S = 60.0  # a limit for a busy machine
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    store = places.make_store(folder / "store", places.make_site(places.make_model(folder / "model")))
    places.add_patch(store, "capital", 1)
    places.save_accepted(store, places.scoped_patch(store.site(), "world", (("Quito",),)))
    store.registry.close()
    return folder / "store"


class Slow:
    """A tokenizer that continues only after another request was answered."""

    def __init__(self) -> None:
        self.begun, self.answered = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.begun.set()
        if not self.answered.wait(LONG_S / 10):
            self.answered.set()
            raise AssertionError("nobody else was answered meanwhile")


def make_place(
    folder: Path, template: Path, monkeypatch: pytest.MonkeyPatch, *, log_prompts: bool = False, **engine: Any
) -> Place:
    for name, replacement in engine.items():
        monkeypatch.setattr(f"tests.serving.without_engine.Slots.{name}", replacement)
    return Place(folder, template, Settings(store="here", log_prompts=log_prompts))


def meanwhile(place: Place, slow: Slow, **asked: Any) -> tuple[int, int]:
    """Statuses of a slow request, and of another request that comes meanwhile."""

    async def steps() -> tuple[int, int]:
        first = asyncio.create_task(place.ask(**asked))
        await asyncio.to_thread(slow.begun.wait, LONG_S)
        other = await place.ask("atlas")
        slow.answered.set()
        return (await first).status_code, other.status_code

    return run(steps())


def counting(slow: Slow) -> Callable[[Any, str], int]:
    def count(_: Any, text: str) -> int:
        slow.wait()
        return 10

    return count


def decoding(slow: Slow) -> Callable[[Any, Sequence[int]], str]:
    def decode(_: Any, ids: Sequence[int]) -> str:
        slow.wait()
        return "Is Quito high?"

    return decode


def test_tokenizing_a_long_body_leaves_the_event_loop(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    place = make_place(tmp_path, template, monkeypatch, count_tokens=counting(slow))
    assert meanwhile(place, slow, model="capital:ike", prompt="word " * 5000) == (200, 200)


@pytest.mark.parametrize(("model", "log_prompts"), [("world", False), ("world:ike", False), ("atlas", True)])
def test_decoding_many_token_ids_leaves_the_event_loop(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, model: str, log_prompts: bool
) -> None:
    slow = Slow()
    place = make_place(tmp_path, template, monkeypatch, log_prompts=log_prompts, decode=decoding(slow))
    status, other = meanwhile(place, slow, model=model, prompt=[[5] * 200] * 50)
    assert other == 200
    assert status == (400 if model == "world:ike" else 200), "mode ike takes no token ids"


def refuse_to_count(_: Any, text: str) -> int:
    raise AssertionError("it was tokenized")


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        ("/v1/completions", {"prompt": "word " * 20_000}),
        ("/v1/completions", {"prompt": ["word", "字" * 40_000]}),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 1000}] * 20}),
        ("/v1/responses", {"input": "word " * 20_000}),
    ],
)
def test_a_body_that_cannot_fit_the_context_is_refused_before_it_is_tokenized(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch, route: str, asked: dict[str, Any]
) -> None:
    place = make_place(tmp_path, template, monkeypatch, count_tokens=refuse_to_count)
    reply = run(place.ask("capital:ike", route, **asked))
    assert reply.status_code == 400
    assert "take all 256 tokens of the model" in reply.json()["error"]["message"]


def test_many_prompts_that_fit_one_by_one_are_counted(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path, template, monkeypatch, count_tokens=lambda _, text: 10)
    assert run(place.ask("capital:ike", prompt=["word " * 1000] * 20)).status_code == 200


def test_more_token_ids_than_the_context_are_refused_before_they_are_decoded(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Any, ids: Sequence[int]) -> str:
        raise AssertionError("they were decoded")

    with monkeypatch.context() as patched:
        place = make_place(tmp_path, template, patched, decode=refuse)
        for prompt in ([5] * 20_000, [[5], [5] * 20_000]):
            reply = run(place.ask("world", prompt=prompt))
            assert reply.status_code == 400
            assert "20000 token ids, the model reads at most 256" in reply.json()["error"]["message"]
    place.service.decode = lambda ids: "Is Quito high?"
    assert run(place.ask("world", prompt=[5] * 20_000, truncate_prompt_tokens=5)).status_code == 200


@pytest.mark.parametrize("model", ["world", "world:ike", "capital", "capital:ike", "atlas"])
@pytest.mark.parametrize(
    ("route", "asked", "message"),
    [
        ("/v1/completions", {"prompt": [[5]] * 20_000}, "a list of 20000 prompts, at most 64"),
        ("/v1/completions", {"prompt": ["a"] * 65}, "a list of 65 prompts, at most 64"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}] * 257}, "messages has 257 turns"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 256}]}, "messages has 257"),
        ("/v1/responses", {"input": [{"role": "user", "content": "a"}] * 257}, "input has 257 turns"),
    ],
)
def test_more_pieces_than_can_be_answered_are_refused_before_any_is_read(
    tmp_path: Path,
    template: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    route: str,
    asked: dict[str, Any],
    message: str,
) -> None:
    def refuse(_: Any, read: Any) -> Any:
        raise AssertionError("it was read")

    place = make_place(tmp_path, template, monkeypatch, log_prompts=True, decode=refuse, count_tokens=refuse)
    reply = run(place.ask(model, route, **asked))
    assert reply.status_code == 400
    assert message in reply.json()["error"]["message"]
    answer = place.service.answers.get(reply.headers["X-VLLM-Edit-Id"])
    assert answer is not None
    assert (answer.status, answer.ended) == (400, "refused")


def test_as_many_prompts_as_vllm_takes_and_ids_of_one_prompt_pass(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_place(tmp_path, template, monkeypatch)
    for prompt in (["a"] * 64, [5] * 200, [], "a"):
        assert run(place.ask("capital", prompt=prompt)).status_code == 200


def test_looking_for_half_pairs_in_a_long_body_leaves_the_event_loop(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    monkeypatch.setattr(
        "vllm_edit.serving.router.refuse_unpaired_surrogates", lambda raw, _: len(raw) > 10_000 and slow.wait()
    )
    place = make_place(tmp_path, template, monkeypatch)
    assert meanwhile(place, slow, model="capital", prompt="word " * 5000) == (200, 200)


def test_counting_leaves_the_engines_own_tokenizer_alone(tmp_path: Path) -> None:
    """vLLM sets its truncation from other threads, and a tokenizer that is in use refuses that."""
    tokenizer = AutoTokenizer.from_pretrained(places.make_model(tmp_path))
    client = SimpleNamespace(renderer=SimpleNamespace(get_tokenizer=lambda: tokenizer))
    engine = Engine(client, SimpleNamespace(lora_requests={}))
    text = "The capital of France is"
    expected = tokenizer.encode(text, add_special_tokens=False)
    tokenizer.backend_tokenizer.enable_truncation(2)
    assert engine.count_tokens(text) == len(expected) > 2
    assert engine.decode(expected) == text
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 2
