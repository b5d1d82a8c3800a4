"""A new store gets missing inputs from its model; an existing store is opened unchanged, and only for its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.editing.examples import bench
from tests.tiny import SENTENCES
from vllm_edit.artefacts.site import Context
from vllm_edit.edit import Edit
from vllm_edit.editing.second_moments import SecondMoments
from vllm_edit.editing.site.sites import fixed_site
from vllm_edit.editing.site.sweep import SiteChoice
from vllm_edit.editing.site.trials import Measurement
from vllm_edit.editing.site_tensors import site_tensors_of
from vllm_edit.errors import EditError
from vllm_edit.facts import known_edits, pooling, tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.models.base import Base
from vllm_edit.release import swept_store
from vllm_edit.release.swept_store import create_store, open_or_create
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store


def test_a_store_that_is_there_is_opened_without_a_sweep(tmp_path: Path) -> None:
    one = bench()
    Store.create(tmp_path / "store", one.site, one.moment.tensors()).registry.close()
    opened, measured = open_or_create(tmp_path / "store", one.base, (), ())
    assert opened.site() == one.site
    assert not measured
    assert opened.passages() == ()
    for passages in (["first"], ["second"]):  # stored if there are none yet
        assert open_or_create(tmp_path / "store", one.base, (), (), passages)[0].passages() == ("first",)
    opened.registry.close()


def test_a_store_of_another_base_is_refused(tmp_path: Path) -> None:
    one = bench("gpt2")
    Store.create(tmp_path / "store", one.site, one.moment.tensors()).registry.close()
    with pytest.raises(EditError, match="is a store for another base than"):
        open_or_create(tmp_path / "store", bench().base, (), ())


@pytest.fixture
def all_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers every question about elements right, and whose sweep takes no time."""
    whole = Facts.load(tables_folder())
    few = Facts(
        tuple(subject for subject in whole.subjects if subject.table == "elements"),
        tuple(relation for relation in whole.relations if relation.table == "elements"),
        (),
    )
    monkeypatch.setattr(Facts, "load", lambda folder: few)
    for module in (pooling, known_edits):
        monkeypatch.setattr(module, "right", lambda base, questions, *others: [True] * len(questions))

    def choose(base: Base, edits: Sequence[Edit], texts: Sequence[str], **others: object) -> SiteChoice:
        made = fixed_site(base, texts, layer=2, token="last", contexts=[Context()])
        row = Measurement(
            token="last", layer=2, damping=0.0, margin=1.0, joint=False, edits=len(edits), reliability=1.0,
            paraphrase=0.5, locality=0.5, locality_subject=None, reached=0.5, reworded=0.5, stayed=0.5,
            norm=float("nan"), steps=3.0,
        )  # fmt: skip
        return SiteChoice(made, (row,))

    monkeypatch.setattr(swept_store, "choose_site", choose)


@pytest.mark.usefixtures("all_known")
def test_a_model_that_knows_enough_has_its_site_chosen_by_that_and_the_store_keeps_it(tmp_path: Path) -> None:
    base = bench().base
    texts = list(SENTENCES) * 4
    created = create_store(tmp_path / "store", base, texts=texts, passages=["first"])
    assert created.why == "tried on 21 edits", "each of another subject: so many of the elements are on the tune side"
    assert created.pool is not None
    assert len(created.pool.known) == 182
    store = Store.open(tmp_path / "store")
    assert (store.site().layer, store.passages(), store.document("texts")) == (2, ("first",), None)
    assert store.document("pool") == created.pool.as_record()
    (tried,) = store.document("tried")
    assert (tried["edits"], tried["stayed"], tried["norm"]) == (21, 0.5, None), "a number that is none is kept as none"
    assert problems_of(store) == []
    created.store.registry.close()
    store.registry.close()


@pytest.mark.usefixtures("all_known")
@pytest.mark.parametrize(
    ("given", "depth", "layers"), [({}, 2, [1, 2]), ({}, 9, [0, 1, 2]), ({"layer": 1, "token": "last"}, 2, [0, 1])]
)
def test_a_site_of_several_layers_ends_at_the_one_that_is_chosen_or_given(
    tmp_path: Path, given: dict[str, Any], depth: int, layers: list[int]
) -> None:
    base = bench().base
    created = create_store(tmp_path / "store", base, texts=list(SENTENCES) * 4, depth=depth, **given)
    site = created.store.site()
    assert site.modules == tuple(base.layout.down[layer] for layer in layers)
    assert site.layer == layers[0]
    moments = site_tensors_of(site, created.store.site_tensors())
    assert isinstance(moments, SecondMoments)
    assert moments.digest == site.second_moment
    assert problems_of(created.store) == []
    created.store.registry.close()


@pytest.mark.usefixtures("all_known")
def test_a_layer_that_is_given_is_not_tried_and_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swept_store, "choose_site", lambda *_, **__: pytest.fail("sites were tried"))
    base, texts = bench().base, list(SENTENCES) * 4
    created = create_store(tmp_path / "store", base, texts=texts, layer=1, token="last")
    assert (created.store.site().layer, created.store.site().token, created.why) == (1, "last", "given")
    assert created.store.document("pool")["known"]
    assert created.store.document("tried") is None
    created.store.registry.close()
    for wrong in ({"layer": 3}, {"max_rank": 9}):
        with pytest.raises(EditError, match=r"layers 0 to 2|max_rank must be one of"):
            create_store(tmp_path / "other", base, **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()
