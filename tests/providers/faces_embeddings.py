"""The dialects of embeddings, in front of every kind of upstream."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx
import orjson

from common.contracts import Job, JsonObject, Outcome, State
from common.errors import CallerError, UpstreamRefused
from gateway.dialects import ollama
from gateway.dialects.embeddings import EmbeddingsRequest, parse_embeddings
from gateway.dialects.native import job_record, parse_job_submission
from gateway.dialects.surfaces import surface_of
from gateway.rpc.headrace.v1 import inference_pb2 as pb
from gateway.rpc.reading import submission_of
from gateway.rpc.writing import job_of
from tests.providers.crossing import CONVERTED, DROPPED, NO_WORD, PASSED, REFUSED, TOLD
from tests.providers.recordings import PROMPT_TOKENS
from tests.providers.refusals import VECTORS, embeddings_reply
from tests.providers.said import JOB_ID, MODEL, record_of
from tests.providers.stages import KEY, backend
from tests.support.upstream import Upstream
from workers.gathering import split_usage
from workers.providers.base import Call, Embedded
from workers.providers.registry import make
from workers.providers.vectors import inputs_of, unpack

FEATURES: Final = ("text", "texts", "tokens", "dimensions", "base64")
Vectors = list[list[float]]


@dataclass(frozen=True)
class Face:
    """One dialect. `read`: the vectors and the prompt's tokens (None: not told) in what it makes of a job's result."""

    name: str
    base: JsonObject
    asks: dict[str, JsonObject]
    parse: Callable[[JsonObject], Any]
    read: Callable[[Job, bytes], tuple[Vectors, int | None]]


# --- the dialects ----------------------------------------------------------------------------------------------------

_ASKS: Final = {
    "text": {"input": "a"},
    "texts": {"input": ["a", "b"]},
    "tokens": {"input": [[1, 2], [3]]},
    "dimensions": {"dimensions": 2},
    "base64": {"encoding_format": "base64"},
}
_BASE: Final[JsonObject] = {"model": MODEL, "input": "a"}


def _read(document: JsonObject) -> tuple[Vectors, int]:
    vectors = [_numbers(item["embedding"]) for item in document["data"]]
    return vectors, document["usage"]["prompt_tokens"]


def _numbers(embedding: Any) -> list[float]:
    return list(unpack(b64decode(embedding))) if isinstance(embedding, str) else embedding


def _whole(job: Job, result: bytes) -> JsonObject:
    return orjson.loads(surface_of(job).whole(job, 0, result))


def _parse(body: JsonObject) -> Any:
    return parse_embeddings(orjson.dumps(body))


def _parse_job(body: JsonObject) -> Any:
    return parse_job_submission(orjson.dumps({"endpoint": "/v1/embeddings", "body": body})).asked


def _read_job(job: Job, result: bytes) -> tuple[Vectors, int]:
    shown = job_record(record_of(job, Outcome(State.SUCCEEDED), result))
    return _read(orjson.loads(orjson.dumps(shown))["result"])


def _parse_grpc(body: JsonObject) -> Any:
    return submission_of(pb.SubmitJobRequest(embeddings_json=orjson.dumps(body)), [], default_model=None).asked


def _read_grpc(job: Job, result: bytes) -> tuple[Vectors, int]:
    shown = job_of(record_of(job, Outcome(State.SUCCEEDED), result), queue=None, cost_usd=None)
    return _read(orjson.loads(shown.embeddings_json))


def _read_embed(job: Job, result: bytes) -> tuple[Vectors, int]:
    document = _whole(job, result)
    return document["embeddings"], document["prompt_eval_count"]


EMBEDDING_FACES: Final = (
    Face(
        "/v1/embeddings",
        _BASE,
        _ASKS,
        _parse,
        lambda j, r: _read(_whole(j, r)),
    ),
    Face("/v1/jobs", _BASE, _ASKS, _parse_job, _read_job),
    Face("gRPC `SubmitJob`", _BASE, _ASKS, _parse_grpc, _read_grpc),
    Face(
        "/api/embed",
        _BASE,
        {name: _ASKS[name] for name in ("text", "texts", "tokens", "dimensions")},
        lambda body: ollama.parse_embed(orjson.dumps(body), {MODEL}),
        _read_embed,
    ),
    Face(
        "/api/embeddings",
        {"model": MODEL, "prompt": "a"},
        {"text": {"prompt": "a"}},
        lambda body: ollama.parse_embeddings(orjson.dumps(body), {MODEL}),
        lambda job, result: ([_whole(job, result)["embedding"]], None),
    ),
)

# --- the cells -------------------------------------------------------------------------------------------------------


async def embedding_cell(face: Face, kind: str, feature: str, client: httpx.AsyncClient, upstream: Upstream) -> str:
    """What becomes of a feature that is asked for, and of the vectors that come back.

    Raises AssertionError where other vectors come out than the upstream sent.
    """
    fields = face.asks.get(feature)
    if fields is None:
        return NO_WORD
    try:
        asked = _parsed(face, fields)
        plain = _parsed(face, {})
        wire, embedded = await _embed(kind, asked.body, client, upstream)
        without, _ = await _embed(kind, plain.body, client, upstream)
    except (CallerError, UpstreamRefused):
        return REFUSED
    _check_answer(face, kind, asked, embedded)
    if feature == "base64":
        return TOLD  # which is between the caller and us
    if wire == without and feature != "text":
        return DROPPED
    return PASSED if all(wire.get(name) == value for name, value in fields.items()) else CONVERTED


def _parsed(face: Face, fields: JsonObject) -> EmbeddingsRequest:
    asked = face.parse({**face.base, **fields})
    assert isinstance(asked, EmbeddingsRequest)
    return asked


async def _embed(
    kind: str, body: JsonObject, client: httpx.AsyncClient, upstream: Upstream
) -> tuple[JsonObject, Embedded]:
    """What a provider asks and gets; echo asks nobody, so that what it makes of the request stands for that."""
    upstream.answer = lambda _: embeddings_reply(kind, len(inputs_of(body)))
    call = Call(
        backend(kind, upstream.url), "/v1/embeddings", "their-model", body, stream=False, timeout_s=8, api_key=KEY
    )
    embedded = await make(kind, client).embed(call)
    return body if kind == "echo" else upstream.requests[-1].json(), embedded


def _check_answer(face: Face, kind: str, asked: EmbeddingsRequest, embedded: Embedded) -> None:
    vectors = [b64encode(vector).decode() for vector in embedded.vectors]
    usage = split_usage(embedded.usage, [asked.prompt_tokens])[0].to_openai()
    result = orjson.dumps({"embeddings": vectors, "usage": usage})
    names: JsonObject = {"dialect": asked.dialect, "asked": asked.asked}
    job = Job(JOB_ID, "default", "t", asked.endpoint, asked.model, asked.body, **names)
    found, tokens = face.read(job, result)
    sent = [list(unpack(vector)) for vector in embedded.vectors]
    assert found == sent and (kind == "echo" or sent == [list(VECTORS[number % 2]) for number in range(len(sent))])
    told = usage["prompt_tokens"]
    assert tokens in (told, None) and (kind in ("echo", "gemini") or told == PROMPT_TOKENS)
