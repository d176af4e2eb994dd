"""Metrics: their names, what they count, and that they can be scraped."""

from __future__ import annotations

import math
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.contracts import Job, Outcome, Priority, State, Usage
from common.metrics import GatewayMetrics, Group, PoolView, SchedulerMetrics, WorkerMetrics
from tests.support.redis_server import free_port

JOB = Job("job_p_" + "0" * 32, "p", "tenant", "/v1/chat/completions", "m", {}, Priority.BATCH)
BATCH = {"pool": "p", "class": "batch"}


def test_each_process_has_metrics_of_its_own() -> None:
    first, second = GatewayMetrics(), GatewayMetrics()
    first.events_relayed(3)
    assert first.registry.get_sample_value("headrace_stream_events_total") == 3
    assert second.registry.get_sample_value("headrace_stream_events_total") == 0


def _used() -> list[Group]:
    gateway, worker, scheduler = GatewayMetrics(), WorkerMetrics(), SchedulerMetrics()
    gateway.request("/v1/jobs/{job_id}", 200, 0.1)
    gateway.refused("queue_full")
    worker.job_ended(JOB, Outcome(State.SUCCEEDED, usage=Usage(1, 2), timings_ms={"queued": 1, "total": 2}))
    worker.upstream_error("b", "upstream_timeout")
    worker.retry("next")
    worker.hedge("won")
    worker.breaker("b", "half_open")
    with worker.upstream_call("b") as call:
        call.first_token()
    scheduler.show_pool(PoolView("p", {("batch", "m"): 1}, {"batch": 2.0}, {"batch": 3.0}, 4, 5, 6, 7))
    scheduler.show_backend("b", healthy=True)
    scheduler.round_done("reaper", "done")
    return [gateway, worker, scheduler]


@pytest.mark.parametrize("group", _used(), ids=lambda group: type(group).__name__)
def test_names_and_labels_follow_prometheus_customs_and_hold_no_ids(group: Group) -> None:
    ours = [found for found in text_string_to_metric_families(group.render().decode()) if "headrace" in found.name]
    assert ours
    allowed = {"route", "status", "pool", "class", "model", "backend", "code", "direction", "role", "result", "le"}
    for family in ours:
        assert family.name.startswith("headrace_")
        assert family.documentation.endswith(".")
        assert family.type != "histogram" or family.name.endswith("_seconds")
        assert not family.name.endswith("_created")
        for sample in family.samples:
            assert sample.labels.keys() <= allowed
            assert JOB.id not in sample.labels.values()
            assert JOB.tenant not in sample.labels.values()


def test_a_worker_counts_a_jobs_end_its_waits_and_its_tokens() -> None:
    metrics = WorkerMetrics()
    metrics.watch_running(lambda: 7)
    ended = Outcome(
        State.SUCCEEDED, usage=Usage(10, 20), timings_ms={"queued": 500, "first_token": 900, "total": 2_000}
    )
    metrics.job_ended(JOB, ended)
    metrics.job_ended(JOB, Outcome(State.FAILED))
    value = metrics.registry.get_sample_value
    assert value("headrace_jobs_running") == 7
    assert value("headrace_jobs_total", {**BATCH, "status": "succeeded"}) == 1
    assert value("headrace_jobs_total", {**BATCH, "status": "failed"}) == 1
    assert (value("headrace_queue_wait_seconds_sum", BATCH), value("headrace_queue_wait_seconds_count", BATCH)) == (
        0.5,
        1,
    )
    assert value("headrace_job_seconds_sum", BATCH) == 2
    assert value("headrace_tokens_total", {"direction": "input", "model": "m"}) == 10
    assert value("headrace_tokens_total", {"direction": "output", "model": "m"}) == 20


def test_a_backend_that_counts_backwards_does_not_break_a_counter() -> None:
    metrics = WorkerMetrics()
    metrics.job_ended(JOB, Outcome(State.SUCCEEDED, usage=Usage(-5, 3)))
    assert metrics.registry.get_sample_value("headrace_tokens_total", {"direction": "input", "model": "m"}) == 0


def test_a_call_that_fails_is_timed_like_any_other_and_has_no_first_token() -> None:
    metrics = WorkerMetrics()
    with pytest.raises(ConnectionError), metrics.upstream_call("b"):
        raise ConnectionError
    with metrics.upstream_call("b") as call:
        call.first_token()
    value = metrics.registry.get_sample_value
    assert value("headrace_upstream_seconds_count", {"backend": "b"}) == 2
    assert value("headrace_upstream_first_token_seconds_count", {"backend": "b"}) == 1


def test_a_stream_is_open_until_it_ends_however_it_ends() -> None:
    metrics = GatewayMetrics()
    value = metrics.registry.get_sample_value
    with pytest.raises(ConnectionError), metrics.stream_open(), metrics.stream_open():
        assert value("headrace_streams_open") == 2
        raise ConnectionError
    assert value("headrace_streams_open") == 0


def test_a_lane_that_has_vanished_reads_as_empty_and_an_unknown_wait_as_no_number() -> None:
    metrics = SchedulerMetrics()
    metrics.show_pool(
        PoolView("p", {("batch", "a"): 3, ("batch", "b"): 4}, {"batch": 9.0}, {"batch": 5.0}, 10, 1, 2, 3)
    )
    metrics.show_pool(PoolView("p", {("batch", "b"): 1}, {}, {}, math.nan, 0, 0, 0))
    value = metrics.registry.get_sample_value
    assert value("headrace_queue_depth", {**BATCH, "model": "a"}) == 0
    assert value("headrace_queue_depth", {**BATCH, "model": "b"}) == 1
    assert value("headrace_queue_oldest_age_seconds", BATCH) == 0
    assert math.isnan(value("headrace_queue_estimated_wait_seconds", BATCH) or 0)
    assert math.isnan(value("headrace_queue_tokens", {"pool": "p"}) or 0)
    assert (value("headrace_workers", {"pool": "p"}), value("headrace_pool_jobs_running", {"pool": "p"})) == (0, 0)


def test_metrics_can_be_scraped_on_a_port_of_their_own_until_they_are_stopped() -> None:
    metrics = GatewayMetrics()
    metrics.events_relayed(5)
    port = free_port()
    stop = metrics.serve("127.0.0.1", port)
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        scraped = response.read()
    stop()
    assert b"headrace_stream_events_total 5.0" in scraped
    assert b"process_resident_memory_bytes" in scraped
    metrics.serve("127.0.0.1", port)()


def test_a_port_that_is_taken_is_an_error_at_once() -> None:
    port = free_port()
    stop = GatewayMetrics().serve("127.0.0.1", port)
    try:
        with pytest.raises(OSError):
            GatewayMetrics().serve("127.0.0.1", port)
    finally:
        stop()
