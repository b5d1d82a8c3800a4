"""vLLM's gauge of the adapters in flight is left out, because its series grow without bound."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, generate_latest

from vllm_edit.engine.compat.lora_gauge import replace


def test_the_gauge_is_neither_filled_nor_shown_any_more() -> None:
    gauge = Gauge("vllm:lora_requests_info_of_a_test", "…", ["running_lora_adapters"])
    gauge.labels(running_lora_adapters="a,b").set_to_current_time()
    assert b"lora_requests_info_of_a_test" in generate_latest(REGISTRY)
    with_gauge, without = SimpleNamespace(gauge_lora_info=gauge), SimpleNamespace()
    states = {"one@1": SimpleNamespace(running={"a", "b"}), "two@2": SimpleNamespace(running=set())}
    client = SimpleNamespace(
        logger_manager=SimpleNamespace(stat_loggers=[without, with_gauge]),
        output_processor=SimpleNamespace(lora_states=SimpleNamespace(requests=states)),
    )
    running = Gauge("running_adapters_of_a_test", "…", registry=CollectorRegistry())
    for _ in range(2):
        replace(client, running)  # type: ignore[arg-type]
    assert with_gauge.gauge_lora_info is None
    assert b"lora_requests_info_of_a_test" not in generate_latest(REGISTRY)
    assert running.collect()[0].samples[0].value == 1
    states["two@2"].running.add("c")
    assert running.collect()[0].samples[0].value == 2
    replace(SimpleNamespace(logger_manager=None), running)  # type: ignore[arg-type]


def test_vllm_still_has_the_gauge_where_it_is_looked_for() -> None:
    loggers = pytest.importorskip("vllm.v1.metrics.loggers")
    assert "if self.gauge_lora_info is not None" in inspect.getsource(loggers.PrometheusStatLogger.record)
    assert "self.stat_loggers" in inspect.getsource(loggers.StatLoggerManager.__init__)
