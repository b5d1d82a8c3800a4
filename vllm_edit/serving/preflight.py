"""Runs the server's start-up checks before vLLM is started, where they take seconds instead of a minute.

The server runs the same checks again (`startup`), because it may be started without `vllm-edit serve`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from vllm_edit.artefacts.checkpoint import CONFIG, Checkpoint
from vllm_edit.artefacts.site import Fingerprint
from vllm_edit.engine.compat import flags
from vllm_edit.engine.model_folder import model_folder
from vllm_edit.errors import Incompatible
from vllm_edit.long_rope import length_problem
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.serving import startup
from vllm_edit.serving.profile import Profile
from vllm_edit.serving.server_settings import Settings
from vllm_edit.serving.watcher import FAILURES, last_known
from vllm_edit.store.last_state import LastState
from vllm_edit.store.store import Store


def check_start(store: Store, profile: Profile) -> Path | None:
    """Check environment, model and registry for the server that `profile` starts.

    Returns:
        The served model's folder; None if the model is not downloaded yet, and so cannot be checked.

    Raises:
        EditError: the server would not start; the message gives the reason.
    """
    environment = {**os.environ, **profile.environment}
    Settings.from_environment(environment)
    startup.check_environment(environment, profile.command())
    folder = check_base(store, profile)
    startup.check_names(_state(store), flags.named(profile.flags).get("served_model_name", ()))
    return folder


def check_base(store: Store, profile: Profile) -> Path | None:
    """Check that the model which `profile` serves is whole, and is the store's base, with the given maximum length too.

    Returns:
        The served model's folder; None if the model is not downloaded yet, and so cannot be checked.

    Raises:
        Incompatible: the model is another one, or does not exist.
    """
    given = flags.named(flags.with_file(profile.flags))
    folder = _folder(profile.model, given.get("revision"))
    if folder is not None:
        Checkpoint(folder).check_whole()
        Checkpoint(folder).check_served()
        served, base = Fingerprint.of_folder(folder), store.base()
        if not Path(profile.model).is_dir():  # a hub model: vLLM fetches missing small files
            served = served.model_copy(update={"chat_template": base.chat_template, "settings": None})
        if problems := base.problems(served):
            differences = "; ".join(f"the served model's {problem}" for problem in problems)
            raise Incompatible(f"{profile.model} is not the base of {store.url}: {differences}")
        if problem := length_problem(Checkpoint(folder).config, _number(given.get("max_model_len"))):
            raise Incompatible(problem)
    return folder


def _number(values: Sequence[str] | None) -> int | None:
    """The flag's value; None without the flag, and for a value with a unit ("4k"), which the server itself checks."""
    return int(values[0]) if values and values[0].isdigit() else None


def _folder(model: str, revision: list[str] | None) -> Path | None:
    if Path(model).is_absolute() and not Path(model).exists():
        raise Incompatible(f"{model}: no such model folder")
    try:
        folder = model_folder(model, revision[0] if revision else None)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise Incompatible(f"{model} is neither a model folder nor the id of a model on the hub") from None
    files = Checkpoint(folder)
    fetched = (folder / CONFIG).is_file() and files.tokenizer and files.weights
    return folder if Path(model).is_dir() or (fetched and all(path.is_file() for path in files.weights)) else None


def _state(store: Store) -> Snapshot:
    """The server's first state: the registry's, or, if the registry is down, the last that this node saved."""
    try:
        return store.registry.snapshot()
    except Incompatible:
        raise
    except FAILURES as error:
        return last_known(LastState.of(store), error)
