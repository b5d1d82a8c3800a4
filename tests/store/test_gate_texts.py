"""Passages: held out from a store's texts, stored permanently; damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.example import moment, site
from vllm_edit.errors import Corrupt, EditError
from vllm_edit.store.documents import path_of
from vllm_edit.store.gate_texts import cut, hold_out
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

TEXTS = [f"Text {number} of a hundred." for number in range(100)]


def test_a_tenth_is_held_out_by_seed_and_appears_nowhere_else() -> None:
    passages, rest = hold_out(TEXTS, 0)
    assert len(passages) == 10
    assert set(passages).isdisjoint(rest)
    assert sorted(passages + rest) == sorted(TEXTS)
    assert hold_out(TEXTS, 0) == (passages, rest)
    assert hold_out(TEXTS, 1)[0] != passages
    again, others = hold_out(TEXTS * 2, 0)
    assert set(again).isdisjoint(others), "a text that is there twice is held out twice"


@pytest.mark.parametrize(("texts", "held"), [(["alone"], 0), (TEXTS[:2], 1), (TEXTS[:19], 1), (TEXTS * 10, 64)])
def test_few_texts_give_few_passages_and_many_no_more_than_are_read(texts: list[str], held: int) -> None:
    assert len(hold_out(texts, 0)[0]) == held


def test_passages_are_cut_to_the_length_that_a_gate_reads() -> None:
    assert cut(["x" * 5000] * 70) == ["x" * 400] * 64


def test_a_store_keeps_its_passages_for_good(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", site(), moment(), ["one", "二"])
    assert Store.open(store.url).passages() == ("one", "二")
    with pytest.raises(EditError, match="has 2 passages already"):
        store.keep_passages(["other"])
    assert problems_of(store) == []

    bare = Store.create(tmp_path / "bare", site(), moment())
    assert bare.passages() == ()
    assert problems_of(bare) == []
    with pytest.raises(EditError, match="at least one passage"):
        bare.keep_passages([])
    bare.keep_passages(["later"])
    assert bare.passages() == ("later",)


@pytest.mark.parametrize(
    "damage", [lambda text: text.replace("one", "two"), lambda text: text[:20], lambda text: "[]", lambda text: "{}"]
)
def test_damaged_passages_are_found(tmp_path: Path, damage: object) -> None:
    store = Store.create(tmp_path / "store", site(), moment(), ["one"])
    file = Path(store.url) / path_of("passages")
    file.write_text(damage(file.read_text()))  # type: ignore[operator]
    with pytest.raises(Corrupt, match=path_of("passages")):
        store.passages()
    (problem,) = problems_of(store)
    assert path_of("passages") in problem
