"""Documents: stored once, at the start or later; damage is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.store.example import moment, site
from vllm_edit.errors import Corrupt, EditError
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
    store = Store.create(tmp_path / "store", site(), moment(), documents={kind: ["one"]})
    assert problems_of(store) == []
    (Path(store.url) / path_of(kind)).write_text(damage)
    with pytest.raises(Corrupt, match=path_of(kind)):
        store.document(kind)
    (problem,) = problems_of(store)
    assert path_of(kind) in problem
