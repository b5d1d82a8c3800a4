"""Headless Chromium at the console of a running server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.browsing import CONSOLE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

PATIENCE_MS = 120_000  # for a busy machine
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """The system's Chromium; playwright brings none. Skips the test where it, or playwright, is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip, extra dev)")
    program = next((path for name in _PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class Window:
    """A window of the console, used by keyboard. problems: errors of scripts, and what the policy forbade."""

    def __init__(self, browser: Browser, url: str, **settings: Any) -> None:
        self._context = browser.new_context(base_url=url, **settings)
        self._context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self._context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._said)

    def _said(self, said: ConsoleMessage) -> None:
        if "Content Security Policy" in said.text:
            self.problems.append(said.text)

    def open(self, path: str) -> None:
        self.page.goto(f"{CONSOLE}{path}")

    def tab_to(self, selector: str) -> None:
        """Press Tab until the element has the focus."""
        for _ in range(80):
            self.page.keyboard.press("Tab")
            if self.page.evaluate("wanted => document.activeElement.matches(wanted)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached by keyboard on {self.page.url}")

    def type(self, selector: str, text: str) -> None:
        self.tab_to(selector)
        self.page.keyboard.type(text)

    def press(self, selector: str) -> None:
        """Go to a link or a button by keyboard, and press Enter."""
        self.tab_to(selector)
        self.page.keyboard.press("Enter")

    def sign_in(self, key: str, name: str = "ann") -> None:
        self.open("/patches")
        self.type("#name", name)
        self.type("#key", key)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(f"**{CONSOLE}/patches")

    def close(self) -> None:
        self._context.close()
