"""Settings of UltraEdit."""

from __future__ import annotations

from typing import ClassVar

from vllm_edit.editing.method_settings import CompileSettings
from vllm_edit.json_value import JSONObject
from vllm_edit.settings import PositiveReal, Real


class UltraEditSettings(CompileSettings):
    """Settings of compiling edits with UltraEdit. Quantities are relative, so that the defaults fit every model."""

    title: ClassVar[str] = "ultraedit"
    advice: ClassVar[str] = "raise `length`, compile it apart from the others, or use another method"

    length: PositiveReal = 0.5
    """Norm of an average token's value, in units of the norm that the matrix gives a random input of average length.
    With a margin, this is the middle of the tried lengths."""
    ridge: PositiveReal = 0.1
    """Ridge of the least squares, in units of the mean squared norm of the inputs in the statistics."""
    centred: bool = False
    """Subtract the mean gradient before the division by its deviation, as published. Then a token that the model
    predicts already is moved too, and answers of several tokens miss."""
    margin: Real | None = 3.0
    """Required lead of the target in nats after the edit's prompt, plain and as a chat turn. An edit's values are
    scaled by the smallest of the tried scales at which the edit alone reaches this lead. None: the given length, as
    published."""
    served_margin: Real = 0.0
    """Minimum lead of the target in nats after the edit's prompt, under the whole delta as saved."""

    def identity(self, statistics: str) -> JSONObject:
        """The JSON-serialisable settings that identify a compiled patch, with the statistics' digest."""
        return self.lasting() | {"statistics": statistics}
