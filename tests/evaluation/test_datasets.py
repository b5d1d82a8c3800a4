"""Readers of public data sets, on hand-made records of each form and on the real slices where those are present."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_edit.datasets import DataSet, LeftOut, read_edits
from vllm_edit.datasets.data_file import records_in
from vllm_edit.edit import Edit, Probe
from vllm_edit.errors import EditError
from vllm_edit.patch import Patch

DATA = Path(os.environ.get("VLLM_EDIT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def read(tmp_path: Path, *records: dict[str, Any]) -> list[Edit]:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return read_edits(path)


def test_original_counterfact(tmp_path: Path) -> None:
    record = {
        "case_id": 0,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Danielle Darrieux",
            "target_new": {"str": "English", "id": "Q1860"}, "target_true": {"str": "French", "id": "Q150"},
        },
        "paraphrase_prompts": ["Danielle Darrieux, a native"],
        "neighborhood_prompts": ["The native language of Montesquieu is"],
    }  # fmt: skip
    assert read(tmp_path, record) == [
        Edit(
            prompt="The mother tongue of Danielle Darrieux is",
            subject="Danielle Darrieux",
            relation="P103",
            target_new="English",
            target_true="French",
            probes=(
                Probe(kind="paraphrase", prompt="Danielle Darrieux, a native"),
                Probe(kind="locality", prompt="The native language of Montesquieu is", target="French"),
            ),
        )
    ]


def test_zsre_takes_the_first_answer_and_strips_the_name_of_its_source(tmp_path: Path) -> None:
    record = {
        "subject": "munich", "src": "Who governs Munich?", "pred": "x", "rephrase": "Who leads Munich?",
        "alt": "Bruno Granier", "answers": ["Dieter Reiter"], "loc": "nq question: who made the song",
        "loc_ans": "Reel 2",
    }  # fmt: skip
    [edit] = read(tmp_path, record)
    assert (edit.subject, edit.target_new, edit.target_true) == ("Munich", "Bruno Granier", "Dieter Reiter")
    assert edit.probes_of("unrelated") == [Probe(kind="unrelated", prompt="who made the song", target="Reel 2")]


def test_knowedit_values_may_be_strings_lists_or_lists_of_aliases(tmp_path: Path) -> None:
    record = {
        "subject": "Tamm", "prompt": "The gender of Tamm is", "target_new": "female",
        "portability": {"Subject_Aliasing": [{"prompt": "The gender of A. Tamm is", "ground_truth": "female"}]},
        "locality": {
            "Relation_Specificity": [
                {"prompt": "The award of Tamm is", "ground_truth": [[], ["", "Honorary Doctor", "Dr"]]},
                {"prompt": "The siblings of Tamm are", "ground_truth": []},
            ]
        },
    }  # fmt: skip
    [edit] = read(tmp_path, record)
    assert edit.target_true is None
    assert [(p.kind, p.target, p.tag) for p in edit.probes] == [
        ("portability", "female", "subject_aliasing"),
        ("locality_subject", "Honorary Doctor", "relation_specificity"),
        ("locality_subject", None, "relation_specificity"),
    ]


@pytest.mark.parametrize(
    ("prompt", "subject", "read_as"),
    [
        ("The official language of Langu is", "Langu", "Langu"),
        ("The house where the US president lives is in", "US", "US"),
        ("The most famous author of US history is", "US", "US"),
        ("The start of Art Deco was in", "Art", "Art"),
        ("Where is MUNICH, in munich's land", "munich", "munich"),
        ("The capital of Nigeria and not of niger is", "Niger", "niger"),
        ("The capital of Côte d’Ivoire is", "Côte d'Ivoire", "Côte d’Ivoire"),
        ("İzmir has the mayor Tunç Soyer since", "tunç soyer", "Tunç Soyer"),
        ("The capital of FRANCE is", "France", "FRANCE"),
    ],
)
def test_a_subject_is_read_as_the_prompt_spells_it(tmp_path: Path, prompt: str, subject: str, read_as: str) -> None:
    [edit] = read(tmp_path, {"prompt": prompt, "subject": subject, "target_new": "Lyon"})
    assert edit.subject == read_as


def test_records_that_are_no_edits_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {"subject": "A", "prompt": "A is", "target_new": "b", "ground_truth": "c"}
    same, absent = {**good, "target_new": "c"}, {**good, "subject": "Z"}
    assert len(read(tmp_path, good, same, absent)) == 1
    assert "2 of 3 records are not edits" in caplog.text


GOOD = {"prompt": "The capital of France is", "subject": "France", "target_new": "Lyon"}
NESTED = {"prompt": "{} is the sport of", "subject": "LeBron James", "target_new": {"str": "football"}}


def loaded(tmp_path: Path, *records: Any) -> DataSet:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return DataSet.load(path)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**GOOD, "subject": None}, "subject: expected text, got null"),
        ({**GOOD, "subject": ["France"]}, "subject: expected text, got a list"),
        ({**GOOD, "subject": "  "}, "subject: expected text, got '  '"),
        ({**GOOD, "prompt": ["The capital of France is"]}, "prompt: expected text, got a list"),
        ({**GOOD, "prompt": 10**30}, "prompt: expected text, got a number"),
        ({**GOOD, "target_new": 1990}, "target_new: expected an answer, got 1990"),
        ({**GOOD, "target_new": [1990]}, "target_new: expected an answer, got a list"),
        ({**GOOD, "target_new": True}, "target_new: expected an answer, got true"),
        ({**GOOD, "target_new": {"id": "Q1"}}, "target_new: expected an answer, got a mapping"),
        ({**GOOD, "ground_truth": "lyon"}, "target_new equals target_true"),
        ({**GOOD, "ground_truth": [["Paris", "Lyon"]]}, "target_new equals target_true"),
        ({**GOOD, "subject": "Franc"}, "subject: 'Franc' is not a whole word of the prompt 'The capital of France is'"),
        ({**GOOD, "subject": "Fr\ud83d", "prompt": "Fr\ud83d is"}, "prompt: Input should be a valid string"),
        ({"question": "x"}, "it has the fields question; expected one of: requested_rewrite"),
        ({}, "it has the fields (none)"),
        ("text", "expected a mapping, got 'text'"),
        (None, "expected a mapping, got null"),
        ({"requested_rewrite": []}, "requested_rewrite: expected at least one rewrite"),
        ({"requested_rewrite": [NESTED, 1]}, "requested_rewrite.1: target_new: expected an answer, got null"),
        ({"requested_rewrite": [NESTED, NESTED]}, "edits.1: subject 'LeBron James'"),
        ({"requested_rewrite": {**NESTED, "subject": 1}}, "subject: expected text, got 1"),
        ({"requested_rewrite": 1}, "it has the fields requested_rewrite"),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:60],
)  # fmt: skip
def test_a_record_that_is_not_an_edit_is_left_out_with_its_reason(tmp_path: Path, record: Any, reason: str) -> None:
    found = loaded(tmp_path, GOOD, record)
    assert [edit.subject for edit in found.edits] == ["France"]
    [left_out] = found.left_out
    assert (left_out.index, reason in left_out.reason, "\n" in left_out.reason) == (1, True, False), left_out.reason


@pytest.mark.parametrize(
    "optional",
    [
        {"ground_truth": float("nan")},
        {"ground_truth": None, "rephrase_prompt": None, "locality_prompt": None},
        {"portability": {"Reasoning": [None]}, "locality": []},
        {"portability": "none", "locality": 3},
        {"portability": {"Reasoning": {"prompt": [None, 1], "ground_truth": 2}}},
        {"rephrase_prompt": [[], {"str": 1}], "neighborhood_prompts": {"a": 1}},
        {"relation_id": 5},
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_optional_fields_of_a_record_are_missing_if_they_are_not_text(tmp_path: Path, optional: dict[str, Any]) -> None:
    assert loaded(tmp_path, {**GOOD, **optional}).edits == [Edit(**GOOD)]


def test_a_target_may_be_plain_text_or_have_a_name_and_braces_may_be_text(tmp_path: Path) -> None:
    rewrite = {"prompt": "In LaTeX {x}, {} is", "subject": "TeX", "target_new": "Lyon"}
    assert loaded(tmp_path, {"requested_rewrite": rewrite}).edits == [
        Edit(prompt="In LaTeX {x}, TeX is", subject="TeX", target_new="Lyon")
    ]


@pytest.mark.parametrize("prompt", ["LeBron James plays the sport of", "{} plays the sport of"])
def test_romes_request_form(tmp_path: Path, prompt: str) -> None:
    request = {"prompt": prompt, "subject": "LeBron James", "target_new": {"str": "football"}}
    expected = Edit(prompt="LeBron James plays the sport of", subject="LeBron James", target_new="football")
    assert loaded(tmp_path, request).edits == [expected]
    assert loaded(tmp_path, {**request, "target_true": {"str": "basketball", "id": "Q1"}}).edits == [
        expected.model_copy(update={"target_true": "basketball"})
    ]


def test_every_accepted_answer_is_read(tmp_path: Path) -> None:
    record = {
        "prompt": "The employer of Ann Bell is", "subject": "Ann Bell", "target_new": ["IBM", "Big Blue"],
        "ground_truth": [["Xerox", "Haloid"], ["Xerox PARC"]],
        "locality": {"Relation_Specificity": [{"prompt": "Ann Bell was born in", "ground_truth": [["Rome", "Roma"]]}]},
        "portability": {"Reasoning": [{"prompt": "Ann works on", "ground_truth": [["Europe", "EU"], ["Eurasia"]]}]},
    }  # fmt: skip
    [edit] = loaded(tmp_path, record).edits
    assert edit.new_answers == ("IBM", "Big Blue")
    assert edit.old_answers == ("Xerox", "Haloid", "Xerox PARC")
    assert {probe.kind: probe.answers for probe in edit.probes} == {
        "locality_subject": ("Rome", "Roma"),
        "portability": ("Europe", "EU", "Eurasia"),
    }


def test_mquakes_rewrites_are_edits_of_one_record_with_its_questions_as_portability(tmp_path: Path) -> None:
    def rewrite(prompt: str, subject: str, new: str, old: str, question: str) -> dict[str, Any]:
        targets = {"target_new": {"str": new, "id": "Q1"}, "target_true": {"str": old, "id": "Q2"}}
        return {"prompt": prompt, "relation_id": "P1", "subject": subject, "question": question, **targets}

    record = {
        "case_id": 1,
        "requested_rewrite": [
            rewrite("{} is a citizen of", "Ellie Kemper", "Croatia", "United States of America", "Where is she from?"),
            rewrite("The head of government of {} is", "Croatia", "Ed Davey", "Andrej Plenković", "Who leads Croatia?"),
        ],
        "questions": ["Who leads the country of Ellie Kemper?", "Who governs where Ellie Kemper is a citizen?"],
        "answer": "Joe Biden", "answer_alias": ["Biden"],
        "new_answer": "Ed Davey", "new_answer_alias": ["Edward Davey", "Sir Ed Davey"],
        "single_hops": [{"question": "x", "answer": "United States of America", "answer_alias": ["USA", "America"]}],
        "new_single_hops": [{"question": "x", "answer": "Croatia", "answer_alias": ["Hrvatska"]}],
    }  # fmt: skip
    found = loaded(tmp_path, record, record)
    assert [len(edits) for edits in found.records] == [2, 2]
    first, second = found.records[0]
    assert (first.prompt, first.relation) == ("Ellie Kemper is a citizen of", "P1")
    assert first.new_answers == ("Croatia", "Hrvatska")
    assert first.old_answers == ("United States of America", "USA", "America")
    assert [(probe.kind, probe.prompt, probe.answers, probe.tag) for probe in first.probes] == [
        ("paraphrase", "Where is she from?", (), ""),
        *(
            ("portability", question, ("Ed Davey", "Edward Davey", "Sir Ed Davey"), "multi_hop")
            for question in record["questions"]
        ),
    ]
    assert [probe.kind for probe in second.probes] == ["paraphrase"]
    assert len(DataSet.load(tmp_path / "data.json", limit=1).records) == 1


COLUMNS = {
    "prompts": ["The capital of France is", "The capital of Japan is", "x"],
    "subject": ["France", "Japan"],
    "target_new": ["Lyon", "Osaka", "y"],
    "ground_truth": ["Paris", None],
    "rephrase_prompts": ["France is ruled from"],
    "locality_inputs": {"neighborhood": {"prompt": ["The capital of Spain is", None], "ground_truth": ["Madrid", "x"]}},
    "portability_inputs": {"synonym": {"prompt": [["q1", "q2"], "q3"], "ground_truth": [[["a", "b"], "c"], ["d"]]}},
}  # fmt: skip


def test_easyedits_columns_are_records(tmp_path: Path) -> None:
    path = tmp_path / "columns.json"
    path.write_text(json.dumps(COLUMNS))
    found = DataSet.load(path)
    france, japan = found.edits
    assert (france.target_true, japan.target_true) == ("Paris", None)
    assert [(probe.kind, probe.prompt, probe.answers, probe.tag) for probe in france.probes] == [
        ("paraphrase", "France is ruled from", (), ""),
        ("portability", "q1", ("a", "b"), "synonym"),
        ("portability", "q2", ("c",), "synonym"),
        ("locality", "The capital of Spain is", ("Madrid",), "neighborhood"),
    ]
    assert [probe.prompt for probe in japan.probes] == ["q3"]
    assert found.left_out == (LeftOut(index=2, reason="subject: expected text, got null"),)


def test_easyedits_arguments_may_be_of_one_edit(tmp_path: Path) -> None:
    one = {name: column[0] if isinstance(column, list) else column for name, column in COLUMNS.items()}
    one["locality_inputs"] = {"neighborhood": {"prompt": "The capital of Spain is", "ground_truth": "Madrid"}}
    one["portability_inputs"] = {"synonym": {"prompt": "q", "ground_truth": "a"}}
    path = tmp_path / "one.json"
    path.write_text(json.dumps(one))
    (edit,) = DataSet.load(path).edits
    assert (edit.prompt, edit.target_true) == ("The capital of France is", "Paris")
    assert [(probe.kind, probe.prompt, probe.answers) for probe in edit.probes] == [
        ("paraphrase", "France is ruled from", ()),
        ("portability", "q", ("a",)),
        ("locality", "The capital of Spain is", ("Madrid",)),
    ]


def test_a_number_of_any_length_is_of_its_record_only(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(f"[{json.dumps(GOOD)}, {json.dumps({**GOOD, 'target_new': 0})[:-2]}{'9' * 5000}}}]")
    found = DataSet.load(path)
    assert (len(found.edits), [record.index for record in found.left_out]) == (1, [1])


def test_probes_need_not_be_in_groups(tmp_path: Path) -> None:
    probes = [{"prompt": "q", "ground_truth": "a"}, None, {"prompt": "r"}]
    (edit,) = loaded(tmp_path, {**GOOD, "portability": probes, "locality": probes}).edits
    assert [(probe.kind, probe.prompt, probe.answers) for probe in edit.probes] == [
        ("portability", "q", ("a",)),
        ("locality_subject", "q", ("a",)),
        ("locality_subject", "r", ()),
    ]


def test_a_name_of_both_answers_is_the_old_ones(tmp_path: Path) -> None:
    record = {**GOOD, "target_new": ["Lyon", "the City", "Lyons"], "ground_truth": ["Paris", "City"]}
    (edit,) = loaded(tmp_path, record).edits
    assert (edit.new_answers, edit.old_answers) == (("Lyon", "Lyons"), ("Paris", "City"))


def test_an_answer_of_punctuation_alone_is_none(tmp_path: Path) -> None:
    probe = {"prompt": "q", "ground_truth": ["!!", "\u200b"]}
    record = {**GOOD, "target_new": ["?", "Lyon"], "ground_truth": "…", "portability": {"x": [probe]}}
    found = loaded(tmp_path, record, {**GOOD, "target_new": "!!!"})
    assert (found.edits[0].new_answers, found.edits[0].old_answers, found.edits[0].probes) == (("Lyon",), (), ())
    assert found.left_out == (LeftOut(index=1, reason="target_new: expected an answer, got '!!!'"),)


def test_an_answer_of_two_lines_is_none(tmp_path: Path) -> None:
    probe = {"prompt": "q", "ground_truth": ["a\nb"]}
    record = {**GOOD, "target_new": ["a\nb", "Lyon"], "ground_truth": "a\nb", "portability": {"x": [probe]}}
    found = loaded(tmp_path, record, {**GOOD, "target_new": "a\nb"})
    assert (found.edits[0].new_answers, found.edits[0].old_answers, found.edits[0].probes) == (("Lyon",), (), ())
    assert found.left_out == (LeftOut(index=1, reason=r"target_new: expected an answer, got 'a\nb'"),)


def test_easyedits_portability_has_a_new_question_and_knowedits_groups_may_be_columns(tmp_path: Path) -> None:
    one = {**GOOD, "portability": {"Recalled Relation": "r", "New Question": "q", "New Answer": "a"}}
    columns = {**GOOD, "locality": {"Forgetfulness": {"prompt": ["q"], "ground_truth": [["a", "b"]]}}}
    flat = {**GOOD, "portability_prompt": "q", "portability_ground_truth": "a"}
    answers = [loaded(tmp_path, record).edits[0].probes for record in (one, columns, flat)]
    assert answers == [
        (Probe(kind="portability", prompt="q", target="a"),),
        (Probe(kind="locality_subject", prompt="q", target="a", target_aliases=("b",), tag="forgetfulness"),),
        (Probe(kind="portability", prompt="q", target="a"),),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_list_or_a_record_a_line_in_any_of_jsons_encodings(tmp_path: Path, encoding: str, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    one, other = GOOD, {**GOOD, "target_new": "Ly\u2028on"}
    path.write_text(json.dumps([one, other], ensure_ascii=False), encoding=encoding)
    listed = read_edits(path)
    lines = "\r\n".join(json.dumps(record, ensure_ascii=False) for record in (one, other))
    path.write_text(f"{lines}\n\n", encoding=encoding)
    assert read_edits(path) == listed
    path.write_text(json.dumps(one), encoding=encoding)
    assert read_edits(path) == listed[:1]


def test_a_line_that_is_not_json_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(['{"prompt": ', json.dumps(GOOD), "[" * 100_000]))
    found = DataSet.load(path)
    assert len(found.records) == 1
    assert [(record.index, record.reason[:8]) for record in found.left_out] == [(0, "not JSON"), (2, "not JSON")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "expected a JSON data set"),
        ("{}", "JSON list"),
        ("[]", "JSON list"),
        ("3", "JSON list"),
        ('[{"a": 1}]', "the fields a"),
        ('{"a": 1}', "the fields a"),
        ("[" * 100_000, "expected a JSON data set"),
        (b"\xff\xfe\x00\xd8", "line 1: not UTF-8"),
        (b"\x00\x80\xff", "line 1: not UTF-8"),
        (b"", "expected a JSON data set"),
        ("9" * 5000, "JSON list"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_file_that_is_not_a_data_set_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EditError, match=message) as caught:
        read_edits(path)
    assert "\n" not in str(caught.value)


KEYS = [
    "prompt", "src", "text", "prompts", "subject", "concept", "target_new", "alt", "labels", "ground_truth", "answers",
    "target_true", "requested_rewrite", "questions", "new_answer", "new_answer_alias", "single_hops", "answer", "str",
    "new_single_hops", "answer_alias", "portability", "locality", "locality_inputs", "portability_inputs", "loc",
    "loc_ans", "neighborhood_prompts", "paraphrase_prompts", "rephrase", "relation_id", "New Question", "New Answer",
    "locality_prompt", "question",
]  # fmt: skip
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5)
near = (
    st.sampled_from(["France", "The capital of France is", "{} is in", "Lyon", "lyon", "\ud83d", "\x00", " "]) | plain
)
values = st.recursive(
    near, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.sampled_from(KEYS), one, max_size=6)
)
edit_like = st.fixed_dictionaries(
    {"prompt": near | values, "subject": near | values, "target_new": near | values},
    optional={key: values for key in KEYS if key not in ("prompt", "subject", "target_new")},
)
rewrites = st.fixed_dictionaries({"requested_rewrite": edit_like | st.lists(edit_like | values, max_size=3)})


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(edit_like | rewrites | values, max_size=4) | values)
def test_any_json_is_read_or_reported_and_every_record_is_accounted_for(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "any.json"
    path.write_text(json.dumps(content))
    message = None
    try:
        found = DataSet.load(path)
    except EditError as error:
        message = str(error)
    if message is None:
        assert len(found.records) + len(found.left_out) == (
            len(content) if isinstance(content, list) else len(records_in(path))
        )
        assert all(Patch(name="x", edits=edits) for edits in found.records)
        message = "".join(record.reason for record in found.left_out)
    assert "\n" not in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("file", "edits", "kinds"),
    [
        ("counterfact/counterfact-2000.json", 2000, {"paraphrase", "locality"}),
        ("knowedit/ZsRE-test-650.json", 650, {"paraphrase", "portability", "locality_subject"}),
        ("knowedit/wiki_counterfact-700.json", 700, {"portability", "locality_subject"}),
        ("knowedit/wiki_recent-300.json", 300, {"portability", "locality_subject"}),
        ("knowedit/wikibio-100.json", 100, {"locality_subject"}),
        ("zsre/zsre_mend-500.json", 500, {"paraphrase", "unrelated"}),
    ],
)
def test_real_slices_are_read_nearly_whole(file: str, edits: int, kinds: set[str]) -> None:
    if not (DATA / file).exists():
        pytest.skip(f"{DATA / file} is not here; set VLLM_EDIT_DATA to the folder of the public data slices")
    found = read_edits(DATA / file)
    assert 0.95 * edits <= len(found) <= edits
    assert {probe.kind for edit in found for probe in edit.probes} == kinds
    assert len(read_edits(DATA / file, limit=3)) == 3
    Patch(name="single", edits=(found[0],))
