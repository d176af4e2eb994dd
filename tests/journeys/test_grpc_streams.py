"""gRPC over the whole stack: streams that break off, are left, outlive their callers, and go on elsewhere."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest

from gateway.rpc.headrace.v1 import inference_pb2 as pb
from tests.journeys.conftest import GRACE_S, SilentModel
from tests.support.fleet import Fleet, until
from tests.support.grpc_client import (
    Caller,
    asked,
    caller,
    chat,
    events_of,
    first_chunks,
    job_id_of,
    refusal_of,
    refused,
    stream,
    text_of,
    watch,
)
from tests.support.proxied import ProxyThread
from tests.support.say import chat as chat_body
from tests.support.say import follow, frames, submit, when

pytestmark = pytest.mark.timeout(60)

# It goes on for longer than what is done to it meanwhile takes on a crowded machine.
LONG: dict[str, Any] = {"numbered": True, "tokens": 44, "token_ms": 30}
ENDLESS: dict[str, Any] = {"numbered": True, "tokens": 2_000, "token_ms": 50}
WHOLE = "".join(f" {number}" for number in range(44))
Code = grpc.StatusCode


def test_an_answer_begun_anew_tells_its_reader_to_forget(rpc: Caller) -> None:
    request = chat(numbered=True, tokens=6, token_ms=20, fail_at=3, attempts_failing=1)
    events = list(events_of(stream(rpc, request, on_interrupt=pb.ON_INTERRUPT_RESTART)))
    [reset] = [number for number, event in enumerate(events) if event.HasField("reset")]
    assert text_of(events[:reset]) == " 0 1 2"
    assert text_of(events[reset:]) == " 0 1 2 3 4 5"


# --- deadlines and leaving --------------------------------------------------------------------------------------------


def test_a_calls_deadline_is_its_jobs_deadline(rpc: Caller, client: httpx.Client) -> None:
    request = asked(chat("unserved", words="grpc deadline"), on_disconnect=pb.ON_DISCONNECT_CONTINUE)
    with pytest.raises(grpc.RpcError) as error:
        rpc.ask("ChatCompletion", request, limit_s=0.7)
    assert error.value.code() is Code.DEADLINE_EXCEEDED  # pyright: ignore[reportAttributeAccessIssue]
    newest = client.get("/v1/jobs", params={"limit": 1}).json()["data"][0]["id"]
    assert when(client, newest)["status"] == "expired"


def test_a_jobs_own_deadline_that_is_sooner_counts(rpc: Caller) -> None:
    found = refused(rpc, "ChatCompletion", asked(chat("unserved", words="x"), deadline_ms=400))
    assert (found.code, found.reason) == (Code.DEADLINE_EXCEEDED, "timeout")


def test_the_deadline_of_a_submission_is_none_of_its_jobs(rpc: Caller, client: httpx.Client) -> None:
    taken = rpc.ask(
        "SubmitJob", pb.SubmitJobRequest(chat=chat(numbered=True, tokens=3, first_token_ms=2_100)), limit_s=2
    )
    assert when(client, taken.job_id)["status"] == "succeeded"


def test_a_stream_that_is_cancelled_has_its_upstream_cut(
    rpc: Caller, client: httpx.Client, remote: SilentModel
) -> None:
    call = stream(rpc, chat("remote", words="x"))
    first_chunks(call, 1)
    job_id = job_id_of(call)
    assert remote.hanging == 1
    call.cancel()
    until(lambda: remote.hanging == 0, GRACE_S + 12, "the upstream was not cut")
    assert when(client, job_id)["status"] == "cancelled"


def test_a_caller_who_waited_for_a_whole_answer_and_left_cancels_it_too(rpc: Caller, remote: SilentModel) -> None:
    call = rpc.stub.ChatCompletion.future(asked(chat("remote", words="x")), metadata=rpc.metadata, timeout=20)
    until(lambda: remote.hanging == 1, what="the upstream was not asked")
    call.cancel()
    until(lambda: remote.hanging == 0, GRACE_S + 12, "the upstream was not cut")


def test_a_caller_can_ask_that_the_work_goes_on(rpc: Caller, client: httpx.Client) -> None:
    call = stream(rpc, chat(**LONG), ("x-headrace-on-disconnect", "continue"))
    first_chunks(call, 2)
    job_id = job_id_of(call)
    call.cancel()
    found = when(client, job_id)
    assert (found["status"], found["result"]["choices"][0]["message"]["content"]) == ("succeeded", WHOLE)


def test_a_cancelled_jobs_reader_is_told(rpc: Caller, rpc_elsewhere: Caller) -> None:
    call = stream(rpc, chat(**ENDLESS))
    first_chunks(call, 2)
    rpc_elsewhere.ask("CancelJob", pb.CancelJobRequest(job_id=job_id_of(call)))
    with pytest.raises(grpc.RpcError) as error:
        list(call)
    assert (refusal_of(error.value).code, refusal_of(error.value).reason) == (Code.CANCELLED, "cancelled")


def test_nothing_is_left_of_callers_that_came_and_went(fleet: Fleet, rpc: Caller, client: httpx.Client) -> None:
    job_id = submit(client, chat_body(numbered=True, tokens=1, hang_at=1))
    when(client, job_id, "running")
    for _ in range(20):
        call = rpc.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
        assert job_id_of(call) == job_id
        call.cancel()
    client.post(f"/v1/jobs/{job_id}/cancel")
    until(lambda: client.get("/health").json()["streams"] == 0, what="readers are left")


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_a_stream_whose_connection_is_lost_goes_on_at_the_other_gateway(fleet: Fleet, rpc_elsewhere: Caller) -> None:
    port = int(fleet.members["gateway-0"].environ["HEADRACE_GRPC_PORT"])
    with ProxyThread(port) as proxy, caller(fleet, port=proxy.port) as rpc:
        call = stream(rpc, chat(**LONG))
        seen = first_chunks(call, 8)
        job_id = job_id_of(call)
        proxy.heal()
        with pytest.raises(grpc.RpcError) as error:
            list(call)
    assert refusal_of(error.value).code is Code.UNAVAILABLE
    rest = watch(rpc_elsewhere, job_id, seen[-1].position)
    assert text_of([*seen, *rest]) == WHOLE
    assert rest[-1].end.usage.completion_tokens == 44


def test_after_every_single_event_the_rest_comes_once(rpc: Caller, rpc_elsewhere: Caller, client: httpx.Client) -> None:
    for options in ({}, {"stream_options": {"include_usage": True}}):
        job_id = submit(client, {**chat_body(numbered=True, tokens=6), "stream": True, **options})
        when(client, job_id)
        whole = watch(rpc, job_id)
        assert whole[-1].HasField("end")
        for count in range(1, len(whole) + 1):
            assert watch(rpc_elsewhere, job_id, whole[count - 1].position) == whole[count:], f"after {count}"


def test_many_events_come_in_few_messages_and_each_once(rpc: Caller, client: httpx.Client) -> None:
    job_id = submit(client, chat_body(numbered=True, tokens=1_000))
    when(client, job_id)
    read = list(rpc.ask("WatchJob", pb.WatchJobRequest(job_id=job_id)))
    assert text_of(events_of(read)) == "".join(f" {number}" for number in range(1_000))
    assert len(read) < 100
    assert max(len(message.events) for message in read) <= 256


def test_positions_are_those_of_http(rpc: Caller, client: httpx.Client) -> None:
    job_id = submit(client, chat_body(numbered=True, tokens=6))
    when(client, job_id)
    here, there = watch(rpc, job_id), frames(follow(client, job_id)[1])
    assert [event.position for event in here] == [frame.id for frame in there]


def test_a_position_that_is_none_is_refused(rpc: Caller, client: httpx.Client) -> None:
    job_id = submit(client, chat_body(words="x"))
    when(client, job_id)
    fence, _, seq = watch(rpc, job_id)[-1].position.partition("-")
    wanted = {"x": Code.INVALID_ARGUMENT, "1-": Code.INVALID_ARGUMENT, f"{fence}-{int(seq) + 1}": Code.OUT_OF_RANGE}
    for position, code in wanted.items():
        found = refused(rpc, "WatchJob", pb.WatchJobRequest(job_id=job_id, after=position))
        assert (found.code, found.param) == (code, "after"), position
    gone = refused(rpc, "WatchJob", pb.WatchJobRequest(job_id=job_id, after=f"{int(fence) - 1}-1"))
    assert (gone.code, gone.reason) == (Code.ABORTED, "stream_lost")


def test_a_stream_that_was_lost_is_aborted_and_never_a_short_answer(fleet: Fleet, rpc: Caller) -> None:
    call = stream(rpc, chat(numbered=True, tokens=200, token_ms=30))
    seen = first_chunks(call, 3)
    fleet.redis.command("DEL", f"hr:{{default}}:stream:{job_id_of(call)}")
    with pytest.raises(grpc.RpcError) as error:
        seen += events_of(call)
    assert refusal_of(error.value).reason in ("stream_lost", "stream_expired")
    assert refusal_of(error.value).code in (Code.ABORTED, Code.OUT_OF_RANGE)
