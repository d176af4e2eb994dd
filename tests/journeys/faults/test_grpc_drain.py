"""A gateway told to go: gRPC says so first, lets calls end, cuts the rest with a word, and they go on elsewhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from socket import socket
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from common.config import Settings
from gateway.rpc.headrace.v1 import inference_pb2 as pb
from tests.support.fleet import Fleet
from tests.support.grpc_client import Caller, caller, chat, events_of, refusal_of, text_of

pytestmark = [pytest.mark.timeout(90), pytest.mark.lengthy]

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
TURNED_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Two gateways with a short drain, of which a test may end one."""
    fleet = Fleet(tmp_path, gateways=2, drain_s=4)
    try:
        yield fleet.start()
    finally:
        fleet.stop()


def begun(rpc: Caller, **script: Any) -> tuple[Iterator[pb.JobEvent], list[pb.JobEvent], str]:
    """(events to come, events seen, job id) of a stream that goes on."""
    call = rpc.ask("ChatCompletionStream", pb.ChatCompletionStreamRequest(chat=chat(numbered=True, **script)))
    events = events_of(call)
    seen = [next(events)]
    return events, seen, dict(call.initial_metadata())["x-headrace-job-id"]


def test_a_gateway_that_drains_says_so_ends_what_it_can_and_loses_no_stream(fleet: Fleet) -> None:
    with ExitStack() as open_:
        here, there, probe = (open_.enter_context(caller(fleet, number)) for number in (0, 1, 0))
        watching = probe.health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watching).status == SERVING
        short, short_seen, _ = begun(here, tokens=60, token_ms=15)
        long, long_seen, long_job = begun(here, tokens=160, token_ms=40)
        fleet.members["gateway-0"].signal(signal.SIGTERM)
        assert next(watching).status == NOT_SERVING
        with caller(fleet, 0) as newcomer, pytest.raises(grpc.RpcError) as refused:
            newcomer.ask("Infer", pb.InferRequest(prompt=pb.Prompt(text="x")), limit_s=3)
        # The last is gRPC's own answer to a call that came to the server while it was being stopped.
        assert refused.value.code() in TURNED_AWAY  # pyright: ignore[reportAttributeAccessIssue]
        short_seen += short
        with pytest.raises(grpc.RpcError) as cut:
            for event in long:
                long_seen.append(event)
        rest = list(events_of(there.ask("WatchJob", pb.WatchJobRequest(job_id=long_job, after=long_seen[-1].position))))
        watching.cancel()
    assert text_of(short_seen) == "".join(f" {number}" for number in range(60))
    assert (refusal_of(cut.value).code, refusal_of(cut.value).reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "server_overloaded",
    )
    assert text_of([*long_seen, *rest]) == "".join(f" {number}" for number in range(160))
    assert fleet.members["gateway-0"].wait(15) == 0
    assert "Traceback" not in fleet.members["gateway-0"].log()


def test_who_only_watches_health_holds_up_no_gateway_that_drains(fleet: Fleet) -> None:
    fleet.add("gateway-2", "gateway", drain_s=80)
    fleet.start_again("gateway-2")
    with caller(fleet, 2) as probe:
        watching = probe.health.Watch(health_pb2.HealthCheckRequest(), timeout=80)
        assert next(watching).status == SERVING
        fleet.members["gateway-2"].signal(signal.SIGTERM)
        assert next(watching).status == NOT_SERVING
        assert fleet.members["gateway-2"].wait(30) == 0


def test_health_is_not_serving_while_the_store_is_away(fleet: Fleet) -> None:
    with caller(fleet) as probe:
        watching = probe.health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watching).status == SERVING
        fleet.redis.kill()
        assert next(watching).status == NOT_SERVING
        fleet.redis.start()
        assert next(watching).status == SERVING
        watching.cancel()


def test_only_a_port_that_was_asked_for_must_be_had(fleet: Fleet) -> None:
    taken = fleet.members["gateway-0"].environ["HEADRACE_GRPC_PORT"]
    asked = fleet.add("gateway-2", "gateway", grpc_port=taken)
    asked.start()
    without = fleet.add("gateway-3", "gateway", grpc_port=0)
    by_default = fleet.add("gateway-4", "gateway")
    del by_default.environ["HEADRACE_GRPC_PORT"]
    with socket() as other:
        with suppress(OSError):  # somebody else's already: as good
            other.bind(("127.0.0.1", Settings().grpc_port))
            other.listen()
        fleet.start_again(without.name, by_default.name)
    assert "gateway.grpc_port_taken" in by_default.log()
    assert "gateway.grpc_port_taken" not in without.log()
    assert asked.wait(30) == 1
    assert "gateway.cannot_listen" in asked.log()
