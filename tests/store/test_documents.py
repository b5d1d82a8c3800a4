"""Documents: stored once, at the start or later; damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.example import moment, site
from vllm_edit.errors import Corrupt, EditError
from vllm_edit.facts.stored_pool import stored_pool
from vllm_edit.json_value import JSONValue
from vllm_edit.store.documents import KINDS, Kind, path_of
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store


def test_documents_are_stored_permanently_and_read_again(tmp_path: Path) -> None:
    content = {"known": [{"subject": "法國"}]}
    store = Store.create(tmp_path / "store", site(), moment(), documents={"pool": content, "tried": []})
    assert Store.open(store.url).document("pool") == content
    assert store.document("tried") is None, "nothing was tried: nothing is kept"
    store.keep("texts", ["one"])
    assert Store.open(store.url).document("texts") == ["one"]
    with pytest.raises(EditError, match=r"has pool\.json already"):
        store.keep("pool", {})
    assert store.document("pool") == content
    assert problems_of(store) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["[]", "{", '{"digest": "0"}'])
def test_a_damaged_document_is_found(tmp_path: Path, kind: Kind, damage: str) -> None:
    content: dict[Kind, JSONValue] = {"pool": {"asked": {}, "known": []}, "settings": "d" * 32}
    store = Store.create(tmp_path / "store", site(), moment(), documents={kind: content.get(kind, ["one"])})
    assert problems_of(store) == []
    (Path(store.url) / path_of(kind)).write_text(damage)
    with pytest.raises(Corrupt, match=path_of(kind)):
        store.document(kind)
    (problem,) = problems_of(store)
    assert path_of(kind) in problem


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        ("pol", {}, "expected a document's kind among passages, texts, pool, tried, settings; got 'pol'"),
        ("../site", {}, r"expected a document's kind among .*; got '\.\./site'"),
        ("pool", [], r"expected an object for pool\.json, got list"),
        ("texts", "one", r"expected a list for texts\.json, got str"),
        ("settings", None, r"expected a digest for settings\.json, got NoneType"),
    ],
)
def test_a_document_of_no_kind_or_of_another_form_is_not_written(
    tmp_path: Path, kind: Kind, content: JSONValue, problem: str
) -> None:
    store = Store.create(tmp_path / "store", site(), moment())
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(EditError, match=f"^{problem}$"):
        store.keep(kind, content)
    assert sorted(tmp_path.rglob("*")) == files
    if content:
        with pytest.raises(EditError, match=f"^{problem}$"):
            Store.create(tmp_path / "other", site(), moment(), documents={kind: content})
        assert not (tmp_path / "other").exists()


def test_a_document_that_is_no_pool_of_facts_is_reported_by_its_file(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", site(), moment())
    store.keep("pool", {"known": []})
    with pytest.raises(Corrupt, match=r"^pool\.json holds no pool of facts \(asked: Field required\); restore it"):
        stored_pool(store)
