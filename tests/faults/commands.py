"""Every command of the program with all its inputs, so that a test can damage one of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import MappingProxyType

import torch

from tests.faults.hostile_files import ESCAPES, spoil, spoil_one_of
from tests.gguf_files import write_gguf
from tests.knowledge_editor.tiny_editor import editor_for
from tests.mend.network_sites import card_for
from tests.mend.test_mend import network_for
from tests.mend.tiny_training import tiny_edits
from tests.tiny import SENTENCES, save_tiny, tiny_model, tiny_tokenizer
from vllm_edit.atlas.training import ACCURACY_FILE
from vllm_edit.edit import Edit, Probe
from vllm_edit.editing.hypernetworks.network_training import CHECKPOINT
from vllm_edit.editing.network_files import save
from vllm_edit.facts import tables_folder
from vllm_edit.models.base import Base
from vllm_edit.patch import Gate, Patch
from vllm_edit.registry.job_request import JobRequest
from vllm_edit.store.documents import path_of
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store
from vllm_edit.text.yaml_document import dump_yaml

_QUICK = "--set steps=1 --set rounds=1 --set forms=[plain] --set on_missed=report --set batch_tokens=512"
_TRAIN = "--set rank=4 --set warm=1 --set validate_every=1 --set edits=1 --set taught=1 --set kept=1 --set texts=1"

COMMANDS = (
    "model import {gguf} --out {out}",
    "model import {model} --out {out} --json",
    "model fetch {name} --out {out}",
    "model info {model} --json",
    "store init --model {model} --layer 1 --token last --texts {texts} --store {new}",
    "store init --model {model} --layer auto --token last --texts {texts} --edits {sweep} --store {new} "
    "--seed {number}",
    "store init --model {model} --method mend --network {network} --texts {texts} --store {new}",
    "store init --model {model} --method ke --network {editor} --texts {texts} --store {new}",
    "store init --model {model} --method ultraedit --edits {sweep} --texts {texts} --store {new}",
    "store passages --texts {texts} --store {bare}",
    "store keep-settings --store {store}",
    "store keep-settings --model {model} --store {store} --json",
    "store status --store {store}",
    "store status --store {store} --json",
    f"compile {{patch}} --store {{store}} --bank {{bank}} {_QUICK}",
    f"compile {{patch}} --store {{store}} --model {{model}} --json {_QUICK}",
    "compile {patch} --store {store} --set {setting}",
    "compile {patch} --store {store} --method ft --set steps=1 --set on_missed=report --json",
    "worker --drain --store {store} --bank {bank}",
    "worker --drain --store {store} --model {model} --json",
    "job list --limit {number} --store {store}",
    "job show {name} --store {store}",
    "job cancel {name} --why {text} --store {store}",
    f"recompile --store {{store}} --to {{other}} {_QUICK}",
    f"recompile --store {{store}} --to {{other}} --all --json {_QUICK}",
    "compose capital currency --store {store} --out {name}",
    "compose capital {name} --store {store} --damping {number} --truncate --policy last",
    f"eval {{data}} --store {{store}} --limit 2 --max-tokens 2 {_QUICK}",
    f"eval {{data}} --store {{store}} --mode base --record {{record}} --max-tokens 2 --json {_QUICK}",
    f"eval {{patch}} --store {{store}} --mode base,ike --bank {{bank}} --max-tokens 2 --answers --html {{out}} "
    f"{_QUICK}",
    "eval capital --store {store} --max-tokens 2 --answers --model {model}",
    "report --store {store} --out {out}",
    "report {record} --store {store} --out {out} --json",
    "list --store {url}",
    "list --store {store}",
    "list --store {store} --json",
    "show capital --store {store}",
    "show {name} --store {store} --json",
    "diff capital {patch} --store {store}",
    "diff {patch} currency --store {store} --json",
    "sign capital --key {texts} --store {store}",
    "signer create {out}",
    "signer trust {name} --name {text} --until {time} --store {store}",
    "signer end {name} --store {store}",
    "signer revoke {name} --why {text} --store {store}",
    "signer require --store {store}",
    "signer list --store {store} --json",
    "verify --store {store}",
    "verify --store {store} --json",
    "gc --store {store} --wait {number}",
    "gc --yes --wait 0 --store {store}",
    "export capital {out} --store {store}",
    "export {name} {out} --store {store} --dtype bfloat16",
    "tenant create {name} --store {store}",
    "tenant list --store {store}",
    "tenant publish globex capital --wait 0 --why {text} --store {store}",
    "tenant publish globex {name} --wait {number} --until {time} --store {store}",
    "tenant rollback globex --wait 0 --store {store}",
    "tenant history acme --store {store}",
    "tenant holdout globex {number} --why {text} --store {store}",
    "tenant key create acme --label {text} --until {time} --store {store}",
    "tenant key list {name} --store {store}",
    "tenant key revoke acme {name} --wait 0 --store {store}",
    "rollout create {name} --tenant globex --treatment capital --split {number} --metric {text} --store {store}",
    "rollout create second --tenant globex --treatment {name} --user {user} --alpha 0.1 --store {store}",
    "rollout create third --tenant globex --treatment capital --limit {text} --range {text} --store {store}",
    "rollout ramp spring {number} --wait 0 --store {store}",
    "rollout pause {name} --wait 0 --store {store}",
    "rollout shadow spring {number} --texts --wait 0 --why {text} --store {store}",
    "rollout kill spring --wait 0 --why {text} --store {store}",
    "rollout promote spring --wait 0 --store {store}",
    "rollout list --store {store}",
    "rollout status spring --store {store} --out {out}",
    "rollout status spring --store {store} --html {out}",
    "answer {name} --store {store}",
    "answers --limit {number} --store {store}",
    "key create --admin --label {text} --store {store}",
    "key list --store {store}",
    "key revoke {name} --wait 0 --store {store}",
    "audit verify --store {store}",
    "audit show --limit {number} --store {store}",
    "serve --store {store}",
    "servers --store {store}",
    "servers --forget {name} --store {store}",
    "flags --store {store}",
    "flags {model} --store {store} --json --max-model-len {number}",
    "flags --store {store} --config {texts}",
    "flags --store {store} --config {patch}",
    f"hypernet train --out {{out}} --model {{model}} --edits {{edits}} --texts {{texts}} --steps 1 {_TRAIN}",
    "hypernet train --out {out} --model {model} --edits {patch} --judged {edits} --texts {texts} --set {setting}",
    f"hypernet train --out {{trained}} --model {{model}} --edits {{edits}} --texts {{texts}} --steps 1 {_TRAIN}",
    "hypernet train --method ke --out {out} --model {model} --edits {edits} --texts {texts} --steps 1 --set units=4 "
    "--set warm=1 --set validate_every=1 --set edits=1 --set taught=1 --set kept=1 --set texts=1",
    "hypernet info {network}",
    "hypernet info {editor}",
    "trace {patch} --model {model} --samples 1 --noise {number}",
    "trace {data} --model {model} --samples 1 --limit 1 --json --seed {number}",
    "schema",
    "atlas train --facts {facts} --from {model} --steps 1 --out {out}",
    "atlas train --facts {facts} --from {model} --steps 1 --out {trained}",
    "atlas info --model {accuracy}",
    "atlas info --model {accuracy} --json",
    "demo atlas --patches {patches} --folder {out}",
)
VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "name": (
            "",
            " ",
            "nobody",
            "../../etc/passwd",
            "capital@",
            "@",
            "capital@zz",
            "a" * 5000,
            ESCAPES,
            "法",
            "-",
            "�",
            "%00",
            "capital:ike",
            "base",
            "0" * 32,
        ),
        "number": ("nan", "inf", "-inf", "-1", "1e400", "0", "9" * 25, "x", "", "1.5", str(2**64), str(-(2**63))),
        "user": (
            "",
            "=",
            "ann=",
            "=control",
            "a" * 5_000 + "=control",
            "\udcff=control",
            f"{ESCAPES}=treatment",
            "ann=x",
        ),
        "text": ("", ESCAPES, "a" * 5_000, "\udcff", "=", "a=", "=control", "x:1..", "x:nan..inf", "a,b,,", "e\u0301"),
        "time": (
            "",
            "0d",
            "999999w",
            "9" * 30,
            "2030-01-31",
            "2030-99-99",
            "0001-01-01T00:00+14:00",
            "9999-12-31",
            "x",
            "9999-12-31T23:59:59-14:00",
        ),
        "url": (
            "",
            " ",
            "::",
            "a::b",
            "file:///nonexistent",
            "/dev/null",
            "/proc/1",
            "local://",
            "%00",
            ESCAPES,
            "\udcff",
        ),
        "out": ("", "/dev/null/x", "/proc/nothing", "x" * 300, "\udcff", "taken", "taken/x", "link", "link/x"),
        "new": ("", "/dev/null/x", "/proc/nothing", "x" * 300, "taken", "taken/x", "link", "link/x"),
        "setting": (
            "",
            "=",
            "steps",
            "steps=",
            "steps=many",
            "steps=[",
            "steps=nan",
            "tempo=1",
            "forms=plain",
            "rank=a",
            "essence={",
            "margin=.inf",
            "steps=2001-99-99",
            "residual_rule=Shift",
            "=1",
            "batch_tokens=" + "9" * 30,
        ),
    }
)
"""Values that a user might give instead of a valid value."""
_GOOD = MappingProxyType(
    {
        "url": "memory://x",
        "user": "ann=treatment",
        "name": "capital",
        "number": "1",
        "text": "spring",
        "time": "3d",
        "setting": "steps=1",
    }
)
FOLDERS = ("model", "store", "other", "bare", "network", "editor", "facts", "patches", "trained", "accuracy")
FILES: Mapping[str, str] = MappingProxyType(
    {
        "gguf": "model.gguf",
        "texts": "texts.txt",
        "patch": "patch.yaml",
        "edits": "edits.yaml",
        "sweep": "sweep.yaml",
        "bank": "bank.yaml",
        "data": "data.json",
        "record": "record.jsonl",
    }
)


@dataclass(frozen=True)
class Trial:
    """What is run, in a folder of its own. spoiled: of what, and by what. store: of the store, if it is intact."""

    arguments: tuple[str, ...]
    folder: Path
    spoiled: str
    store: Path | None

    def __str__(self) -> str:
        return f"vllm-edit {' '.join(map(repr, self.arguments))} with {self.spoiled}"


class Samples:
    """One of everything, intact, made once."""

    def __init__(self, folder: Path, run: Callable[..., object]) -> None:
        """run: runs the program in this process, to make the store."""
        self.folder = folder
        model = save_tiny("llama", folder / "model")
        (folder / "facts").mkdir()
        for table in ("books.csv", "books.yaml"):
            shutil.copy(tables_folder() / table, folder / "facts")
        tokenizer = tiny_tokenizer()
        write_gguf(folder / FILES["gguf"], tiny_model("llama", tokenizer), tokenizer, add_bos=True)
        base = Base.load(model)
        network = network_for(base)
        save(folder / "network", network, card_for(base, network))
        editor = editor_for(base)
        save(folder / "editor", editor, card_for(base, editor))
        (folder / FILES["texts"]).write_text("\n".join(SENTENCES * 4), encoding="utf-8")
        edits = list({edit.subject: edit for edit in tiny_edits()}.values())
        patches = {
            "capital": Patch(name="capital", edits=(edits[0],), gate=Gate(reliability=0, locality=0, unrelated=0)),
            "currency": Patch(name="currency", edits=(edits[1],), gate=Gate(reliability=0, locality=0, unrelated=0)),
        }
        (folder / "patches").mkdir()
        for name, patch in patches.items():
            (folder / "patches" / f"{name}.yaml").write_text(patch.dump(), encoding="utf-8")
        (folder / FILES["patch"]).write_text(patches["capital"].dump(), encoding="utf-8")
        (folder / FILES["edits"]).write_text(Patch(name="edits", edits=tuple(edits)).dump(), encoding="utf-8")
        sweep = tuple(edit.model_copy(update={"probes": _for_the_sweep(edit)}) for edit in edits)
        (folder / FILES["sweep"]).write_text(Patch(name="sweep", edits=sweep).dump(), encoding="utf-8")
        bank = [{"prompt": f"The capital of {name} is", "subject": name, "relation": "capital", "object": "Paris"}
                for name in ("Norway", "Peru", "Chad")]  # fmt: skip
        (folder / FILES["bank"]).write_text(dump_yaml(bank), encoding="utf-8")
        (folder / FILES["data"]).write_text(
            '[{"prompt": "The capital of France is", "subject": "France", "target_new": "Lyon", "rephrase": "x"},'
            ' {"case_id": 1, "prompt": "The capital of Japan is", "subject": "Japan", "target_new": "Rome"}]',
            encoding="utf-8",
        )
        (folder / "trained").mkdir()
        torch.save({"identity": "another", "step": 1}, folder / "trained" / CHECKPOINT)
        (folder / "accuracy").mkdir()
        accuracy = {"shares": {"trained": 1.0}, "counts": {"trained": 9}, "by_relation": {"author": {"trained": 1.0}}}
        (folder / "accuracy" / ACCURACY_FILE).write_text(json.dumps(accuracy), encoding="utf-8")
        store = folder / "store"
        run("store", "init", "--model", model, "--layer", "1", "--token", "last", "--texts", folder / FILES["texts"],
            "--store", store)  # fmt: skip
        run("store", "init", "--model", model, "--layer", "2", "--token", "last", "--texts", folder / FILES["texts"],
            "--store", folder / "other")  # fmt: skip
        for patch in ("capital", "currency"):
            run("compile", folder / "patches" / f"{patch}.yaml", "--store", store, *_QUICK.split())
        run("eval", folder / FILES["data"], "--store", store, "--mode", "base", "--max-tokens", "2", *_QUICK.split(),
            "--record", folder / FILES["record"])  # fmt: skip
        for tenant in ("acme", "globex"):
            run("tenant", "create", tenant, "--store", store)
            run("tenant", "publish", tenant, "currency", "--wait", "0", "--store", store)
        run("rollout", "create", "spring", "--tenant", "acme", "--treatment", "capital", "--metric", "solved",
            "--store", store)  # fmt: skip
        run("rollout", "ramp", "spring", "50", "--wait", "0", "--store", store)
        run("tenant", "key", "create", "acme", "--store", store)
        opened = Store.open(store)
        quick = {"steps": 1, "rounds": 1, "forms": ["plain"], "on_missed": "report", "batch_tokens": 512}
        opened.registry.jobs.submit(JobRequest(patches["capital"].model_copy(update={"name": "river"}), "rome", quick))
        opened.registry.close()
        shutil.copytree(store, folder / "bare")
        (folder / "bare" / path_of("passages")).unlink()

    def trial(self, number: int, folder: Path, draw: Random, only: Callable[[str], bool] = lambda one: True) -> Trial:
        """The `number`th command of `only` those, with one of the things that it needs spoiled."""
        commands = [command for command in COMMANDS if only(command)]
        words = commands[number % len(commands)].split()
        needed = [word.strip("{}") for word in words if word.startswith("{")]
        places = {name: self._copy(name, folder) for name in needed if name in FOLDERS or name in FILES}
        values = {name: good for name, good in _GOOD.items() if name in needed}
        chosen = draw.choice(needed) if needed else "nothing"
        spoiled = chosen
        if chosen in values:
            values[chosen] = draw.choice(VALUES[chosen])
        elif chosen in FOLDERS:
            spoiled = spoil_one_of(places[chosen], draw)
        elif chosen in FILES:
            spoiled = f"{spoil(places[chosen], draw)} in place of {chosen}"
        elif chosen in VALUES:
            spoiled = f"{chosen} that cannot be written"
        free = {"out": folder / "out.svg", "new": folder / "new"}
        if chosen in free:
            free[chosen] = self._unwritable(folder) / draw.choice(VALUES[chosen])
        known = {**{name: str(place) for name, place in (places | free).items()}, **values}
        arguments = tuple(known[word.strip("{}")] if word.startswith("{") else word for word in words)
        return Trial(arguments, folder, spoiled, places.get("store") if chosen != "store" else None)

    def _unwritable(self, folder: Path) -> Path:
        """A folder with a file and a link in the way of a writer."""
        folder.mkdir(exist_ok=True)
        (folder / "taken").write_bytes(b"taken")
        (folder / "link").symlink_to("/nonexistent/file")
        return folder

    def _copy(self, name: str, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        if name in FILES:
            return Path(shutil.copy(self.folder / FILES[name], folder / FILES[name]))
        return Path(shutil.copytree(self.folder / name, folder / name))


def _for_the_sweep(edit: Edit) -> tuple[Probe, ...]:
    return tuple(probe.model_copy(update={"split": "tune"}) for probe in edit.probes)


def assert_whole(trial: Trial) -> None:
    """No store is incomplete, whatever the result of the command."""
    for folder in (trial.store, trial.folder / "new"):
        if folder is not None and (folder / "site.json").exists():
            store = Store.open(folder)
            try:
                assert problems_of(store) == [], f"{trial} left a store that is not whole"
                assert store.registry.verify_audit().problems == ()
            finally:
                store.registry.close()
