"""A gRPC caller as a stranger would write it: a channel, the generated stub, a key, and what a refusal tells."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2_grpc

from gateway.rpc.headrace.v1 import inference_pb2 as pb
from gateway.rpc.headrace.v1 import inference_pb2_grpc as rpc
from tests.support.fleet import KEY, Fleet
from tests.support.say import chat as chat_body

LIMIT_S: Final = 20.0
DETAILS: Final = {one.DESCRIPTOR.full_name: one for one in (BadRequest, ErrorInfo, RetryInfo)}


class Caller:
    """One caller of one gateway."""

    def __init__(self, channel: grpc.Channel, key: str | None) -> None:
        self.channel = channel
        self.stub: Any = rpc.InferenceServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        self.metadata = () if key is None else (("authorization", f"Bearer {key}"),)

    def ask(self, method: str, request: Message, *metadata: tuple[str, str], limit_s: float = LIMIT_S) -> Any:
        """The answer of a call that has one; the call itself, to be read, where it streams."""
        return getattr(self.stub, method)(request, timeout=limit_s, metadata=(*self.metadata, *metadata))

    def told(self, method: str, request: Message, *metadata: tuple[str, str]) -> tuple[Any, dict[str, str]]:
        """(answer, initial metadata) of a call that has one answer."""
        answer, call = getattr(self.stub, method).with_call(
            request, timeout=LIMIT_S, metadata=(*self.metadata, *metadata)
        )
        return answer, dict(call.initial_metadata())


@contextmanager
def caller(
    fleet: Fleet, number: int = 0, *, key: str | None = KEY, port: int | None = None, **options: int | str
) -> Generator[Caller]:
    """A caller of this gateway of the fleet, or by what passes on to it from this port."""
    target = fleet.members[f"gateway-{number}"].grpc_target if port is None else f"127.0.0.1:{port}"
    given = {"enable_http_proxy": 0, "max_receive_message_length": -1, **options}
    named = [(f"grpc.{name}", value) for name, value in given.items()]
    with grpc.insecure_channel(target, options=named) as channel:
        yield Caller(channel, key)


def chat(model: str = "echo", *, words: str | None = None, **script: Any) -> pb.ChatRequest:
    """A chat request whose answer is these words, or goes by a script."""
    [message] = chat_body(model, words=words, **script)["messages"]
    return pb.ChatRequest(model=model, messages=[pb.ChatMessage(**message)])


def text_of(events: Iterable[pb.JobEvent]) -> str:
    """What the first choice's deltas say together."""
    return "".join(one.delta.content for event in events for one in event.chunk.choices if one.index == 0)


def events_of(call: Iterable[Any]) -> Iterator[pb.JobEvent]:
    """The events of a stream."""
    return (event for message in call for event in message.events)


def asked(request: pb.ChatRequest, **options: Any) -> pb.ChatCompletionRequest:
    """The request for a whole chat completion."""
    return pb.ChatCompletionRequest(chat=request, options=pb.JobOptions(**options))


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


@dataclass(frozen=True)
class Refusal:
    """A call's bad end as its caller sees it."""

    code: grpc.StatusCode
    message: str
    trailers: dict[str, Any]

    def detail(self, kind: type[Any]) -> Any:
        """The detail of this kind, or None."""
        status = Status.FromString(self.trailers["grpc-status-details-bin"])
        for packed in status.details:
            if packed.Is(kind.DESCRIPTOR):
                found = kind()
                packed.Unpack(found)
                return found
        return None

    @property
    def reason(self) -> str:
        """Our own stable word for it."""
        return self.detail(ErrorInfo).reason

    @property
    def param(self) -> str:
        """The field at fault."""
        fault = self.detail(BadRequest)
        return fault.field_violations[0].field if fault else ""


def refusal_of(error: Any) -> Refusal:
    """What a call's error says."""
    return Refusal(error.code(), error.details(), dict(error.trailing_metadata() or ()))


def refused(caller: Caller, method: str, request: Message, *metadata: tuple[str, str]) -> Refusal:
    """How a call ended badly. Raises AssertionError where it did not."""
    try:
        answer = caller.ask(method, request, *metadata)
        if hasattr(answer, "cancel"):
            list(answer)
    except grpc.RpcError as error:
        return refusal_of(error)
    raise AssertionError(f"{method} ended well")
