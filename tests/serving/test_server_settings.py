"""Settings from the environment: an unreadable value stops the server."""

from __future__ import annotations

import pytest

from vllm_edit.errors import EditError
from vllm_edit.serving.server_settings import ALLOW_OPEN, EXPOSE, LOG_PROMPTS, MAX_BODY, Settings


@pytest.mark.parametrize(("said", "on"), [("1", True), ("0", False), ("", False), (" 1 ", True)])
def test_a_switch_is_on_or_off(said: str, on: bool) -> None:
    settings = Settings.from_environment({EXPOSE: said, ALLOW_OPEN: said, LOG_PROMPTS: said})
    assert (settings.expose, settings.allow_open, settings.log_prompts) == (on, on, on)


@pytest.mark.parametrize("name", [EXPOSE, ALLOW_OPEN, LOG_PROMPTS])
def test_a_switch_that_is_neither_on_nor_off_is_refused(name: str) -> None:
    with pytest.raises(EditError, match=rf"{name}: expected 1 \(on\) or 0 \(off\), got 'yes'"):
        Settings.from_environment({name: "yes"})


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
