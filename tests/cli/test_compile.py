"""`store init` and `compile` on a tiny model: from files to a stored patch that its engine could load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.tiny import SENTENCES, save_tiny
from vllm_edit.cli.method_settings import method_settings
from vllm_edit.patch import Patch
from vllm_edit.release.pipeline import Pipeline
from vllm_edit.store.documents import path_of
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.store import Store

# A random model has no facts to change. Its edits may miss, which these tests do not cover.
FORCED = ("--set", "on_missed=report", "--set", "steps=5", "--set", "forms=[plain]")
PATCH = """
name: {name}
gate: {{reliability: {least}}}
edits:
  - prompt: The capital of France is
    subject: France
    relation: capital
    target_new: {target}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(SENTENCES * 4), encoding="utf-8")
    return file


def test_a_patch_file_becomes_a_stored_patch(program: Program, model: Path, texts: Path, tmp_path: Path) -> None:
    url = tmp_path / "store"
    where = ("--model", model, "--texts", texts, "--store", url)
    init = program("store", "init", "--layer", 1, "--token", "last", *where, "--json")
    assert init.code == 0, init.err
    assert (init.json["layer"], init.json["token"], init.json["rank"]) == (1, "last", 16)
    passages = Store.open(url).passages()
    assert init.json["passages"] == len(passages) > 0
    assert set(passages) < set(SENTENCES)
    again = program("store", "init", "--layer", 2, *where)
    assert (again.code, again.err.count("\n")) == (1, 1)
    assert "has a site already" in again.err

    file = tmp_path / "capital.yaml"
    file.write_text(PATCH.format(name="capital", target="Berlin", least=0))
    ran = program("compile", file, "--store", url, "--json", *FORCED)
    assert ran.code == 0, ran.err
    (done,) = ran.json["compiled"]
    stored = Store.open(url)
    assert stored.names() == [done["name"]]
    assert stored.load(done["name"]).report.seconds > 0
    assert {demonstration.kind for demonstration in stored.demonstrations(done["name"])} >= {"copy"}
    assert problems_of(stored) == []
    assert (done["status"], stored.entry(done["name"]).status) == ("accepted", "accepted")
    assert [record.kind for record in stored.records(done["name"])] == ["compile", "gate"]
    assert ran.json["signed"] is None
    printed = program("compile", file, "--store", url, *FORCED)
    assert printed.out.startswith(f"{done['name']}  accepted, rank 1, 1 edits, "), "compiling again gives the same name"
    automatic = program("compile", file, "--method", "auto", "--store", url, *FORCED)
    assert automatic.out.startswith(f"{done['name']}  accepted, "), "the method of a site of one module is rome"
    key = program("signer", "create", tmp_path / "ann.key", "--json").json
    unknown = program("compile", file, "--sign", tmp_path / "ann.key", "--store", url, *FORCED).out.splitlines()
    assert unknown[1:] == [
        f"note: no list of keys trusts {key['id']} yet: vllm-edit signer trust {key['public']} --name …"
    ]
    program("signer", "trust", key["public"], "--name", "ann", "--store", url)
    trusted = program("compile", file, "--sign", tmp_path / "ann.key", "--store", url, "--json", *FORCED)
    assert trusted.json["signed"] == {"key": key["id"], "trusted": True}
    program("signer", "revoke", key["id"], "--why", "lost", "--store", url)
    revoked = program("compile", file, "--sign", tmp_path / "ann.key", "--store", url, *FORCED)
    assert (revoked.code, revoked.out, "was revoked on" in revoked.err) == (1, "", True)
    limits = "locality; unrelated"
    assert printed.out.endswith(f", not judged, because probes are missing: {limits}\n")
    assert done["not_judged"] == limits
    shown = program("show", done["name"], "--store", url).out
    assert [line.split(maxsplit=2)[2] for line in shown.splitlines() if line.startswith("not judged")] == [limits]

    file.write_text(PATCH.format(name="strict", target="Berlin", least=1))
    ran = program("compile", file, "--store", url, "--json", *FORCED)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    (strict,) = ran.json["compiled"]
    assert f"{strict['name']}: rejected by its gate: reliability: 0.000" in ran.err
    assert stored.entry(strict["name"]).status == "rejected"
    stored.registry.create_tenant("acme")
    refused = program("tenant", "publish", "acme", "strict", "--store", url)
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "reliability: 0.000" in refused.err


def test_the_same_file_gets_the_same_name_and_files_from_the_command_and_from_python(
    program: Program, initialised: Path, tmp_path: Path
) -> None:
    url, file = initialised, tmp_path / "capital.yaml"
    copy = shutil.copytree(url, tmp_path / "copy")
    file.write_text(PATCH.format(name="capital", target="Berlin", least=0))
    ran = program("compile", file, "--store", url, "--json", *FORCED)
    (done,) = ran.json["compiled"]
    settings = {"on_missed": "report", "steps": 5, "forms": ["plain"]}
    outcome = Pipeline.open(copy).run(Patch.load(file), settings=settings)
    assert outcome.name == done["name"]

    def files(store: Path) -> dict[str, bytes]:
        folder = store / "patches" / outcome.name
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert files(copy) == files(url)
    assert "demonstrations.json" in files(copy)
    verdicts = [Store.open(place).records(outcome.name, "gate")[-1].data for place in (url, copy)]
    assert verdicts[0]["failures"] == verdicts[1]["failures"]


def test_a_store_without_passages_is_given_some(program: Program, initialised: Path, texts: Path) -> None:
    url = initialised
    again = program("store", "passages", "--texts", texts, "--store", url)
    assert (again.code, again.err.count("\n")) == (1, 1)
    assert "passages already" in again.err
    (url / path_of("passages")).unlink()  # like a store from before there were any
    lacking = program("store", "passages", "--store", url)
    assert (lacking.code, lacking.err.count("\n")) == (1, 1)
    assert "--texts FILE" in lacking.err
    kept = program("store", "passages", "--texts", texts, "--store", url, "--json")
    assert kept.code == 0, kept.err
    assert kept.json["passages"] == len(Store.open(url).passages()) > 0


SWEEP = """
name: tried
edits:
  - prompt: The capital of France is
    subject: France
    target_new: Berlin
    probes:
      - {kind: paraphrase, prompt: "The people of France live in", split: tune}
      - {kind: paraphrase, prompt: "Because of that, France is", split: tune}
      - {kind: locality, prompt: The capital of Japan is, split: tune}
"""


@pytest.mark.slow
def test_auto_tries_every_layer_and_token_and_shows_the_scores(
    program: Program, model: Path, texts: Path, tmp_path: Path
) -> None:
    edits, url = tmp_path / "tried.yaml", tmp_path / "store"
    edits.write_text(SWEEP)
    ran = program("store", "init", "--model", model, "--texts", texts, "--edits", edits, "--store", url)
    assert ran.code == 0, ran.err
    tried = [tuple(line.split()[:2]) for line in ran.out.splitlines() if "one by one" in line]
    assert {*tried} == {(token, str(layer)) for token in ("last", "subject_last") for layer in range(3)}
    site = Store.open(url).site()
    assert (site.token, str(site.layer)) == tried[0], "the best is listed first, and chosen"
    assert site.digest in ran.out
    status = program("store", "status", "--store", url)
    assert [line for line in status.out.splitlines() if "one by one" in line] == [
        line for line in ran.out.splitlines() if "one by one" in line
    ], "the store keeps what was tried"


def test_an_unsafe_edit_is_refused_by_name(program: Program, initialised: Path, tmp_path: Path) -> None:
    url, file = initialised, tmp_path / "capital.yaml"
    file.write_text(PATCH.format(name="capital", target="Berlin", least=0))
    ran = program("compile", file, "--store", url, "--set", "steps=0", "--json")
    assert ran.code == 1
    assert "'The capital of France is' → 'Berlin'" in ran.err
    assert all(line.startswith("vllm-edit: capital: ") for line in ran.err.splitlines())
    assert ran.json["compiled"] == []
    assert Store.open(url).names() == []
    unknown = program("compile", file, "--store", url, "--set", "stride=1")
    assert (unknown.code, unknown.err.count("\n")) == (1, 1)
    assert "unknown settings stride" in unknown.err
    assert program("compile", file, "--set", "steps").code == 2
    assert "expected KEY=VALUE, got '=3'" in program("compile", file, "--set", "=3").err
    twice = program("compile", file, "--set", "steps=3", "--set", " steps=4")
    assert (twice.code, "steps is given twice; give it once" in twice.err) == (2, True)


def test_files_of_one_name_and_edits_that_have_ended_are_refused_before_the_model_is_loaded(
    program: Program, store: Store, tmp_path: Path
) -> None:
    first, second, ended = (tmp_path / f"{name}.yaml" for name in ("first", "second", "ended"))
    for file in (first, second):
        file.write_text(PATCH.format(name="capital", target="Berlin", least=0))
    ended.write_text(PATCH.format(name="ended", target="Berlin\n    valid_until: 2020-01-31T00:00:00Z", least=0))
    ran = program("compile", first, second, ended)
    assert (ran.code, ran.out) == (1, "")
    same, past = ran.err.splitlines()
    assert f"{second}: {first} has the name capital too; rename one" in same
    assert f"{ended}: edits.0.valid_until: 2020-01-31T00:00:00+00:00 is past, so the patch could not be" in past


LONG_PROBE = f"""
    probes:
      - {{kind: locality, prompt: {"Rome is " * 200}in, split: gate}}
"""


def test_an_edit_longer_than_the_model_reads_is_refused_and_the_next_patch_is_compiled(
    program: Program, initialised: Path, tmp_path: Path
) -> None:
    url = initialised
    long, probed, short = (tmp_path / f"{name}.yaml" for name in ("long", "probed", "short"))
    long.write_text(PATCH.format(name="long", target="Berlin " * 300, least=0))
    probed.write_text(PATCH.format(name="probed", target="Berlin", least=0) + LONG_PROBE)
    short.write_text(PATCH.format(name="short", target="Berlin", least=0))
    ran = program("compile", long, probed, short, "--store", url, "--json", *FORCED)
    assert ran.code == 1
    plain, chat, probe = ran.err.splitlines()
    assert plain.startswith("vllm-edit: long: edit 0 ('The capital of France is' → 'Berlin Berlin ")
    assert all(" … " in line and len(line) < 300 for line in (plain, chat))
    assert "its prompt, with context and answer, has" in chat
    assert "the model reads at most 256: shorten it, or leave it out" in chat
    assert probe.startswith(
        "vllm-edit: probed: edit 0 ('The capital of France is' → 'Berlin'): its locality probe 'Rome is"
    )
    assert [patch["name"].partition("@")[0] for patch in ran.json["compiled"]] == ["short"]


def test_every_problem_of_every_file_is_reported_at_once(program: Program, store: Store, tmp_path: Path) -> None:
    bad, worse = tmp_path / "bad.yaml", tmp_path / "worse.yaml"
    bad.write_text(PATCH.format(name="Not A Name", target='""', least=0))
    worse.write_text("name: x\nedits: [")
    ran = program("compile", bad, worse, tmp_path / "missing.yaml")
    assert ran.code == 1
    lines = ran.err.splitlines()
    assert all(line.startswith("vllm-edit: ") for line in lines)
    assert sum(str(bad) in line for line in lines) == 2
    assert sum(str(worse) in line for line in lines) == 1
    assert sum("missing.yaml" in line for line in lines) == 1
    assert store.names() == []


def test_a_model_that_is_not_the_stores_is_refused(program: Program, store: Store, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "capital.yaml"
    file.write_text(PATCH.format(name="capital", target="Berlin", least=0))
    ran = program("compile", file, "--model", model)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "the site was made for base" in ran.err


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("--texts", "ABSENT"), "ABSENT"),
        (("--layer", "99"), "layers 0 to 2"),
        (("--layer", "99", "--texts", "TEXTS"), "layers 0 to 2"),
        (("--rank", "9"), "max_rank must be one of"),
        (("--layer", "1", "--rank", "9", "--texts", "TEXTS"), "max_rank must be one of"),
    ],
)
def test_an_input_that_init_lacks_is_reported(
    program: Program, model: Path, texts: Path, tmp_path: Path, arguments: tuple[str, ...], advice: str
) -> None:
    given = [texts if argument == "TEXTS" else argument for argument in arguments]
    ran = program("store", "init", "--model", model, "--store", tmp_path / "s", *given)
    assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
    assert advice in ran.err
    assert not (tmp_path / "s").exists()


def test_a_layer_must_be_auto_or_a_number(program: Program, tmp_path: Path) -> None:
    assert program("store", "init", "--layer", "first", "--store", tmp_path / "s").code == 2


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        ("steps=many", 1, "settings of rome: steps must be a whole number; got 'many'"),
        ("tempo=1", 1, "unknown settings tempo; settings of rome are "),
        ("residual_rule=Shift", 1, "residual_rule must be one of shift, reference; got 'Shift'"),
        ("learning_rate=1e-3x", 1, "learning_rate must be a number; got '1e-3x'"),
        ("steps", 2, "expected KEY=VALUE, got 'steps'"),
        ("forms=[plain", 2, "expected a value in YAML, got 'forms=[plain'"),
        ("steps=2001-99-99", 2, "expected a value in YAML, got 'steps=2001-99-99'"),
    ],
)
def test_a_wrong_setting_is_reported_before_anything_is_loaded(
    program: Program, tmp_path: Path, given: str, code: int, message: str
) -> None:
    file = tmp_path / "capital.yaml"
    file.write_text(PATCH.format(name="capital", target="Berlin", least=0))
    ran = program("compile", file, "--store", tmp_path / "none", "--set", given)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert code == 2 or ran.err.count("\n") == 1


def test_a_number_may_be_written_without_a_point() -> None:
    assert method_settings(["learning_rate=1e-3", "steps=5", "essence=3 is"]) == {
        "learning_rate": 1e-3,
        "steps": 5,
        "essence": "3 is",
    }
