"""Signatures of patches: which count, and what a store that requires them refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.store.example import compiled, new_store
from vllm_edit.artefacts.signatures import SigningKey, key_id
from vllm_edit.digest import canonical, digest_bytes, with_digest
from vllm_edit.errors import Corrupt, EditError, NotFound, Unavailable, Unsigned
from vllm_edit.names import short
from vllm_edit.registry import audit
from vllm_edit.rollout.arm import Arm
from vllm_edit.rollout.rollout import Rollout
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.signers import SIGNERS, Signers, change_signers, read_signers
from vllm_edit.store.signing import put, sealed, signatures_of
from vllm_edit.store.store import Store

NOW = datetime.now(UTC)


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "ann.key")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in ("VLLM_EDIT_SIGNERS", "VLLM_EDIT_REGISTRY"):
        monkeypatch.delenv(name, raising=False)
    return new_store(tmp_path / "store")


@pytest.fixture
def name(store: Store, key: SigningKey) -> str:
    """A patch of a store that trusts the key and requires signatures; it has none yet."""
    saved = store.save(compiled())
    store.registry.set_status(saved, "accepted")
    store.registry.create_tenant("acme")
    change(store, lambda signers: signers.trusting(key.public, "ann").model_copy(update={"required": True}))
    return saved


def change(store: Store, how: Callable[[Signers], Signers]) -> Signers:
    return change_signers(store.files, store.registry, "signer.trust", how)


READS: dict[str, Callable[[Store, str], object]] = {
    "load": Store.load,
    "adapter": Store.adapter_files,
    "demonstrations": Store.demonstrations,
    "unit": lambda store, name: store.unit(name, name),
    "publish": lambda store, name: store.registry.publish("acme", name, override="urgent", by="ann"),
    "rollout": lambda store, name: store.registry.rollouts.create(
        Rollout("spring", "acme", Arm("base"), Arm("ike", name), salt="pepper")
    ),
}


@pytest.mark.parametrize("read", READS)
def test_a_store_that_requires_signatures_refuses_an_unsigned_patch(
    store: Store, key: SigningKey, name: str, read: str
) -> None:
    with pytest.raises(Unsigned, match=f"{name} has no signature that its store accepts: it is not signed; sign it"):
        READS[read](store, name)
    assert store.manifest(name).name == name, "it can be looked at"
    store.sign(name, key)
    if read != "unit":  # the example has none
        READS[read](store, name)


def test_a_store_that_requires_none_reads_unsigned_patches(store: Store) -> None:
    saved = store.save(compiled())
    assert store.load(saved).name == saved
    assert read_signers(store.files) == Signers()


def _tampered(store: Store, name: str, path: str, data: bytes) -> None:
    """Write a file of the patch, and the list of checksums that fits to it."""
    folder = f"patches/{name}"
    store.files.write(f"{folder}/{path}", data)
    listed = json.loads(store.files.read(f"{folder}/files.json"))["files"]
    listed[path] = digest_bytes(data)
    store.files.write(f"{folder}/files.json", canonical(with_digest("files", listed)))


def test_a_tampered_patch_is_refused_though_its_checksums_fit(store: Store, key: SigningKey, name: str) -> None:
    """The manifest does not bind the adapter's config, which scales the update: the signature does."""
    store.sign(name, key)
    config = json.loads(store.adapter_files(name)["adapter_config.json"])
    scaled = config | {"lora_alpha": 100 * config["lora_alpha"]}
    _tampered(store, name, "adapter/adapter_config.json", canonical(scaled))
    with pytest.raises(Unsigned, match=f"signature of {key.id}: it does not match the patch's files"):
        store.adapter_files(name)
    change(store, lambda signers: signers.model_copy(update={"required": False}))
    assert "lora_alpha" in str(store.adapter_files(name)), "without signatures nobody notices"
    assert any(f"signature of {key.id}: it does not match" in line for line in problems_of(store))


def test_files_that_are_replaced_after_the_check_are_noticed(
    store: Store, key: SigningKey, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.sign(name, key)
    config = json.loads(store.adapter_files(name)["adapter_config.json"])
    genuine, listed = store.files.read, f"patches/{name}/files.json"
    first = [genuine(listed)]
    _tampered(store, name, "adapter/adapter_config.json", canonical(config | {"lora_alpha": 7}))
    monkeypatch.setattr(store.files, "read", lambda path: first.pop() if path == listed and first else genuine(path))
    with pytest.raises(Corrupt, match=r"adapter_config\.json does not match its digest"):
        store.adapter_files(name)


def test_a_tampered_manifest_is_refused(store: Store, key: SigningKey, name: str) -> None:
    store.sign(name, key)
    manifest = json.loads(store.files.read(f"patches/{name}/manifest.json"))
    manifest["edits"][0]["target_new"] = "Rome"
    store.files.write(f"patches/{name}/manifest.json", canonical(manifest))
    with pytest.raises(Unsigned, match="it does not match the patch's files"):
        store.load(name)
    with pytest.raises(Corrupt):
        store.sign(name, key)


def test_a_signature_of_another_patch_does_not_count(store: Store, key: SigningKey, name: str) -> None:
    other = store.save(compiled(seed=1))
    store.sign(other, key)
    store.files.write(f"signatures/{name}/{key.id}.json", store.files.read(f"signatures/{other}/{key.id}.json"))
    with pytest.raises(Unsigned, match="it does not match the patch's files"):
        store.load(name)


def test_a_changed_time_does_not_count(store: Store, key: SigningKey, name: str) -> None:
    store.sign(name, key)
    path = f"signatures/{name}/{key.id}.json"
    changed = json.loads(store.files.read(path)) | {"at": "2020-01-01T00:00:00Z"}
    store.files.write(path, json.dumps(changed).encode())
    with pytest.raises(Unsigned, match="it does not match the patch's files"):
        store.load(name)


def test_a_signature_with_a_time_that_utc_does_not_have_is_named(store: Store, key: SigningKey, name: str) -> None:
    store.sign(name, key)
    path = f"signatures/{name}/{key.id}.json"
    changed = json.loads(store.files.read(path)) | {"at": "0001-01-01T00:00:00+12:00"}
    store.files.write(path, json.dumps(changed).encode())
    with pytest.raises(Corrupt, match=f"{path} holds no signature"):
        store.load(name)


def test_an_unknown_key_does_not_count_until_it_is_trusted(store: Store, name: str, tmp_path: Path) -> None:
    bob = SigningKey.create(tmp_path / "bob.key")
    store.sign(name, bob)
    with pytest.raises(Unsigned, match=f"signature of {bob.id}: the key is unknown"):
        store.load(name)
    change(store, lambda signers: signers.trusting(bob.public, "bob"))
    assert store.load(name).name == name


def test_signatures_from_before_the_end_of_a_key_stay_valid_and_later_ones_do_not_count(
    store: Store, key: SigningKey, name: str
) -> None:
    store.sign(name, key)
    later = store.save(compiled(seed=1))
    change(store, lambda signers: signers.ending(key.id, datetime.now(UTC)))
    with pytest.raises(EditError, match=f"a signature of {key.id} would not count: .* after the end of the key of ann"):
        store.sign(later, key)
    put(store.files, later, key.sign(later, sealed(store.files, later)))  # as another program could
    assert store.load(name).name == name
    with pytest.raises(Unsigned, match=r"it was made on .*, after the end of the key of ann"):
        store.load(later)


def test_no_signature_of_a_revoked_key_counts_and_a_new_key_replaces_it(
    store: Store, key: SigningKey, name: str, tmp_path: Path
) -> None:
    store.sign(name, key)
    first = change(store, lambda signers: signers.revoking(key.id[:4], "stolen"))
    assert change(store, lambda signers: signers.revoking(key.id, "again")) == first
    with pytest.raises(Unsigned, match="the key of ann was revoked on"):
        store.load(name)
    before = store.registry.audit()
    with pytest.raises(EditError, match=r"would not count: the key of ann was revoked on .* sign with another key"):
        store.sign(name, key)
    with pytest.raises(EditError, match=r"the key of ann was revoked on .* trust a new key in its place"):
        change(store, lambda signers: signers.ending(key.id, NOW))
    assert store.registry.audit() == before
    assert f"{name} has no signature that its store accepts" in "".join(problems_of(store))
    new = SigningKey.create(tmp_path / "new.key")
    change(store, lambda signers: signers.trusting(new.public, "ann"))
    store.sign(name, new)
    assert store.load(name).name == name, "one signature that counts is enough"
    assert problems_of(store) == []


def test_a_served_patch_without_a_signature_is_a_problem(store: Store, key: SigningKey, name: str) -> None:
    assert problems_of(store) == [], "nobody is served it"
    store.sign(name, key)
    store.registry.publish("acme", name)
    store.files.write(f"signatures/{name}/{key.id}.json", b"{}")
    assert any("holds no signature" in line for line in problems_of(store))


def test_changes_and_signatures_are_in_the_audit(store: Store, key: SigningKey, name: str) -> None:
    store.sign(name, key, by="ann")
    rows = {row.what: row for row in store.registry.audit()}
    assert rows["patch.sign"].who == "ann"
    assert key.id in str(rows["patch.sign"].new)
    assert json.loads(rows["signer.trust"].new)["required"] is True


def test_nothing_is_trusted_before_its_row_of_the_audit_is_committed(
    store: Store, key: SigningKey, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rows = read_signers(store.files), store.registry.audit()

    def fail(*_: object, **__: object) -> None:
        raise Unavailable("the registry is down")

    monkeypatch.setattr(audit, "append", fail)
    with pytest.raises(Unavailable, match="the registry is down"):
        change(store, lambda signers: signers.revoking(key.id))
    with pytest.raises(Unavailable, match="the registry is down"):
        store.sign(name, key)
    assert read_signers(store.files) == before
    assert signatures_of(store.files, name) == []
    assert store.registry.audit() == rows


def test_a_change_whose_file_was_not_written_is_reported_and_repaired_by_repeating_it(
    store: Store, key: SigningKey, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.sign(name, key)

    def fail(path: str, _: bytes) -> None:
        raise Unavailable(f"{path} cannot be written: the disk is full; fix that and try again")

    with monkeypatch.context() as full:
        full.setattr(store.files, "write", fail)
        with pytest.raises(Unavailable, match="the audit has the change already and the list does not: repeat it"):
            change(store, lambda signers: signers.revoking(key.id, "stolen"))
    last = store.registry.audit()[-1]
    assert store.load(name).name == name, "the file still trusts the key"
    [problem] = problems_of(store)
    assert problem.startswith(f"signers.json differs from row {last.number} of the audit ({last.at}, signer.trust by ")
    assert "repeat that command if it was interrupted" in problem
    change(store, lambda signers: signers.revoking(key.id, "stolen"))
    assert not [line for line in problems_of(store) if "signers.json" in line]


def test_a_signature_that_the_audit_has_and_the_patch_has_not_is_reported_and_repaired_by_signing_again(
    store: Store, key: SigningKey, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, _: bytes) -> None:
        raise Unavailable(f"{path} cannot be written: the disk is full; fix that and try again")

    with monkeypatch.context() as full:
        full.setattr(store.files, "write", fail)
        with pytest.raises(Unavailable, match="the audit has the signature already and the patch does not: sign again"):
            store.sign(name, key)
    assert problems_of(store) == [
        f"{name} has lost the signature of {key.id} that the audit has; sign it again: vllm-edit sign "
        f"{short(name)} --key FILE"
    ]
    store.sign(name, key)
    assert problems_of(store) == []


def test_a_list_that_was_changed_past_the_audit_is_a_problem(store: Store, key: SigningKey, name: str) -> None:
    genuine = store.files.read(SIGNERS)
    store.files.write(SIGNERS, Signers().model_dump_json().encode())
    [problem] = problems_of(store)
    assert "signers.json differs from row" in problem
    store.files.write(SIGNERS, genuine)
    assert problems_of(store) == []


def test_a_list_that_the_audit_never_had_is_a_problem(store: Store, key: SigningKey) -> None:
    store.files.write(SIGNERS, Signers().trusting(key.public, "eve").model_dump_json().encode())
    [problem] = problems_of(store)
    assert problem.startswith("signers.json lists keys, but the audit has no change of it")


def test_signatures_are_required_only_where_one_can_count(store: Store, key: SigningKey, name: str) -> None:
    for cannot in (Signers(), read_signers(store.files).revoking(key.id)):
        with pytest.raises(EditError, match=r"no key is trusted, .* trust one first: vllm-edit signer trust PUBLIC"):
            cannot.requiring()
    assert read_signers(store.files).ending(key.id, NOW).requiring().required, "its earlier signatures count"


@pytest.mark.parametrize("blank", ["", " "])
def test_a_key_is_trusted_under_a_name(key: SigningKey, blank: str) -> None:
    with pytest.raises(EditError, match="expected a name of whose key it is, got"):
        Signers().trusting(key.public, blank)


def test_a_pinned_list_replaces_the_stores(
    store: Store, key: SigningKey, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = tmp_path / "pinned.json"
    pinned.write_bytes(store.files.read(SIGNERS))
    change(store, lambda _: Signers())
    assert store.load(name).name == name, "a writer of the store has removed the requirement"
    monkeypatch.setenv("VLLM_EDIT_SIGNERS", str(pinned))
    with pytest.raises(Unsigned):
        store.load(name)
    with pytest.raises(EditError, match=r"VLLM_EDIT_SIGNERS names .*: change that file"):
        change(store, lambda signers: signers.ending(key.id, NOW))
    pinned.write_text("{")
    with pytest.raises(Corrupt, match="restore it from a copy"):
        store.load(name)
    pinned.unlink()
    with pytest.raises(EditError, match="which does not exist"):
        store.load(name)


def test_keys_are_written_once_and_read_only_by_their_user(tmp_path: Path) -> None:
    path = tmp_path / "ann.key"
    made = SigningKey.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(path).public == made.public
    with pytest.raises(EditError, match="exists already"):
        SigningKey.create(path)
    path.chmod(0o640)
    with pytest.raises(EditError, match="run: chmod 600"):
        SigningKey.load(path)
    path.chmod(0o600)
    path.write_bytes(generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(EditError, match="expected an ed25519 key, got "):
        SigningKey.load(path)
    path.write_text("no key")
    with pytest.raises(EditError, match="expected a private ed25519 key in PEM"):
        SigningKey.load(path)


def test_a_text_that_is_no_public_key_and_an_id_that_is_not_there_are_reported(key: SigningKey) -> None:
    for text in ("", "abc", "ü", key.public[:-4], "A" * 44):
        with pytest.raises(EditError, match="expected a public ed25519 key"):
            key_id(text)
    signers = Signers().trusting(key.public, "ann", NOW + timedelta(days=1))
    with pytest.raises(EditError, match="in the list already"):
        signers.trusting(key.public, "bob")
    for id in ("", "zz"):
        with pytest.raises(NotFound, match="expected the id of one key"):
            signers.find(id)
