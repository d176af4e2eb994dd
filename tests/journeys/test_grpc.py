"""gRPC over the whole stack: every call, with the jobs, ids and keys that HTTP has; health and reflection."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import orjson
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from gateway.rpc.headrace.v1 import inference_pb2 as pb
from tests.support.fleet import Fleet
from tests.support.grpc_client import Caller, caller, chat, events_of, job_id_of, refused, stream, text_of, watch
from tests.support.say import CHAT, record, when
from tests.support.say import chat as chat_body

pytestmark = pytest.mark.timeout(60)

SERVICE = "headrace.v1.InferenceService"
SERVICES = (
    SERVICE,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
DETAILS = "google.rpc.ErrorInfo"
SERVING = health_pb2.HealthCheckResponse.SERVING
Code = grpc.StatusCode


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
    assert (job.backend, job.upstream_model) == (found["backend"], found["upstream_model"]) == ("echo", "echo")


def test_embeddings_are_a_job_like_any_other(rpc: Caller, client: httpx.Client) -> None:
    request = b'{"model":"echo","input":["a","b"]}'
    taken = rpc.ask("SubmitJob", pb.SubmitJobRequest(embeddings_json=request))
    when(client, taken.job_id)
    job = rpc.ask("GetJob", pb.GetJobRequest(job_id=taken.job_id)).job
    direct = client.post("/v1/embeddings", content=request, headers={"content-type": "application/json"}).json()
    assert orjson.loads(job.embeddings_json)["data"] == direct["data"]


def test_an_answer_beyond_what_clients_take_is_left_to_those_who_take_more(fleet: Fleet, rpc: Caller) -> None:
    words = "x" * (2 * 1024 * 1024 + 1000)
    work = chat(words=words)
    work.n = 2
    job_id = rpc.ask("SubmitJob", pb.SubmitJobRequest(chat=work)).job_id
    basic = pb.GetJobRequest(job_id=job_id, view=pb.JOB_VIEW_BASIC)
    with caller(fleet, max_receive_message_length=4 * 1024 * 1024) as usual:
        as_it_came, afterwards = watch(usual, job_id), watch(usual, job_id)
        told = refused(usual, "GetJob", pb.GetJobRequest(job_id=job_id))
        job = usual.ask("GetJob", basic).job
        after = usual.ask("CancelJob", pb.CancelJobRequest(job_id=job_id)).job
    whole = rpc.ask("GetJob", pb.GetJobRequest(job_id=job_id, view=pb.JOB_VIEW_FULL)).job
    assert text_of(as_it_came) == text_of(afterwards) == words
    assert (told.code, told.reason) == (Code.RESOURCE_EXHAUSTED, "answer_too_large")
    assert f"{whole.ByteSize():,} bytes" in told.message
    assert told.trailers["grpc-retry-pushback-ms"] == "-1"
    assert [choice.message.content for choice in whole.completion.choices] == [words, words]
    assert (job.status, job.WhichOneof("answer")) == (pb.JOB_STATUS_SUCCEEDED, None)
    assert job.answer_bytes == whole.answer_bytes > 2 * len(words)
    assert after == job


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


# --- health and reflection --------------------------------------------------------------------------------------------


def test_all_services_health_comes_in_one_list(fleet: Fleet) -> None:
    messages: Any = health_pb2
    with caller(fleet, key=None) as probe:
        found = probe.health.List(messages.HealthListRequest(), timeout=5).statuses
    assert {name: one.status for name, one in found.items()} == dict.fromkeys(("", *SERVICES), SERVING)


def test_health_needs_no_key_and_knows_each_service(fleet: Fleet) -> None:
    with caller(fleet, key=None) as probe:
        stub = probe.health
        for name in ("", *SERVICES):
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
            *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in (*SERVICES, DETAILS)),
        ]
        services, file, *others = ask(iter(asks), timeout=5)
    names = {one.name for one in services.list_services_response.service}
    assert names == set(SERVICES)
    described = [one.file_descriptor_response.file_descriptor_proto[0] for one in (file, *others)]
    for name, one in zip((*SERVICES, DETAILS), described, strict=True):
        holder = FileDescriptorProto.FromString(one)
        assert name in [f"{holder.package}.{part.name}" for part in (*holder.service, *holder.message_type)]
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
