"""What Prometheus may know of a server: counts and times, never a text."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tempertilt.serving.engine import Engine

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, engine: Engine) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("t3_requests", "requests by outcome", ["endpoint", "outcome"], registry=registry)
        self.refused = Counter("t3_refused_requests", "requests that got an error, by status", ["status"], registry=registry)
        self.prompt_tokens = Counter("t3_prompt_tokens", "tokens of prompts", ["model"], registry=registry)
        self.reused_tokens = Counter(
            "t3_reused_prompt_tokens", "tokens of prompts that were read for earlier ones", ["model"], registry=registry
        )
        self.answer_tokens = Counter("t3_generation_tokens", "tokens of answers", ["model"], registry=registry)
        self.first = Histogram(
            "t3_time_to_first_token_seconds", "from the request to its first token", registry=registry, buckets=SECONDS
        )
        self.whole = Histogram(
            "t3_request_duration_seconds", "from the request to its last token", registry=registry, buckets=SECONDS
        )
        for name, text, read in (
            ("t3_answers_waiting", "answers that wait", lambda: engine.waiting),
            ("t3_answers_running", "answers that are being written", lambda: engine.running),
            ("t3_engine_alive", "1 while the engine runs", lambda: int(engine.is_alive())),
        ):
            Gauge(name, text, registry=registry).set_function(read)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class Watch:
    """The times of one request; its outcome is counted once.

    Attributes:
        facts: what is known of the request, for a log.
    """

    def __init__(self, metrics: Metrics, endpoint: str, model: str) -> None:
        self._metrics, self._endpoint, self._model = metrics, endpoint, model
        self._started, self._over = time.perf_counter(), False
        self.facts: dict[str, Any] = {"model": model, "first_token_seconds": None}

    def token(self) -> None:
        """Something of an answer has come."""
        if self.facts["first_token_seconds"] is None:
            seconds = time.perf_counter() - self._started
            self.facts["first_token_seconds"] = round(seconds, 4)
            self._metrics.first.observe(seconds)

    def over(self, outcome: str, prompt_tokens: int = 0, answer_tokens: int = 0, reused_tokens: int = 0) -> None:
        """The request has ended: ok, disconnected or error."""
        if self._over:
            return
        self._over = True
        self.facts |= {"outcome": outcome, "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
        self._metrics.requests.labels(self._endpoint, outcome).inc()
        self._metrics.prompt_tokens.labels(self._model).inc(prompt_tokens)
        self._metrics.reused_tokens.labels(self._model).inc(reused_tokens)
        self._metrics.answer_tokens.labels(self._model).inc(answer_tokens)
        if outcome == "ok":
            self._metrics.whole.observe(time.perf_counter() - self._started)
