"""The router's own metrics, on the registry that vLLM's `/metrics` exposes.

Names begin with `vllm_edit_`, because vLLM removes every metric that begins with `vllm:` when it builds its logger.
Labels are bounded: they never hold a tenant's or an adapter's name.
"""

from __future__ import annotations

from collections import Counter as Counted
from typing import get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from vllm_edit.registry.patches import Status
from vllm_edit.registry.snapshot import Snapshot
from vllm_edit.serving.error_responses import REFUSALS

_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Metrics:
    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.requests = Counter(
            "vllm_edit_requests", "Requests passed to the engine", ["mode", "arm", "reason"], registry=registry
        )
        self.refused = Counter("vllm_edit_refused", "Requests refused by the router", ["status"], registry=registry)
        self.failed = Counter(
            "vllm_edit_failed",
            "Requests passed to the engine that ended with its error, or broke off",
            registry=registry,
        )
        self.loads = Counter("vllm_edit_adapter_loads", "Adapters put into the engine", ["outcome"], registry=registry)
        self.load_seconds = Histogram(
            "vllm_edit_adapter_load_seconds", "Copy, verify and load one adapter", buckets=_SECONDS, registry=registry
        )
        self.unloads = Counter(
            "vllm_edit_adapter_unloads", "Adapters taken out of the engine", ["outcome"], registry=registry
        )
        self.resident = Gauge("vllm_edit_resident_adapters", "Adapters in the engine", registry=registry)
        self.running_adapters = Gauge(
            "vllm_edit_running_adapters", "Adapters with a running request: slots in use", registry=registry
        )
        self.compositions = Counter(
            "vllm_edit_compositions", "Adapters derived for what requests mention", ["outcome"], registry=registry
        )
        self.compose_seconds = Histogram(
            "vllm_edit_compose_seconds", "Read and solve what a request mentions", buckets=_SECONDS, registry=registry
        )
        self.router_seconds = Histogram(
            "vllm_edit_router_seconds", "From a request's full body to the engine", buckets=_SECONDS, registry=registry
        )
        self.ike_tokens = Counter("vllm_edit_ike_tokens", "Prompt tokens added in ike mode", registry=registry)
        self.refreshes = Counter(
            "vllm_edit_refreshes", "Catalogue reads from the store", ["outcome"], registry=registry
        )
        self.registry_up = Gauge("vllm_edit_registry_up", "1 while the registry can be read, else 0", registry=registry)
        self.generation = Gauge(
            "vllm_edit_generation", "Generation of the registry that requests are decided from", registry=registry
        )
        self.lag = Gauge(
            "vllm_edit_generation_lag", "Generations by which the registry was ahead when last read", registry=registry
        )
        self.patches = Gauge(
            "vllm_edit_patches", "Compiled patches, by what their gate said", ["gate"], registry=registry
        )
        self.outcomes = Counter("vllm_edit_outcomes", "Outcomes that clients reported", ["outcome"], registry=registry)
        self.canaries = Counter(
            "vllm_edit_canaries", "Locality probes that the server asked itself", ["outcome"], registry=registry
        )
        self.shadows = Counter(
            "vllm_edit_shadows", "Answers drawn to be repeated by a rollout's other arm", ["outcome"], registry=registry
        )
        self.log_rows = Counter("vllm_edit_log_rows", "Answers written to the log", registry=registry)
        self.log_dropped = Counter(
            "vllm_edit_log_dropped", "Answers of which a row of the log was lost", registry=registry
        )
        self._expose_outcomes()

    def count_patches(self, snapshot: Snapshot) -> None:
        """Set the gauge of patches per gate status from a snapshot of the registry."""
        counts = Counted(entry.status for entry in snapshot.patches)
        for status in get_args(Status):
            self.patches.labels(status).set(counts[status])

    def _expose_outcomes(self) -> None:
        """Expose all outcomes from 0: Prometheus sees no increase in a series that begins with its first event."""
        for counter, outcomes in (
            (self.loads, ("loaded", "failed")),
            (self.unloads, ("unloaded", "failed")),
            (self.compositions, ("single", "composed", "refused")),
            (self.refreshes, ("changed", "failed")),
            (self.outcomes, ("recorded", "repeated")),
            (self.shadows, ("same", "changed", "dropped", "failed")),
            (self.canaries, ("same", "changed", "failed")),
            (self.refused, tuple(map(str, REFUSALS))),
        ):
            for outcome in outcomes:
                counter.labels(outcome)
