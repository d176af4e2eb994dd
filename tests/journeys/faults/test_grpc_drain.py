"""A gateway told to go: gRPC says so first, lets calls end, cuts the rest with a word, and they go on elsewhere."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from gateway.rpc.headrace.v1 import inference_pb2 as pb
from tests.support.fleet import until
from tests.support.grpc_client import Caller, caller, chat, events_of, job_id_of, refusal_of, stream, text_of, watch
from tests.support.stage import Stage

pytestmark = [pytest.mark.timeout(90), pytest.mark.lengthy]

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING
# The last is gRPC's own answer to a call that came to the server while it was being stopped.
TURNED_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
# The stage's gateways end streams a second after they were told to go: the one answer is over by then, the other isn't.
SHORT, LONG = {"tokens": 20, "token_ms": 15}, {"tokens": 110, "token_ms": 20}


def begun(rpc: Caller, **script: Any) -> tuple[Iterator[pb.JobEvent], list[pb.JobEvent], str]:
    """(events to come, events seen, job id) of a stream that goes on."""
    call = stream(rpc, chat(numbered=True, **script))
    events = events_of(call)
    seen = [next(events)]
    return events, seen, job_id_of(call)


def turned_away(newcomer: Caller) -> bool:
    """Whether a call that begins now is refused; one that comes at the same moment as the word may still be taken."""
    try:
        newcomer.ask("Infer", pb.InferRequest(prompt=pb.Prompt(text="x")), limit_s=3)
    except grpc.RpcError as error:
        assert refusal_of(error).code in TURNED_AWAY
        return True
    return False


def counted(script: dict[str, int]) -> str:
    """All that such a stream says."""
    return "".join(f" {number}" for number in range(script["tokens"]))


def test_a_gateway_that_drains_says_so_ends_what_it_can_and_loses_no_stream(stage: Stage) -> None:
    fleet = stage.fleet
    with ExitStack() as open_:
        here, there, probe = (open_.enter_context(caller(fleet, number)) for number in (0, 1, 0))
        watching = probe.health.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watching).status == SERVING
        short, short_seen, _ = begun(here, **SHORT)
        long, long_seen, long_job = begun(here, **LONG)
        fleet.members["gateway-0"].signal(signal.SIGTERM)
        assert next(watching).status == NOT_SERVING
        newcomer = open_.enter_context(caller(fleet, 0))
        until(lambda: turned_away(newcomer), 5, "a gateway that goes still takes calls")
        short_seen += short
        with pytest.raises(grpc.RpcError) as cut:
            for event in long:
                long_seen.append(event)
        rest = watch(there, long_job, long_seen[-1].position)
        watching.cancel()
    assert text_of(short_seen) == counted(SHORT)
    assert (refusal_of(cut.value).code, refusal_of(cut.value).reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "server_overloaded",
    )
    assert text_of([*long_seen, *rest]) == counted(LONG)
    assert rest, "nothing was left to be read elsewhere"
    assert fleet.members["gateway-0"].wait(15) == 0
