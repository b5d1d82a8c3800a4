"""`vllm-edit sign` and `signer`: keys, signatures and the requirement, as text and as JSON."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.program import Program
from tests.store.example import compiled
from vllm_edit.store.store import Store


def test_a_key_is_made_trusted_used_ended_and_revoked(program: Program, store: Store, tmp_path: Path) -> None:
    name, file = store.save(compiled()), tmp_path / "ann.key"
    store.registry.set_status(name, "accepted")
    store.registry.create_tenant("acme")
    made = program("signer", "create", file, "--json").json
    early = program("sign", "capital", "--key", file)
    assert early.out.splitlines()[0] == f"{name} signed by {made['id']}"
    assert f"vllm-edit signer trust {made['public']} --name" in early.out
    trusted = program("signer", "trust", made["public"], "--name", "ann", "--json").json
    assert [(key["id"], key["who"]) for key in trusted["keys"]] == [(made["id"], "ann")]
    second = store.save(compiled(seed=1))
    store.registry.set_status(second, "accepted")
    assert program("tenant", "publish", "acme", second, "--wait", 0).code == 0
    early = program("signer", "require")
    assert (early.code, "served, and without a signature of a trusted key; sign first" in early.err) == (1, True)
    assert program("tenant", "rollback", "acme", "--wait", 0).code == 0
    assert "signatures are required" in program("signer", "require", "--why", "audit").out
    assert program("tenant", "publish", "acme", name, "--wait", 0).code == 0
    refused = program("tenant", "publish", "acme", second, "--wait", 0)
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "it is not signed; sign it with a trusted key: vllm-edit sign capital@" in refused.err
    assert program("sign", second, "--key", file, "--json").json == {
        "key": made["id"], "trusted": True, "signed": [second],
    }  # fmt: skip
    assert program("tenant", "publish", "acme", second, "--wait", 0).code == 0
    assert "until" in program("signer", "end", made["id"][:6]).out
    assert "revoked" in program("signer", "revoke", made["id"], "--why", "stolen", "--who", "bob").out
    late = program("sign", name, "--key", file, "--json")
    assert (late.code, late.out, "would not count: the key of ann was revoked on" in late.err) == (1, "", True)
    assert program("verify").code == 1
    assert program("signer", "require", "--off", "--json").json["required"] is False
    assert program("signer", "list", "--json").json["keys"][0]["why"] == "stolen"
    done = [row["what"] for row in program("audit", "show", "--json").json]
    assert [what for what in done if what.startswith(("signer", "patch.sign"))] == [
        "patch.sign", "signer.trust", "signer.require", "patch.sign", "signer.end", "signer.revoke", "signer.require",
    ]  # fmt: skip


def test_mistakes_are_reported_in_one_line(
    program: Program, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(compiled())
    for arguments, message in [
        (("sign", "capital", "--key", tmp_path / "absent.key"), "No such file"),
        (("signer", "trust", "abc", "--name", "ann"), "expected a public ed25519 key"),
        (("signer", "revoke", "abc"), "expected the id of one key"),
        (("signer", "require"), "no key is trusted"),
        (("signer", "create", tmp_path / "no" / "ann.key"), "No such file"),
    ]:
        ran = program(*arguments)
        assert (ran.code, ran.err.count("\n")) == (1, 1), ran.err
        assert message in ran.err
    monkeypatch.setitem(sys.modules, "cryptography", None)  # Python's own mark of a module that cannot be imported
    ran = program("signer", "create", tmp_path / "ann.key")
    assert "signatures need cryptography; install it with: pip install 'vllm-edit[signatures]'" in ran.err
