"""Counters and gauges for Prometheus. Never a text."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sordino.engine.requests import CacheUse, End

# Each label is a line of every scrape for as long as the server lives: names beyond so many are counted as one.
_MOST_NAMES, OTHERS = 1000, "(others)"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServerMetrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self._watched: Callable[[], tuple[int, int]] | None = None
        self.requests = Counter(
            "sordino_requests", "Requests by how they ended", ["api", "reason"], registry=self.registry
        )
        self.tokens = Counter("sordino_tokens", "Tokens read and written", ["kind"], registry=self.registry)
        self._prompt_names: set[str] = set()
        self._prompts = Counter(
            "sordino_soft_prompt_requests", "Requests by soft prompt", ["soft_prompt"], registry=self.registry
        )
        self.first_token = Histogram(
            "sordino_first_token_seconds",
            "From the request to its first token",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def count(self, api: str, end: End) -> None:
        """Count a request that ended, and its tokens."""
        self.requests.labels(api, end.reason).inc()
        self.tokens.labels("read").inc(end.n_prompt)
        self.tokens.labels("written").inc(end.n_new)

    def count_prompt(self, name: str) -> None:
        """Count a request with the soft prompt of this name, or with OTHERS where too many names came before."""
        if len(self._prompt_names) < _MOST_NAMES:
            self._prompt_names.add(name)
        self._prompts.labels(name if name in self._prompt_names else OTHERS).inc()

    def watch(self, counts: Callable[[], tuple[int, int]], cache: Callable[[], CacheUse]) -> None:
        """Gauges that are read with each scrape."""
        self._watched = counts
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "sordino_running": ("Running rows", lambda: counts()[0]),
            "sordino_waiting": ("Waiting requests", lambda: counts()[1]),
            "sordino_prefix_cache_hits": ("Prefixes found in the cache", lambda: cache().hits),
            "sordino_prefix_cache_misses": ("Prefixes that had to be computed", lambda: cache().misses),
            "sordino_prefix_cache_evictions": ("Prefixes that were evicted", lambda: cache().evictions),
            "sordino_text_cache_hits": ("Texts whose beginning was in the cache", lambda: cache().text_hits),
            "sordino_text_cache_evictions": ("Texts that were evicted", lambda: cache().text_evictions),
            "sordino_prefix_cache_bytes": ("Bytes of prefixes and texts", lambda: cache().bytes),
        }
        for name, (what, read) in gauges.items():
            # They exist already where another model was watched before.
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, what, registry=self.registry)
            self._gauges[name].set_function(read)

    def forget(self, counts: Callable[[], tuple[int, int]]) -> None:
        """Drop the references to a backend, unless another is watched by now: they would keep a model's weights in memory."""
        if self._watched == counts:
            self.watch(lambda: (0, 0), lambda: CacheUse(0, 0, 0, 0, 0, 0))

    def scrape(self) -> bytes:
        return generate_latest(self.registry)
