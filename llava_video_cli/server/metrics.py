"""The server's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..conversation import FinishReason, Usage

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server; `text` writes them in Prometheus's format."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("llvid_requests", "Requests by path and status.", ["path", "status"], registry=registry)
        self.answers = Counter(
            "llvid_answers", "Finished answers by finish reason.", ["finish_reason"], registry=registry
        )
        self.tokens = Counter(
            "llvid_tokens", "Tokens of finished answers: prompt, cached (of the prompt) or generated.", ["kind"],
            registry=registry,
        )  # fmt: skip
        self.active = Gauge("llvid_requests_inside", "Requests that wait or are being answered.", registry=registry)
        self.batch_size = Histogram(
            "llvid_batch_size",
            "Running requests when another one begins, with it.",
            buckets=_SIZES,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "llvid_wait_seconds", "From a request entering the queue to its start.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.first_text_seconds = Histogram(
            "llvid_first_text_seconds", "From a streamed request's arrival to its first text.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "llvid_request_seconds", "From an answered request's arrival to its end.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip

    def count_answer(self, reason: FinishReason, usage: Usage, seconds: float) -> None:
        """Count a finished answer, `seconds` after its request arrived."""
        self.answers.labels(reason).inc()
        self.tokens.labels("prompt").inc(usage.prompt_tokens)
        self.tokens.labels("cached").inc(usage.cached_tokens)
        self.tokens.labels("generated").inc(usage.generated_tokens)
        self.seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self._registry)
