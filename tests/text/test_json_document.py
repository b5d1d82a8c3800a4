"""JSON as plain values: duplicate keys are noted, and what is no JSON is one line."""

from __future__ import annotations

import pytest

from vllm_edit.text.json_document import JsonDocument, NotJson
from vllm_edit.text.yaml_document import NotYaml, YamlDocument


def test_values_are_plain_and_duplicate_keys_are_noted() -> None:
    document = JsonDocument.parse('{"a": 1, "b": {"c": [2.5, null], "c": "last"}, "a": 3}')
    assert document.data == {"a": 3, "b": {"c": "last"}}
    assert document.given_twice == ("c is given twice", "a is given twice")
    assert document.place(("a",)) == ""


@pytest.mark.parametrize("text", ["{", "", "NaN", "[1e9, -Infinity]", "[" * 100_000, b"\xff", "1" * 5000, '"\n"'])
def test_a_text_that_is_no_json_is_one_line(text: str | bytes) -> None:
    with pytest.raises(NotJson) as raised:
        JsonDocument.parse(text)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("text", ["a: &x 1\nb: *x\n", "a: &x [*x]\n", "a: &x {k: 1}\nb: {<<: *x}\n"])
def test_an_alias_is_refused_with_its_line_where_it_is_not_allowed(text: str) -> None:
    assert YamlDocument.parse(text).data
    with pytest.raises(NotYaml, match=r"line \d: .* an alias \(\*name\) is not allowed here"):
        YamlDocument.parse(text, aliases=False)
    assert YamlDocument.parse("a: '*x'\nb: x*y\n", aliases=False).data == {"a": "*x", "b": "x*y"}
