"""The site: where edits apply in one base model, fixed once per store; and the fingerprint of that base."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from vllm_edit.artefacts.checkpoint import CONFIG, SETTINGS_FILES, TEMPLATE, Checkpoint
from vllm_edit.digest import digest_bytes, digest_file, digest_json
from vllm_edit.errors import EditError
from vllm_edit.frozen import Frozen
from vllm_edit.text.thinking import Thinking

Token = Literal["subject_last", "last"]
TensorKind = Literal["second moment", "network", "gradient statistics"]
LEGAL_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's MaxLoRARanks (vllm/config/lora.py)

_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
_VOLATILE_SETTINGS = (
    "chat_template",  # has its own digest
    "name_or_path",
    "transformers_version",
    "is_local",
    "local_files_only",
    "_from_model_config",
)
WITHOUT_SETTINGS = (
    "this store was made before tokenizer_config.json and generation_config.json had a digest, so a change of them "
    "is not detected; if they are unchanged, store their digest with `vllm-edit store keep-settings`"
)
_OLD_WEIGHTS = " (an older store of a folder with further weight files has to be made anew: vllm-edit store init)"


def check_rank(rank: int) -> None:
    """Raise `EditError` unless vLLM supports `rank` as a maximum LoRA rank."""
    if rank not in LEGAL_RANKS:
        raise EditError(f"max_rank must be one of {', '.join(map(str, LEGAL_RANKS))} (vLLM's); got {rank}")


def least_rank(columns: int) -> int:
    """The least of vLLM's maximum LoRA ranks that holds so many columns; the greatest of them if none does."""
    return next((rank for rank in LEGAL_RANKS if rank >= columns), LEGAL_RANKS[-1])


class Fingerprint(Frozen):
    """Digests of the parts that identify a base model."""

    config: str
    weights: str
    tokenizer: str
    chat_template: str

    settings: str | None = Field(
        None,
        description="of tokenizer_config.json, added_tokens.json, generation_config.json; None in older sites",
    )

    @classmethod
    def of_folder(cls, folder: str | Path) -> Fingerprint:
        """Compute the fingerprint of a model folder in Hugging Face layout, from the files that loaders read.

        Raises:
            EditError: the folder lacks config, weights or tokenizer, or one of these cannot be read.
        """
        files = Checkpoint(Path(folder))
        if not (files.folder / CONFIG).exists() or not files.weights or not files.tokenizer:
            raise EditError(
                f"{folder} is not a model folder: expected config.json, model.safetensors (or pytorch_model.bin, or "
                "the index of their shards) and a tokenizer there"
            )
        config = {key: value for key, value in files.config.items() if key not in _VOLATILE_CONFIG_KEYS}
        template = files.folder / TEMPLATE
        settings = {name: files.json(name) for name in SETTINGS_FILES if (files.folder / name).exists()}
        written = settings.get("tokenizer_config.json", {}).get("chat_template") or ""
        try:
            return cls(
                config=digest_json(config),
                weights=_digest_files(files.weights),
                tokenizer=_digest_files(files.tokenizer),
                chat_template=digest_json(template.read_text(encoding="utf-8") if template.exists() else written),
                settings=digest_json(
                    {
                        name: {key: value for key, value in content.items() if key not in _VOLATILE_SETTINGS}
                        for name, content in settings.items()
                    }
                ),
            )
        except (OSError, ValueError) as error:
            raise EditError(f"{folder} cannot be read: {error}") from error

    @property
    def digest(self) -> str:
        return digest_json(self.model_dump(exclude_none=True))

    def problems(self, base: Fingerprint) -> list[str]:
        """Describe each part in which `base` differs, one sentence each; the first word names the part."""
        hints = {"weights": _OLD_WEIGHTS if self.settings is None else ""}
        return [
            f"{part} is {getattr(base, part)}, the site was fixed for {getattr(self, part)}{hints.get(part, '')}"
            for part in self.departures(base)
        ]

    def is_named(self, digest: str) -> bool:
        """True if `digest` is this fingerprint's, with or without `settings` (older versions had none)."""
        return digest in (self.digest, digest_json(self.model_dump(exclude={"settings"})))

    def departures(self, other: Fingerprint) -> tuple[str, ...]:
        """Return the names of the parts in which two fingerprints differ. Parts that either lacks are not compared.

        If there are none, edits of one base are valid for the other.
        """
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        return tuple(name for name, mine, theirs in pairs if None not in (mine, theirs) and mine != theirs)


def _digest_files(paths: Iterable[Path]) -> str:
    return digest_bytes(*(part for path in paths for part in (path.name.encode(), digest_file(path).encode())))


class Context(Frozen):
    """Text around an edit's prompt while its key is measured and its residual is optimized.

    `prefix` is text before the prompt; with `chat`, the prompt is a user turn of the model's chat template, and
    `prefix`, if any, precedes the prompt inside that turn.
    """

    prefix: str = ""
    chat: bool = False


class Site(Frozen):
    """Where edits apply: fixed once per store by `vllm-edit store init`. Patches of one site compose.

    A closed-form site is one module at one token, with the solver's inputs; for MEMIT it is the modules of several
    layers, of one shape. A site with a hypernetwork, or with gradient statistics (UltraEdit), is several matrices at
    every token, without these inputs.
    """

    base: Fingerprint
    model: str = Field(description="the user's name: 'atlas', a folder or a hub id; informative, not identity")
    modules: tuple[str, ...] = Field(min_length=1, description="module names, e.g. model.layers.6.mlp.down_proj")
    layer: int = Field(description="the first edited layer")
    network: str | None = Field(None, description="digest of the hypernetwork's tensors; None for other sites")
    network_method: str | None = Field(
        None, description="the method of the hypernetwork; None for MEND, as in older sites, and for a closed-form site"
    )
    statistics: str | None = Field(None, description="digest of the gradient statistics; None for other sites")
    token: Token = "last"
    d_in: int = 0
    d_out: int = 0
    contexts: tuple[Context, ...] = ()
    second_moment: str = Field("", description="digest of the tensors of the moment, or of all modules' moments")
    second_moment_count: int = Field(0, description="number of vectors in C")
    ridge: float = Field(0.0, description="added to C's diagonal, relative to its mean")
    damping: float = Field(0.0, description="λ, relative to the mean kᵀ C⁻¹ k of a key group's columns")
    margin: float | None = Field(
        None, description="nats by which an edit's target should lead; None, as in older sites: the editor's default"
    )
    residual_scale: float = Field(
        0.0,
        description="the unit of a residual: RMS at the site's token of the residual stream (divided by the "
        "factor with which the block adds the module's output), or of the module's output if the block normalises that",
    )
    thinking: Thinking | None = Field(
        None,
        description="how prompts suppress a chat template's thinking: switched off, or an empty thinking block; None "
        "for a template without thinking, and in older sites",
    )
    max_rank: int
    slots: int
    seed: int = 0

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Site:
        """Require either all inputs of a closed-form solver, or a network or statistics and none of them."""
        needed = ("d_in", "d_out", "contexts", "second_moment", "second_moment_count", "residual_scale")
        if self.network is not None and self.statistics is not None:
            raise ValueError("a site has a network or gradient statistics, not both")
        closed = self.tensor_kind == "second moment"
        if closed and (missing := [name for name in needed if not getattr(self, name)]):
            raise ValueError(f"a closed-form site needs {', '.join(missing)}")
        if not closed and (extra := [name for name in needed if getattr(self, name)]):
            raise ValueError(f"a site of kind {self.tensor_kind!r} has no {', '.join(extra)}")
        return self

    def base_problems(self, base: Fingerprint) -> list[str]:
        """Return `Fingerprint.problems` of the site's base."""
        return self.base.problems(base)

    @property
    def tensor_kind(self) -> TensorKind:
        """The kind of the site's tensors."""
        if self.statistics is not None:
            return "gradient statistics"
        return "second moment" if self.network is None else "network"

    @property
    def tensors_digest(self) -> str:
        """Digest of the site's second moment, network or gradient statistics."""
        return self.statistics or self.network or self.second_moment

    @property
    def module(self) -> str:
        """The one edited module; closed-form editors need exactly one."""
        if len(self.modules) != 1:
            raise EditError(f"this site has {len(self.modules)} modules, this method needs exactly one")
        return self.modules[0]

    @property
    def digest(self) -> str:
        # Fields that are newer than a site must not change its digest.
        left_out = {"model", "slots"} | {
            name
            for name in ("network", "network_method", "statistics", "margin", "thinking")
            if getattr(self, name) is None
        }
        fields = self.model_dump(mode="json", exclude=left_out)
        return digest_json(fields | {"base": self.base.model_dump(exclude_none=True)})
