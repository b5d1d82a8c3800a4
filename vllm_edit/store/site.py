"""The site: where edits go in one base model, fixed once per store; and the fingerprint of that base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vllm_edit.errors import EditError
from vllm_edit.store.digest import digest_bytes, digest_file, digest_json

Token = Literal["subject_last", "last"]
LEGAL_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's MaxLoRARanks (vllm/config/lora.py)

_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json")


def check_rank(rank: int) -> None:
    """Raises EditError for a greatest rank that is none of vLLM's."""
    if rank not in LEGAL_RANKS:
        raise EditError(f"max_rank must be one of {', '.join(map(str, LEGAL_RANKS))} (vLLM's); got {rank}")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fingerprint(_Frozen):
    """Digests of what makes a base model itself. Equal fingerprints mean: an edit of one is an edit of the other."""

    config: str
    weights: str
    tokenizer: str
    chat_template: str

    @classmethod
    def of_folder(cls, folder: str | Path) -> Fingerprint:
        """Fingerprint of a model folder in Hugging Face layout.

        Raises:
            EditError: the folder lacks config, weights or tokenizer.
        """
        folder = Path(folder)
        weights = sorted(p for p in folder.glob("*") if p.suffix in _WEIGHT_SUFFIXES and "training" not in p.name)
        tokenizer = [folder / name for name in _TOKENIZER_FILES if (folder / name).exists()]
        if not (folder / "config.json").exists() or not weights or not tokenizer:
            raise EditError(
                f"{folder} is not a model folder: expected config.json, *.safetensors (or *.bin) and a tokenizer there"
            )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        template = folder / "chat_template.jinja"
        settings_file = folder / "tokenizer_config.json"
        settings: dict[str, Any] = json.loads(settings_file.read_text("utf-8")) if settings_file.exists() else {}
        chat = template.read_text(encoding="utf-8") if template.exists() else settings.get("chat_template") or ""
        return cls(
            config=digest_json({key: value for key, value in config.items() if key not in _VOLATILE_CONFIG_KEYS}),
            weights=digest_bytes(*(part for p in weights for part in (p.name.encode(), digest_file(p).encode()))),
            tokenizer=digest_bytes(*(part for p in tokenizer for part in (p.name.encode(), digest_file(p).encode()))),
            chat_template=digest_json(chat),
        )

    @property
    def digest(self) -> str:
        return digest_json(self.model_dump())


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
        left_out = {"model", "slots"} | {name for name in ("network", "margin") if getattr(self, name) is None}
        return digest_json(self.model_dump(mode="json", exclude=left_out))
