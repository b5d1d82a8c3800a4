"""The site: where edits go in one base model, fixed once per store; and the fingerprint of that base."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vllm_edit.artefacts.checkpoint import CONFIG, SETTINGS_FILES, TEMPLATE, Checkpoint
from vllm_edit.digest import digest_bytes, digest_file, digest_json
from vllm_edit.errors import EditError
from vllm_edit.thinking import Thinking

Token = Literal["subject_last", "last"]
LEGAL_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's MaxLoRARanks (vllm/config/lora.py)

_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
_VOLATILE_SETTINGS = (
    "chat_template",  # a part of its own
    "name_or_path",
    "transformers_version",
    "is_local",
    "local_files_only",
    "_from_model_config",
)
WITHOUT_SETTINGS = (
    "this store is from before tokenizer_config.json and generation_config.json had a digest, so a change of them goes "
    "unnoticed; if they are as they were, keep their digest with `vllm-edit store keep-settings`"
)
_OLD_WEIGHTS = " (an older store of a folder that held further weight files has to be made anew: vllm-edit store init)"


def check_rank(rank: int) -> None:
    """Raises EditError for a greatest rank that is none of vLLM's."""
    if rank not in LEGAL_RANKS:
        raise EditError(f"max_rank must be one of {', '.join(map(str, LEGAL_RANKS))} (vLLM's); got {rank}")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fingerprint(_Frozen):
    """Digests of what makes a base model itself."""

    config: str
    weights: str
    tokenizer: str
    chat_template: str

    settings: str | None = Field(
        None,
        description="of tokenizer_config.json, added_tokens.json, generation_config.json; None in sites from before it",
    )

    @classmethod
    def of_folder(cls, folder: str | Path) -> Fingerprint:
        """Fingerprint of a model folder in Hugging Face layout: of what would be loaded, and of nothing else there.

        Raises:
            EditError: the folder lacks config, weights or tokenizer, or one of them cannot be read.
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
        """What makes `base` another model than this one, a sentence for each part; the first word names the part."""
        told = {"weights": _OLD_WEIGHTS if self.settings is None else ""}
        return [
            f"{part} is {getattr(base, part)}, the site was fixed for {getattr(self, part)}{told.get(part, '')}"
            for part in self.departures(base)
        ]

    def is_named(self, digest: str) -> bool:
        """True if `digest` is this fingerprint's, or what it was before `settings` existed."""
        return digest in (self.digest, digest_json(self.model_dump(exclude={"settings"})))

    def departures(self, other: Fingerprint) -> tuple[str, ...]:
        """Names of the parts in which two fingerprints differ; a part that one of them does not have is not compared.

        Empty means that an edit of one is an edit of the other.
        """
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in type(self).model_fields)
        return tuple(name for name, mine, theirs in pairs if None not in (mine, theirs) and mine != theirs)


def _digest_files(paths: Iterable[Path]) -> str:
    return digest_bytes(*(part for path in paths for part in (path.name.encode(), digest_file(path).encode())))


class Context(_Frozen):
    """A text put around an edit's prompt when its key is measured and its residual is trained.

    `prefix` is text before the prompt; with `chat` the prompt is asked as a user turn of the model's chat template
    (and `prefix`, if any, stands before the prompt inside that turn).
    """

    prefix: str = ""
    chat: bool = False


class Site(_Frozen):
    """Where edits go: fixed once per store by `vllm-edit store init`. Patches of one site compose.

    A closed-form site is one module at one token, with what its solver needs. A site with a hypernetwork (MEND) is the
    matrices that the network edits, at every token, and has none of that.
    """

    base: Fingerprint
    model: str = Field(description="what the user named: 'atlas', a folder or a hub id; informative, not identity")
    modules: tuple[str, ...] = Field(min_length=1, description="the model's names, e.g. model.layers.6.mlp.down_proj")
    layer: int = Field(description="the first edited layer")
    network: str | None = Field(None, description="digest of the hypernetwork's tensors; None for a closed-form site")
    token: Token = "last"
    d_in: int = 0
    d_out: int = 0
    contexts: tuple[Context, ...] = ()
    second_moment: str = Field("", description="digest of the moment's tensors")
    second_moment_count: int = Field(0, description="number of vectors in C")
    ridge: float = Field(0.0, description="added to C's diagonal, relative to its mean")
    damping: float = Field(0.0, description="λ, relative to the mean kᵀ C⁻¹ k of a key group's columns")
    margin: float | None = Field(
        None, description="nats by which an edit's target is to lead; None, as in older sites, takes the editor's own"
    )
    residual_scale: float = Field(
        0.0,
        description="the unit of a residual: RMS at the site's token of the residual stream, or of the module's output "
        "where the block normalises that",
    )
    thinking: Thinking | None = Field(
        None,
        description="how a chat template that thinks is asked: with thinking off, or after an empty one; None for one "
        "that does not, and in older sites",
    )
    max_rank: int
    slots: int
    seed: int = 0

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Site:
        """Either everything that a closed-form solver needs, or a network and nothing of that."""
        needed = ("d_in", "d_out", "contexts", "second_moment", "second_moment_count", "residual_scale")
        if self.network is None and (missing := [name for name in needed if not getattr(self, name)]):
            raise ValueError(f"a closed-form site needs {', '.join(missing)}")
        if self.network is not None and (extra := [name for name in needed if getattr(self, name)]):
            raise ValueError(f"a site with a network has no {', '.join(extra)}")
        return self

    def base_problems(self, base: Fingerprint) -> list[str]:
        """`Fingerprint.problems` of the site's base."""
        return self.base.problems(base)

    @property
    def material(self) -> str:
        """Digest of the tensors that belong to the site: its second moment's, or its network's."""
        return self.second_moment if self.network is None else self.network

    @property
    def module(self) -> str:
        """The one edited module; closed-form editors need exactly one."""
        if len(self.modules) != 1:
            raise EditError(f"this site has {len(self.modules)} modules, a closed-form editor needs exactly one")
        return self.modules[0]

    @property
    def digest(self) -> str:
        # Digests of sites that were made before a field existed must not change.
        left_out = {"model", "slots"} | {
            name for name in ("network", "margin", "thinking") if getattr(self, name) is None
        }
        told = self.model_dump(mode="json", exclude=left_out)
        return digest_json(told | {"base": self.base.model_dump(exclude_none=True)})
