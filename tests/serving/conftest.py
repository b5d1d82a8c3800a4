from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.made_once import MadeOnce
from tests.serving.vllm_surface import VLLMSurface, write_surface


@pytest.fixture(scope="session")
def vllm_surface(made_once: MadeOnce) -> VLLMSurface:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    return VLLMSurface.read(made_once("vllm-surface", write_surface))
