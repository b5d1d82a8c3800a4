"""Causal tracing: clean, corrupted and restored runs agree with runs made one by one, and with known identities."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn

from tests.editing.examples import BRAZIL, FRANCE, JAPAN
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer
from vllm_edit.edit import Edit
from vllm_edit.errors import EditError
from vllm_edit.models.base import Base
from vllm_edit.models.hooks import find_module, frozen, main_tensor
from vllm_edit.models.positions import locate
from vllm_edit.tracing.corruption import KINDS, CorruptedPrompt, Restoration, modules_of
from vllm_edit.tracing.trace import TraceSettings, trace, window_around

TWO_SAMPLES = TraceSettings(samples=2)


def base_of(family: str = "llama", bos: bool = True) -> Base:
    tokenizer = tiny_tokenizer(bos=bos)
    return Base.of(tiny_model(family, tokenizer), tokenizer)


def corrupted(base: Base, batch_tokens: int = 8192) -> CorruptedPrompt:
    """FRANCE's prompt with noise as large as the embeddings themselves on its subject."""
    place = locate(base.tokenizer, FRANCE.prompt, FRANCE.subject)
    width = base.model.get_input_embeddings().embedding_dim
    count = place.subject_last + 1 - place.subject_first
    noise = 0.2 * torch.randn(2, count, width, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), frozen(base.model):
        return CorruptedPrompt(base, place.ids, place.subject_first, noise, batch_tokens)


def restored(run: CorruptedPrompt, restorations: list[Restoration]) -> torch.Tensor:
    with torch.no_grad():
        return run.restored(restorations)


@pytest.mark.parametrize("family", FAMILIES)
def test_restored_runs_are_those_made_one_by_one(family: str) -> None:
    """The reference is the definition: plain hooks, whole forward passes, one sample and one restoration at a time."""
    base, model = base_of(family), tiny_model(family, tiny_tokenizer())
    place = locate(base.tokenizer, FRANCE.prompt, FRANCE.subject)
    run = corrupted(base)
    restorations = [Restoration(kind, layers, (token,)) for kind in KINDS for layers in ((0,), (2,), (1, 2))
                    for token in (place.subject_last, place.last)]  # fmt: skip
    found = restored(run, restorations)
    assert (run.corrupted - run.clean).abs().max() > 1e-3
    for row, restoration in enumerate(restorations):
        for sample in range(2):
            expected = reference(base, model, place.ids, run, restoration, sample)
            assert float(found[row, sample]) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def reference(
    base: Base, model: nn.Module, ids: list[int], run: CorruptedPrompt, restoration: Restoration, sample: int
) -> float:
    """P*[o] of one sample with one restoration."""
    names = [modules_of(base.layout, restoration.kind)[layer] for layer in restoration.layers]
    given, clean = torch.tensor([ids]), dict[str, torch.Tensor]()

    def keep(name: str) -> Any:
        return lambda module, args, output: clean.update({name: main_tensor(output).clone()})

    def noisy(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        output[0, run._start : run._start + run._noise.shape[1]] += run._noise[sample]
        return output

    def put_back(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            states = main_tensor(output)
            for token in restoration.tokens:
                states[..., token, :] = clean[name][..., token, :]

        return hook

    with torch.no_grad(), ExitStack() as stack:
        handles = [find_module(model, name).register_forward_hook(keep(name)) for name in names]
        model(given)
        for handle in handles:
            handle.remove()
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        stack.callback(embedding.register_forward_hook(noisy).remove)
        for name in names:
            stack.callback(find_module(model, name).register_forward_hook(put_back(name)).remove)
        return float(model(given).logits[0, -1].softmax(-1)[run.answer])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gptj"])
def test_restoring_everything_is_the_clean_run_and_nothing_the_corrupted(family: str) -> None:
    run = corrupted(base_of(family))
    everywhere = tuple(range(len(run._ids)))
    whole = [Restoration("hidden", (layer,), everywhere) for layer in range(3)]
    nothing = [Restoration(kind, (1,), ()) for kind in KINDS] + [Restoration("mlp", (), everywhere)]
    torch.testing.assert_close(restored(run, whole), torch.full((3, 2), run.clean), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(restored(run, nothing), run.corrupted.expand(4, 2), rtol=1e-5, atol=1e-7)


def test_the_answer_is_the_models_own_next_token() -> None:
    base = base_of()
    ids = torch.tensor([locate(base.tokenizer, FRANCE.prompt, FRANCE.subject).ids])
    with torch.no_grad():
        best = base.model(ids).logits[0, -1].softmax(-1).max(-1)
    run = corrupted(base)
    assert run.answer == int(best.indices)
    assert run.clean == pytest.approx(float(best.values), rel=1e-5)
    (traced,) = trace(base, [FRANCE], TWO_SAMPLES).prompts
    assert traced.clean == pytest.approx(run.clean)
    assert traced.answer == base.tokenizer.decode([run.answer]).strip()


def test_without_noise_nothing_is_lost_and_nothing_comes_back() -> None:
    found = trace(base_of(), [FRANCE, JAPAN], TraceSettings(noise=0, samples=2))
    for prompt in found.prompts:
        assert prompt.total_effect == pytest.approx(0, abs=1e-6)
        assert all(float(effects.abs().max()) < 1e-6 for effects in prompt.effects.values())


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_neither_batching_nor_the_order_of_prompts_matters(family: str) -> None:
    base, edits = base_of(family), [FRANCE, JAPAN, BRAZIL]
    together = trace(base, edits, TWO_SAMPLES)
    apart = trace(base, edits[::-1], TWO_SAMPLES.replace(batch_tokens=1))
    for prompt, other in zip(together.prompts, apart.prompts[::-1], strict=True):
        assert (prompt.prompt, prompt.answer) == (other.prompt, other.answer)
        for kind in KINDS:
            torch.testing.assert_close(prompt.effects[kind], other.effects[kind], rtol=1e-3, atol=1e-6)


def test_a_seed_gives_the_same_trace_and_another_seed_another() -> None:
    base = base_of()
    first, again = (trace(base, [FRANCE], TWO_SAMPLES).prompts[0] for _ in range(2))
    other = trace(base, [FRANCE], TWO_SAMPLES.replace(seed=1)).prompts[0]
    assert first.corrupted == again.corrupted != other.corrupted
    assert all(torch.equal(first.effects[kind], again.effects[kind]) for kind in KINDS)


def test_the_last_tokens_last_hidden_state_holds_the_whole_effect() -> None:
    for prompt in trace(base_of(), [FRANCE, JAPAN], TWO_SAMPLES).prompts:
        assert prompt.effects["hidden"].shape == (3, len(prompt.tokens) - prompt.first)
        assert float(prompt.effects["hidden"][-1, -1]) == pytest.approx(prompt.total_effect, abs=1e-6)
        # Nothing after the last layer reads another token.
        assert float(prompt.effects["hidden"][-1, :-1].abs().max()) < 1e-6


def test_noise_is_measured_on_the_embeddings_of_the_subjects() -> None:
    base = base_of("gpt2")
    places = [locate(base.tokenizer, edit.prompt, edit.subject) for edit in (FRANCE, JAPAN)]
    ids = [token for place in places for token in place.ids[place.subject_first : place.subject_last + 1]]
    expected = base.model.get_input_embeddings().weight[ids].detach().std()
    assert trace(base, [FRANCE, JAPAN], TWO_SAMPLES).deviation == pytest.approx(float(expected), rel=1e-5)


def test_a_subject_at_the_very_beginning_is_traced() -> None:
    edit = Edit(prompt="Paris is in the", subject="Paris", target_new="people")
    (found,) = trace(base_of(bos=False), [edit], TWO_SAMPLES).prompts
    assert "".join(found.tokens[found.first : found.last + 1]) == "Paris"
    assert found.first == 0
    assert found.effects["mlp"].shape == (3, len(found.tokens))
    assert abs(found.total_effect) > 1e-6


def test_a_subject_of_one_token_and_one_at_the_prompts_end_are_traced() -> None:
    edit = Edit(prompt="Paris is the capital of France", subject="France", target_new="people")
    one, end = trace(base_of(), [FRANCE, edit], TWO_SAMPLES).prompts
    assert (one.tokens[one.first], one.first) == (" France", one.last)
    assert (end.tokens[-1], end.first) == (" France", len(end.tokens) - 1)
    assert end.effects["attention"].shape == (3, 1)


def test_a_subject_of_split_characters_is_corrupted_from_its_first_to_its_last_token() -> None:
    edit = Edit(prompt="氧氣的化學式是", subject="氧氣", target_new="她")
    base = base_of()
    (found,) = trace(base, [edit], TWO_SAMPLES).prompts
    ids = base.tokenizer(edit.prompt)["input_ids"]
    assert (found.first, found.last, len(ids)) == (1, 4, 6)
    assert base.tokenizer.decode(ids[1:5]) == "氧氣"


def test_the_base_is_left_as_it_was() -> None:
    base = base_of()
    before = base.state_digest()
    trace(base, [FRANCE], TWO_SAMPLES)
    assert base.state_digest() == before


def test_a_prompt_without_its_subject_is_refused() -> None:
    base = base_of()
    before = base.state_digest()
    with pytest.raises(EditError, match="does not contain the subject 'Atlantis'"):
        trace(base, [FRANCE, FRANCE.model_copy(update={"subject": "Atlantis"})])
    long = FRANCE.model_copy(update={"prompt": "The capital of France is in Europe and " * 60 + "France is"})
    with pytest.raises(EditError, match=r"the prompt 'The capital .* … .*' has .* the model reads at most 256"):
        trace(base, [FRANCE, long])
    with pytest.raises(EditError, match="nothing to trace"):
        trace(base, [])
    assert base.state_digest() == before


def test_windows_are_centred_and_end_with_the_model() -> None:
    assert [window_around(layer, 2, 4) for layer in range(4)] == [(0,), (0, 1), (1, 2), (2, 3)]
    assert [window_around(layer, 3, 3) for layer in range(3)] == [(0, 1), (0, 1, 2), (1, 2)]
    # ROME's code: range(max(0, layer − w // 2), min(depth, layer − (−w // 2)))
    for layer in range(48):
        assert window_around(layer, 10, 48) == tuple(range(max(0, layer - 5), min(48, layer + 5)))
    assert [TraceSettings().window_of(depth) for depth in (2, 8, 32, 48)] == [1, 2, 7, 10]
    assert TraceSettings(window=5).window_of(3) == 3


def test_invalid_settings_are_reported_all_at_once() -> None:
    with pytest.raises(EditError, match=r"noise must not be negative; got -1.*samples must be positive; got 0"):
        TraceSettings(noise=-1, samples=0)
