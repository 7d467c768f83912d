"""What ``/metrics`` tells Prometheus. No label holds an id, a name or a text, so their number stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from airflow_provider_gradient.server.engine import EngineLoad

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """The metrics of one server.

    :param load: how the engine stands.
    """

    def __init__(self, load: Callable[[], EngineLoad]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "gradient_request_seconds",
            "Seconds from a request's head to its whole answer.",
            ("operation", "status"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(load))
        ProcessCollector(registry=self.registry)

    def answered(self, *, operation: str, status: int, seconds: float) -> None:
        """Count one answer; status 0 stands for none."""
        self._requests.labels(operation, str(status)).observe(seconds)


class _EngineCollector(Collector):
    """Reads the engine's load when it is asked for."""

    def __init__(self, load: Callable[[], EngineLoad]) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        """The engine's gauges and counters."""
        load = self._load()
        for name, value, meaning in (
            ("queue_length", load.waiting, "Completions and fine-tunes that wait for their turn."),
            ("requests_running", load.running, "Completions and fine-tunes under way."),
            ("slots", load.slots, "The most completions that can be under way at once."),
            ("adapters_resident", load.resident_adapters, "Model adapters in memory."),
        ):
            yield GaugeMetricFamily(f"gradient_{name}", meaning, value=value)
        for name, value, meaning in (
            ("generated_tokens", load.generated_tokens, "Tokens of all completions answered."),
            ("trained_tokens", load.trained_tokens, "Trainable tokens of all fine-tunes kept."),
        ):
            yield CounterMetricFamily(f"gradient_{name}", meaning, value=value)
