"""Settings of compiling edits with a trained network, whatever the network."""

from __future__ import annotations

from typing import ClassVar

from vllm_edit.editing.method_settings import CompileSettings
from vllm_edit.json_value import JSONObject
from vllm_edit.settings import Real


class NetworkEditSettings(CompileSettings):
    """Settings of compiling edits with a trained network."""

    advice: ClassVar[str] = "train the network longer, on edits like this one, or compile it apart from the others"

    margin: Real | None = 3.0
    """Required lead of the target in nats after the edit's prompt, plain and as a chat turn. The network's update is
    scaled by the smallest of the tried scales that reaches this lead. None: the network's own length, as published."""
    served_margin: Real = 0.0
    """Minimum lead of the target in nats after the edit's prompt, under the whole delta as saved."""

    def identity(self, network: str) -> JSONObject:
        """The JSON-serialisable settings that identify a compiled patch, with the network's digest."""
        return self.lasting() | {"network": network}
