"""`vllm-edit rollout`: its output as text and as JSON, and its failures."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.pages.examples import problems
from tests.rollout.example import failing
from tests.store.example import compiled
from vllm_edit.registry.registry import Registry
from vllm_edit.registry.rollout_guard import Watch
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.assignment import assign
from vllm_edit.rollout.outcomes import Exposure
from vllm_edit.rollout.shadow_report import ShadowPair
from vllm_edit.rollout.sticky import StickyKey
from vllm_edit.store.store import Store


@pytest.fixture
def names(store: Store) -> tuple[str, str]:
    """(published, new) of tenant acme."""
    old, new = store.save(compiled()), store.save(compiled(seed=1))
    for name in (old, new):
        store.registry.set_status(name, "accepted")
    store.registry.create_tenant("acme")
    store.registry.publish("acme", old)
    return old, new


def _filled(store: Store, users: int = 200) -> None:
    """Requests of a rollout at 100 %, and outcomes by which treatment is worse."""
    running = store.registry.rollouts.ramp("spring", 100)
    found = [
        Exposure(f"edit-{i}", "acme", assign(running, StickyKey("user", str(i))), datetime.now(UTC), seconds=0.25)
        for i in range(users)
    ]
    store.registry.rollouts.expose(found)
    for item in found:
        store.registry.rollouts.record("acme", item.id, "solved", item.assignment.side == "control")


def test_a_rollout_is_led_from_create_to_kill(program: Program, store: Store, names: tuple[str, str]) -> None:
    old, new = names
    options = ["--metric", "solved", "--metric", "rating:1..5", "--user", "a=b=treatment"]
    options += ["--order", "api-key, user-field"]
    ran = program("rollout", "create", "spring", "--tenant", "acme", "--treatment", f"{new}:ike", *options, "--json")
    made = ran.json
    assert (made["control"], made["treatment"], made["state"], made["split"]) == (old, f"{new}:ike", "created", 50.0)
    assert made["overrides"] == {"a=b": "treatment"}
    assert made["sticky"]["order"] == ["api-key", "user-field"]
    assert [metric["name"] for metric in made["metrics"]] == ["solved", "rating"]
    assert len(made["salt"]) == 16
    assert "12.5 % of the users take part, 50 % of them on treatment" in program("rollout", "ramp", "spring", 12.5).out
    assert program("rollout", "pause", "spring").out == "rollout spring: paused at 12.5 %\n"
    assert program("rollout", "promote", "spring").out.endswith("promoted; its tenant is served treatment\n")
    printed = program("rollout", "kill", "spring", "--why", "complaints", "--who", "ann").out
    assert printed == "rollout spring: killed; its tenant is served control\n"
    [listed] = program("rollout", "list", "--json").json
    assert (listed["name"], listed["state"], listed["share"]) == ("spring", "killed", 12.5)
    shown = program("audit", "show").out
    assert f"name spring, ramping at 12.5 %, treatment {names[1]}:ike" in shown
    assert "name spring, killed at 12.5 %" in shown
    header, row = program("rollout", "list", "--tenant", "acme").out.splitlines()
    assert header.split()[:3] == ["NAME", "TENANT", "STATE"]
    assert row.split()[:3] == ["spring", "acme", "killed"]
    assert row.split()[4].endswith(":ike")


def test_the_default_control_is_the_patch_that_the_tenant_is_served(
    program: Program, store: Store, names: tuple[str, str]
) -> None:
    old, new = names
    third = store.save(compiled(seed=2))
    store.registry.set_status(third, "accepted")

    def control(name: str) -> str:
        return program("rollout", "create", name, "--tenant", "acme", "--treatment", third, "--json").json["control"]

    program("rollout", "create", "r1", "--tenant", "acme", "--treatment", f"{new}:ike")
    program("rollout", "ramp", "r1", "1")
    program("rollout", "promote", "r1")
    assert control("r2") == f"{new}:ike", "not what is published"
    program("rollout", "kill", "r2")
    program("rollout", "kill", "r1")
    assert control("r3") == old
    program("rollout", "kill", "r3")
    program("tenant", "rollback", "acme")
    program("rollout", "create", "r4", "--tenant", "acme", "--treatment", new, "--control", third)
    program("rollout", "ramp", "r4", "1")
    program("rollout", "kill", "r4")
    program("rollout", "create", "r5", "--tenant", "acme", "--treatment", old)
    assert store.registry.rollouts.find("r5").control.name == third, "a killed rollout's control, not what is published"


def test_a_patch_that_is_published_while_a_rollout_is_created_is_its_control(
    program: Program, store: Store, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = names
    third = store.save(compiled(seed=2))
    store.registry.set_status(third, "accepted")

    def then_publish(registry: Registry, tenant: str) -> Arm:
        registry.publish(tenant, new)
        return Arm("weights", old)

    monkeypatch.setattr(Registry, "served", then_publish)
    made = program("rollout", "create", "r1", "--tenant", "acme", "--treatment", third, "--json").json
    assert made["control"] == new


def test_lists_report_the_patch_that_a_rollout_serves(program: Program, store: Store, names: tuple[str, str]) -> None:
    old, new = names

    def listed() -> tuple[str | None, str, dict[str, list[str]]]:
        [tenant] = program("tenant", "list", "--json").json
        served = {entry["name"]: entry["tenants"] for entry in program("list", "--json").json}
        assert program("show", old, "--json").json["tenants"] == served[old]
        return tenant["active"], tenant["mode"], served

    program("rollout", "create", "spring", "--tenant", "acme", "--treatment", f"{new}:ike")
    assert listed() == (old, "weights", {old: ["acme"], new: []})
    program("rollout", "ramp", "spring", 12.5)
    assert listed() == (old, "weights", {old: ["acme"], new: ["acme"]}), "two arms are served"
    header, row = program("tenant", "list").out.splitlines()
    assert header.split() == ["TENANT", "SERVED", "UNTIL", "ROLLOUT", "TREATMENT"]
    assert row.split()[2:5] == ["spring", "6.25", "%:"]
    program("rollout", "promote", "spring")
    assert listed() == (new, "ike", {old: [], new: ["acme"]})
    assert program("tenant", "list").out.splitlines()[1].split()[1].endswith(":ike")
    assert "behind rollout spring" in program("tenant", "history", "acme").out
    program("rollout", "kill", "spring")
    assert listed() == (old, "weights", {old: ["acme"], new: []})
    program("tenant", "publish", "acme", new)
    assert listed() == (new, "weights", {old: [], new: ["acme"]})
    assert "active" in program("tenant", "history", "acme").out


def test_a_shadow_is_switched_on_and_off_and_its_answers_are_shown(
    program: Program, store: Store, names: tuple[str, str], tmp_path: Path
) -> None:
    options = ("--tenant", "acme", "--treatment", names[1], "--shadow", "5%", "--json")
    made = program("rollout", "create", "spring", *options).json
    assert made["shadow"] == {"percent": 5.0, "texts": False}
    text = program("rollout", "status", "spring").out
    assert "shadow      5 % of the answers, without texts" in text
    assert "COMPARED  SAME" not in text
    moved = program("rollout", "shadow", "spring", "20", "--texts", "--who", "ann", "--why", "we read them")
    assert moved.out.endswith("; the other arm repeats 20 % of the answers\n")
    assert (store.registry.audit()[-1].what, store.registry.audit()[-1].who) == ("rollout.shadow", "ann")
    pair = ShadowPair("edit-1", "treatment", False, True, 0.5, 0.25, 3, 4, text="Bonn\x1b[2J", shadow_text="<b>Berlin")
    store.registry.shadows.add("spring", pair, "node-a:1")
    store.registry.shadows.add("spring", ShadowPair("edit-2", "control", True, False), "node-a:1")
    store.registry.shadows.lose("spring", "a", 4, 1)
    page = tmp_path / "spring.html"
    printed = program("rollout", "status", "spring", "--json", "--html", page).json["shadowed"]
    assert (printed["same"]["n"], printed["greedy"]["n"], printed["dropped"], printed["failed"]) == (2, 1, 4, 1)
    assert problems(page.read_text(encoding="utf-8")) == []
    assert "&lt;b&gt;Berlin" in page.read_text(encoding="utf-8")
    lines = program("rollout", "status", "spring").out.splitlines()
    assert "dropped 4, failed 1" in lines
    assert "answer tokens on average: control 4, treatment 3" in lines
    assert "  treatment  'Bonn\\x1b[2J'" in lines
    assert [line.split()[:2] for line in lines if line.startswith(("all ", "greedy "))] == [
        ["all", "2"],
        ["greedy", "1"],
    ]
    assert program("rollout", "shadow", "spring", "0").code == 0
    assert program("rollout", "status", "spring", "--json").json["shadow"] is None
    for wrong in ("much", "101"):
        assert program("rollout", "shadow", "spring", wrong).code != 0
    assert (
        program("rollout", "create", "other", "--tenant", "acme", "--treatment", names[1], "--shadow-texts").code == 1
    )


def test_status_shows_arms_comparisons_and_warnings(
    program: Program, store: Store, names: tuple[str, str], tmp_path: Path
) -> None:
    program("rollout", "create", "spring", "--tenant", "acme", "--treatment", names[1], "--metric", "solved")
    empty = program("rollout", "status", "spring")
    assert empty.code == 0
    assert "treatment: open" in empty.out
    _filled(store)
    picture = tmp_path / "spring.svg"
    page = tmp_path / "spring.html"
    printed = program("rollout", "status", "spring", "--json", "--out", picture, "--html", page).json
    assert printed["comparisons"][0]["verdict"] == "worse"
    assert printed["arms"]["control"]["units"] + printed["arms"]["treatment"]["units"] == 200
    assert printed["picture"] == str(picture)
    assert picture.stat().st_size > 1_000
    assert printed["page"] == str(page)
    assert problems(page.read_text(encoding="utf-8")) == []
    assert "Warning:</strong> treatment is worse on solved" in page.read_text(encoding="utf-8")
    text = program("rollout", "status", "spring").out
    assert "solved, 0 to 1, higher is better" in text
    assert "95 % AT EVERY LOOK" in text
    assert "warning: treatment is worse on solved" in text
    assert "consider a kill" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["create", "spring", "--tenant", "acme"], 2, "--treatment"),
        (["create", "spring", "--tenant", "acme", "--treatment", "capital", "--user", "ann"], 2, "USER=control"),
        (["create", "spring", "--tenant", "acme", "--treatment", "capital", "--override", "x"], 2, "--who"),
        (["create", "spring", "--tenant", "acme", "--treatment", "capital:fast"], 1, "expected an arm like"),
        (["create", "spring", "--tenant", "acme", "--treatment", "nothing"], 1, "no compiled patch"),
        (["create", "spring", "--tenant", "nobody", "--treatment", "capital"], 1, "no tenant 'nobody'"),
        (["create", "spring", "--tenant", "acme", "--treatment", "capital", "--order", "cookie"], 1, "order of differ"),
        (["create", "spring", "--tenant", "acme", "--treatment", "capital", "--metric", "a:2..1"], 1, "a range like"),
        (["create", "spring", "--tenant", "acme", "--treatment", "capital", "--split", "100"], 1, "nothing to compare"),
        (["create", "spring", "--tenant", "acme", "--treatment", "capital", "--limit", "good=kill"], 1, "--metric"),
        (
            ["create", "spring", "--tenant", "acme", "--treatment", "capital", "--limit", "errors"],
            1,
            "like errors=kill",
        ),
        (
            ["create", "spring", "--tenant", "acme", "--treatment", "capital", "--limit", "locality+5%=kill"],
            1,
            "has no locality probes to ask",
        ),
        (["ramp", "spring", "5"], 1, "no rollout 'spring'"),
        (["ramp", "spring", "much"], 1, "expected a share like 10, or a schedule"),
        (["ramp", "spring", "10% 1h, 5%"], 1, "shares that rise"),
        (["list", "--tenant", "nobody"], 1, "no tenant 'nobody'"),
    ],
)
def test_mistakes_are_reported_in_a_line(
    program: Program, names: tuple[str, str], arguments: list[str], code: int, message: str
) -> None:
    ran = program("rollout", *arguments)
    assert ran.code == code
    assert message in ran.err
    assert code == 2 or ran.err.count("\n") == 1


def test_a_step_that_is_not_allowed_is_reported(program: Program, names: tuple[str, str]) -> None:
    program("rollout", "create", "spring", "--tenant", "acme", "--treatment", names[1])
    ran = program("rollout", "promote", "spring")
    assert (ran.code, ran.err) == (
        1,
        "vllm-edit: cannot promote rollout 'spring': it is created; it can only ramp or kill\n",
    )
    assert "at most two decimals" in program("rollout", "ramp", "spring", 0.001).err
    assert "there is no folder" in program("rollout", "status", "spring", "--html", "absent/page.html").err
    assert "no metrics to draw" in program("rollout", "status", "spring", "--out", "a.png").err


def test_status_shows_limits_their_numbers_and_what_they_did(
    program: Program, store: Store, names: tuple[str, str]
) -> None:
    limits = ["--limit", "errors=kill", "--limit", "slower:2s+1%=warn"]
    made = program("rollout", "create", "spring", "--tenant", "acme", "--treatment", names[1], *limits, "--json").json
    assert [(limit["name"], limit["action"], limit["margin"]) for limit in made["limits"]] == [
        ("errors", "kill", 0.0),
        ("slower", "warn", 0.01),
    ]
    running = store.registry.rollouts.ramp("spring", 100)
    warned = program("rollout", "status", "spring").out
    assert "no server tests the limits" in warned
    assert "errors=kill" in warned
    store.registry.rollouts.expose(failing(running))
    watch = Watch("a", "node-a:1")
    assert store.registry.guard.hold(watch)
    assert "guarded by  node-a:1" in program("rollout", "status", "spring").out
    assert store.registry.guard.test("spring", watch)
    text = program("rollout", "status", "spring").out
    assert "state       killed" in text
    [errors] = [line for line in text.splitlines() if line.startswith("errors=kill")]
    assert "acted: kill 20" in errors
    assert errors.endswith("by node-a:1")
    record = program("rollout", "status", "spring", "--json").json
    assert [test["limit"] for test in record["limit_tests"]] == ["errors=kill", "slower:2s+0.01=warn"]
    assert record["limit_tests"][0]["excess"]["low"] > 0
    assert [decision["server"] for decision in record["decisions"]] == ["node-a:1"] * 2
    assert "limit errors=kill: treatment 1 (n = " in program("audit", "show", "--json").out


def test_a_ramp_takes_a_schedule_and_says_what_comes_next(
    program: Program, store: Store, names: tuple[str, str]
) -> None:
    program("rollout", "create", "spring", "--tenant", "acme", "--treatment", names[1])
    ran = program("rollout", "ramp", "spring", "1% 1h, 10% 1d, 50%")
    assert "1 % of the users take part, 50 % of them on treatment; 10 % from 20" in ran.out
    shown = program("rollout", "status", "spring").out
    assert "schedule    1% 1h, 10% 1d, 50%; 10 % from 20" in shown
    record = program("rollout", "status", "spring", "--json").json["schedule"]
    assert (record["steps"], record["share"], record["next"], record["held"]) == ("1% 1h, 10% 1d, 50%", 1, 10, None)
    assert record["next_at"] > record["since"]
    program("rollout", "ramp", "spring", "5%")
    assert program("rollout", "status", "spring", "--json").json["schedule"] is None
    assert "schedule" not in program("rollout", "status", "spring").out.split("warning")[0]


def test_two_rollouts_run_in_ranges_beside_a_holdout(program: Program, store: Store, names: tuple[str, str]) -> None:
    ran = program("tenant", "holdout", "acme", 5, "--why", "long-term effect")
    assert ran.out == "tenant acme: 5 % of the users take part in no rollout\n"
    create = ["rollout", "create", "--tenant", "acme", "--treatment"]
    program(*create, names[1], "spring", "--range", "0..40")
    assert program(*create, f"{names[1]}:ike", "summer").err.endswith("give a --range that does not overlap\n")
    made = program(*create, f"{names[1]}:ike", "summer", "--range", "40..100", "--json").json
    assert (made["audience"]["low"], made["audience"]["high"], made["audience"]["holdout"]) == (4_000, 10_000, 500)
    for name in ("spring", "summer"):
        program("rollout", "ramp", name, 10)
    shown = program("rollout", "status", "spring").out
    assert "range       0..40 % of the tenant's users" in shown
    assert "holdout     5 % of the tenant's users" in shown
    assert "spring, summer" in program("tenant", "list").out
    [tenant] = program("tenant", "list", "--json").json
    assert (tenant["rollout"], tenant["beside"], tenant["holdout"]) == ("spring", ["summer"], 5)
    refused = program("tenant", "holdout", "acme", 10)
    assert (refused.code, "promote or kill it first" in refused.err) == (1, True)
    assert "like 0..40" in program(*create, names[1], "third", "--range", "40").err
