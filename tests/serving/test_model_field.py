"""The meaning of a `model` field; no other text has a meaning."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rollout.example import rollout
from tests.serving.snapshots import NOW, publication, snapshot
from vllm_edit.errors import EditError, Incompatible, NotFound
from vllm_edit.rollout.decision import Choice
from vllm_edit.serving.caller import ANYONE, Caller, Forbidden
from vllm_edit.serving.model_field import Asking, Catalogue

OLD, NEW, OTHER = (
    f"{patch}@{digest * 8}" for patch, digest in (("capital", "4f1c"), ("capital", "4f2d"), ("x", "aaaa"))
)
CATALOGUE = Catalogue(
    ("atlas", "/models/atlas"),
    snapshot(
        (NEW, OTHER, OLD),
        {"acme": [publication("acme", OLD)], "empty": [], "x": [publication("x", OTHER), publication("x", OLD)]},
    ),
)
OPEN = Asking(ANYONE, NOW)


@pytest.mark.parametrize("model", [None, "", "atlas", "/models/atlas", "atlas:base"])
def test_base_by_any_of_its_names_or_none(model: str | None) -> None:
    assert CATALOGUE.resolve(model, OPEN) == Choice("base", reason="DEFAULT")


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
    assert CATALOGUE.resolve(model, OPEN) == expected


def test_tenant_goes_before_a_patch_of_the_same_name() -> None:
    assert CATALOGUE.resolve("x", OPEN) == Choice("weights", OTHER, "x", "TARGETING_MATCH")
    assert CATALOGUE.resolve("x@aaaa", OPEN) == Choice("weights", OTHER, None, "STATIC")


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(NotFound) as caught:
        CATALOGUE.resolve("capitol", OPEN)
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
def test_text_that_is_not_a_name_finds_nothing(model: str) -> None:
    with pytest.raises(NotFound):
        CATALOGUE.resolve(model, OPEN)


@pytest.mark.parametrize("model", ["a" * 161, "acme\n", "acme\x00", "\x1b[31m"])
def test_long_names_and_control_characters_are_bad_requests(model: str) -> None:
    with pytest.raises(EditError) as caught:
        CATALOGUE.resolve(model, OPEN)
    assert not isinstance(caught.value, NotFound)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_beginning_of_a_digest_that_fits_two_is_not_guessed() -> None:
    twins = Catalogue(("atlas",), snapshot(("p@4f1c" + "0" * 28, "p@4f1c" + "1" * 28)))
    with pytest.raises(EditError, match="give more of the digest"):
        twins.resolve("p@4f1c", OPEN)


@given(st.text(max_size=200))
def test_any_text_is_an_answer_or_a_refusal(model: str) -> None:
    try:
        choice = CATALOGUE.resolve(model, OPEN)
    except EditError:
        return
    assert choice.adapter is None or choice.adapter in CATALOGUE.names


def bound(tenant: str, *rights: str) -> Asking:
    return Asking(Caller(tenant, frozenset(rights or ("serve", "base"))), NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, Choice("weights", OTHER, "x", "TARGETING_MATCH")),
        ("", Choice("weights", OTHER, "x", "TARGETING_MATCH")),
        ("x:ike", Choice("ike", OTHER, "x", "TARGETING_MATCH")),
        ("capital", Choice("weights", OLD, "x", "STATIC")),
        ("capital@4f1c", Choice("weights", OLD, "x", "STATIC")),
        (OLD, Choice("weights", OLD, "x", "STATIC")),
        ("atlas", Choice("base", None, "x", "DEFAULT")),
        ("x:base", Choice("base", None, "x", "TARGETING_MATCH")),
    ],
)
def test_a_bound_caller_has_its_tenant_its_publications_and_base(model: str | None, expected: Choice) -> None:
    assert CATALOGUE.resolve(model, bound("x")) == expected


def test_another_tenants_patch_and_a_missing_patch_are_the_same_to_a_bound_caller() -> None:
    messages = []
    for model in ("acme", NEW, NEW[:-1] + "0", "capital@4f2d", "empty", "nobody"):
        with pytest.raises(NotFound) as caught:
            CATALOGUE.resolve(model, bound("x"))
        assert not {"acme", "empty", NEW}.intersection(caught.value.nearest)
        messages.append(str(caught.value).split(";")[0].replace(model, "…"))
    assert len(set(messages)) == 1


def test_base_needs_its_right_by_whatever_name() -> None:
    for model in ("atlas", "/models/atlas", "atlas:base", "x:base", "capital:base"):
        with pytest.raises(Forbidden):
            CATALOGUE.resolve(model, bound("x", "serve"))
    assert CATALOGUE.listed(bound("x", "serve")) == ["x", OTHER, OLD]
    assert CATALOGUE.listed(bound("x")) == ["atlas", "x", OTHER, OLD]


def test_a_name_of_both_a_tenant_and_the_base_is_refused_to_whom_it_may_mean_both() -> None:
    catalogue = Catalogue(("atlas", "x"), CATALOGUE.snapshot)
    for asking in (OPEN, bound("x")):
        with pytest.raises(Incompatible, match="'x' is both a tenant and the base model; ask for x:weights"):
            catalogue.resolve("x", asking)
        assert catalogue.resolve("x:weights", asking).adapter == OTHER
        assert catalogue.resolve("x:base", asking).mode == "base"
    assert catalogue.resolve(None, bound("x")).adapter == OTHER
    assert catalogue.resolve("x", bound("acme")) == Choice("base", None, "acme", "DEFAULT"), "no tenant is revealed"


def test_an_expired_publication_is_served_and_named_no_more() -> None:
    ends = NOW + timedelta(seconds=1)
    catalogue = Catalogue(
        ("atlas",), snapshot((NEW, OLD), {"acme": [publication("acme", NEW, ends), publication("acme", OLD)]})
    )
    before, after = bound("acme"), replace(bound("acme"), now=ends)
    assert (catalogue.resolve(None, before).adapter, catalogue.resolve(None, after).adapter) == (NEW, OLD)
    assert catalogue.resolve(NEW, before).adapter == NEW
    with pytest.raises(NotFound):
        catalogue.resolve(NEW, after)


def test_a_rollout_decides_for_its_tenant_by_the_sticky_key() -> None:
    made = rollout(0, overrides={"ann": "treatment"}).ramped(0)
    catalogue = Catalogue(("atlas",), snapshot(tenants={made.tenant: []}, rollouts=[made]))
    ann = replace(bound(made.tenant), headers={"x-user-id": "ann"})
    bob = replace(bound(made.tenant), body={"user": "bob"})
    assert (catalogue.resolve(None, ann).arm, catalogue.resolve(None, bob).arm) == ("treatment", "control")
    assert catalogue.resolve(made.tenant, replace(ann, caller=ANYONE)).adapter == made.treatment.name
    with pytest.raises(NotFound):
        catalogue.resolve(str(made.treatment.name), ann)  # or a tenant could leave the arm that it was given
    assert set(catalogue.wanted(NOW)) == {made.control.name, made.treatment.name}
