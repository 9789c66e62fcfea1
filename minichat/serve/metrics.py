"""What the server tells Prometheus of its work: requests, queue, tokens, times, and what was not computed twice."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"minichat_{name}", what, labels, registry=self._registry)

        def histogram(name: str, what: str) -> Histogram:
            return Histogram(f"minichat_{name}", what, buckets=_SECONDS, registry=self._registry)

        self.requests = counter("requests", "Requests for replies, by how they ended.", "status")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of the prompts of requests that were answered.")
        self.cached_tokens = counter("prompt_tokens_cached", "Of these, tokens that were copied and not read.")
        self.prefix_hits = counter("prefix_hits", "Answered requests of whose prompt a part was known.")
        self.generated_tokens = counter("generated_tokens", "Tokens that were written, also of replies that were left.")
        self.pictures_encoded = counter("pictures_encoded", "Pictures of requests that were still to be encoded.")
        self.pictures_known = counter("pictures_known", "Pictures of requests whose features were known.")
        self.first_token = histogram("first_token_seconds", "From a request's arrival to its first token.")
        self.token = histogram("token_seconds", "Of one request: the mean time from one token to the next.")
        self.whole = histogram("request_seconds", "From a request's arrival to the end of its reply.")

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A number that is looked up when it is asked for."""
        Gauge(f"minichat_{name}", what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
