"""The routes, fields and headers of vLLM's own server, read by one program: it takes longest to import vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Fields of the request models with their aliases, headers that the servers read, and methods and paths of vLLM's own
# application with our plugin in it, as `vllm serve` builds it, without an engine.
PROGRAM = """
import inspect, json, re, sys
from vllm_edit.engine.compat import version
version.answer_for_vllm()
from vllm.entrypoints.generate.base import serving
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.utils.argparse_utils import FlexibleArgumentParser
models = {"/v1/completions": CompletionRequest, "/v1/chat/completions": ChatCompletionRequest}
models["/v1/responses"] = ResponsesRequest
fields = {
    route: [[name, *filter(None, (field.alias, field.validation_alias))] for name, field in model.model_fields.items()]
    for route, model in models.items()
}
read = re.findall(r"headers\\.get\\(([^),]+)", inspect.getsource(serving))
headers = [vars(serving)[name] if name in vars(serving) else json.loads(name) for name in read]
parser = make_arg_parser(FlexibleArgumentParser())
app = build_app(parser.parse_args([]), ("generate",), None)
routes = [[method, route.path] for route in app.routes for method in getattr(route, "methods", None) or ["GET"]]
with open(sys.argv[1], "w") as file:
    json.dump({"routes": routes, "fields": fields, "headers": headers}, file)
"""
FILE = "surface.json"


@dataclass(frozen=True)
class VLLMSurface:
    """routes: methods and paths. fields: by route, each with its aliases. headers: those that the servers read."""

    routes: list[tuple[str, str]]
    fields: dict[str, list[list[str]]]
    headers: list[str]

    @classmethod
    def read(cls, folder: Path) -> VLLMSurface:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls([(method, path) for method, path in found["routes"]], found["fields"], found["headers"])


def write_surface(folder: Path) -> None:
    environment = {**os.environ, "VLLM_EDIT_STORE": "here", "VLLM_PLUGINS": "vllm_edit"}
    command = [sys.executable, "-c", PROGRAM, str(folder / FILE)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
