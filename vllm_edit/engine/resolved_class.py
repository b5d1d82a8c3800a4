"""`python -m vllm_edit.engine.resolved_class FOLDER`: the class with which vLLM would serve a model folder.

Prints a line of JSON: `{"name": class or null, "lora": whether it supports LoRA}`. It runs as a separate program so
that its caller need not import vLLM. The folder needs only its config.json.
"""

from __future__ import annotations

import json
import sys

from vllm_edit.engine.compat import version


def main(folder: str) -> None:
    version.answer_for_vllm()
    from vllm.config import ModelConfig
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.plugins import load_general_plugins

    load_general_plugins()  # they register classes out of tree, including ours
    try:
        config = ModelConfig(model=folder, skip_tokenizer_init=True)
        found, _ = config.registry.resolve_model_cls(config.architectures, config)
    except ValueError as error:  # no class for this architecture; pydantic's errors are ValueErrors
        print(error, file=sys.stderr)
        print(json.dumps({"name": None, "lora": False}))
        return
    print(json.dumps({"name": found.__name__, "lora": bool(supports_lora(found))}))


if __name__ == "__main__":
    main(sys.argv[1])
