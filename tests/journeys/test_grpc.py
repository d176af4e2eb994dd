"""gRPC over the whole stack: every call, jobs, ids, keys and limits as over HTTP, and each way to end badly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import orjson
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from gateway.rpc.headrace.v1 import inference_pb2 as pb
from tests.journeys.conftest import GRACE_S, MOST_WAITING, SilentModel
from tests.support.fleet import OTHER_KEY, Fleet, until
from tests.support.grpc_client import Caller, caller, chat, events_of, refusal_of, refused, text_of
from tests.support.say import CHAT, follow, frames, record, submit, when
from tests.support.say import chat as chat_body

pytestmark = pytest.mark.timeout(60)

SERVICE = "headrace.v1.InferenceService"
LONG: dict[str, Any] = {"numbered": True, "tokens": 44, "token_ms": 50}
WHOLE = "".join(f" {number}" for number in range(44))
SERVING = health_pb2.HealthCheckResponse.SERVING
Code = grpc.StatusCode


@pytest.fixture
def rpc(fleet: Fleet) -> Iterator[Caller]:
    """A caller of the first gateway."""
    with caller(fleet) as one:
        yield one


@pytest.fixture
def rpc_elsewhere(fleet: Fleet) -> Iterator[Caller]:
    """The same caller at the second gateway."""
    with caller(fleet, 1) as one:
        yield one


def stream(rpc: Caller, request: pb.ChatRequest, *metadata: tuple[str, str], **options: Any) -> Any:
    """A chat completion's call, to be read."""
    asked = pb.ChatCompletionStreamRequest(chat=request, options=pb.JobOptions(**options))
    return rpc.ask("ChatCompletionStream", asked, *metadata)


def job_id_of(call: Any) -> str:
    """The job that a stream belongs to."""
    return dict(call.initial_metadata())["x-headrace-job-id"]


def watch(rpc: Caller, job_id: str, after: str = "") -> list[pb.JobEvent]:
    """A job's events after a position."""
    return list(events_of(rpc.ask("WatchJob", pb.WatchJobRequest(job_id=job_id, after=after))))


def first_chunks(call: Any, count: int) -> list[pb.JobEvent]:
    """The first so many chunks of a stream that goes on."""
    found: list[pb.JobEvent] = []
    for event in events_of(call):
        if event.HasField("chunk"):
            found.append(event)
        if len(found) == count:
            return found
    raise AssertionError("the stream ended early")


# --- every call -------------------------------------------------------------------------------------------------------


def test_a_chat_completion_is_the_one_that_http_gives(rpc: Caller, client: httpx.Client) -> None:
    request = chat(reasoning="hm", text="héllo 汉字 👩‍👩‍👧")
    answer, told = rpc.told("ChatCompletion", pb.ChatCompletionRequest(chat=request))
    found = record(client, told["x-headrace-job-id"])
    [choice], [there] = answer.completion.choices, found["result"]["choices"]
    assert found["status"] == "succeeded"
    assert told["x-request-id"].startswith("req_")
    assert answer.completion.id == found["result"]["id"]
    assert choice.message.content == there["message"]["content"] == "héllo 汉字 👩‍👩‍👧"
    assert choice.message.reasoning_content == there["message"]["reasoning_content"] == "hm"
    assert (choice.finish_reason, choice.message.role) == (there["finish_reason"], "assistant")
    assert answer.completion.usage.total_tokens == found["usage"]["total_tokens"] > 0


def test_tool_calls_come_whole_and_in_pieces(rpc: Caller) -> None:
    arguments = {"at": "a place whose name is long enough for several pieces"}
    request = chat(tool_calls=[{"name": "look", "arguments": arguments}])
    request.extra_json = b'{"tools":[{"type":"function","function":{"name":"look","parameters":{"type":"object"}}}]}'
    whole = rpc.ask("ChatCompletion", pb.ChatCompletionRequest(chat=request)).completion.choices[0]
    events = list(events_of(stream(rpc, request)))
    pieces = [call for event in events for one in event.chunk.choices for call in one.delta.tool_calls]
    [call] = whole.message.tool_calls
    assert (call.name, call.type, orjson.loads(call.arguments)) == ("look", "function", arguments)
    assert (whole.finish_reason, whole.message.HasField("content")) == ("tool_calls", False)
    assert (pieces[0].name, pieces[0].id != "", len(pieces) > 2) == ("look", True, True)
    assert orjson.loads("".join(piece.arguments for piece in pieces)) == arguments


def test_a_streamed_chat_completion_comes_whole_and_ends_with_its_usage(rpc: Caller, client: httpx.Client) -> None:
    call = stream(rpc, chat(numbered=True, tokens=30))
    *chunks, end = events_of(call)
    found = record(client, job_id_of(call))
    assert text_of(chunks) == "".join(f" {number}" for number in range(30))
    assert (end.end.finish_reason, end.end.usage.completion_tokens) == ("stop", 30)
    assert end.end.timings.total_ms == found["timings_ms"]["total"]
    assert len({event.position for event in (*chunks, end)}) == len(chunks) + 1
    assert (found["status"], found["priority"]) == ("succeeded", "interactive")


def test_a_plain_prompt_has_a_plain_answer(rpc: Caller) -> None:
    prompt = pb.Prompt(text="say héllo 汉字", system="you are terse", max_tokens=50)
    whole = rpc.ask("Infer", pb.InferRequest(prompt=prompt))
    *pieces, end = rpc.ask("InferStream", pb.InferStreamRequest(prompt=prompt))
    assert whole.text == "".join(piece.text for piece in pieces) == "say héllo 汉字"
    assert (whole.model, whole.finish_reason, end.end.finish_reason) == ("echo", "stop", "stop")
    assert whole.usage.completion_tokens == end.end.usage.completion_tokens == 3


def test_a_submitted_job_can_be_polled_watched_and_found_over_http(rpc: Caller, client: httpx.Client) -> None:
    work = chat(numbered=True, tokens=5)
    options = pb.JobOptions(priority=pb.PRIORITY_BATCH)
    taken = rpc.ask(
        "SubmitJob", pb.SubmitJobRequest(chat=work, options=options, metadata_json=b'{"for":9007199254740993}')
    )
    assert taken.status in (pb.JOB_STATUS_QUEUED, pb.JOB_STATUS_RUNNING)
    events = watch(rpc, taken.job_id)
    job = rpc.ask("GetJob", pb.GetJobRequest(job_id=taken.job_id)).job
    found = record(client, taken.job_id)
    assert text_of(events) == job.completion.choices[0].message.content == " 0 1 2 3 4"
    assert (job.status, job.priority, job.attempt) == (pb.JOB_STATUS_SUCCEEDED, pb.PRIORITY_BATCH, 1)
    assert orjson.loads(job.metadata_json) == found["metadata"] == {"for": 9007199254740993}
    assert job.created.seconds == found["created_at"]
    assert job.cost_usd == found["cost_usd"] > 0
    assert job.timings.total_ms == found["timings_ms"]["total"]


def test_embeddings_are_a_job_like_any_other(rpc: Caller, client: httpx.Client) -> None:
    request = b'{"model":"echo","input":["a","b"]}'
    taken = rpc.ask("SubmitJob", pb.SubmitJobRequest(embeddings_json=request))
    when(client, taken.job_id)
    job = rpc.ask("GetJob", pb.GetJobRequest(job_id=taken.job_id)).job
    direct = client.post("/v1/embeddings", content=request, headers={"content-type": "application/json"}).json()
    assert orjson.loads(job.embeddings_json)["data"] == direct["data"]


def test_a_job_that_waits_is_cancelled_and_says_so(rpc: Caller) -> None:
    taken = rpc.ask("SubmitJob", pb.SubmitJobRequest(prompt=pb.Prompt(text="x", model="unserved")))
    waiting = rpc.ask("GetJob", pb.GetJobRequest(job_id=taken.job_id)).job
    job = rpc.ask("CancelJob", pb.CancelJobRequest(job_id=taken.job_id)).job
    ended = refused(rpc, "WatchJob", pb.WatchJobRequest(job_id=taken.job_id))
    assert (waiting.status, waiting.HasField("queue")) == (pb.JOB_STATUS_QUEUED, True)
    assert (job.status, job.error.code) == (pb.JOB_STATUS_CANCELLED, "cancelled")
    assert (ended.code, ended.reason) == (Code.CANCELLED, "cancelled")


def test_who_waits_is_told_its_place(rpc: Caller) -> None:
    call = stream(rpc, chat("unserved", words="x"))
    event = next(events_of(call))
    call.cancel()
    assert event.HasField("queue")
    assert event.position == ""


def test_the_same_key_finds_the_same_job_over_either_protocol(rpc: Caller, client: httpx.Client) -> None:
    key = ("idempotency-key", "grpc-and-http-share-this")
    first, told = rpc.told("ChatCompletion", pb.ChatCompletionRequest(chat=chat(text="once")), key)
    again = client.post(CHAT, json=chat_body(text="once"), headers={"idempotency-key": key[1]})
    by_option = pb.ChatCompletionRequest(chat=chat(text="once"), options=pb.JobOptions(idempotency_key=key[1]))
    third, told_third = rpc.told("ChatCompletion", by_option)
    other = refused(rpc, "ChatCompletion", pb.ChatCompletionRequest(chat=chat(text="twice")), key)
    assert again.headers["x-headrace-job-id"] == told["x-headrace-job-id"] == told_third["x-headrace-job-id"]
    assert (told_third["x-headrace-replayed"], third) == ("true", first)
    assert (other.code, other.reason) == (Code.ALREADY_EXISTS, "idempotency_key_reused")


def test_a_repeated_stream_is_the_first_ones_also_when_only_its_result_is_kept(fleet: Fleet, rpc: Caller) -> None:
    def ask() -> tuple[str, str]:
        call = stream(rpc, chat(text="kept"), idempotency_key="grpc-stream-kept")
        *chunks, end = events_of(call)
        assert end.end.usage.completion_tokens > 0
        return job_id_of(call), text_of(chunks)

    first, second = ask(), ask()
    assert fleet.redis.command("DEL", f"hr:{{default}}:stream:{first[0]}") is not None
    assert first == second == ask()


def test_a_submission_repeated_says_so(rpc: Caller) -> None:
    request = pb.SubmitJobRequest(chat=chat(text="x"), options=pb.JobOptions(idempotency_key="grpc-submitted-twice"))
    first, second = rpc.ask("SubmitJob", request), rpc.ask("SubmitJob", request)
    assert (first.job_id, first.replayed, second.replayed) == (second.job_id, False, True)


# --- refusals ---------------------------------------------------------------------------------------------------------

PLAIN = chat(words="hi")


@pytest.mark.parametrize("method", ["ChatCompletion", "GetJob", "WatchJob", "SubmitJob"])
@pytest.mark.parametrize("key", [None, "hr-no-key-of-anyone", ""])
def test_a_call_without_a_good_key_is_refused(fleet: Fleet, method: str, key: str | None) -> None:
    with caller(fleet, key=key) as stranger:
        found = refused(stranger, method, getattr(pb, f"{method}Request")())
    assert (found.code, found.reason) == (Code.UNAUTHENTICATED, "invalid_api_key")


def test_the_key_may_come_as_x_api_key(fleet: Fleet) -> None:
    with caller(fleet, key=None) as one:
        answer = one.ask("Infer", pb.InferRequest(prompt=pb.Prompt(text="hi")), ("x-api-key", OTHER_KEY))
    assert answer.text == "hi"


def asked(request: pb.ChatRequest, **options: Any) -> pb.ChatCompletionRequest:
    return pb.ChatCompletionRequest(chat=request, options=pb.JobOptions(**options))


def with_extra(extra: bytes, **fields: Any) -> pb.ChatRequest:
    return pb.ChatRequest(model="echo", messages=[pb.ChatMessage(role="user", content="x")], extra_json=extra, **fields)


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (asked(pb.ChatRequest(model="echo")), "messages"),
        (asked(with_extra(b'{"model":"other"}')), "model"),
        (asked(with_extra(b'{"stream":true}')), "stream"),
        (asked(with_extra(b'{"api_base":"http://x"}')), "api_base"),
        (asked(with_extra(b'{"n":9}')), "n"),
        (asked(with_extra(b"", temperature=float("nan"))), "temperature"),
        (asked(with_extra(b"", temperature=3.0)), "temperature"),
        (asked(PLAIN, delay_ms=5), "delay_ms"),
        (asked(PLAIN, deadline_ms=0), "deadline_ms"),
        (asked(PLAIN, priority=77), "priority"),
        (asked(PLAIN, idempotency_key="é"), "Idempotency-Key"),
    ],
)
def test_what_http_refuses_is_refused_by_the_fields_name(
    rpc: Caller, request_: pb.ChatCompletionRequest, param: str
) -> None:
    found = refused(rpc, "ChatCompletion", request_)
    assert (found.code, found.param) == (Code.INVALID_ARGUMENT, param)
    assert str(found.trailers["x-request-id"]).startswith("req_")


def test_a_json_piece_that_is_none_is_refused(rpc: Caller) -> None:
    for extra in (b"{", b"[]", b'{"a":1,"a":2}', b"\xff"):
        found = refused(rpc, "ChatCompletion", asked(with_extra(extra)))
        assert (found.code, found.reason) == (Code.INVALID_ARGUMENT, "invalid_json")


def test_an_unknown_model_and_an_unknown_job_are_not_found(rpc: Caller) -> None:
    model = refused(rpc, "ChatCompletion", asked(pb.ChatRequest(model="none", messages=PLAIN.messages)))
    assert (model.code, model.reason, model.param) == (Code.NOT_FOUND, "model_not_found", "model")
    for job_id in ("", "x", "job_default_" + "0" * 32, "job_nowhere_" + "0" * 32):
        for method in ("GetJob", "WatchJob", "CancelJob"):
            found = refused(rpc, method, getattr(pb, f"{method}Request")(job_id=job_id))
            assert (found.code, found.reason) == (Code.NOT_FOUND, "job_not_found")


def test_another_tenants_job_is_like_one_that_never_was(fleet: Fleet, client: httpx.Client) -> None:
    job_id = submit(client, chat_body(words="mine"))
    with caller(fleet, key=OTHER_KEY) as stranger:
        for method in ("GetJob", "WatchJob", "CancelJob"):
            theirs = refused(stranger, method, getattr(pb, f"{method}Request")(job_id=job_id))
            none = refused(stranger, method, getattr(pb, f"{method}Request")(job_id="job_default_" + "0" * 32))
            assert (theirs.code, theirs.message) == (none.code, none.message) == (Code.NOT_FOUND, none.message)
    assert when(client, job_id)["status"] == "succeeded"


def test_a_message_beyond_the_body_limit_is_refused(rpc: Caller) -> None:
    found = _plainly_refused(rpc, asked(chat(words="x" * (4 * 1024 * 1024))))
    assert found is Code.RESOURCE_EXHAUSTED


def test_a_compressed_message_is_refused(rpc: Caller) -> None:
    with pytest.raises(grpc.RpcError) as error:
        rpc.stub.ChatCompletion(
            asked(chat(words="x" * 4_000)), metadata=rpc.metadata, timeout=10, compression=grpc.Compression.Gzip
        )
    assert error.value.code() is Code.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]


def _plainly_refused(rpc: Caller, request: pb.ChatCompletionRequest) -> grpc.StatusCode:
    """The status of a call that gRPC itself refused."""
    with pytest.raises(grpc.RpcError) as error:
        rpc.ask("ChatCompletion", request)
    return error.value.code()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_full_queue_says_when_to_try_again(rpc: Caller, client: httpx.Client) -> None:
    body = chat_body("crowded", words="wait")
    waiting = [submit(client, body, priority="interactive") for _ in range(MOST_WAITING)]
    found = refused(rpc, "ChatCompletion", asked(chat("crowded", words="x")))
    for job_id in waiting:
        client.post(f"/v1/jobs/{job_id}/cancel")
    assert (found.code, found.reason) == (Code.RESOURCE_EXHAUSTED, "queue_full")
    retry_ms = found.detail(RetryInfo).retry_delay.ToMilliseconds()
    assert retry_ms >= 1_000
    assert int(found.trailers["grpc-retry-pushback-ms"]) == retry_ms


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ({"error": "upstream_refused"}, Code.INVALID_ARGUMENT, "upstream_refused"),
        ({"error": "upstream_credentials"}, Code.INTERNAL, "upstream_credentials"),
        ({"error": "context_length_exceeded"}, Code.INVALID_ARGUMENT, "context_length_exceeded"),
        ({"tokens": 5, "token_ms": 20, "fail_at": 3}, Code.ABORTED, "upstream_interrupted"),
    ],
)
def test_what_an_upstream_refuses_is_the_calls_status(
    rpc: Caller, script: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    request = chat(**script)
    found = refused(rpc, "ChatCompletionStream", pb.ChatCompletionStreamRequest(chat=request))
    assert (found.code, found.reason) == (code, reason)
    assert str(found.trailers["x-headrace-job-id"]).startswith("job_default_")


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
        "SubmitJob", pb.SubmitJobRequest(chat=chat(numbered=True, tokens=3, first_token_ms=1_500)), limit_s=1
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
    until(lambda: remote.hanging == 0, GRACE_S + 5, "the upstream was not cut")
    assert when(client, job_id)["status"] == "cancelled"


def test_a_caller_who_waited_for_a_whole_answer_and_left_cancels_it_too(rpc: Caller, remote: SilentModel) -> None:
    call = rpc.stub.ChatCompletion.future(asked(chat("remote", words="x")), metadata=rpc.metadata, timeout=20)
    until(lambda: remote.hanging == 1, what="the upstream was not asked")
    call.cancel()
    until(lambda: remote.hanging == 0, GRACE_S + 5, "the upstream was not cut")


def test_a_caller_can_ask_that_the_work_goes_on(rpc: Caller, client: httpx.Client) -> None:
    call = stream(rpc, chat(**LONG), ("x-headrace-on-disconnect", "continue"))
    first_chunks(call, 2)
    job_id = job_id_of(call)
    call.cancel()
    found = when(client, job_id)
    assert (found["status"], found["result"]["choices"][0]["message"]["content"]) == ("succeeded", WHOLE)


def test_a_cancelled_jobs_reader_is_told(rpc: Caller, rpc_elsewhere: Caller) -> None:
    call = stream(rpc, chat(**LONG))
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


def test_a_stream_that_was_left_goes_on_at_the_other_gateway(rpc: Caller, rpc_elsewhere: Caller) -> None:
    call = stream(rpc, chat(**LONG))
    seen = first_chunks(call, 8)
    job_id = job_id_of(call)
    call.cancel()
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


# --- health and reflection --------------------------------------------------------------------------------------------


def test_health_needs_no_key_and_knows_each_service(fleet: Fleet) -> None:
    with caller(fleet, key=None) as probe:
        stub = probe.health
        for name in ("", SERVICE):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status == SERVING
        with pytest.raises(grpc.RpcError) as error:
            stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
        assert error.value.code() is Code.NOT_FOUND  # pyright: ignore[reportAttributeAccessIssue]
        watching = stub.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=5)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watching.cancel()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_the_contract(fleet: Fleet, version: str) -> None:
    with caller(fleet, key=None) as probe:
        ask = probe.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        asks = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        services, file = ask(iter(asks), timeout=5)
    names = {one.name for one in services.list_services_response.service}
    assert names >= {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}
    found = FileDescriptorProto.FromString(file.file_descriptor_response.file_descriptor_proto[0])
    assert [method.name for method in found.service[0].method] == [
        *("ChatCompletion", "ChatCompletionStream", "Infer", "InferStream"),
        *("SubmitJob", "GetJob", "WatchJob", "CancelJob"),
    ]


def test_calls_are_counted_with_http_requests(rpc: Caller, client: httpx.Client) -> None:
    rpc.ask("Infer", pb.InferRequest(prompt=pb.Prompt(text="hi")))
    refused(rpc, "GetJob", pb.GetJobRequest(job_id="x"))
    text = client.get("/metrics").text
    assert f'headrace_requests_total{{route="/{SERVICE}/Infer",status="200"}}' in text
    assert f'headrace_requests_total{{route="/{SERVICE}/GetJob",status="404"}}' in text
