"""The pages in a browser: accessible by axe's rules, and never wider than the window, in light and in dark."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.pages.examples import report
from tests.pages.test_rollout_page import found
from vllm_edit.pages.report_pages import evaluation_page, rollout_page

pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: chromium)")
def test_pages_are_accessible_and_fit_wide_and_narrow_windows(tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pages = {"evaluation": evaluation_page(report()), "rollout": rollout_page(found(40))}
    pages["broken"] = pages["rollout"].replace('<html lang="en">', "<html>")
    for name, page in pages.items():
        (tmp_path / f"{name}.html").write_text(page, encoding="utf-8")
    violations, too_wide = {}, {}
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, width in (("light", 1200), ("dark", 390)):
            shown = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
            window = browser.new_page(bypass_csp=True, **shown)  # axe is a script, which the pages refuse
            for name in pages:
                window.goto((tmp_path / f"{name}.html").as_uri())
                violations[name, scheme] = [rule["id"] for rule in axe.Axe().run(window).response["violations"]]
                too_wide[name, scheme] = window.evaluate("document.documentElement.scrollWidth > window.innerWidth")
        browser.close()
    assert violations.pop(("broken", "light")) == violations.pop(("broken", "dark")) == ["html-has-lang"]
    assert {place: rules for place, rules in violations.items() if rules} == {}
    assert not any(too_wide.values())
