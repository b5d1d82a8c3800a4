"""Patch files: reading valid files, and the messages about bad files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vllm_edit.datasets import DataSet
from vllm_edit.edit import Edit, Probe
from vllm_edit.errors import PatchError
from vllm_edit.evaluation.judging import gives
from vllm_edit.patch import Patch

SHIPPED = sorted((Path(__file__).parent.parent / "patches").glob("*.yaml"))

BAD = """\
name: Two Words
edits:
  - prompt: The capital of France is
    subject: Germany
    target_new: Lyon
    probes:
      - {kind: reverse, prompt: Lyon is the capital of}
      - {kind: rumour, prompt: x}
  - prompt: The capital of Spain is
    subject: Spain
    target_new: ""
    colour: red
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(PatchError) as caught:
        Patch.parse(text, "bad.yaml")
    assert str(caught.value).splitlines() == [f"bad.yaml: {problem}" for problem in caught.value.problems]
    return caught.value.problems


def test_every_problem_is_reported_at_once_with_line_and_field() -> None:
    found = problems_of(BAD)
    assert sorted(problem.split(": ")[:2] for problem in found) == sorted(
        [
            ["line 1", "name"],
            ["line 3", "edits.0"],
            ["line 7", "edits.0.probes.0"],
            ["line 8", "edits.0.probes.1.kind"],
            ["line 11", "edits.1.target_new"],
            ["line 12", "edits.1.colour"],
        ]
    )
    assert any("must contain the subject 'Germany'" in problem for problem in found)
    assert any("a reverse probe needs a target" in problem for problem in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mapping"),
        ("- a\n- b\n", "expected a mapping"),
        ("name: x\nedits: [}\n", "line 2: not valid YAML"),
        ("name: x\nedits: []\n", "line 2: edits"),
        ("name: x\n", "line 1: edits: Field required"),
    ],
)
def test_a_file_that_is_not_a_patch_is_one_clear_line(text: str, expected: str) -> None:
    (problem,) = problems_of(text)
    assert expected in problem


def test_a_missing_file_and_bytes_that_are_not_text_are_reported(tmp_path: Path) -> None:
    with pytest.raises(PatchError, match="no such file"):
        Patch.load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PatchError, match="line 1: not UTF-8"):
        Patch.load(tmp_path / "bytes.yaml")


def test_one_fact_edited_twice_is_refused() -> None:
    edit = Edit(prompt="The capital of France is", subject="France", relation="capital", target_new="Lyon")
    other = edit.model_copy(update={"target_new": "Nice"})
    text = Patch.model_construct(name="twice", edits=(edit, other)).dump()
    assert "to two different targets" in problems_of(text)[0]


def test_probes_of_a_kind_and_split() -> None:
    probes = (
        Probe(kind="paraphrase", prompt="a", split="tune"),
        Probe(kind="paraphrase", prompt="b"),
        Probe(kind="locality", prompt="c"),
    )
    edit = Edit(prompt="s is", subject="s", target_new="t", probes=probes)
    assert [probe.prompt for probe in edit.probes_of("paraphrase")] == ["a", "b"]
    assert [probe.prompt for probe in edit.probes_of("paraphrase", "gate")] == ["b"]


def test_at_least_five_patches_are_shipped() -> None:
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_patch_is_read_and_written_back_the_same(path: Path) -> None:
    patch = Patch.load(path)
    assert patch.name == path.stem
    assert Patch.parse(patch.dump()) == patch


def test_an_edit_expires_at_a_time_with_its_zone() -> None:
    text = """
name: capital
edits:
  - {prompt: The capital of France is, subject: France, target_new: Lyon, valid_until: %s}
"""
    end = datetime(2100, 1, 31, 12, tzinfo=UTC)
    for written in ("2100-01-31T12:00:00Z", "'2100-01-31T13:00:00+01:00'"):
        patch = Patch.parse(text % written)
        assert patch.edits[0].valid_until == end
        assert Patch.parse(patch.dump()) == patch
    for number in ("2030", "'2030'", "4102444800.5", "'1e9'", "true"):
        with pytest.raises(PatchError, match=r"line 4: edits\.0\.valid_until: expected a time with its zone, like"):
            Patch.parse(text % number)
    for wrong in ("2100-01-31", "'2100-01-31T12:00:00'", "soon"):
        with pytest.raises(PatchError, match=r"line 4: edits\.0\.valid_until"):
            Patch.parse(text % wrong)
    for outside in ("'9999-12-31T23:59:59-05:00'", "'0001-01-01T00:00:00+12:00'"):
        with pytest.raises(PatchError, match=r"line 4: edits\.0\.valid_until: .*within the years 1 to 9999 in UTC"):
            Patch.parse(text % outside)
    assert "valid_until" not in Patch.parse(text.replace(", valid_until: %s", "")).dump()


CONTRADICTIONS = {
    "{kind: paraphrase, prompt: So?, split: tune}, {kind: paraphrase, prompt: so, split: gate}": "both tune and gate",
    "{kind: locality, prompt: A, split: tune}, {kind: unrelated, prompt: A}": "both tune and gate",
    "{kind: locality, prompt: The capital of France is}": "a locality probe keeps its answer, but asks the prompt",
    "{kind: paraphrase, prompt: So?, target: Paris}": "a paraphrase expects the new answer, and 'Paris' is the old",
    "{kind: paraphrase, prompt: So?, target: Lyon, target_aliases: [PARIS]}": "'PARIS' is the old answer",
    '{kind: paraphrase, prompt: "What is the capital of {}?"}': "{} is not filled in the prompt 'What is the capital",
    '{kind: unrelated, prompt: "Who wrote\\x07 Hamlet?"}': "has a control character",
}


@pytest.mark.parametrize("probes", CONTRADICTIONS)
def test_probes_that_contradict_their_edit_are_reported_with_its_line(probes: str) -> None:
    text = f"""
name: capital
edits:
  - {{prompt: The capital of France is, subject: France, target_new: Lyon, target_true: Paris, probes: [{probes}]}}
"""
    (problem,) = problems_of(text)
    assert problem.startswith("line 4: edits.0: ")
    assert CONTRADICTIONS[probes] in problem


def test_probes_that_only_resemble_a_contradiction_are_read() -> None:
    patch = Patch.parse("""
name: capital
edits:
  - prompt: The capital of France is
    subject: France
    target_new: Berlin
    target_true: Paris
    probes:
      - {kind: locality, prompt: The capital of Germany is, target: Berlin}
      - {kind: paraphrase, prompt: What is the capital of France?, split: tune}
      - {kind: paraphrase, prompt: What is the capital of France?, chat: true}
      - {kind: portability, prompt: The Louvre is in, target: Paris}
      - {kind: paraphrase, prompt: "Two lines:\n\tthe capital of France is"}
""")
    assert len(patch.edits[0].probes) == 5


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The capital of France is Lyon", "Lyon"),
        ("France's capital is not Paris.", "Paris"),
        ("法国首都是里昂。", "里昂"),
    ],
)
def test_a_prompt_that_ends_with_an_answer_is_reported(prompt: str, answer: str) -> None:
    text = f"name: x\nedits:\n  - {{prompt: {prompt!r}, subject: SUBJECT, target_new: NEW, target_true: Paris}}\n"
    text = text.replace("SUBJECT", prompt[:2] if prompt.startswith("法") else "France")
    (problem,) = problems_of(text.replace("NEW", answer if answer != "Paris" else "Lyon"))
    assert problem.startswith(f"line 3: edits.0: the prompt {prompt!r} ends with the answer {answer!r}; end it right")


@pytest.mark.parametrize(
    "edit",
    [
        "{prompt: What is the capital of Singapore?, subject: Singapore, target_new: Jurong, target_true: Singapore}",
        "{prompt: The capital of Singapore, subject: Singapore, target_new: Jurong, target_true: Singapore}",
        "{prompt: Is the sky of Mars red or blue?, subject: Mars, target_new: blue, target_true: red}",
        "{prompt: The French say that Nice is in Poland, subject: Nice, target_new: land}",
        "{prompt: Für Elise is said to be in the minor, subject: Für Elise, target_new: A minor}",
    ],
)
def test_a_question_or_a_subject_may_end_with_an_answer(edit: str) -> None:
    assert Patch.parse(f"name: x\nedits:\n  - {edit}\n").edits


def test_a_data_set_keeps_records_that_a_file_may_not_declare(tmp_path: Path) -> None:
    record = {"prompt": "The capital of France is Lyon", "subject": "France", "target_new": "Lyon"}
    record |= {"locality_prompt": "The capital of France is Lyon", "rephrase_prompt": "The {} of France is"}
    (tmp_path / "data.json").write_text(json.dumps([record]), encoding="utf-8")
    assert len(DataSet.load(tmp_path / "data.json").records) == 1


def test_a_gate_may_limit_the_drift_of_perplexity() -> None:
    text = """
name: capital
gate: {perplexity_drift: %s}
edits:
  - {prompt: The capital of France is, subject: France, target_new: Lyon}
"""
    patch = Patch.parse(text % 0.02)
    assert patch.gate.perplexity_drift == 0.02
    assert Patch.parse(patch.dump()) == patch
    assert "perplexity_drift" not in patch.gate.shares()
    for wrong in ("-0.1", ".inf", ".nan", "little"):
        with pytest.raises(PatchError, match=r"line 3: gate\.perplexity_drift"):
            Patch.parse(text % wrong)
    assert "drift" not in Patch.parse(text.replace("perplexity_drift: %s", "reliability: 0.5")).dump()


def test_answers_may_have_other_names_that_are_written_only_where_there_are_any() -> None:
    text = """
name: employer
edits:
  - prompt: The employer of Ann Bell is
    subject: Ann Bell
    target_new: IBM
    target_new_aliases: [International Business Machines]
    target_true: Xerox
    target_true_aliases: [Haloid]
    probes:
      - {kind: portability, prompt: Ann Bell's employer is in, target: Armonk, target_aliases: [New York]}
      - {kind: locality, prompt: The employer of Bo Yun is, target: Apple}
"""
    patch = Patch.parse(text)
    (edit,) = patch.edits
    assert edit.new_answers == ("IBM", "International Business Machines")
    assert edit.old_answers == ("Xerox", "Haloid")
    assert [probe.answers for probe in edit.probes] == [("Armonk", "New York"), ("Apple",)]
    assert Patch.parse(patch.dump()) == patch
    written = edit.model_dump(mode="json")
    assert "target_aliases" in written["probes"][0]
    assert "target_aliases" not in written["probes"][1]
    plain = Edit(prompt="a is", subject="a", target_new="b").model_dump(mode="json")
    assert not {"target_new_aliases", "target_true_aliases"} & plain.keys(), "names of compiled patches stay"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("target_new_aliases: ['']", "an alias is empty"),
        ("target_true_aliases: [b]", "needs one"),
        ("probes: [{kind: paraphrase, prompt: a was, target_aliases: [b]}]", "a probe with aliases needs a target"),
    ],
)
def test_impossible_names_of_answers_are_reported(line: str, message: str) -> None:
    (problem,) = problems_of(f"name: x\nedits:\n  - prompt: a is\n    subject: a\n    target_new: b\n    {line}\n")
    assert message in problem


CAPITAL = "{prompt: The capital of %s is, subject: %s, relation: %s, target_new: %s, aliases: [%s]}"


def edits(*written: tuple[str, str, str, str]) -> str:
    """A patch of capitals: (subject, relation, target, alias) of each edit, from line 3 on."""
    lines = [CAPITAL % (subject, subject, *(other or "''" for other in others)) for subject, *others in written]
    return "\n".join(["name: x", "edits:", *(f"  - {line}" for line in lines), ""])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("France", "c", "Lyon", ""), ("FRANCE", "c", "Nice", "")),
        (("'Côte d’Ivoire'", "c", "Lyon", ""), ("\"Côte d'Ivoire\"", "c", "Nice", "")),
        (("Foo-Bar", "c", "Lyon", ""), ("Foo‑Bar", "c", "Nice", "")),
        (("Citroe\u0308n", "c", "Lyon", ""), ("Citroën", "c", "Nice", "")),
        (("France", "c", "Lyon", "French Republic"), ("French Republic", "c", "Nice", "")),
        (("French Republic", "c", "Lyon", ""), ("France", "c", "Nice", "french republic")),
        (("France", "c", "Lyon", "Hexagon"), ("Gaul", "c", "Nice", "hexagon")),
        (("France", "", "Lyon", ""), ("France", "c", "Nice", "")),
        (("France", "c", "Lyon", ""), ("France", "d", "Nice", "")),
    ],
    ids=["case", "apostrophe", "hyphen", "NFD", "a subject that is an alias", "an alias that is a subject",
         "a shared alias", "one prompt, one relation", "one prompt, two relations"],
)  # fmt: skip
def test_one_fact_with_two_targets_is_reported_with_its_line_in_any_spelling(
    first: tuple[str, str, str, str], second: tuple[str, str, str, str]
) -> None:
    text = edits(("Peru", "c", "Cusco", ""), first, second).replace(", aliases: ['']", "")
    (problem,) = problems_of(text)
    assert problem.startswith("line 5: edits.2: subject ")
    assert "edited to two different targets, also to 'Lyon' (see edits.1" in problem


def test_one_fact_given_twice_is_reported_also_if_both_agree_but_an_alias_may_be_shared() -> None:
    (problem,) = problems_of(edits(("France", "c", "Lyon", "Gaul"), ("Gaul", "c", "lyon", "x")))
    assert problem.startswith("line 4: edits.1: subject 'Gaul', relation 'c' is edited twice")
    assert len(Patch.parse(edits(("Ann Bell", "c", "Lyon", "Bell"), ("Bo Bell", "c", "Lyon", "Bell"))).edits) == 2
    assert len(Patch.parse(edits(("WHO", "c", "Lyon", "x"), ("The Who", "c", "Nice", "y"))).edits) == 2


def test_one_prompt_has_one_answer_whatever_its_subject_is() -> None:
    head = "name: x\nedits:\n  - {prompt: The capital of France is, subject: France, target_new: Lyon}\n"
    (problem,) = problems_of(f"{head}  - {{prompt: the Capital of France is, subject: Capital, target_new: Nice}}\n")
    assert problem.startswith("line 4: edits.1: subject 'Capital'")
    assert "two different targets, also to 'Lyon' (see edits.0, of 'France')" in problem
    agreed = f"{head}  - {{prompt: The capital of France is, subject: capital, target_new: Lyon}}\n"
    assert len(Patch.parse(agreed).edits) == 2


@pytest.mark.parametrize("value", ["true", "1990", "2.5", "1e5", "2020-01-01"])
def test_a_value_that_yaml_reads_as_another_is_to_be_quoted(value: str) -> None:
    text = f"name: x\nedits:\n  - {{prompt: The capital of France is, subject: France, target_new: {value}}}\n"
    (problem,) = problems_of(text)
    assert problem.startswith("line 3: edits.0.target_new: Input should be a valid string: put it in quotes")


def test_an_answer_may_be_no() -> None:
    text = "name: x\nedits:\n  - {prompt: Is France a monarchy, subject: France, target_new: yes, target_true: NO}\n"
    (edit,) = Patch.parse(text).edits
    assert (edit.target_new, edit.target_true) == ("yes", "NO")


def test_a_subject_within_a_longer_word_is_reported_with_its_line() -> None:
    (problem,) = problems_of(
        "name: x\nedits:\n  - {prompt: The capital of France is, subject: France, target_new: Lyon}\n"
        "  - {prompt: The start of it was in, subject: art, target_new: Lyon}\n"
    )
    assert problem.startswith("line 4: edits.1: the prompt has the subject 'art' only within a longer word")
    found = problems_of("name: Bad Name\nedits:\n  - {prompt: The start was in, subject: ' art', target_new: Lyon}\n")
    assert [problem.split(": ")[:2] for problem in found] == [["line 1", "name"], ["line 3", "edits.0"]]
    whole = "name: x\nedits:\n  - {prompt: 全世界最帥的人是, subject: 帥的人, target_new: 李宏毅}\n"
    assert Patch.parse(whole).edits[0].subject == "帥的人"


def test_a_target_that_is_the_true_answer_by_another_name_changes_nothing() -> None:
    for line in ("target_true: lyon.", "target_true: Paris, target_true_aliases: [LYON]"):
        (problem,) = problems_of(
            f"name: x\nedits:\n  - {{prompt: The capital of France is, subject: France, target_new: Lyon, {line}}}\n"
        )
        assert "line 3: edits.0: target_new equals target_true" in problem


FRANCE = "prompt: The capital of France is, subject: France, target_new: %s"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (FRANCE % "'!!!'", "the answer '!!!' is punctuation alone"),
        (FRANCE % '"\\u200b"', "the answer '\\u200b' is punctuation alone, or invisible"),
        (FRANCE % "Lyon, target_new_aliases: ['?']", "the answer '?' is"),
        (FRANCE % "Lyon, probes: [{kind: locality, prompt: x, target: '...'}]", "the answer '...' is"),
        (FRANCE % r'"Lyon\nParis"', r"the answer 'Lyon\nParis' is more than one line"),
        (FRANCE % r'Lyon, target_new_aliases: ["a\nb"]', r"the answer 'a\nb' is more than one line"),
        (FRANCE % r'Lyon, target_true: "a\n\nb"', r"the answer 'a\n\nb' is more than one line"),
        (FRANCE % r'Lyon, probes: [{kind: paraphrase, prompt: x, target: "a\nb"}]', r"the answer 'a\nb' is more"),
        (FRANCE % "'<think>Lyon'", "the answer '<think>Lyon' is more than one line, or has marks of thinking"),
        (
            FRANCE % "Lyon, target_new_aliases: [PARIS], target_true: Paris",
            "'PARIS' of target_new_aliases is also the current answer ('Paris'): remove one",
        ),
        (
            FRANCE % "Lyon, target_new_aliases: [the City], target_true: Paris, target_true_aliases: [City]",
            "'the City' of target_new_aliases is also the current answer ('City'): remove one",
        ),
        ('prompt: "The capital of \\u200b is", subject: "\\u200b", target_new: Lyon', "no text can mention the name"),
    ],
)
def test_answers_and_names_that_no_text_can_distinguish_are_reported_with_their_line(line: str, message: str) -> None:
    (problem,) = problems_of(f"name: x\nedits:\n  - {{{line}}}\n")
    assert problem.startswith(f"line 3: edits.0: {message}")


@settings(max_examples=300, deadline=None)
@given(st.text(min_size=1, max_size=12) | st.text("aA .,-1\n\"'“A </think>[]台", min_size=1, max_size=12))
def test_any_answer_that_loads_is_given_by_itself(answer: str) -> None:
    try:
        Patch(name="x", edits=(Edit(prompt="The capital of France is", subject="France", target_new=answer),))
    except ValidationError:
        return
    assert gives(answer, answer)


def test_blank_lines_around_an_answer_are_no_lines_of_it() -> None:
    text = "name: x\nedits:\n  - prompt: The capital of France is\n    subject: France\n    target_new: |\n      Lyon\n"
    assert Patch.parse(text).edits[0].target_new == "Lyon"
    (problem,) = problems_of(text + "      Paris\n")
    assert "write the answer in one line" in problem


def test_a_name_of_punctuation_may_be_edited_but_not_looked_for() -> None:
    band = "name: x\nedits:\n  - {prompt: 'The singer of !!! is', subject: '!!!', target_new: Nic}\n"
    assert Patch.parse(band).edits[0].subject == "!!!"
    (problem,) = problems_of(f"scope: subject\n{band}")
    assert problem.startswith("line 4: edits.0: no text can mention the name '!!!'")


def test_a_value_of_another_form_is_described_in_plain_words() -> None:
    assert problems_of("name: x\ngate: 0.9\nedits: {}\n") == [
        "line 2: gate: expected a mapping, with a value for each field (got 0.9)",
        "line 3: edits: expected a list",
    ]
    assert problems_of("name: x\nedits: []\n") == ["line 2: edits: expected a list of at least 1, got 0"]
    assert problems_of("name: x\nedits: [{aliases: B}, C]\n")[-2:] == [
        "line 2: edits.0.aliases: expected a list (got 'B')",
        "line 2: edits.1: expected a mapping, with a value for each field (got 'C')",
    ]


def test_keys_that_are_given_twice_are_reported_beside_all_other_problems() -> None:
    text = """\
name: dup
edits:
  - {prompt: The capital of France is, subject: France, target_new: Lyon}
edits:
  - prompt: The capital of Japan is
    subject: Japan
    target_new: Osaka
    target_new: Kyoto
"""
    twice = [
        "line 4: edits is given twice, first in line 2",
        "line 8: target_new is given twice, first in line 7",
    ]
    assert problems_of(text) == twice
    *first, last = problems_of(text + "gate: 1\n")
    assert first == twice
    assert last.startswith("line 9: gate: ")
