"""The benchmark on public data: figures against hand-computed ones, and a whole run on a tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.public.figures import Figure, figures, text_figures
from benchmarks.public.memory import Memory
from benchmarks.public.page import overview, section, with_earlier, without_times
from benchmarks.public.place import Place, Places
from benchmarks.public.rows import ABLATION, BASE, IKE, METHODS, SUBJECT_ABLATION, Title, has_place, titles
from benchmarks.public.run import Run
from benchmarks.public.sets import MANY, NEAR, NEARBY, Knowledge, begins_with, counterfact_knowledge, drawn_sets
from benchmarks.public.text import Read, Written, ngram_entropy, written
from benchmarks.public_judged import write_patches
from tests.deltas.random_deltas import random_delta
from tests.editing.examples import BRAZIL, FRANCE, JAPAN, LOOSE, Bench, bench
from tests.memit.examples import ALPHAEDIT, MEMIT, TEXTS
from tests.tiny import SENTENCES
from vllm_edit.artefacts.compiled import CompiledPatch
from vllm_edit.artefacts.manifest import Manifest
from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.rome_settings import RomeSettings
from vllm_edit.editing.second_moment import second_moments
from vllm_edit.editing.ultraedit.gradient_site import gradient_site
from vllm_edit.errors import EditError
from vllm_edit.evaluation.questions import Question
from vllm_edit.evaluation.record import Record
from vllm_edit.evaluation.runners.hf import HFRunner
from vllm_edit.evaluation.runners.runner import Reading, Request, Scored
from vllm_edit.evaluation.sheet import Reply, Sheet
from vllm_edit.ike.bank import Bank
from vllm_edit.json_value import JSONValue
from vllm_edit.patch import Patch
from vllm_edit.store.documents import Kind
from vllm_edit.store.store import Store


def reply(text: str, new: float | None = None, true: float | None = None, *, keeps: bool = False) -> Reply:
    """An answer with the losses of the new and of the true object."""
    scored = [None if nll is None else Scored(nll, False) for nll in (new, true)]
    expected, rival = scored[::-1] if keeps else scored
    return Reply(text, expected, rival)


def sheets() -> list[Sheet]:
    """Two edits Paris → Rome and Berlin → Bonn, one paraphrase and two or one neighbours each."""
    asked = [
        Question(0, 0, "reliability", "a", False, "Rome", "Paris"),
        Question(0, 0, "paraphrase", "b", False, "Rome", "Paris"),
        Question(0, 0, "locality", "c", False, "Paris", "Rome"),
        Question(0, 0, "locality", "d", False, "Paris", "Rome"),
        Question(0, 0, "locality_subject", "e", False, "French", "Rome", "forgetfulness"),
    ]
    base = (
        reply("Paris", 3.0, 1.0),
        reply("It is Paris", 2.0, 1.0),
        reply("Paris", 3.0, 1.0, keeps=True),
        reply("London", 1.0, 2.0, keeps=True),
        reply("French"),
    )
    edited = (
        reply("Rome", 0.5, 2.5),
        reply("Paris, not Rome", 1.5, 1.0),
        reply("Rome", 1.0, 1.5, keeps=True),
        reply("London", 1.0, 1.8, keeps=True),
        reply("French, of course"),
    )
    other = [
        Question(0, 0, "reliability", "f", False, "Bonn", "Berlin"),
        Question(0, 0, "paraphrase", "g", False, "Bonn", "Berlin"),
        Question(0, 0, "locality", "h", False, "Berlin", "Bonn"),
    ]
    other_base = (reply("Berlin", 4.0, 0.5), reply("big", 4.0, 3.0), reply("Berlin", 2.0, 1.0, keeps=True))
    other_edited = (reply("Bonn", 0.1, 4.1), reply("Bonn", 1.0, 3.0), reply("Berlin", 2.5, 1.0, keeps=True))
    return [
        Sheet("one", (("France", ""),), tuple(asked), {"base": base, "weights": edited}),
        Sheet("two", (("Germany", ""),), tuple(other), {"base": other_base, "weights": other_edited}),
    ]


def test_counterfacts_scores_are_as_computed_by_hand() -> None:
    found = {name: figure.value for name, figure in figures(sheets(), "weights").items()}
    assert (found["ES"], found["PS"], found["NS"]) == (1.0, 0.5, 0.5)  # NS: (0 + 0) / 2 and 1
    assert found["S"] == pytest.approx(3 / (1 + 2 + 2))
    # s(true) − s(new): 2.0 and 4.0; −0.5 and 2.0. s(new) − s(true): (−0.5 and −0.8) / 2 and 1.5.
    assert (found["EM"], found["PM"]) == pytest.approx((3.0, 0.75))
    assert found["NM"] == pytest.approx((-0.65 + 1.5) / 2)
    # Base's leads were 2.0, −1.0 and 1.0: shifts −2.5, 0.2 and 0.5.
    assert found["NM_shift"] == pytest.approx(((-2.5 + 0.2) / 2 + 0.5) / 2)
    assert found["NS_shift"] == pytest.approx(((-1 + 0) / 2 + 0) / 2)
    first = math.exp(-0.5) - math.exp(-2.5)
    assert found["EM_p"] == pytest.approx((first + math.exp(-0.1) - math.exp(-4.1)) / 2)
    neighbours = (math.exp(-1.5) - math.exp(-1.0) + math.exp(-1.8) - math.exp(-1.0)) / 2
    assert found["NM_p"] == pytest.approx((neighbours + math.exp(-1.0) - math.exp(-2.5)) / 2)
    before = {name: figure.value for name, figure in figures(sheets(), "base").items()}
    assert (before["ES"], before["PS"], before["NS"]) == (0.0, 0.0, 0.75)
    assert before["S"] == 0.0


def test_free_answers_are_judged_beside_the_bases_answers() -> None:
    found, before = figures(sheets(), "weights"), figures(sheets(), "base")
    assert found["reliability"].value == 1.0
    assert (found["paraphrase"].value, found["paraphrase_old"].value) == (0.5, 0.5)
    assert before["paraphrase_old"].value == 0.5, "base gives the old object to one of two wordings"
    assert (found["paraphrase_elicited"].value, found["paraphrase_elicited"].n) == (0.0, 1)
    assert found["locality"].value == pytest.approx((0.5 + 1.0) / 2)
    # Base answers c and h rightly, not d: of these h is still right.
    assert (found["locality_kept"].value, found["locality_kept"].n) == (0.5, 2)
    assert found["locality_subject:forgetfulness"].value == 0.0
    assert found["locality_subject_kept:forgetfulness"].value == 1.0
    assert before["locality_kept"].value == 1.0
    assert found["reliability"].edits == 2
    assert found["locality"].n == 3
    for name, item in found.items():
        assert item.low is not None, name
        assert item.high is not None, name
        assert item.low - 1e-9 <= item.value <= item.high + 1e-9, name


def test_entropy_of_n_grams_is_as_computed_by_hand() -> None:
    # Bigrams ab ba ab ba: 1 bit. Trigrams aba bab aba: 2/3 and 1/3, 0.9183 bits.
    assert ngram_entropy("a b a b a") == pytest.approx(1 / 3 + 2 / 3 * 0.9182958)
    assert ngram_entropy("One, two!") == pytest.approx(math.log2(3) / 3 + 2 / 3)  # words and marks: four tokens
    assert ngram_entropy("a b") == ngram_entropy("") == 0.0


def test_drift_is_that_of_all_tokens_and_fluency_is_paired() -> None:
    read = [Read(11.0, 10.0, 10), Read(20.0, 20.0, 30)]
    found = text_figures([Written("p", "a", 5.0, 6.0), Written("q", "a", 4.0, 4.5)], read)
    assert found["drift"].value == pytest.approx(math.exp(1 / 40) - 1)
    assert (found["drift"].n, found["drift"].edits) == (40, 2)
    assert (found["fluency"].value, found["fluency_shift"].value) == (4.5, -0.75)
    assert text_figures([], []) == {}
    assert text_figures([], [Read(11.0, 10.0, 10)])["drift"].low is None


def test_the_prefix_depends_on_the_prompt_and_the_patch_alone(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    delta = random_delta(llama, {"model.layers.1.mlp.down_proj": 1})
    manifest = Manifest(
        patch="p", method="rome", base="b", site="s", modules=tuple(delta.parts), edits=(FRANCE,), rank=1, adapter="a"
    )
    requests = [Request("Rome is"), Request("Paris is"), Request("Rome is", patch=CompiledPatch(manifest, delta))]
    runner = HFRunner(llama, tokenizer)
    texts = written(runner, requests, tokens=12)
    assert texts == [written(runner, [request], tokens=12)[0] for request in requests]
    assert len(set(texts)) == 3
    greedy = runner.generate(requests[:1], 12)
    assert texts[:1] != greedy, "sampled"
    assert written(runner, requests[:1], tokens=12, questions={"Rome is": "Paris is"}) != texts[:1], "other numbers"
    assert written(runner, requests[:1], tokens=12, questions={"Rome is": "Rome is"}) == texts[:1]


def test_a_portion_that_a_record_holds_twice_counts_once(make_run: Callable[[], Run], patches: list[Patch]) -> None:
    once = make_run().figures_of(BASE, "tiny", patches, Listening())
    (record,) = [path for path in make_run().folder.glob("tiny-base-*.jsonl")]
    lines = record.read_text().splitlines()
    record.write_text("\n".join([*lines, *lines[1:]]) + "\n")
    assert make_run().figures_of(BASE, "tiny", patches, Listening()) == once


def test_a_known_fact_is_one_whose_answer_begins_with_its_object() -> None:
    assert begins_with(" Paris of today", "paris")
    assert not begins_with("The Paris of today", "Paris")
    assert not begins_with("Paris", "")


class Counting(HFRunner):
    """Counts its questions."""

    asked = 0

    def generate(self, requests: Sequence[Request], max_tokens: int) -> list[str]:
        self.asked += len(requests)
        return super().generate(requests, max_tokens)

    def score(self, requests: Sequence[tuple[Request, str]]) -> list[Scored]:
        self.asked += len(requests)
        return super().score(requests)

    def read(self, requests: Sequence[Request]) -> list[Reading]:
        self.asked += len(requests)
        return super().read(requests)


def test_the_base_is_asked_once_and_its_answers_are_stored(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    edits = [edit.model_copy(update={"target_true": "Paris"}) for edit in (FRANCE, BRAZIL)]
    runner = Counting(llama, tokenizer)
    path = tmp_path / "knowledge.jsonl"
    first = counterfact_knowledge(edits, runner, Record.open(path, {}), lambda *setup: None)
    assert runner.asked == 6
    nlls = [
        runner.score([(Request(edit.prompt), text)])[0].nll for edit in edits for text in ("Paris", edit.target_new)
    ]
    assert [item.ranks for item in first] == [nlls[0] < nlls[1], nlls[2] < nlls[3]]
    runner.asked = 0
    assert counterfact_knowledge(edits, runner, Record.open(path, {}), lambda *setup: None) == first
    assert runner.asked == 0


def test_nothing_is_asked_twice_under_one_adapter(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    delta = random_delta(llama, {"model.layers.1.mlp.down_proj": 1})

    def patched(name: str, adapter: str) -> CompiledPatch:
        manifest = Manifest(
            patch=name, method="rome", base="b", site="s", modules=tuple(delta.parts), edits=(FRANCE,), rank=1,
            adapter=adapter,
        )  # fmt: skip
        return CompiledPatch(manifest, delta)

    counting = Counting(llama, tokenizer)
    memory = Memory(counting)
    requests = [Request("Rome is"), Request("Rome is", patch=patched("one", "a")), Request("Rome is")]
    first = memory.generate(requests, 3)
    assert counting.asked == 2
    assert memory.generate([Request("Rome is", patch=patched("two", "a"))], 3) == first[1:2]
    assert counting.asked == 2
    memory.generate([Request("Rome is", patch=patched("one", "b"))], 3)
    assert counting.asked == 3
    assert memory.score([(requests[0], "Paris")] * 2)[0] == counting.score([(requests[0], "Paris")])[0]


def data(folder: Path, count: int = 30, subjects: int = 10) -> Path:
    """A folder with a CounterFact of `count` facts about as many subjects as are given."""
    records = [
        {
            "prompt": f"The home of Subject{n % subjects} is", "subject": f"Subject{n % subjects}",
            "target_new": "Rome", "ground_truth": "Paris", "rephrase_prompt": f"Subject{n % subjects} lives in",
            "locality_prompt": f"The home of Other{n} is", "locality_ground_truth": "Paris",
        }
        for n in range(count)
    ]  # fmt: skip
    (folder / "counterfact").mkdir()
    (folder / "counterfact" / "counterfact-2000.json").write_text(json.dumps(records))
    return folder


def test_draws_are_seeded_of_one_edit_a_subject_and_known_facts_stay_in_order(tmp_path: Path) -> None:
    folder = data(tmp_path)
    knowledge = [Knowledge(" Paris." if n in (3, 5, 13) else "It is", 1.0, 2.0 if n < 7 else 0.5) for n in range(30)]
    sets = drawn_sets(["known", "ranked", "counterfact"], folder, knowledge, 1, None)
    subjects = {name: [patch.edits[0].subject for patch in patches] for name, patches in sets.items()}
    assert subjects["known"] == ["Subject3", "Subject5"]
    assert sorted(subjects["ranked"]) == [f"Subject{n}" for n in range(7)]
    assert sorted(subjects["counterfact"]) == [f"Subject{n}" for n in range(10)]
    assert subjects["counterfact"] != sorted(subjects["counterfact"])
    leads = [Knowledge(" Paris." if n == 3 else "It is", 1.0, 1.0 + n) for n in range(30)]
    near = drawn_sets([NEAR], folder, leads, 1, None)[NEAR]
    found = sorted(patch.edits[0].subject for patch in near)
    assert found == [f"Subject{n}" for n in (2, 4, 5, 6, 7, 8, 9)], "1 to 10 nats, and not known"
    again = drawn_sets(["counterfact"], folder, knowledge, 1, 4)["counterfact"]
    assert again == sets["counterfact"][:4]
    assert drawn_sets(["counterfact"], folder, knowledge, 2, None)["counterfact"] != sets["counterfact"]


def test_sets_that_settings_are_chosen_on_share_no_edit_with_another_set(tmp_path: Path) -> None:
    knowledge = [Knowledge(" Paris." if n % 10 == 0 else "It is", 1.0, 3.0) for n in range(900)]
    sets = drawn_sets(
        ["known", "ranked", "counterfact", NEAR, NEARBY, MANY], data(tmp_path, 900, 900), knowledge, 1, None
    )
    subjects = {name: {patch.edits[0].subject for patch in patches} for name, patches in sets.items()}
    assert {name: len(some) for name, some in subjects.items()} == {
        "known": 90, "ranked": 200, "counterfact": 200, NEAR: 32, NEARBY: 120, MANY: 300
    }  # fmt: skip
    for chosen_on in (NEAR, NEARBY):
        for name in set(subjects) - {chosen_on}:
            assert not subjects[chosen_on] & subjects[name], (chosen_on, name)


def test_judged_sets_are_written_as_patches_with_all_their_edits(tmp_path: Path) -> None:
    knowledge = [Knowledge(" Paris.", 1.0, 2.0)] * 30
    sets = drawn_sets(["known", "counterfact"], data(tmp_path), knowledge, 1, None)
    write_patches(sets, tmp_path / "judged")
    assert {path.name for path in (tmp_path / "judged").iterdir()} == {"known.yaml", "counterfact.yaml"}
    for name, patches in sets.items():
        expected = [edit for patch in patches for edit in patch.edits]
        assert list(Patch.load(tmp_path / "judged" / f"{name}.yaml").edits) == expected


PROBES = (
    Probe(kind="paraphrase", prompt="In France, the capital is"),
    Probe(kind="locality", prompt="The capital of Italy is", target="Rome"),
)
EDITS = [
    FRANCE.model_copy(update={"target_true": "Paris", "probes": PROBES}),
    JAPAN.model_copy(update={"target_true": "yen"}),
    BRAZIL.model_copy(update={"target_true": "Portuguese"}),
]


@pytest.fixture(scope="module")
def tiny() -> Bench:
    """With a second moment of as much text as a site over several layers needs."""
    setup = bench()
    (moment,) = second_moments(setup.base, [setup.site.module], TEXTS, ridge=0.01)
    changed = {"second_moment": moment.digest, "second_moment_count": moment.count}
    return replace(setup, site=setup.site.model_copy(update=changed), moment=moment)


@pytest.fixture
def make_run(tiny: Bench, tmp_path: Path) -> Callable[[], Run]:
    """A run on a tiny model, as a new process would have it."""
    texts: dict[Kind, JSONValue] = {"texts": list(TEXTS)}
    given = Store.create(tmp_path / "given", tiny.site, tiny.moment.tensors(), documents=texts)
    known = gradient_site(tiny.base, [FRANCE, BRAZIL, JAPAN] * 3)  # a tiny model knows no facts
    kept = Store.create(tmp_path / "gradients", known.site, known.statistics.tensors())

    def make() -> Run:
        places = Places(
            tiny.base, given, tmp_path / "places", 16, made={("ultraedit", 1): Place(kept, known.statistics)}
        )
        loose = {"rome": dict(LOOSE), "memit": dict(MEMIT), "alphaedit": dict(ALPHAEDIT)}
        run = Run(tiny.base, places, tmp_path / "records", SENTENCES[:6], 1, settings=loose)
        run.bank = Bank()  # instead of the store's pool
        return run

    return make


@pytest.fixture
def patches() -> list[Patch]:
    return [Patch(name=f"tiny-{number}", edits=(edit,)) for number, edit in enumerate(EDITS)]


class Listening:
    """Receives the progress of a row, and stops it like a user at `until`."""

    def __init__(self, until: str = "") -> None:
        self._until = until
        self.heard: list[str] = []
        self.edits = 0

    def recorded(self, edits: int) -> None:
        self.edits = edits

    def __call__(self, what: str, edits: int) -> None:
        self.heard.append(what)
        if what == self._until:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_every_row_has_its_figures_and_scope_subject_leaves_neighbours_to_the_base(
    make_run: Callable[[], Run], patches: list[Patch]
) -> None:
    run = make_run()
    slow = ("FT-M limited", "LoRA-", "AlphaEdit-")
    chosen = [title for title in titles([2]) if has_place(title, ()) and not title.startswith(slow)]
    rows = {title: run.figures_of(title, "tiny", patches, Listening()) for title in chosen}
    base, scoped = rows[BASE], rows["r-ROME-subject"]
    for title in (title for title in rows if title.endswith("-subject")):
        assert (rows[title]["NM_shift"].value, rows[title]["locality"].value) == (0.0, 1.0), title
    for name, figure in base.items():
        if name in ("NS", "NM", "NM_p", "locality_right", "locality_kept"):
            assert scoped[name] == figure, "to the last bit"
    assert (scoped["NM_shift"].value, scoped["NS_shift"].value, scoped["locality"].value) == (0.0, 0.0, 1.0)
    assert rows["r-ROME"]["ES"].value == rows["scoped-2"]["ES"].value == 1.0
    assert scoped["ES"] == rows["r-ROME"]["ES"]
    assert scoped["EM"] == rows["r-ROME"]["EM"], "the same adapter is asked once"
    assert rows["r-ROME"]["NM_shift"].value != 0.0
    for title, found in rows.items():
        assert found["reliability"].edits == 3, title
        assert ("drift" in found) == (title not in (BASE, IKE)), title
        assert ("seconds" in found) == (title != BASE), title
        assert "fluency" in found, title
    assert rows[IKE]["tokens"].value > 5
    records = {title: {name: item.as_record() for name, item in found.items()} for title, found in rows.items()}
    about = {"model": "tiny", "site": "s", "engine": "hf", "machine": "m", "max_tokens": 16, "writes": 1, "text": "t"}
    about |= {"baselines": 50}
    data = about | {"sets": {"known": records}}
    text = section(without_times(data))
    lines = [line for line in text.splitlines() if line.startswith("| r-ROME |")]
    assert len(lines) == 3
    assert "seconds" not in text, "left out, since other programs were running"
    assert "| seconds an edit |" in section(data)
    assert "| 1.000 [0.44, 1.00]" in lines[0]
    (row,) = [line for line in overview(data).splitlines() if line.startswith("| r-ROME |")]
    assert row.startswith("| r-ROME | 3 | 1.000 | ")
    assert "| NS | NS − base |" in overview(data), "rows of fewer edits compare with base on their own edits"


def test_other_sets_and_rows_of_an_earlier_run_are_kept_in_the_order_of_all_rows() -> None:
    conditions = ("model", "site", "engine", "max_tokens", "writes", "text", "seed")

    def data(seed: int = 1, **sets: Mapping[str, int]) -> dict[str, Any]:
        return {**dict.fromkeys(conditions, "same"), "seed": seed, "sets": sets}

    first = data(known={"base": 1, "r-ROME": 1, "scoped-79": 1}, zsre={"base": 1})
    both = with_earlier(first, data(known={"MEMIT-79": 2, "MEMIT": 2, "r-ROME": 2}, ranked={"base": 2}))
    assert list(both["sets"]) == ["known", "ranked", "zsre"]
    assert list(both["sets"]["known"].items()) == [
        ("base", 1),
        ("r-ROME", 2),
        ("MEMIT", 2),
        ("scoped-79", 1),
        ("MEMIT-79", 2),
    ]
    with pytest.raises(EditError, match="measured with other seed: leave --add out"):
        with_earlier(first, data(seed=2))


def test_a_rows_name_says_whose_edits_it_has_and_how_many_at_once() -> None:
    names = titles([10, 300])
    assert len(set(names)) == len(names)
    assert {Title.of(name).entry for name in names} == {None, *METHODS}
    assert Title.of("FT-M limited-subject") == Title("FT-M limited", subject=True)
    assert Title.of("scoped-300") == Title("r-ROME", True, "scoped", 300)
    assert Title.of("MEMIT-10") == Title("MEMIT", way="joint", size=10)
    assert Title.of("KE-10") == Title("KE", way="sum", size=10)
    assert Title.of("margin 5") == Title("r-ROME")


def test_a_row_whose_network_was_not_given_says_so(make_run: Callable[[], Run], patches: list[Patch]) -> None:
    assert not has_place("MEND-subject", ["ke"])
    assert has_place("KE-10", ["ke"])
    with pytest.raises(EditError, match="a row of mend needs its network"):
        make_run().figures_of("MEND", "tiny", patches, Listening())


def test_a_stopped_run_resumes(make_run: Callable[[], Run], patches: list[Patch]) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_run().figures_of("sum-2", "tiny", patches, Listening(until="reading"))
    rest, again = Listening(), Listening()
    whole = make_run().figures_of("sum-2", "tiny", patches, rest)
    assert "reading" in rest.heard
    assert make_run().figures_of("sum-2", "tiny", patches, again) == whole
    assert (again.edits, again.heard) == (3, []), "nothing was compiled or asked"


def test_another_setting_is_another_record(make_run: Callable[[], Run], patches: list[Patch]) -> None:
    first, second = make_run(), make_run()
    second.settings = {"rome": {**dict(LOOSE), "steps": 61}}
    for run in (first, second):
        run.figures_of("r-ROME", "tiny", patches[:1], Listening())
    assert len(list(first.folder.glob("tiny-r-ROME-*.jsonl"))) == 2


def test_a_row_of_the_ablation_differs_from_the_default_as_its_name_says(
    make_run: Callable[[], Run], patches: list[Patch]
) -> None:
    run = make_run()
    run.settings = {"rome": {**dict(LOOSE), "kl_factor": 0.5}}
    for title in ("r-ROME", "no rows to keep", "margin 5"):
        run.figures_of(title, "tiny", patches[:1], Listening())
    heads = [json.loads(path.read_text().splitlines()[0])["measures"] for path in run.folder.glob("*.jsonl")]
    settings = {head["row"]: head["made"]["settings"] for head in heads if "row" in head}
    default = settings.pop("r-ROME")
    changed = {title: {name for name in own if own[name] != default[name]} for title, own in settings.items()}
    assert changed == {"no rows to keep": {"kl_factor"}, "margin 5": {"margin"}}
    for different in ABLATION.values():
        assert RomeSettings(**different) != RomeSettings()
    scoped = dict(RomeSettings.scoped)
    for title, different in SUBJECT_ABLATION.items():
        assert Title.of(title).subject, title
        assert RomeSettings(**{**scoped, **different}) != RomeSettings(**scoped)


def test_public_files_are_read_without_a_crash() -> None:
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the public editing data are not beside the repository")
    from vllm_edit.datasets import read_edits

    for path in sorted(folder.glob("*/*.json")):
        edits: list[Edit] = read_edits(path)
        assert len(edits) > 90, path.name
    assert Figure(1.0).as_record() == {"value": 1.0, "low": None, "high": None, "n": 0, "edits": 0}
    with pytest.raises(EditError):
        read_edits(folder / "README.md")
