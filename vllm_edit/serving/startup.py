"""Start-up checks: a server with a store either applies its patches to the right base, or does not start.

They run in three steps: `check_environment` in every process (general plugin), `attach` when the HTTP app is built, and
`start` when the engine is up. Each step collects all problems and raises once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_edit.engine.compat import flags, lora_gauge
from vllm_edit.engine.model_folder import model_folder
from vllm_edit.engine.plugins import PLUGIN
from vllm_edit.errors import Incompatible
from vllm_edit.long_rope import length_problem
from vllm_edit.serving.server_settings import ALLOW_OPEN, FORWARDED, STORE, TRUSTED_PEERS, Settings
from vllm_edit.text.thinking import OFF, Thinking

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.datastructures import State
    from transformers import PreTrainedTokenizerFast
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM

    from vllm_edit.artefacts.site import Fingerprint, Site
    from vllm_edit.engine.compat.engine import Engine
    from vllm_edit.registry.snapshot import Snapshot

logger = logging.getLogger(__name__)


def check_environment(environment: Mapping[str, str] | None = None, arguments: Sequence[str] | None = None) -> None:
    """Raise `Incompatible` if the environment or the arguments would bypass the router or prevent its loading."""
    env = os.environ if environment is None else environment
    problems = []
    if PLUGIN not in env.get("VLLM_PLUGINS", "").split(","):
        problems.append(f"VLLM_PLUGINS must name {PLUGIN}: vLLM loads a router only when it is named there")
    if _is_set(env, "VLLM_SKIP_MODEL_NAME_VALIDATION"):
        problems.append("VLLM_SKIP_MODEL_NAME_VALIDATION lets the base model answer for unknown names; unset it")
    if _is_set(env, "VLLM_USE_RUST_FRONTEND"):
        problems.append("VLLM_USE_RUST_FRONTEND replaces the Python server that the router lives in; unset it")
    if env.get(TRUSTED_PEERS) and env.get(FORWARDED) != "":
        problems.append(
            f"{TRUSTED_PEERS} checks the address of a connection, and unless {FORWARDED} is set to nothing, uvicorn "
            "replaces it by X-Forwarded-For, which anyone on this machine can send; `vllm-edit serve` sets it"
        )
    if "--grpc" in (sys.argv if arguments is None else arguments):
        problems.append("--grpc replaces the HTTP server that the router lives in; leave it out")
    for name in ("VLLM_MODEL_REDIRECT_PATH", "VLLM_USE_MODELSCOPE"):
        if _is_set(env, name):
            problems.append(f"{name} makes vLLM load another model than the one that is named; unset it")
    _raise(problems, f"{STORE} is set, but its patches could not be served from here")


def attach(app: FastAPI) -> None:
    """Add the router (innermost middleware: after CORS and vLLM's own API key), the admin routes and the console."""
    from vllm_edit.serving.admin.api import api
    from vllm_edit.serving.console.routes import console
    from vllm_edit.serving.router import Router
    from vllm_edit.serving.service import Holder

    holder = Holder()
    app.state.vllm_edit = holder
    app.include_router(api(holder))
    app.include_router(console(holder))
    app.add_middleware(Router, holder=holder)


async def start(engine_client: AsyncLLM | None, state: State, args: Namespace) -> None:
    """Check engine and arguments against the store's site, read the registry, and let the router serve.

    Raises:
        Incompatible: the server cannot serve this store; the message lists all reasons.
    """
    from vllm_edit.engine.compat.engine import Engine
    from vllm_edit.serving.build import make_service
    from vllm_edit.serving.canary import Canary
    from vllm_edit.serving.guard import Guard
    from vllm_edit.serving.metrics import Metrics
    from vllm_edit.serving.residency import GRACE_S
    from vllm_edit.serving.shadow_arm import ShadowArm
    from vllm_edit.serving.spans import Spans
    from vllm_edit.store.last_state import LastState
    from vllm_edit.store.store import Store

    settings = Settings.from_environment()
    if engine_client is None or getattr(state, "vllm_edit", None) is None:
        raise Incompatible(f"{STORE} is set, but this server has no engine or no router; use `vllm-edit serve`")
    store = await asyncio.to_thread(Store.open, settings.store)
    site, base = await asyncio.to_thread(store.site), await asyncio.to_thread(store.base)
    engine = Engine(engine_client, state.openai_serving_models)
    problems = _argument_problems(args, site.thinking) + _configuration_problems(engine.config, site)
    if not problems:  # only an engine with a valid configuration can list its modules
        problems = await _engine_problems(engine, site.model_copy(update={"base": base}))
    _raise(problems, f"this server cannot serve the store {settings.store}")

    await asyncio.to_thread(check_settings, base, engine.tokenizer)
    spans = Spans.of(engine.config.observability_config.otlp_traces_endpoint)
    service = make_service(store, site, engine, settings, Metrics(), LastState.of(store), GRACE_S, spans)
    lora_gauge.replace(engine_client, service.metrics.running_adapters)
    catalogue = await service.watcher.first()
    _raise(_keyed_problems(args, settings, catalogue.snapshot.keyed), f"this server cannot serve {settings.store}")
    check_names(catalogue.snapshot, engine.base_names)
    service.start(asyncio.create_task(service.watcher.run()))
    service.start(asyncio.create_task(service.answers.run()))
    state.vllm_edit.service = service
    canary = Canary(state.vllm_edit, prioritised=engine.prioritised, chat=engine.chats)
    guard = Guard(store.registry.guard, service.watcher, canary, service.metrics, server=service.heartbeat.name)
    service.start(asyncio.create_task(guard.run()))
    shadow_arm = ShadowArm(
        state.vllm_edit,
        service,
        store.registry.shadows,
        prioritised=engine.prioritised,
        server=service.heartbeat.name,
    )
    service.start(asyncio.create_task(shadow_arm.run()))
    logger.info(
        "serving %d compiled patches of %s at %s", len(catalogue.names), settings.store, ", ".join(site.modules)
    )


def check_names(snapshot: Snapshot, base_names: Collection[str]) -> None:
    """Raise `Incompatible` if a tenant has one of the base model's served names."""
    from vllm_edit.serving.model_field import Catalogue

    _raise(
        [
            f"tenant {name} has the base model's served name"
            for name in Catalogue(tuple(base_names), snapshot).ambiguous
        ],
        "ambiguous names; serve the base under another name (--served-model-name NAME)",
    )


def folder_problems(folder: Path, base: Fingerprint) -> list[str]:
    """Differences between the model in a folder and the store's base, one line each.

    Raises:
        EditError: the folder cannot be read, or vLLM would load different weights from it than transformers.
    """
    from vllm_edit.artefacts.checkpoint import Checkpoint
    from vllm_edit.artefacts.site import Fingerprint

    Checkpoint(folder).check_served()
    return [f"the served model's {problem}" for problem in base.problems(Fingerprint.of_folder(folder))]


def check_settings(base: Fingerprint, tokenizer: PreTrainedTokenizerFast) -> None:
    """For a store without a digest of its base's settings, log a warning and check the tokenizer's round trip.

    Raises:
        EditError: the tokenizer does not reproduce a text.
    """
    from vllm_edit.artefacts.site import WITHOUT_SETTINGS
    from vllm_edit.models.import_checks import check_round_trip

    if base.settings is None:
        logger.warning(WITHOUT_SETTINGS)
        check_round_trip(tokenizer)


def _argument_problems(args: Namespace, thinking: Thinking | None = None) -> list[str]:
    """Problems of the server's arguments, for a site with this thinking mode."""
    problems = []
    if (getattr(args, "api_server_count", None) or 1) > 1:
        problems.append("several API servers would each have their own answer log; use --api-server-count 1")
    if thinking == "off" and not getattr(args, "default_chat_template_kwargs", None):
        problems.append(
            f"the site was fixed with thinking off; add --default-chat-template-kwargs '{json.dumps(dict(OFF))}', as "
            "`vllm-edit flags` does"
        )
    return problems + flags.problems(vars(args), thinking)


def _keyed_problems(args: Namespace, settings: Settings, keyed: bool) -> list[str]:
    """Require exactly one kind of API keys, unless the server is local or open on purpose."""
    single = bool(getattr(args, "api_key", None) or os.environ.get("VLLM_API_KEY"))
    if keyed and single:
        return [
            "the registry has keys, and vLLM's --api-key (VLLM_API_KEY) reads the same header before the router and "
            "would reject every one of them; leave it out"
        ]
    host = getattr(args, "host", None)
    if keyed or single or settings.allow_open or getattr(args, "uds", None) or is_loopback(host):
        return []
    return [
        f"without keys it would answer anyone on {host or 'all addresses'}; make keys (vllm-edit tenant key create), "
        f"use --host 127.0.0.1, or say that this is meant (vllm-edit serve --allow-open, or {ALLOW_OPEN}=1)"
    ]


def _configuration_problems(config: VllmConfig, site: Site) -> list[str]:
    model, lora, parallel = config.model_config, config.lora_config, config.parallel_config
    problems = []
    if lora is None:
        problems.append("LoRA is off; use the flags that `vllm-edit flags` prints")
    else:
        if lora.max_lora_rank < site.max_rank:
            problems.append(f"--max-lora-rank is {lora.max_lora_rank}, the site needs {site.max_rank}")
        if lora.target_modules is None:
            problems.append(f"--lora-target-modules must be {' '.join(site.modules)}: everything is wrapped")
    if model.tokenizer not in (None, model.model):
        problems.append(f"--tokenizer is {model.tokenizer}, the site was fixed with the model's own")
    if model.quantization is not None:
        problems.append(f"--quantization {model.quantization} makes another base than the site's")
    if str(config.load_config.load_format) == "dummy":
        problems.append("--load-format dummy has no weights to edit")
    if problem := length_problem(model.hf_config.to_dict(), model.max_model_len):
        problems.append(problem)
    if parallel.pipeline_parallel_size > 1:
        problems.append("pipeline parallelism cannot wrap modules of one layer only; use --tensor-parallel-size")
    return problems


async def _engine_problems(engine: Engine, site: Site) -> list[str]:
    folder = model_folder(engine.config.model_config.model, engine.config.model_config.revision)
    problems = await asyncio.to_thread(folder_problems, folder, site.base)
    return problems + wrapping_problems(await engine.wrapped_modules(site.modules))


def wrapping_problems(workers: Sequence[Mapping[str, Sequence[str]]]) -> list[str]:
    """One line per worker whose wrapped modules differ from the site's (`compat.wrapped`)."""
    return [
        f"the engine wraps {', '.join(worker['wrapped']) or 'nothing'}, the site is {', '.join(worker['expected'])}"
        for worker in workers
        if list(worker["wrapped"]) != list(worker["expected"])
    ]


def is_loopback(host: str | None) -> bool:
    if host is None:
        return False
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_set(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "0").strip().lower() not in ("", "0", "false")


def _raise(problems: list[str], what: str) -> None:
    if problems:
        raise Incompatible(f"{what}: {'; '.join(problems)}")
