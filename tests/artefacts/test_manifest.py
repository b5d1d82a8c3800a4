"""A manifest's digest is computed once and still matches its content."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import pytest

from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.digest import digest_json
from vllm_edit.edit import Edit
from vllm_edit.patch import Gate


def example() -> Manifest:
    edit = Edit(prompt="The capital of France is", subject="France", target_new="Rome")
    return Manifest(
        patch="capital", method="rome", base="b", site="s", modules=("m",), edits=(edit,), rank=1, adapter="a"
    )  # fmt: skip


def test_the_digest_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Any] = []
    monkeypatch.setattr("vllm_edit.artefacts.manifest.digest_json", lambda value: computed.append(value) or "d" * 32)
    manifest = example()
    assert {manifest.name, manifest.name, manifest.digest} == {"capital@" + "d" * 32, "d" * 32}
    assert len(computed) == 1


@pytest.mark.parametrize("deep", [False, True])
def test_a_changed_copy_has_another_digest_and_the_original_keeps_its_own(deep: bool) -> None:
    manifest = example()
    first = manifest.digest
    changed = manifest.model_copy(update={"rank": 2}, deep=deep)
    assert changed.digest == digest_json(changed.model_dump(mode="json")) != first
    assert changed.name != manifest.name
    assert manifest.digest == first
    assert changed.model_copy(update={"rank": 1}).digest == first


def test_the_end_of_an_edit_is_part_of_the_name_and_no_end_leaves_names_as_they_were() -> None:
    manifest = example()
    (edit,) = manifest.edits
    assert manifest.digest == "b1bce261471a4295a60b8746264bdd42"
    ends = [datetime(2100, 1, day, tzinfo=UTC) for day in (2, 1)]
    ending = manifest.model_copy(update={"edits": tuple(edit.model_copy(update={"valid_until": at}) for at in ends)})
    assert (manifest.valid_until, ending.valid_until) == (None, ends[1]), "the first of its edits' ends"
    assert ending.digest != manifest.digest
    assert Manifest.model_validate_json(ending.model_dump_json()) == ending


def test_a_limit_of_drift_is_part_of_the_name_and_none_leaves_names_as_they_were() -> None:
    manifest = example()
    limited = manifest.model_copy(update={"gate": Gate(perplexity_drift=0.02)})
    assert "perplexity_drift" not in manifest.model_dump_json()
    assert limited.digest != manifest.digest
    assert Manifest.model_validate_json(limited.model_dump_json()) == limited


def test_a_digest_that_was_asked_for_changes_nothing_else() -> None:
    asked, fresh = example(), example()
    assert asked.digest
    assert asked == fresh
    assert asked.model_dump_json() == fresh.model_dump_json()
    assert pickle.loads(pickle.dumps(asked)) == fresh
    assert Manifest.model_validate_json(asked.model_dump_json()).digest == asked.digest
