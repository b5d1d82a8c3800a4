"""Every command on a small store: its output as text and as JSON, and its failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.store.example import compiled, site
from vllm_edit.deltas.delta import Delta
from vllm_edit.patch import Patch
from vllm_edit.store.store import Store


def test_list_and_show_report_stored_patches(program: Program, store: Store) -> None:
    old, new = store.save(compiled()), store.save(compiled(seed=1))
    store.registry.create_tenant("acme")
    store.registry.set_status(old, "accepted")
    store.registry.publish("acme", old)
    store.registry.set_status(new, "rejected", "locality too low")
    listed = program("list", "--json").json
    assert [(entry["name"], entry["status"], entry["tenants"]) for entry in listed] == [
        (new, "rejected", []),
        (old, "accepted", ["acme"]),
    ]
    text = program("list").out.splitlines()
    assert len(text) == 3
    assert text[1].startswith(new[:20])
    assert text[2].endswith("acme")

    shown = program("show", "capital", "--json").json
    assert shown["name"] == new
    assert shown["manifest"]["edits"][0]["target_new"] == "Lyon"
    assert [record["kind"] for record in shown["records"]] == ["compile"]
    text = program("show", old[:13]).out
    assert old in text
    assert "The capital of France is" in text
    assert "acme" in text


def test_a_piped_table_is_never_cut(program: Program, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    store.save(compiled(target="Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch"))
    assert "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch" in program("show", "capital").out


def test_diff_names_added_removed_and_changed_edits(program: Program, store: Store, tmp_path: Path) -> None:
    store.save(compiled())
    edit = compiled(target="Nice").manifest.edits[0]
    other = edit.model_copy(update={"subject": "Spain", "prompt": "The capital of Spain is", "target_new": "Cádiz"})
    file = tmp_path / "new.yaml"
    file.write_text(Patch(name="new", edits=(edit, other)).dump(), encoding="utf-8")
    changes = program("diff", "capital", file, "--json").json
    assert [item["subject"] for item in changes["added"]] == ["Spain"]
    assert changes["removed"] == []
    assert [item["fields"] for item in changes["changed"]] == [["target_new"]]
    assert program("diff", file, "capital").out == (
        "- The capital of Spain is → Cádiz\n~ The capital of France is  (target_new: 'Nice' → 'Lyon')\n"
    )
    assert program("diff", "capital", "capital").out == "the same edits\n"


def test_verify_exits_1_and_names_the_file(program: Program, store: Store) -> None:
    name = store.save(compiled())
    assert program("verify").code == 0
    path = Path(store.url) / "patches" / name / "factors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    ran = program("verify")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert f"{name}/factors.safetensors" in ran.err
    ran = program("verify", "--json")
    assert ran.code == 1
    assert len(ran.json["problems"]) == 1


def test_gc_asks_before_it_removes(program: Program, store: Store) -> None:
    old, new = store.save(compiled()), store.save(compiled(seed=1))
    assert program("gc", "--json").json == {"would_remove": [old]}
    assert "--yes" in program("gc").out
    assert store.names() == [new, old]
    assert program("gc", "--yes").out == f"removed {old}\n"
    assert store.names() == [new]
    assert program("gc").out == "nothing to remove\n"


def test_gc_leaves_files_that_a_server_may_need_and_names_it(program: Program, store: Store) -> None:
    old, _new = (store.save(compiled(seed=seed)) for seed in range(2))
    store.registry.servers.beat("a", host="gpu-3", pid=4711, generation=9, drained=0)
    ran = program("gc", "--yes", "--wait", "0")
    message = f"vllm-edit: {old} is retired; its files stay for the next gc, gpu-3:4711 may need them\n"
    assert (ran.code, ran.out, ran.err) == (1, "", message)
    left = program("gc", "--yes", "--wait", "0", "--json")
    assert (left.code, left.json) == (1, {"removed": [], "retired": [old], "missing": ["gpu-3:4711"]})
    assert program("gc", "--json").json == {"would_remove": [old]}
    store.registry.servers.beat("a", host="gpu-3", pid=4711, generation=9, drained=9)
    ran = program("gc", "--yes", "--json")
    assert (ran.code, ran.json) == (0, {"removed": [old], "retired": [], "missing": []})


def test_export_writes_a_peft_folder_and_no_other(program: Program, store: Store, tmp_path: Path) -> None:
    name = store.save(compiled())
    ran = program("export", "capital", tmp_path / "out", "--json")
    assert ran.json["name"] == name
    assert Delta.load_peft(tmp_path / "out").digest == compiled().delta.digest
    again = program("export", "capital", tmp_path / "out")
    assert (again.code, again.err) == (1, f"vllm-edit: {tmp_path / 'out'} is not empty; name a new folder\n")
    assert program("export", "capital", tmp_path / "half", "--dtype", "bfloat16").code == 0
    assert program("export", "capital", tmp_path / "int", "--dtype", "int8").code == 2


@pytest.mark.parametrize("there", [True, False])
def test_an_export_that_fails_leaves_the_folder_as_it_was(
    program: Program, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    store.save(compiled())
    folder = tmp_path / "out"
    if there:
        folder.mkdir(mode=0o750)

    def full(self: Delta, folder: Path, **_: object) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text("{")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Delta, "save_peft", full)
        ran = program("export", "capital", folder)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "No space left on device" in ran.err
    assert list(tmp_path.glob("out*/*")) == []
    assert folder.is_dir() is there
    assert program("export", "capital", folder).code == 0
    assert not there or folder.stat().st_mode & 0o777 == 0o750


def test_an_export_names_the_file_in_its_way(program: Program, store: Store, tmp_path: Path) -> None:
    store.save(compiled())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        ran = program("export", "capital", tmp_path / name)
        assert (ran.code, ran.err) == (1, f"vllm-edit: {tmp_path / name} is not a folder; name a new folder\n")
    assert program("export", "capital", tmp_path / "file" / "below").code == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_tenants_publish_and_roll_back(program: Program, store: Store) -> None:
    old, new = store.save(compiled()), store.save(compiled(seed=1))
    for name in (old, new):
        store.registry.set_status(name, "accepted")
    assert program("tenant", "create", "acme").code == 0
    assert program("tenant", "list").out.splitlines()[1].split() == ["acme", "base"]
    printed = program("tenant", "publish", "acme", old[:14], "--json").json
    assert (printed["tenant"], printed["active"]) == ("acme", old)
    assert program("tenant", "publish", "acme", "capital", "--why", "better").out.endswith(f"{new}\n")
    assert program("tenant", "rollback", "acme", "--why", "worse").out.endswith(f"{old}\n")
    history = program("tenant", "history", "acme", "--json").json
    assert [(publication["name"], publication["why"], publication["rolled_back"]) for publication in history] == [
        (new, "better", True),
        (old, "", False),
    ]
    assert all(publication["by"] for publication in history)
    text = program("tenant", "history", "acme").out
    assert "better / worse" in text
    assert "active" in text
    assert [entry["active"] for entry in program("tenant", "list", "--json").json] == [old]
    assert program("tenant", "rollback", "acme", "--json").json["active"] is None
    ran = program("tenant", "rollback", "acme")
    assert (ran.code, ran.err.count("\n")) == (1, 1)


def test_a_rejected_patch_needs_an_override_with_a_reason_and_a_name(program: Program, store: Store) -> None:
    name = store.save(compiled())
    store.registry.create_tenant("acme")
    store.registry.set_status(name, "rejected", "locality too low")
    ran = program("tenant", "publish", "acme", "capital")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "locality too low" in ran.err
    overridden = ("tenant", "publish", "acme", "capital", "--override")
    assert program(*overridden).code == 2
    assert program(*overridden, "asked for").code == 2, "somebody must answer for it"
    assert program(*overridden, "asked for", "--who", "ann").code == 0
    (publication,) = store.registry.history("acme")
    assert (publication.override, publication.why, publication.by) == (True, "asked for", "ann")


def test_status_shows_site_and_counts(program: Program, store: Store) -> None:
    store.save(compiled())
    printed = program("store", "status", "--json").json
    assert (printed["site"], printed["layer"], printed["patches"], printed["ungated"]) == (site().digest, 1, 1, 1)
    assert site().digest in program("store", "status").out


def test_a_document_that_is_no_pool_of_facts_is_one_line(program: Program, store: Store) -> None:
    store.keep("pool", {})
    ran = program("store", "status")
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert "pool.json holds no pool of facts" in ran.err


def test_the_schema_describes_patch_files(program: Program) -> None:
    assert program("schema").json == Patch.model_json_schema()


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "nope"),
        ("show", "../../etc/passwd"),
        ("list", "--store", "/nonexistent/store"),
        ("tenant", "history", "nobody"),
        ("tenant", "create", "Not A Tenant"),
        ("tenant", "publish", "nobody", "capital"),
        ("diff", "capital", "missing.yaml"),
        ("export", "capital", "/proc/nothing/here"),
        ("compile", "missing.yaml"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_1(program: Program, store: Store, arguments: tuple[str, ...]) -> None:
    store.save(compiled())
    ran = program(*arguments)
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("vllm-edit: ")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("frobnicate",), ("show",), ("list", "--frob"), ("tenant", "frob")])
def test_wrong_usage_exits_2(program: Program, arguments: tuple[str, ...]) -> None:
    ran = program(*arguments)
    assert ran.code == 2
    assert "Usage" in ran.err


def test_help_and_version_import_neither_torch_nor_vllm() -> None:
    code = """
import sys
import time
from vllm_edit.cli import main
for arguments in (["--help"], ["--version"], ["tenant", "--help"], ["compile", "--help"], ["serve", "--help"]):
    sys.argv = ["vllm-edit", *arguments]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0, (arguments, ended.code)
heavy = {"torch", "vllm", "transformers", "peft", "sqlalchemy"} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    for command in ("store", "compile", "list", "tenant", "serve", "eval", "atlas", "demo"):
        assert command in ran.stdout


def test_commands_on_the_registry_do_not_import_torch(store: Store) -> None:
    store.registry.set_status(store.save(compiled()), "accepted")
    code = """
import sys
import time
from vllm_edit.cli import main
for line in ("list", "show capital", "tenant create acme", "tenant publish acme capital", "tenant key create acme",
             "key list", "audit verify", "audit show", "gc"):
    sys.argv = ["vllm-edit", *line.split()]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0, (line, ended.code)
assert "torch" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr


def test_control_c_ends_without_a_traceback(store: Store, tmp_path: Path) -> None:
    pipe = tmp_path / "patch.yaml"
    os.mkfifo(pipe)
    # A shell's background jobs and their children ignore SIGINT.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from vllm_edit.cli import main; main()"
    waiting = subprocess.Popen([sys.executable, "-c", code, "compile", pipe], stderr=subprocess.PIPE, text=True)
    with pipe.open("w"):  # opens when the command has opened the other end
        time.sleep(0.5)  # until it reads: Python does not see a signal between the two
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert "Traceback" not in err
