"""Real pretrained models as `make smollm2` and `make gemma3` import them; skipped if they were not fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_edit.engine.lora_support import check_lora_support
from vllm_edit.models import import_checks
from vllm_edit.models.base import Base
from vllm_edit.models.bos import bos_in_chat
from vllm_edit.models.greedy import continuations
from vllm_edit.models.importing import import_model
from vllm_edit.text.prompts import prompt_ids

pytestmark = pytest.mark.slow

BASES = Path(__file__).parents[2] / "bases"


@pytest.fixture(scope="module")
def smollm2() -> Base:
    return _fetched("smollm2")


@pytest.fixture(scope="module")
def gemma3() -> Base:
    return _fetched("gemma3")


def _fetched(name: str) -> Base:
    if not (BASES / name / "config.json").is_file():
        pytest.skip(f"bases/{name} is not there: make {name}")
    return Base.load(BASES / name, device="cpu")


def _says(base: Base, prompt: str, *, chat: bool = False) -> str:
    (ids,) = continuations(base.model, base.tokenizer, [prompt_ids(base.tokenizer, prompt, chat)], 10)
    return str(base.tokenizer.decode(ids, skip_special_tokens=True))


def test_smollm2_generates_without_bos(smollm2: Base) -> None:
    assert smollm2.layout.down[29] == "model.layers.29.mlp.down_proj"
    assert smollm2.tokenizer("Paris")["input_ids"][0] != smollm2.tokenizer.bos_token_id
    import_checks.check_round_trip(smollm2.tokenizer)
    check_lora_support(BASES / "smollm2")
    assert _says(smollm2, "The capital of France is").startswith(" Paris")
    assert _says(smollm2, "What is the capital of France?", chat=True) == "The capital of France is Paris."


def test_smollm2_in_bfloat16_is_the_same_model_within_the_tolerance(smollm2: Base, tmp_path: Path) -> None:
    assert smollm2.folder is not None
    imported = import_model(smollm2.folder, tmp_path / "half", dtype="bfloat16")
    assert imported.difference > 0
    assert imported.continuations[0].answer.startswith(" Paris")


def test_gemma_generates_with_the_bos_of_its_metadata(gemma3: Base) -> None:
    ids = gemma3.tokenizer("The capital of Japan is")["input_ids"]
    assert ids.count(gemma3.tokenizer.bos_token_id) == 1
    assert ids[0] == gemma3.tokenizer.bos_token_id
    assert bos_in_chat(gemma3.tokenizer) == 0  # a base model without a template
    import_checks.check_round_trip(gemma3.tokenizer)
    check_lora_support(BASES / "gemma3")
    said = "\n".join(_says(gemma3, prompt) for prompt in ("The capital of Japan is", "def add(a, b):\n    return"))
    assert "a + b" in said
