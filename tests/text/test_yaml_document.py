"""YAML with lines: keys that are given twice, and texts that are not YAML in every way that ruamel has for it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_edit.digest import digest_json
from vllm_edit.errors import PatchError
from vllm_edit.patch import Patch
from vllm_edit.text.yaml_document import NotYaml, YamlDocument, dump_yaml, field


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3: a is given twice, first in line 1"]),
        ("a: 1\n'a': 2\na: 3\n", [f"line {line}: a is given twice, first in line 1" for line in (2, 3)]),
        ("- {x: 1, y: 2}\n- {x: 1,\n   x: 2}\n", ["line 3: x is given twice, first in line 2"]),
        ("a: {b: {c: 1, c: 2}}\n", ["line 1: c is given twice, first in line 1"]),
        ("a: &m {x: 1, x: 2}\nb: *m\n", ["line 1: x is given twice, first in line 1"]),
        ("a: &m {x: 1}\nb: {<<: *m, x: 2}\n", []),
        ("a: &m [*m]\n", []),
        ("a: &m {x: 1}\nb: {<<: *m, y: 2, y: 3}\n", ["line 2: y is given twice, first in line 2"]),
        ("? {a: 1}\n: 2\n", None),
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
        ("a: !!timestamp x\n", "line 1: not valid YAML: failed to construct timestamp"),
        ("a: " + "9" * 5000, "line 1: not valid YAML: expected a value of kind int"),
        ("[" * 2000, "deeper than can be read"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a: \x00", "not valid YAML: unacceptable character"),
        ("a: !!python/object:os.system {}", "line 1: not valid YAML: could not determine a constructor"),
        ("a: *b", "line 1: not valid YAML: found undefined alias"),
        ("%YAML 1.3\n---\na: b", "not valid YAML: version minor part can only be 2 or 1"),
    ],
    ids=lambda value: value[:20],
)
def test_a_file_that_is_not_yaml_is_one_line_with_the_place(text: str, message: str) -> None:
    with pytest.raises(NotYaml) as caught:
        YamlDocument.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ("yes", "No", "on", "OFF", "y", "N")),
        ("true", True),
        ("010", 10),
        ("0o10", 8),
        ("1e3", 1000.0),
        ("12:30", "12:30"),
        ("2026-01-01", date(2026, 1, 1)),
        ("2026-01-01T10:00:00Z", datetime(2026, 1, 1, 10, tzinfo=UTC)),
        ("2026-01-01 10:00:00+02:00", datetime(2026, 1, 1, 10, tzinfo=timezone(timedelta(hours=2)))),
        ("~", None),
    ],
)
def test_plain_values_are_read_as_in_yaml_1_2(text: str, value: object) -> None:
    assert YamlDocument.parse(f"a: {text}\n").data == {"a": value}


READ_BY_PYYAML = {
    "patches/acme.yaml": "7a14020f0a72e04049f120817bc4dcaa",
    "patches/globex.yaml": "4cae1498d4c128e950e4ae9a4d3240ba",
    "patches/lecture.yaml": "0db541995295ad9a1b113880be5f511e",
    "patches/real/north.yaml": "32cf1e6847afe1ec5db455706ccc565d",
    "patches/real/rejected.yaml": "4cf4f02ea4409a6806626263ea30c4d2",
    "patches/real/south.yaml": "9c8dbf900e4da64a085c0be47a9f6d61",
    "patches/real/world.yaml": "1f882bcfe8979ccf96ac9ad5b6be2d49",
    "patches/rejected.yaml": "af063793a8bd861132f4f5df945df81e",
    "patches/world.yaml": "03e4df0bc83aa7dfab65f6efc596fc0e",
    "vllm_edit/facts/tables/cities.yaml": "6128ecfca76c48eb7d55332e963b09fa",
    "vllm_edit/facts/tables/elements.yaml": "365be242eb8c7ff81ae11cc6ea4ce846",
    "vllm_edit/facts/tables/hops.yaml": "1f0b65117adf33d053f7f504e4faf25c",
    "vllm_edit/facts/tables/languages.yaml": "c18e1a0e6f5a76135a9c49a140bedcf7",
    "vllm_edit/facts/tables/zh_people.yaml": "b64471187e3d8ed1e711d3fda5d1a3d7",
}
"""Digests of the files' content as PyYAML read it, before ruamel.yaml did."""


@pytest.mark.parametrize("path", READ_BY_PYYAML)
def test_the_projects_own_files_mean_what_they_meant(path: str) -> None:
    text = (Path(__file__).parents[2] / path).read_text(encoding="utf-8")
    data: Any = (
        Patch.parse(text).model_dump(mode="json") if path.startswith("patches") else YamlDocument.parse(text).data
    )
    assert digest_json(data) == READ_BY_PYYAML[path]


def test_the_time_at_which_a_fact_ends_is_written_as_before() -> None:
    head = (
        "name: x\nedits:\n  - {prompt: The capital of France is, subject: France, target_new: Lyon, valid_until: %s}\n"
    )
    times = ("2026-01-01T10:00:00Z", "2026-01-01 10:00:00+02:00", "'2026-01-01T10:00:00-03:30'")
    ends = [Patch.parse(head % time).model_dump(mode="json")["edits"][0]["valid_until"] for time in times]
    assert ends == ["2026-01-01T10:00:00Z", "2026-01-01T10:00:00+02:00", "2026-01-01T10:00:00-03:30"]


def test_a_field_is_named_on_one_line() -> None:
    assert field(("edits", 0, "prompt")) == "edits.0.prompt"
    assert field(("edits", "a\nb")) == "edits.'a\\nb'"


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_is_a_document_or_is_reported(text: str) -> None:
    message = ""
    try:
        YamlDocument.parse(text)
    except NotYaml as error:
        message = str(error)
    assert "\n" not in message


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
    text = dump_yaml(data)
    problems = list[str]()
    try:
        assert Patch.parse(Patch.parse(text).dump()) == Patch.parse(text)
    except PatchError as error:
        problems = error.problems
    assert all(problem.startswith("line ") and "\n" not in problem for problem in problems)
