"""A registry belongs to one store."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, text, update

from tests.store.example import compiled, moment, site
from vllm_edit.errors import EditError
from vllm_edit.registry import migrations, tables
from vllm_edit.store import store as store_module
from vllm_edit.store.maintenance import problems_of
from vllm_edit.store.site_files import SITE, read_site
from vllm_edit.store.store import Store


@pytest.fixture
def shared(registry_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry that the environment names for every store."""
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", registry_url)
    return registry_url


def _forget(store: Store) -> None:
    """Turn the registry into a registry from before site digests."""
    with store.registry._database.log() as connection:
        connection.execute(update(tables.generation).values(site=None))
    store.registry.close()


def test_a_registry_of_another_store_is_refused_at_its_first_use(shared: str, tmp_path: Path) -> None:
    first = Store.create(tmp_path / "a", site(1), moment())
    first.registry.create_tenant("acme")
    with pytest.raises(EditError, match=r"belongs to another store.*VLLM_EDIT_REGISTRY") as refused:
        Store.create(tmp_path / "b", site(2), moment())
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "b" / SITE).exists()
    assert [tenant.name for tenant in Store.open(first.url).registry.tenants()] == ["acme"]


def test_a_store_that_has_its_own_registry_is_refused_another_ones(
    registry_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Store.create(tmp_path / "b", site(2), moment())
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", registry_url)
    Store.create(tmp_path / "a", site(1), moment())
    other = Store.open(own.url)
    for use in (
        other.registry.tenants,
        other.registry.snapshot,
        other.names,
        lambda: other.registry.create_tenant("acme"),
    ):
        with pytest.raises(EditError, match=rf"{site(1).digest}.*{site(2).digest}"):
            use()
    other.registry.close()


def test_a_copy_of_a_store_has_the_same_registry(shared: str, tmp_path: Path) -> None:
    Store.create(tmp_path / "a", site(1), moment()).registry.create_tenant("acme")
    copy = Store.create(tmp_path / "copy", site(1), moment())
    assert [tenant.name for tenant in copy.registry.tenants()] == ["acme"]


def test_a_registry_from_before_becomes_the_store_that_has_its_patches(shared: str, tmp_path: Path) -> None:
    owner = Store.create(tmp_path / "a", site(1), moment())
    owner.save(compiled())
    _forget(owner)
    with pytest.raises(EditError, match="with site of its patches"):
        Store.create(tmp_path / "b", site(2), moment())
    again = Store.open(owner.url)
    assert len(again.names()) == 1, "reading claims nothing"
    again.registry.create_tenant("acme")
    again.registry.close()
    with pytest.raises(EditError, match=f"with site {site(1).digest}"):
        Store.create(tmp_path / "b", site(2), moment())


def test_a_schema_from_before_is_brought_up_to_date_and_claimed(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "a", site(1), moment())
    name = store.save(compiled())
    store.registry.close()
    engine = create_engine(store.registry.url)
    with engine.begin() as connection:
        command.downgrade(migrations._config(connection), "0005")
    again = Store.open(store.url)
    assert again.names() == [name]
    again.registry.create_tenant("acme")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT site FROM generation")).scalar_one() == site(1).digest
    engine.dispose()


def test_of_two_stores_made_at_once_in_one_place_one_stays_whole(
    registry_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_EDIT_REGISTRY", registry_url)
    both, write = threading.Barrier(2, timeout=20), store_module.write_tensors
    made, refused = list[int](), list[str]()

    def slow(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        both_have_looked.wait(20)

    both_have_looked = threading.Event()
    monkeypatch.setattr(store_module, "write_tensors", slow)

    def make(layer: int) -> None:
        both.wait()
        try:
            Store.create(tmp_path / "s", site(layer), moment(), [f"passage {layer}"]).registry.close()
            made.append(layer)
        except EditError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=make, args=(layer,)) for layer in (1, 2)]
    for thread in threads:
        thread.start()
    threading.Timer(0.3, both_have_looked.set).start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 1)
    assert "has a site already" in refused[0]
    store = Store.open(tmp_path / "s")
    assert read_site(store.files).digest == site(made[0]).digest
    assert store.passages() == (f"passage {made[0]}",)
    assert problems_of(store) == []
    store.registry.close()


def test_a_store_that_was_not_finished_can_be_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "write_site", broken)
        with pytest.raises(KeyboardInterrupt):
            Store.create(tmp_path / "s", site(1), moment())
    assert Store.create(tmp_path / "s", site(2), moment()).site() == site(2)


def test_a_path_that_cannot_be_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(EditError, match="cannot be written") as refused:
            Store.create(tmp_path / place, site(1), moment())
        assert "\n" not in str(refused.value)
    assert (tmp_path / "file").read_text() == "mine"
