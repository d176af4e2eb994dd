"""Every metric's name and labels; one group for each kind of process. Labels only ever hold names from the settings.

A group owns its registry, so nothing is registered by importing this. Labelled children are kept, since finding one
costs more than counting with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from socket import create_connection
from threading import Thread
from time import perf_counter
from typing import Final

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)

from common.contracts import Job, Outcome, Priority

log = structlog.get_logger(__name__)

# OpenTelemetry's buckets for generations: from cached answers to long ones.
SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
# And for first tokens: where people feel the difference.
FIRST_TOKEN_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08),
    *(0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
)
# A wait in the queue ranges from nothing to a night.
WAIT_SECONDS: Final = (*(0.001, 0.005, 0.01, 0.05, 0.1, 0.5), *(1, 5, 10, 30, 60, 300, 1_800, 7_200, 28_800))


def _nothing_to_stop() -> None:
    """Stops nothing."""


class Group:
    """One process's metrics."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        # Twice the series for the times at which counters were made, which nobody asks for.
        disable_created_metrics()
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        return generate_latest(self.registry)

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Serves them from a thread of its own until what comes back is called. Raises OSError if the port is taken."""
        server, thread = start_http_server(port, addr=host, registry=self.registry)

        def stop() -> None:
            ending = Thread(target=server.shutdown)
            ending.start()
            # It looks for that order only twice a second, and whenever somebody connects.
            while ending.is_alive():
                with suppress(OSError):
                    create_connection((host, port), timeout=0.1).close()
                ending.join(0.01)
            server.server_close()
            thread.join()

        return stop

    def serve_if_free(self, host: str, asked: int | None, default: int) -> Callable[[], None]:
        """As `serve`, on the port asked for (0: none), or else on the default one where that is free.

        Several workers on one machine share the default port, so only one that was asked for must be had.
        """
        if asked is not None:
            return self.serve(host, asked) if asked else _nothing_to_stop
        try:
            return self.serve(host, default)
        except OSError as error:
            log.warning("metrics.port_taken", port=default, error=str(error))
            return _nothing_to_stop

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """A counter of this group; `_total` is added to its name."""
        return Counter(f"headrace_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """A gauge of this group."""
        return Gauge(f"headrace_{name}", text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        """A histogram of this group, in seconds."""
        return Histogram(f"headrace_{name}", text, labels, registry=self.registry, buckets=buckets)


class GatewayMetrics(Group):
    """What a gateway sees of its callers."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self._requests = self.counter("requests", "Requests answered.", "route", "status")
        self._seconds = self.histogram("request_seconds", "From a request's head to its answer's end.", "route")
        self._first_token = self.histogram(
            "ttft_seconds", "From a request's head to its stream's first token.", buckets=FIRST_TOKEN_SECONDS
        )
        self._streams = self.gauge("streams_open", "Streams that have a reader now.")
        self._events = self.counter("stream_events", "Events sent to readers; each is about one token.")
        self._refused = self.counter("refusals", "Requests refused, by our own code for why.", "code")
        self._counting: dict[tuple[str, int], Counter] = {}
        self._timing: dict[str, Histogram] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts an answer. `route` is the template, never the path."""
        counter = self._counting.get((route, status))
        if counter is None:
            counter = self._counting[route, status] = self._requests.labels(route, str(status))
        timing = self._timing.get(route)
        if timing is None:
            timing = self._timing[route] = self._seconds.labels(route)
        counter.inc()
        timing.observe(seconds)

    def refused(self, code: str) -> None:
        """Counts a refusal. `code` is one of the error table's."""
        self._refused.labels(code).inc()

    def first_token(self, seconds: float) -> None:
        """Notes how long a stream's reader waited for its first token."""
        self._first_token.observe(seconds)

    @contextmanager
    def stream_open(self) -> Generator[None]:
        """Counts a stream as open while it is."""
        self._streams.inc()
        try:
            yield
        finally:
            self._streams.dec()

    def events_relayed(self, count: int) -> None:
        """Counts events sent to a reader."""
        self._events.inc(count)


_BREAKER_LEVELS: Final = {"closed": 0, "half_open": 1, "open": 2}


@dataclass(slots=True)
class _JobSeries:
    """The children for jobs of one pool, class and model."""

    queued: Histogram
    total: Histogram
    input_tokens: Counter
    output_tokens: Counter
    ended: dict[str, Counter] = field(default_factory=dict[str, Counter])


class UpstreamCall:
    """One call under way. `made`: False where it turns out that nothing was called, so that it is not timed."""

    __slots__ = ("_first", "_started_s", "made")

    def __init__(self, first: Histogram, started_s: float) -> None:
        self.made = True
        self._first = first
        self._started_s = started_s

    def first_token(self) -> None:
        """Notes that the first token has come."""
        self._first.observe(perf_counter() - self._started_s)


class WorkerMetrics(Group):
    """What a worker does, and how its backends do."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self._running = self.gauge("jobs_running", "Jobs that this worker holds now.")
        self._jobs = self.counter("jobs", "Jobs ended.", "pool", "class", "status")
        self._queued = self.histogram(
            "queue_wait_seconds", "From acceptance to the claim.", "pool", "class", buckets=WAIT_SECONDS
        )
        self._total = self.histogram(
            "job_seconds", "From acceptance to the end.", "pool", "class", buckets=WAIT_SECONDS
        )
        self._tokens = self.counter("tokens", "Tokens of prompts (input) and answers (output).", "direction", "model")
        self._upstream = self.histogram("upstream_seconds", "A call to a backend, whole.", "backend")
        self._upstream_first = self.histogram(
            "upstream_first_token_seconds", "A call's first token.", "backend", buckets=FIRST_TOKEN_SECONDS
        )
        self._errors = self.counter("upstream_errors", "Calls that failed.", "backend", "code")
        self._retried = self.counter(
            "retries", "Calls made again: at the next backend, with another key, or later.", "result"
        )
        self._hedged = self.counter("hedges", "Second calls made because the first was slow, and which won.", "result")
        self._preempted = self.counter(
            "preemptions", "Running jobs that gave way to an interactive one.", "pool", "class"
        )
        self._breaker = self.gauge("backend_breaker", "0 closed, 1 half-open, 2 open.", "backend")
        self._series: dict[tuple[str, Priority, str], _JobSeries] = {}
        self._calls: dict[str, tuple[Histogram, Histogram]] = {}

    def watch_running(self, count: Callable[[], int]) -> None:
        """Has the number of running jobs read from `count` whenever somebody asks."""
        self._running.set_function(count)

    def job_ended(self, job: Job, outcome: Outcome) -> None:
        """Counts a job's end, with its waits and tokens."""
        series = self._of(job)
        counter = series.ended.get(outcome.status)
        if counter is None:
            counter = self._jobs.labels(job.pool, job.priority.label, outcome.status.value)
            series.ended[outcome.status] = counter
        counter.inc()
        for histogram, name in ((series.queued, "queued"), (series.total, "total")):
            if name in outcome.timings_ms:
                histogram.observe(outcome.timings_ms[name] / 1000)
        if outcome.usage is not None:
            # A server may count wrongly; a counter that goes back would end the process's metrics.
            series.input_tokens.inc(max(0, outcome.usage.prompt_tokens))
            series.output_tokens.inc(max(0, outcome.usage.completion_tokens))

    @contextmanager
    def upstream_call(self, backend: str) -> Generator[UpstreamCall]:
        """Times a call to a backend, however it ends, if it was made."""
        children = self._calls.get(backend)
        if children is None:
            children = self._calls[backend] = self._upstream.labels(backend), self._upstream_first.labels(backend)
        started_s = perf_counter()
        call = UpstreamCall(children[1], started_s)
        try:
            yield call
        finally:
            if call.made:
                children[0].observe(perf_counter() - started_s)

    def upstream_error(self, backend: str, code: str) -> None:
        """Counts a failed call by our own code for it."""
        self._errors.labels(backend, code).inc()

    def retry(self, how: str) -> None:
        """Counts a call made again: `next` backend, other `key`, or `later`."""
        self._retried.labels(how).inc()

    def hedge(self, result: str) -> None:
        """Counts a hedge that `won` or `lost`."""
        self._hedged.labels(result).inc()

    def preempted(self, job: Job) -> None:
        """Counts a running job that gave way."""
        self._preempted.labels(job.pool, job.priority.label).inc()

    def breaker(self, backend: str, phase: str) -> None:
        """Sets a backend's gauge to the phase of its breaker."""
        self._breaker.labels(backend).set(_BREAKER_LEVELS[phase])

    def _of(self, job: Job) -> _JobSeries:
        key = (job.pool, job.priority, job.model)
        series = self._series.get(key)
        if series is None:
            names = (job.pool, job.priority.label)
            series = _JobSeries(
                queued=self._queued.labels(*names),
                total=self._total.labels(*names),
                input_tokens=self._tokens.labels("input", job.model),
                output_tokens=self._tokens.labels("output", job.model),
            )
            self._series[key] = series
        return series


@dataclass(frozen=True, slots=True)
class PoolView:
    """How a pool's queue stands. `depth` is by (class, model), ages and waits by class.

    A wait that can't be told is left out, tokens that can't are NaN: no figure is better than a wrong nought.
    """

    pool: str
    depth: Mapping[tuple[str, str], int]
    oldest_age_s: Mapping[str, float]
    estimated_wait_s: Mapping[str, float]
    waiting_tokens: float
    delayed: int
    workers: int
    running: int
    dead_letters: int = 0
    unjournaled: int = 0


class SchedulerMetrics(Group):
    """How the queues and backends stand, as seen by whoever runs the timers."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self._depth = self.gauge("queue_depth", "Jobs waiting.", "pool", "class", "model")
        self._age = self.gauge("queue_oldest_age_seconds", "How long the first job has waited.", "pool", "class")
        self._wait = self.gauge("queue_estimated_wait_seconds", "What a new job should expect.", "pool", "class")
        self._tokens = self.gauge("queue_tokens", "Tokens that waiting jobs are likely to cost.", "pool")
        self._delayed = self.gauge("queue_delayed", "Jobs put off until later.", "pool")
        self._workers = self.gauge("workers", "Workers whose lease holds.", "pool")
        # Not `jobs_running`, which each worker has of itself: the sum over all processes would count twice.
        self._running = self.gauge("pool_jobs_running", "Jobs that workers hold now.", "pool")
        self._dead = self.gauge(
            "dead_letters", "Jobs whose attempts were used up, as far back as they are kept.", "pool"
        )
        self._unjournaled = self.gauge("journal_backlog", "Ended jobs that the ledger has not got yet.", "pool")
        self._healthy = self.gauge("backend_healthy", "1 where the last probe found the backend well.", "backend")
        self._rounds = self.counter("rounds", "Rounds of a role.", "role", "result")
        self._lanes: dict[str, set[tuple[str, str]]] = {}

    def show_pool(self, view: PoolView) -> None:
        """Sets a pool's gauges; what is no longer there goes to zero, so that no old value stays."""
        for known in self._lanes.setdefault(view.pool, set()) - view.depth.keys():
            self._depth.labels(view.pool, *known).set(0)
        for lane, depth in view.depth.items():
            self._depth.labels(view.pool, *lane).set(depth)
        self._lanes[view.pool] |= view.depth.keys()
        for priority in Priority:
            names = (view.pool, priority.label)
            self._age.labels(*names).set(view.oldest_age_s.get(priority.label, 0))
            self._wait.labels(*names).set(view.estimated_wait_s.get(priority.label, math.nan))
        self._tokens.labels(view.pool).set(view.waiting_tokens)
        self._delayed.labels(view.pool).set(view.delayed)
        self._workers.labels(view.pool).set(view.workers)
        self._running.labels(view.pool).set(view.running)
        self._dead.labels(view.pool).set(view.dead_letters)
        self._unjournaled.labels(view.pool).set(view.unjournaled)

    def show_backend(self, backend: str, *, healthy: bool) -> None:
        """Sets a backend's gauge."""
        self._healthy.labels(backend).set(healthy)

    def round_done(self, role: str, result: str) -> None:
        """Counts a role's round by its result."""
        self._rounds.labels(role, result).inc()
