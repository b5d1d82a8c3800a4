"""A model with LongRoPE is served with the position factors for short texts, with which it was edited."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from vllm_edit.artefacts.site import Fingerprint
from vllm_edit.errors import Incompatible
from vllm_edit.long_rope import length_problem, short_positions
from vllm_edit.models.lengths import positions_of
from vllm_edit.serving.preflight import check_base
from vllm_edit.serving.profile import Profile

LONG: dict[str, Any] = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}


@pytest.mark.parametrize(
    "config",
    [
        {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 64},
        {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 64},
        {"rope_parameters": LONG | {"original_max_position_embeddings": 64}},
        {"rope_parameters": {"full_attention": LONG | {"original_max_position_embeddings": 64}}},
    ],
)
def test_long_factors_are_refused_in_every_form_of_the_config(config: dict[str, Any]) -> None:
    assert short_positions(config) == 64
    assert length_problem(config, 64) is None
    assert length_problem(config, None) is None
    assert "--max-model-len is 65, and above 64" in str(length_problem(config, 65))


@pytest.mark.parametrize("config", [{}, {"rope_scaling": None}, {"rope_parameters": {"rope_type": "yarn"}}])
def test_other_models_may_be_served_at_any_length(config: dict[str, Any]) -> None:
    assert short_positions(config) is None
    assert length_problem(config, 10**6) is None


def test_texts_are_read_up_to_the_length_of_the_short_factors() -> None:
    model = tiny_model("phi3", tiny_tokenizer())
    assert positions_of(model) == 256
    model.config.rope_parameters = LONG | {"original_max_position_embeddings": 64}
    assert positions_of(model) == 64


def test_serve_refuses_a_larger_length_before_it_starts_the_engine(tmp_path: Path) -> None:
    folder = save_tiny("phi3", tmp_path / "phi3")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = LONG | {"original_max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    base = Fingerprint.of_folder(folder)
    store: Any = SimpleNamespace(base=lambda: base, url="stores/phi3")
    for given in ([], ["--max-model-len", "64"], ["--max-model-len=4k"]):
        assert check_base(store, Profile(str(folder), given)) == folder
    with pytest.raises(Incompatible, match="use --max-model-len 64"):
        check_base(store, Profile(str(folder), ["--max-model-len", "128"]))
