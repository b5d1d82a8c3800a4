"""Models of the Hugging Face hub as local folders."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from vllm_edit.errors import EditError

_TEXT_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_WEIGHT_FILES = ("*.safetensors", "*.bin")


def downloaded(name: str, expected: str) -> Path:
    """The local folder of a model of the hub, downloaded if necessary; pickled weights only if it has no safetensors.

    expected: the kinds of name that the caller accepts, for messages.

    Raises:
        EditError: there is no such model, access to it is restricted, or the hub cannot be reached.
    """
    try:
        for weights in _WEIGHT_FILES:
            patterns = [*_TEXT_FILES, weights]
            folder = Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns="*/*"))
            if any(folder.glob(weights)):
                break
    except GatedRepoError as error:
        raise EditError(
            f"access to {name!r} on the hub is restricted: request it on the model's page, and log in with a token "
            "(hf auth login, or HF_TOKEN)"
        ) from error
    except (HFValidationError, HfHubHTTPError) as error:
        raise EditError(f"there is no model {name!r}: {expected} ({_first_line(error)})") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise EditError(f"{name!r} is no local folder and the hub cannot be reached; {expected}") from error
    except Exception as error:  # for example a full disk, an error of httpx, or a proxy's page instead of JSON
        raise EditError(f"{name!r} could not be downloaded: {_first_line(error)}") from error
    return folder


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
