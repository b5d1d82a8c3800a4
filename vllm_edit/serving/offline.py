"""`PatchedLLM`: a `vllm.LLM` in this process that applies the store's patches by the server's rules."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_edit.artefacts.checkpoint import Checkpoint
from vllm_edit.artefacts.compiled import Demonstration
from vllm_edit.artefacts.folder import encode_adapter
from vllm_edit.artefacts.site import Fingerprint
from vllm_edit.composition.scoped import ScopeIndex
from vllm_edit.engine.arguments import engine_arguments, engine_environment
from vllm_edit.engine.compat import cpu_lora_mask, families, flags, wrapped
from vllm_edit.engine.compat.offline_engine import OfflineEngine
from vllm_edit.engine.model_folder import model_folder
from vllm_edit.engine.request_values import adapter
from vllm_edit.errors import EditError, Incompatible
from vllm_edit.ike.prefix import Edited, build_prefix, wrap
from vllm_edit.ike.shelf import Shelf
from vllm_edit.rollout.arm import Mode
from vllm_edit.rollout.decision import Choice, decide
from vllm_edit.serving.model_field import MODES
from vllm_edit.serving.residency import applicable, local_folder
from vllm_edit.serving.scope import Derived
from vllm_edit.serving.served_model import served_model
from vllm_edit.serving.startup import check_settings, wrapping_problems
from vllm_edit.serving.surrogates import check
from vllm_edit.store.store import Store

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams


class PatchedLLM:
    """A `vllm.LLM` whose prompts are answered with a patch, as a tenant, or by the base model.

    Without `with`, call `close` at the end. Scripts need the `if __name__ == "__main__":` guard: vLLM starts its
    workers with `spawn`.

    Example:
        >>> with PatchedLLM("atlas", store) as llm:
        ...     llm.generate(["The capital of France is"], patch="capital@4f1c")
        ...     llm.generate(prompts, patch=[None, "capital", "capital"], mode=["base", "weights", "ike"])
    """

    def __init__(self, model: str | Path | None, store: Store | str | Path | None = None, **llm_kwargs: Any) -> None:
        """Start the engine.

        Args:
            model: `atlas`, a folder or a hub id; None for the site's model.
            store: a store or its URL; None for the default store.
            llm_kwargs: arguments of `vllm.LLM`; they override the defaults.

        Raises:
            Incompatible: the model is not the store's base, a keyword changes the model, or the engine does not wrap
                exactly the site.
        """
        if problems := flags.problems(llm_kwargs):
            raise Incompatible(f"keywords that contradict the store: {'; '.join(problems)}")
        self.store = store if isinstance(store, Store) else Store.open(store)
        self.site = self.store.site()
        path, _ = served_model(str(model or self.site.model))
        os.environ.update(engine_environment(os.environ))
        cpu_lora_mask.cure()
        families.register()
        wrapped.install()
        defaults = engine_arguments(self.site.modules, self.site.max_rank, self.site.slots)
        self._engine = OfflineEngine(model=path, **{**asdict(defaults), **llm_kwargs})
        self.llm = self._engine.llm
        try:
            self._check(path)
        except EditError:
            self._engine.close()
            raise
        self._folder = local_folder()
        self._requests: dict[str, LoRARequest] = {}  # by name; a name is its content
        self._indexes: dict[str, ScopeIndex | None] = {}
        self._made: dict[tuple[str, tuple[int, ...]], Derived] = {}

    def __enter__(self) -> PatchedLLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def generate(
        self,
        prompts: str | Sequence[str],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        patch: str | Sequence[str | None] | None = None,
        tenant: str | Sequence[str | None] | None = None,
        mode: Mode | Sequence[Mode | None] | None = None,
        **generate_kwargs: Any,
    ) -> list[RequestOutput]:
        """Answer `prompts` in one batch.

        A tenant's prompt is answered as the server answers a request that names no user: by the rollout's arm, if a
        rollout decides, else by the active publication. Without patch and tenant, the base model answers; it also
        answers a prompt that mentions no subject of a patch with scope subject.

        Args:
            prompts: a prompt or a list of prompts.
            sampling_params: vLLM's sampling parameters, for `vllm.LLM.generate`.
            patch: a patch for all prompts, or a list with one entry per prompt.
            tenant: a tenant for all prompts, or a list with one entry per prompt.
            mode: a mode for all prompts, or a list with one entry per prompt. Default: the arm's mode, and weights for
                a patch.
            generate_kwargs: more arguments of `vllm.LLM.generate`.

        Returns:
            One output per prompt. In mode ike its `prompt` includes the prefix.

        Raises:
            NotFound: no such patch or tenant.
            Incompatible: this engine cannot apply a patch.
            EditError: a list has the wrong length, a mode is unknown, a prompt has both patch and tenant, or a
                prompt has an unpaired surrogate.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        check(texts, "prompts")
        patches, tenants = _per_prompt(patch, len(texts), "patch"), _per_prompt(tenant, len(texts), "tenant")
        modes = _per_prompt(mode, len(texts), "mode")
        choices = [self.choose(*asked) for asked in zip(patches, tenants, modes, strict=True)]
        requests = [self._request(text, choice) for text, choice in zip(texts, choices, strict=True)]
        wrapped_texts = [self._wrapped(text, choice) for text, choice in zip(texts, choices, strict=True)]
        generate_kwargs.setdefault("use_tqdm", False)
        return self._engine.generate(wrapped_texts, sampling_params, requests, **generate_kwargs)

    def close(self) -> None:
        """Stop the engine's processes and remove the adapters' copies."""
        self._engine.close()
        self._folder.cleanup()

    def choose(self, patch: str | None, tenant: str | None, mode: str | None) -> Choice:
        """Choose what answers a prompt, by the rules of the server's router.

        Args:
            patch: a patch's name, or the start of it.
            tenant: a tenant's name; its publication or rollout decides.
            mode: base, weights or ike; None for the rollout's mode, else weights.

        Raises:
            NotFound: no such patch or tenant.
            EditError: the mode is unknown, or both patch and tenant are given.
        """
        known = next((name for name in MODES if name == mode), None)
        if mode is not None and known is None:
            raise EditError(f"expected a mode among {', '.join(MODES)}, got {mode!r}")
        if patch is not None and tenant is not None:
            raise EditError(f"a prompt is for a patch or for a tenant, got {patch!r} and {tenant!r}")
        if tenant is not None:
            return decide(self.store.registry.state(tenant), {}, {}, datetime.now(UTC), mode=known)
        if patch is None:
            return Choice("base", reason="DEFAULT")
        adapter = self.store.resolve(patch)
        return Choice("base") if known == "base" else Choice(known or "weights", adapter)

    def _request(self, text: str, choice: Choice) -> LoRARequest | None:
        if choice.mode != "weights" or choice.adapter is None:
            return None
        name, source = choice.adapter, None
        if (index := self._index(name)) is not None:
            if (derived := self._derived(index, index.mentioned([text]))) is None:
                return None
            name, source = derived.name, derived
        if name not in self._requests:
            store = source or self.store
            applicable(store.manifest(name), self.site, self._engine.max_rank)
            folder = store.adapter_folder(name, Path(self._folder.name))
            self._requests[name] = adapter(name, 1 + len(self._requests), folder)
        return self._requests[name]

    def _index(self, name: str) -> ScopeIndex | None:
        """The index of a patch with scope subject; None for any other."""
        if name not in self._indexes:
            manifest = self.store.manifest(name)
            self._indexes[name] = ScopeIndex.of(manifest) if manifest.scope == "subject" else None
        return self._indexes[name]

    def _derived(self, index: ScopeIndex, units: tuple[int, ...]) -> Derived | None:
        """The adapter of these units of a patch, built on first use; None if there are no units."""
        key = (index.name, units)
        if units and key not in self._made:
            compiled = index.compiled(units, lambda member: self.store.unit(index.name, member), self.site)
            self._made[key] = Derived(compiled.manifest, encode_adapter(compiled))
        return self._made.get(key)

    def _wrapped(self, text: str, choice: Choice) -> str:
        if choice.mode != "ike" or choice.adapter is None:
            return text
        edited: Edited = self.store.manifest(choice.adapter)
        bank: Sequence[Demonstration] = self.store.demonstrations(choice.adapter)
        if (index := self._index(choice.adapter)) is not None:
            edits = [edit for unit in index.mentioned([text]) for edit in index.units[unit].edits]
            if not edits:
                return text
            edited, bank = Shelf(edited, bank).of(edits)
        used = len(self._engine.tokenizer.encode(text))
        budget = self.llm.llm_engine.vllm_config.model_config.max_model_len - used - _ANSWER
        return wrap(build_prefix(edited, bank, text, budget), text)

    def _check(self, path: str) -> None:
        folder = model_folder(path)
        Checkpoint(folder).check_served()
        base = self.store.base()
        if departures := base.problems(Fingerprint.of_folder(folder)):
            raise Incompatible(
                f"{path} is not the base of {self.store.url}; serve the model the store was made for: its "
                f"{'; its '.join(departures)}"
            )
        if problem := self._engine.length_problem:
            raise Incompatible(problem)
        check_settings(base, self._engine.tokenizer)
        problems = wrapping_problems(self.llm.collective_rpc(wrapped.METHOD, args=(list(self.site.modules),)))
        if problems:
            raise Incompatible("; ".join(problems))


_ANSWER = 64  # tokens reserved for the answer in mode ike


def _per_prompt(value: str | Sequence[str | None] | None, count: int, what: str) -> list[str | None]:
    if value is None or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise EditError(f"{count} prompts need as many entries in {what}, got {len(value)}")
    return list(value)
