"""A store from a model alone, and `eval known`: the model's answers are stored and never asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.tiny import SENTENCES, save_tiny
from vllm_edit import atlas
from vllm_edit.artefacts.site import Context
from vllm_edit.cli.model_inputs import bank_of
from vllm_edit.editing.site.sites import fixed_site
from vllm_edit.facts import pooling, tables_folder
from vllm_edit.facts.facts import Facts
from vllm_edit.facts.pool import Known, Pool, side_of
from vllm_edit.models.base import Base
from vllm_edit.store.store import Store

LOOSE = ("--set", "on_missed=report", "--set", "steps=4", "--set", "forms=[plain]")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def few_facts(monkeypatch: pytest.MonkeyPatch) -> Facts:
    """One table instead of all."""
    whole = Facts.load(tables_folder())
    few = Facts(
        tuple(subject for subject in whole.subjects if subject.table == "elements"),
        tuple(relation for relation in whole.relations if relation.table == "elements"),
        (),
    )
    monkeypatch.setattr(Facts, "load", lambda folder: few)
    return few


def test_a_store_needs_nothing_but_a_model(program: Program, model: Path, few_facts: Facts, tmp_path: Path) -> None:
    url = tmp_path / "store"
    init = program("store", "init", "--model", model, "--store", url, "--json")
    assert (init.code, init.err) == (0, ""), init.err
    assert init.json["chosen"].startswith("published depth: the model gives 0 of ")
    assert init.json["layer"] == 0
    assert init.json["tried"] == []
    store = Store.open(url)
    texts, passages = store.document("texts"), store.passages()
    assert passages
    assert not {*passages} & {text[:400] for text in texts}, "gates read other text than the site was measured on"
    tokenizer, width = Base.load(model).tokenizer, store.site().d_in
    assert sum(len(tokenizer(text)["input_ids"]) for text in texts) >= 10 * width
    assert store.site().second_moment_count >= 10 * width

    status = program("store", "status", "--store", url, "--json")
    assert status.json["pool"] == init.json["pool"]
    assert status.json["pool"]["known"] == 0
    assert status.json["pool"]["relations"]["elements.symbol"] == {"known": 0, "asked": 6}
    assert "0 known facts" in program("store", "status", "--store", url).out


def test_a_model_that_knows_nothing_has_nothing_to_be_judged_by(
    program: Program, model: Path, few_facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, texts = tmp_path / "store", tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES * 4), encoding="utf-8")
    program("store", "init", "--model", model, "--layer", 1, "--texts", texts, "--store", url)
    monkeypatch.setattr(pooling, "right", lambda *_: pytest.fail("the model was asked again"))
    ran = program("eval", "known", "--store", url)
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert "knows 0 of 18 facts" in ran.err


@pytest.mark.slow
def test_known_facts_of_atlas_are_changed_one_by_one(
    program: Program, few_facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, record = tmp_path / "store", tmp_path / "record.jsonl"
    made = fixed_site(Base.load("atlas"), atlas.texts(400), layer=4, token="last", contexts=[Context()])
    Store.create(url, made.site, made.moment.tensors())  # like a store from before the pool existed
    asked = ("eval", "known", "--limit", 3, "--mode", "weights", "--max-tokens", 4, "--store", url, "--json", *LOOSE)
    ran = program(*asked, "--record", record)
    assert ran.code == 0, ran.err
    assert ran.json["edits"] == 3
    assert [name.partition("@")[0] for name in ran.json["patches"]] == ["known-0", "known-1", "known-2"]
    found = {(m["metric"], m["mode"]): m["value"] for m in ran.json["measures"] if m["protocol"] == "generation"}
    assert ("paraphrase:known", "weights") in found
    assert set(ran.json["relations"]) == {"elements.symbol", "elements.number", "elements.state"}

    store = Store.open(url)
    kept = Pool.from_record(store.document("pool"), few_facts)
    assert len(kept.known) > 150
    assert program("store", "status", "--store", url, "--json").json["pool"]["known"] == len(kept.known)
    monkeypatch.setattr(pooling, "right", lambda *_: pytest.fail("the model was asked again"))
    again = program(*asked, "--record", record, "--answers")
    assert again.json["measures"] == ran.json["measures"]
    assert {
        side_of(fact) for fact in few_facts for a in again.json["answers"] if a["subject"] == fact.subject.name
    } == {"held_out"}
    other = program(*asked, "--seed", 1, "--answers")
    assert {a["subject"] for a in other.json["answers"]} != {a["subject"] for a in again.json["answers"]}


def test_ikes_bank_holds_known_facts_that_nothing_is_judged_on(
    program: Program, model: Path, few_facts: Facts, tmp_path: Path
) -> None:
    url, texts, file = tmp_path / "store", tmp_path / "texts.txt", tmp_path / "france.yaml"
    texts.write_text("\n".join(SENTENCES * 4), encoding="utf-8")
    edits = tmp_path / "edits.yaml"
    edits.write_text(
        "name: tried\nedits:\n  - {prompt: The capital of France is, subject: France, target_new: Berlin, probes: [\n"
        "    {kind: paraphrase, prompt: France has the capital, split: tune},\n"
        "    {kind: locality, prompt: The capital of Japan is, split: tune}]}\n"
    )
    init = ("store", "init", "--model", model, "--layer", 1, "--texts", texts, "--store", url)
    assert program(*init, "--edits", edits).code == 0
    store = Store.open(url)
    assert store.document("pool") is None, "with edits given, the model is not asked"
    assert bank_of(store, None).facts == ()

    known = tuple(Known(fact, fact.relation.trained[:1]) for fact in few_facts)
    pool = Pool(known, {relation.id: 64 for relation in few_facts.relations})
    store.keep("pool", pool.as_record())
    bank = bank_of(store, None)
    tune = {fact.subject.name for fact in few_facts if side_of(fact) == "tune"}
    assert {fact.subject for fact in bank.facts} == tune

    file.write_text(
        "name: france\ngate: {reliability: 0, unrelated: 0}\nedits:\n"
        "  - {prompt: The capital of France is, subject: France, target_new: Berlin}\n"
    )
    ran = program("compile", file, "--store", url, "--json", *LOOSE)
    assert ran.code == 0, ran.err
    made = store.demonstrations(ran.json["compiled"][0]["name"])
    assert {demonstration.kind for demonstration in made} == {"copy", "update", "retain", "fact"}


@pytest.mark.parametrize(
    ("target", "given", "flag"),
    [
        ("capital", ("--record", "record.jsonl"), "--record"),
        ("capital", ("--limit", "1"), "--limit"),
        ("capital", ("--seed", "3"), "--seed"),
        ("capital", ("--method", "ft"), "--method"),
        ("capital", ("--set", "steps=4"), "--set"),
        ("capital", ("--bank", "bank.yaml"), "--bank"),
        ("capital.yaml", ("--limit", "1"), "--limit"),
        ("capital.json", ("--seed", "3"), "--seed"),
    ],
)  # fmt: skip
def test_an_option_that_the_target_does_not_use_is_refused(
    program: Program, tmp_path: Path, target: str, given: tuple[str, str], flag: str
) -> None:
    ran = program("eval", target, *given, "--store", tmp_path / "s")
    assert ran.code == 2
    assert f"Invalid value for {flag}" in ran.err


def test_a_record_in_a_folder_that_does_not_exist_is_refused(program: Program, tmp_path: Path) -> None:
    ran = program("eval", "known", "--record", tmp_path / "none" / "r.jsonl", "--store", tmp_path / "s")
    assert (ran.code, "there is no folder" in ran.err) == (1, True)
    assert not (tmp_path / "none").exists()
