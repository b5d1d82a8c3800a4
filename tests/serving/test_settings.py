"""Settings from the environment: what cannot be read stops the server."""

from __future__ import annotations

import pytest

from vllm_edit.errors import EditError
from vllm_edit.serving.settings import ALLOW_OPEN, EXPOSE, LOG_PROMPTS, Settings


@pytest.mark.parametrize(("said", "on"), [("1", True), ("0", False), ("", False), (" 1 ", True)])
def test_a_switch_is_on_or_off(said: str, on: bool) -> None:
    settings = Settings.from_environment({EXPOSE: said, ALLOW_OPEN: said, LOG_PROMPTS: said})
    assert (settings.expose, settings.allow_open, settings.log_prompts) == (on, on, on)


@pytest.mark.parametrize("name", [EXPOSE, ALLOW_OPEN, LOG_PROMPTS])
def test_a_switch_that_is_neither_on_nor_off_is_refused(name: str) -> None:
    with pytest.raises(EditError, match=rf"{name}: expected 1 \(on\) or 0 \(off\), got 'yes'"):
        Settings.from_environment({name: "yes"})
