"""What a server measures, for Prometheus: of this server alone, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from edgevlm.generate.answer import Answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SPEED = (1, 2, 5, 10, 20, 40, 80, 160, 320, 640)


class Metrics:
    """Any thread may count."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "edgevlm_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.answers = Counter("edgevlm_answers", "Answers by how they ended.", ["finish_reason"], registry=registry)
        self.rejected = Counter("edgevlm_rejected", "Questions there was no room for.", ["reason"], registry=registry)
        self.tokens = Counter("edgevlm_tokens", "Tokens by what they were.", ["kind"], registry=registry)
        self.waiting = Gauge("edgevlm_queue_depth", "Questions that wait.", registry=registry)
        self.busy = Gauge("edgevlm_sessions_busy", "Sessions that answer.", registry=registry)
        self.first_token = Histogram(
            "edgevlm_time_to_first_token_seconds", "From a request that was read to its answer's first piece.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.stages = Histogram(
            "edgevlm_stage_seconds", "Each stage of an answer.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.speed = Histogram(
            "edgevlm_tokens_per_second", "Tokens of an answer after its first.", buckets=_SPEED, registry=registry
        )
        self._mean = 1.0

    def answered(self, answer: Answer) -> None:
        """An answer, whole or cancelled."""
        timings = answer.timings
        stages = {
            "preprocess": timings.preprocess, "encode": timings.encode, "prefill": timings.prefill,
            "decode": timings.decode,
        }  # fmt: skip
        for stage, seconds in stages.items():
            self.stages.labels(stage).observe(seconds)
        counts = {
            "prompt": timings.prompt_tokens, "image": timings.image_tokens, "cached": timings.reused_tokens,
            "answer": timings.answer_tokens,
        }  # fmt: skip
        for kind, count in counts.items():
            self.tokens.labels(kind).inc(count)
        if timings.decode:
            self.speed.observe(timings.tokens_per_second)
        self.answers.labels(answer.finish_reason).inc()
        self._mean += 0.2 * (sum(stages.values()) - self._mean)

    def failed(self) -> None:
        self.answers.labels("error").inc()

    def mean_seconds(self) -> float:
        """What an answer takes, of the latest."""
        return self._mean

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
