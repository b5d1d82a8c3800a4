"""Settings from the environment: an unreadable value stops the server."""

from __future__ import annotations

import pytest

from vllm_edit.errors import EditError
from vllm_edit.serving.server_settings import (
    ALLOW_OPEN,
    CONSOLE_SECRET,
    EXPOSE,
    LOG_DAYS,
    LOG_PROMPTS,
    MAX_ANSWERS,
    MAX_BODY,
    TENANT_HEADER,
    TRUSTED_PEERS,
    Settings,
)


@pytest.mark.parametrize(("said", "on"), [("1", True), ("0", False), ("", False), (" 1 ", True)])
def test_a_switch_is_on_or_off(said: str, on: bool) -> None:
    settings = Settings.from_environment({EXPOSE: said, ALLOW_OPEN: said, LOG_PROMPTS: said})
    assert (settings.expose, settings.allow_open, settings.log_prompts) == (on, on, on)


@pytest.mark.parametrize("name", [EXPOSE, ALLOW_OPEN, LOG_PROMPTS])
def test_a_switch_that_is_neither_on_nor_off_is_refused(name: str) -> None:
    with pytest.raises(EditError, match=rf"{name}: expected 1 \(on\) or 0 \(off\), got 'yes'"):
        Settings.from_environment({name: "yes"})


def test_every_wrong_value_is_a_line_that_names_its_variable() -> None:
    wrong = {EXPOSE: "yes", LOG_DAYS: "-1", TENANT_HEADER: "x tenant", TRUSTED_PEERS: "10.0.0.0/8,gateway"}
    with pytest.raises(EditError) as caught:
        Settings.from_environment(wrong)
    assert str(caught.value).splitlines() == [
        f"{EXPOSE}: expected 1 (on) or 0 (off), got 'yes'",
        f"{TENANT_HEADER}: expected a header's name like x-tenant, got 'x tenant'",
        f"{TRUSTED_PEERS}: expected addresses or networks like 10.0.0.0/8, got 'gateway'",
        f"{LOG_DAYS}: expected a number of days, 0 for ever, got '-1'",
    ]


def test_a_header_without_gateways_is_refused() -> None:
    with pytest.raises(EditError, match=f"^{TENANT_HEADER} and {TRUSTED_PEERS} go together"):
        Settings.from_environment({TENANT_HEADER: "x-tenant"})


def test_settings_from_arguments_do_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXPOSE, "1")
    assert not Settings(store="here").expose
    assert Settings.from_environment().expose


@pytest.mark.parametrize(
    ("said", "context", "most"),
    [
        ("", 256, 8 * 2**20),
        ("", 131_072, 8 * 2**20),
        ("", 2**20, 64 * 2**20),
        ("1", 2**20, 2**20),
        (" 100 ", 256, 100 * 2**20),
    ],
)
def test_a_body_may_be_as_long_as_the_context_or_the_operators_limit_allows(said: str, context: int, most: int) -> None:
    assert Settings.from_environment({MAX_BODY: said}).body_bytes(context) == most


@pytest.mark.parametrize("said", ["0", "-1", "8MiB", "1.5", "many", "4097", "9" * 5000, "²"])
def test_an_invalid_limit_of_bodies_is_refused(said: str) -> None:
    with pytest.raises(EditError, match=rf"{MAX_BODY}: expected a whole number of MiB from 1 to 4096"):
        Settings.from_environment({MAX_BODY: said})


def test_the_number_of_answers_in_memory_is_read_and_its_range_is_checked() -> None:
    assert Settings.from_environment({}).max_answers == Settings(store="here").max_answers
    assert Settings.from_environment({MAX_ANSWERS: " 500 "}).max_answers == 500
    for said in ("0", "-1", "many", "1e3", "10000001"):
        with pytest.raises(EditError, match=rf"{MAX_ANSWERS}: expected a whole number of answers from 1 to 10000000"):
            Settings.from_environment({MAX_ANSWERS: said})


def test_a_short_secret_of_the_console_is_refused_without_its_text() -> None:
    with pytest.raises(EditError, match=rf"^{CONSOLE_SECRET}: expected at least 32 characters, .*, got 11$") as caught:
        Settings.from_environment({CONSOLE_SECRET: "opensesame!"})
    assert "opensesame" not in str(caught.value)
    assert "s" * 32 not in repr(Settings.from_environment({CONSOLE_SECRET: "s" * 32}))
