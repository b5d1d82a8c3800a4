"""`vllm-edit schema`: the JSON Schema of patch files, for editors that validate YAML."""

from __future__ import annotations

from vllm_edit.cli.output import print_json


def schema() -> None:
    """Print the JSON Schema of a patch file."""
    from vllm_edit.patch import Patch

    print_json(Patch.model_json_schema())
