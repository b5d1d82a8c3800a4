"""Leaves out vLLM's gauge of the adapters in flight, whose series grow without bound.

Upstream: `PrometheusStatLogger.record` (`v1/metrics/loggers.py`, 0.32.0) gives `vllm:lora_requests_info` a new series
for each ordered list of adapters that ran or waited together, and removes none. With 500 adapters in 32 slots, 100,000
requests made 190,000 series: 1.4 GiB of memory, and 300 MiB for each read of `/metrics`. Delete this file when vLLM
removes old series.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def leave_out(client: AsyncLLM) -> None:
    """Take the gauge out of the engine's loggers and out of Prometheus' registry, if the engine has it."""
    from prometheus_client import REGISTRY

    for stat_logger in client.logger_manager.stat_loggers if client.logger_manager else ():
        gauge = getattr(stat_logger, "gauge_lora_info", None)
        if gauge is not None:
            vars(stat_logger)["gauge_lora_info"] = None
            with suppress(KeyError):  # not in this registry, such as a gauge of Ray's
                REGISTRY.unregister(gauge)
