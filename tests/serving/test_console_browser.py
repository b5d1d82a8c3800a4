"""The console in a headless browser, by keyboard, at a real server: publish, roll back, kill, playground, contrast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.serving import places
from tests.serving.browser import Window, running_browser
from tests.serving.browsing import CONSOLE
from tests.serving.few_slots import FewSlots
from vllm_edit.names import short
from vllm_edit.registry.registry import Registry
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.metric import Metric
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.rollout.shadow import Shadow
from vllm_edit.rollout.shadow_report import ShadowPair

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

SHOP, GARAGE = "shop", "garage"
PAGES = (
    "/patches",
    "/patches/orchid?against=tulip",
    "/tenants",
    "/tenants/garage",
    "/tenants/garage/rollback",
    "/rollouts",
    "/rollouts/summer",
    "/rollouts/summer/promote",
    "/servers",
    "/audit?verify=1",
    "/answers",
    "/playground",
    "/nothing",
)


@dataclass(frozen=True)
class Site:
    """A server with two tenants: a shop with a publication, a garage with a rollout. key: an administrator's."""

    url: str
    key: str
    registry: Registry
    first: str
    second: str


@pytest.fixture(scope="module")
def site(few_slots: FewSlots) -> Site:
    store = few_slots.store
    first, second = places.add_patch(store, "orchid", 71), places.add_patch(store, "tulip", 72)
    few_slots.create_tenant(SHOP, first)
    few_slots.create_tenant(GARAGE, first)
    arms = Arm("weights", first), Arm("weights", second)
    summer = Rollout("summer", GARAGE, *arms, "pepper", metrics=(Metric("solved"),), shadow=Shadow(1, texts=True))
    store.registry.rollouts.create(summer)
    store.registry.shadows.add("summer", ShadowPair("edit-1", "control", False, True, text="a", shadow_text="b"), "c:1")
    store.registry.rollouts.ramp("summer", 50)
    key = few_slots.admin["Authorization"].removeprefix("Bearer ")
    return Site(few_slots.server.url, key, store.registry, first, second)


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Browser]:
    with running_browser() as found:
        yield found


@pytest.fixture
def window(browser: Browser, site: Site) -> Iterator[Window]:
    made = Window(browser, site.url)
    made.sign_in(site.key)
    yield made
    made.close()
    assert made.problems == []


def test_a_wrong_key_is_refused_in_words_and_the_name_stays(browser: Browser, site: Site) -> None:
    window = Window(browser, site.url)
    window.open("/tenants")
    window.type("#name", "ann")
    window.type("#key", "ve_0123456789ab_" + "x" * 43)
    window.page.keyboard.press("Enter")
    assert "no valid admin key" in window.page.locator("[role=alert]").inner_text()
    assert window.page.locator("#name").input_value() == "ann"
    window.close()


def test_publish_and_roll_back_by_keyboard(window: Window, site: Site) -> None:
    window.open(f"/tenants/{SHOP}")
    window.type("#patch", "no-such-patch")
    window.press("form[action$=publish] button")
    assert "no compiled patch" in window.page.locator("[role=alert]").inner_text()
    assert window.page.locator("#patch").input_value() == "no-such-patch", "the form stays as it was"
    window.page.locator("#patch").fill("tulip")
    window.type("#why", "a new season")
    window.press("form[action$=publish] button")
    window.page.locator(".notice").wait_for()
    assert f"{SHOP} is served {short(site.second)}: 1 server follows" in window.page.locator(".notice").inner_text()
    assert site.registry.active(SHOP) == site.second

    window.press("a[href$=rollback]")
    window.page.wait_for_url("**/rollback")
    assert short(site.first) in window.page.locator("main").inner_text()
    window.type("#why", "too early")
    window.press("form[action$=rollback] button")
    window.page.locator(".notice").wait_for()
    assert window.page.locator("#served").inner_text() == short(site.first)
    assert site.registry.active(SHOP) == site.first
    newest = site.registry.audit(SHOP, 2)
    assert [(row.what, row.why, row.who.endswith("(ann)")) for row in newest] == [
        ("tenant.publish", "a new season", True),
        ("tenant.rollback", "too early", True),
    ]


def test_the_playground_streams_three_answers_and_marks_what_differs(window: Window) -> None:
    page = window.page
    window.open("/playground")
    window.type("#model", "orchid")
    window.type("#prompt", "The capital of France is")
    window.press("#playground button")
    page.locator("#answers[data-done='1']").wait_for()
    texts = {mode: page.locator(f"[data-mode={mode}] .text") for mode in ("base", "weights", "ike")}
    assert all(found.inner_text() for found in texts.values())
    assert page.locator(".failed").count() == 0
    assert texts["base"].inner_text() != texts["weights"].inner_text()
    assert texts["weights"].locator("mark").count() > 0
    assert texts["base"].locator("mark").count() == 0
    window.press("[data-mode=weights] a")
    page.wait_for_url("**/answers/edit-*")
    assert "weights" in page.locator("main").inner_text()

    window.open("/playground?model=nobody")
    window.type("#prompt", "Who?")
    window.press("#playground button")
    page.locator("#answers[data-done='1']").wait_for()
    assert page.locator(".failed").count() == 3
    assert "does not exist" in texts["ike"].inner_text()


def test_no_page_has_a_problem_of_contrast_or_structure_light_or_dark_wide_or_narrow(
    browser: Browser, site: Site
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (pip, extra dev)")
    for scheme, width in (("light", 1200), ("dark", 360)):
        window = Window(browser, site.url, color_scheme=scheme, viewport={"width": width, "height": 800})
        window.open("/sign-in")
        found = {"/sign-in": axe.Axe().run(window.page)}
        window.sign_in(site.key)
        for path in PAGES:
            window.open(path)
            found[path] = axe.Axe().run(window.page)
            sizes = window.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert sizes[0] <= sizes[1], f"{path} is wider than the window"
        window.page.evaluate("document.querySelector('h1').style.color = 'gray'")
        window.page.evaluate("document.querySelector('h1').style.backgroundColor = 'silver'")
        assert axe.Axe().run(window.page).violations_count == 1, "what is tested here would be found"
        window.close()
        reports = {path: result.generate_report() for path, result in found.items() if result.violations_count}
        assert reports == {}
        assert window.problems == []


def test_a_kill_asks_once_and_holds_and_the_page_follows_the_registry(window: Window, site: Site) -> None:
    page, asked = window.page, list[str]()
    window.open("/rollouts/summer")
    site.registry.rollouts.pause("summer", why="elsewhere")
    page.locator("#state", has_text="paused").wait_for()  # the page renews itself

    def answer(accept: bool) -> None:
        page.once(
            "dialog", lambda dialog: (asked.append(dialog.message), dialog.accept() if accept else dialog.dismiss())
        )

    window.press(".updates a")
    page.wait_for_url("**/rollouts/summer?live=0")
    answer(accept=False)
    window.type("#kill-why", "users complain")
    window.press("form[action$=kill] button")
    assert site.registry.rollouts.find("summer").state == "paused"
    answer(accept=True)
    page.keyboard.press("Enter")
    page.locator(".notice").wait_for()
    assert site.registry.rollouts.find("summer").state == "killed"
    assert page.locator("#state").inner_text().startswith("killed")
    assert len(asked) == 2
    assert "Everyone is served control" in asked[0]
    [row] = site.registry.audit(GARAGE, 1)
    assert (row.what, row.why) == ("rollout.kill", "users complain")


def test_signing_out_leaves_no_page_to_go_back_to(window: Window) -> None:
    window.open("/tenants")
    window.press("form[action$=sign-out] button")
    window.page.wait_for_url(f"**{CONSOLE}/sign-in")
    window.page.go_back()
    window.page.wait_for_url(f"**{CONSOLE}/sign-in?next=*")
