"""The files of a model folder that loaders read (weights, config, tokenizer), located and checked without torch."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vllm_edit.errors import EditError
from vllm_edit.json_value import JSONObject

CONFIG, TEMPLATE = "config.json", "chat_template.jinja"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json")
SETTINGS_FILES = ("tokenizer_config.json", "added_tokens.json", "generation_config.json")
_NAMED = ("model.safetensors", "pytorch_model.bin")
"""Weight files (or their indexes, without `.index.json`) in the order in which transformers looks for them (5.x,
`modeling_utils._get_resolved_checkpoint_files`)."""
_POINTER = b"version https://git-lfs"
_ZIP, _OLD_PICKLE = b"PK\x03\x04", b"\x80"
_TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
"""*.bin files that vLLM ignores (0.32, `weight_utils.filter_files_not_needed_for_inference`)."""


@dataclass(frozen=True)
class Checkpoint:
    """A model folder in Hugging Face layout. Every member raises a one-line `EditError` that names the file."""

    folder: Path

    @cached_property
    def config(self) -> JSONObject:
        """Content of config.json."""
        return self.json(CONFIG)

    @cached_property
    def weights(self) -> tuple[Path, ...]:
        """The weight files that transformers loads: safetensors before pickled, a single file before shards.

        Empty if there are none. Shards that the index names may be missing.
        """
        for name in _NAMED:
            if (self.folder / name).is_file():
                return (self.folder / name,)
            if (index := self.folder / f"{name}.index.json").is_file():
                named = self.json(index.name).get("weight_map")
                if not isinstance(named, dict) or not all(isinstance(shard, str) for shard in named.values()):
                    raise EditError(f"{index}: expected a weight_map from tensors to files")
                return tuple(sorted({self.folder / shard for shard in named.values()}))
        return ()

    @property
    def tokenizer(self) -> tuple[Path, ...]:
        """The tokenizer's files, without its settings files."""
        return self._present(TOKENIZER_FILES)

    def json(self, name: str) -> JSONObject:
        """Read one of the folder's JSON files."""
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise EditError(f"{path} cannot be read: {error.strerror}; expected a model folder there") from error
        except (ValueError, RecursionError) as error:
            _check_no_pointer(path)
            raise EditError(f"{path} is not JSON in UTF-8: {error}") from error
        if not isinstance(content, dict):
            raise EditError(f"{path}: expected a JSON object, got a {type(content).__name__}")
        return content

    def check_whole(self) -> None:
        """Raise `EditError` for missing or truncated files, and for Git LFS pointers.

        Safetensors files are compared with their own header; of pickled files only the container is checked.
        """
        for path in (*self._present((CONFIG, TEMPLATE, *SETTINGS_FILES)), *self.tokenizer, *self.weights):
            if not path.is_file():
                raise EditError(f"{path} is missing, but the index of the weights names it; download the model again")
            _check_no_pointer(path)
        for path in self.weights:
            (_check_safetensors if path.suffix == ".safetensors" else _check_pickled)(path)

    def check_served(self) -> None:
        """Raise `EditError` if vLLM would load other weight files than transformers does.

        vLLM prefers `consolidated*.safetensors`, and without an index it loads every *.safetensors (0.32,
        `DefaultModelLoader._prepare_weights`).
        """
        other = set(self._served()) ^ set(self.weights)
        if other:
            names = ", ".join(sorted(path.name for path in other))
            raise EditError(
                f"{self.folder} holds weights that only one of vLLM and transformers loads ({names}): remove the files "
                "that do not belong to the model, or write a folder without them (vllm-edit model import)"
            )

    def _served(self) -> Iterable[Path]:
        """The weights that vLLM loads."""
        if own := sorted(self.folder.glob("consolidated*.safetensors")):
            return own
        found = sorted(self.folder.glob("*.safetensors"))
        if found and (self.folder / f"{_NAMED[0]}.index.json").is_file():
            index = self.json(f"{_NAMED[0]}.index.json").get("weight_map")
            named = set(index.values()) if isinstance(index, dict) else set()
            return [path for path in found if path.name in named]
        return found or [path for path in sorted(self.folder.glob("*.bin")) if not path.name.endswith(_TRAINING)]

    def _present(self, names: Iterable[str]) -> tuple[Path, ...]:
        return tuple(self.folder / name for name in names if (self.folder / name).exists())


def _beginning(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise EditError(f"{path} cannot be read: {error.strerror}") from error


def _check_no_pointer(path: Path) -> None:
    if _beginning(path, len(_POINTER)) == _POINTER:
        raise EditError(f"{path} is a Git LFS pointer, not the file itself; fetch it (git lfs pull)")


def _check_safetensors(path: Path) -> None:
    """Compare the file's size with its header: eight bytes with the header's size, JSON, then the tensors."""
    size = path.stat().st_size
    length = struct.unpack("<Q", _beginning(path, 8).ljust(8, b"\0"))[0]
    try:
        if not 2 <= length <= size - 8:
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = json.loads(_beginning(path, 8 + length)[8:])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        if (expected := 8 + length + max(ends, default=0)) != size:
            raise ValueError(f"expected {expected:,} bytes, got {size:,}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise EditError(f"{path} is truncated or damaged: {error}; download it again") from error


def _check_pickled(path: Path) -> None:
    """Check the container: torch writes a zip file, whose directory is at its end; before 1.6 it wrote pickles."""
    first = _beginning(path, 4)
    if first == _ZIP and zipfile.is_zipfile(path):
        return
    if first[:1] == _OLD_PICKLE:
        return
    raise EditError(f"{path} is truncated or damaged: torch did not write such a file; download it again")
