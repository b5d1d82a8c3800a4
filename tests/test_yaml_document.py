"""YAML with lines: keys that are given twice, and every kind of PyYAML error."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_edit.errors import PatchError
from vllm_edit.patch import Patch
from vllm_edit.yaml_document import NotYaml, YamlDocument, field


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3: a is given twice, first in line 1"]),
        ("a: 1\n'a': 2\na: 3\n", [f"line {line}: a is given twice, first in line 1" for line in (2, 3)]),
        ("- {x: 1, y: 2}\n- {x: 1,\n   x: 2}\n", ["line 3: 1.x is given twice, first in line 2"]),
        ("a: {b: {c: 1, c: 2}}\n", ["line 1: a.b.c is given twice, first in line 1"]),
        ("a: &m {x: 1, x: 2}\nb: *m\n", ["line 1: a.x is given twice, first in line 1"]),
        ("a: &m {x: 1}\nb: {<<: *m, x: 2}\n", []),
        ("a: &m [*m]\n", []),
        ("? [1]\n: 2\n", None),
        ("{a: 1, b: {a: 1}}", []),
        ("", []),
    ],
)  # fmt: skip
def test_keys_that_are_given_twice_are_named_with_both_lines(text: str, expected: list[str] | None) -> None:
    if expected is None:
        with pytest.raises(NotYaml, match="line 1: not valid YAML"):
            YamlDocument.parse(text)
    else:
        assert list(YamlDocument.parse(text).given_twice) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2100-02-31\n", "line 2: not valid YAML: expected a value of kind timestamp"),
        ("a: !!int x\n", "line 1: not valid YAML: expected a value of kind int"),
        ("a: !!bool x\n", "line 1: not valid YAML: expected a value of kind bool"),
        ("a: !!timestamp x\n", "line 1: not valid YAML: expected a value of kind timestamp"),
        ("a: " + "9" * 5000, "line 1: not valid YAML: expected a value of kind int"),
        ("[" * 2000, "deeper than can be read"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: \x00", "not valid YAML: unacceptable character"),
        ("a: !!python/object:os.system {}", "line 1: not valid YAML: could not determine a constructor"),
        ("a: *b", "line 1: not valid YAML: found undefined alias"),
    ],
    ids=lambda value: value[:20],
)
def test_a_file_that_is_not_yaml_is_one_line_with_the_place(text: str, message: str) -> None:
    with pytest.raises(NotYaml) as caught:
        YamlDocument.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_field_is_named_on_one_line() -> None:
    assert field(("edits", 0, "prompt")) == "edits.0.prompt"
    assert field(("edits", "a\nb")) == "edits.'a\\nb'"


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_is_a_document_or_is_reported(text: str) -> None:
    told = ""
    try:
        YamlDocument.parse(text)
    except NotYaml as error:
        told = str(error)
    assert "\n" not in told


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.datetimes()
_values = st.recursive(_scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner))
_near = st.sampled_from(["France", "The capital of France is", "Francein", "", "paraphrase", "tune", "Lyon"]) | _values
_probe = st.dictionaries(st.sampled_from(["kind", "prompt", "target", "target_aliases", "chat", "split"]), _near)
_edit = st.dictionaries(
    st.sampled_from(["prompt", "subject", "target_new", "target_true", "aliases", "relation", "valid_until"]), _near
)
_patch = st.fixed_dictionaries(
    {"name": st.just("x") | _values, "edits": st.lists(_edit | _values, max_size=3) | _values},
    optional={"gate": _values, "scope": _values, "probes": st.lists(_probe)},
)


@settings(max_examples=50, deadline=None)
@given(_patch)
def test_any_values_in_a_patchs_fields_are_a_patch_or_are_reported_one_a_line(data: dict[str, object]) -> None:
    text = yaml.dump(data, Dumper=yaml.SafeDumper)
    problems = list[str]()
    try:
        assert Patch.parse(Patch.parse(text).dump()) == Patch.parse(text)
    except PatchError as error:
        problems = error.problems
    assert all(problem.startswith("line ") and "\n" not in problem for problem in problems)
