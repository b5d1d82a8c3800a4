"""What a `model` field means, and that no text of a stranger means anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_edit.errors import EditError, NotFound
from vllm_edit.serving.alias import Catalogue, Choice

OLD, NEW, OTHER = (
    f"{patch}@{digest * 8}" for patch, digest in (("capital", "4f1c"), ("capital", "4f2d"), ("x", "aaaa"))
)
CATALOGUE = Catalogue(
    bases=("atlas", "/models/atlas"), tenants={"acme": OLD, "empty": None, "x": OLD}, newest_first=(NEW, OTHER, OLD)
)


@pytest.mark.parametrize("model", [None, "", "atlas", "/models/atlas", "atlas:base"])
def test_base_by_any_of_its_names_or_none(model: str | None) -> None:
    assert CATALOGUE.resolve(model) == Choice("base", reason="DEFAULT")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("acme", Choice("weights", OLD, "acme", "TARGETING_MATCH")),
        ("acme:weights", Choice("weights", OLD, "acme", "TARGETING_MATCH")),
        ("acme:ike", Choice("ike", OLD, "acme", "TARGETING_MATCH")),
        ("acme:base", Choice("base", None, "acme", "TARGETING_MATCH")),
        ("empty", Choice("base", None, "empty", "DEFAULT")),
        ("empty:ike", Choice("base", None, "empty", "DEFAULT")),
        ("capital", Choice("weights", NEW, None, "STATIC")),
        ("capital:ike", Choice("ike", NEW, None, "STATIC")),
        ("capital@4f1c", Choice("weights", OLD, None, "STATIC")),
        (OLD, Choice("weights", OLD, None, "STATIC")),
        (f"{OLD}:ike", Choice("ike", OLD, None, "STATIC")),
        ("capital@4f2d:base", Choice("base", None, None, "STATIC")),
    ],
)
def test_alias_means_one_adapter_and_mode(model: str, expected: Choice) -> None:
    assert CATALOGUE.resolve(model) == expected


def test_tenant_goes_before_a_patch_of_the_same_name() -> None:
    assert CATALOGUE.resolve("x").adapter == OLD
    assert CATALOGUE.resolve("x@aaaa").adapter == OTHER


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound) as caught:
        CATALOGUE.resolve("capitol")
    assert NEW in caught.value.nearest


@pytest.mark.parametrize(
    "model",
    [
        "../../etc/passwd",
        "capital/../x",
        "capital@",
        "capital@4f1",
        "capital@zzzz",
        "capital:other",
        "CAPITAL",
        " atlas",
    ],
)
def test_text_that_is_no_name_finds_nothing(model: str) -> None:
    with pytest.raises(NotFound):
        CATALOGUE.resolve(model)


@pytest.mark.parametrize("model", ["a" * 161, "acme\n", "acme\x00", "\x1b[31m"])
def test_long_names_and_control_characters_are_bad_requests(model: str) -> None:
    with pytest.raises(EditError) as caught:
        CATALOGUE.resolve(model)
    assert not isinstance(caught.value, NotFound)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_beginning_of_a_digest_that_fits_two_is_not_guessed() -> None:
    twins = Catalogue(("atlas",), newest_first=("p@4f1c" + "0" * 28, "p@4f1c" + "1" * 28))
    with pytest.raises(EditError, match="give more of the digest"):
        twins.resolve("p@4f1c")


@given(st.text(max_size=200))
def test_any_text_is_an_answer_or_a_refusal(model: str) -> None:
    try:
        choice = CATALOGUE.resolve(model)
    except EditError:
        return
    assert choice.adapter is None or choice.adapter in CATALOGUE.names
