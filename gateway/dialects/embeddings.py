"""OpenAI's wire shapes for embeddings: a request in; vectors out, as numbers or as base64."""

from __future__ import annotations

import struct
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal, Required

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from common.contracts import JsonObject
from common.errors import BadRequest
from common.tokens import likely_tokens, size_bytes
from gateway.dialects.bounded import is_list, read_object
from gateway.dialects.chat_schema import Label, check
from gateway.dialects.openai import MAX_FIELDS, check_metadata

ENDPOINT: Final = "/v1/embeddings"
MAX_INPUTS: Final = 2_048
MAX_DIMENSIONS: Final = 65_536
# OpenAI's own limit on the tokens of one request, and the few other values that it may have.
MAX_TOKENS: Final = 300_000
MAX_VALUES: Final = MAX_TOKENS + 3 * MAX_INPUTS

FLOAT_BYTES: Final = 4

Text = Annotated[str, Field(min_length=1)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
Tokens = Annotated[list[Token], Field(min_length=1, max_length=MAX_TOKENS, fail_fast=True)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
TokenLists = Annotated[list[Tokens], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]


@with_config(ConfigDict(strict=True, extra="ignore"))
class EmbeddingsBody(TypedDict, total=False):
    """OpenAI's request for embeddings."""

    model: Required[Annotated[str, Field(min_length=1, max_length=256)]]
    input: Required[Annotated[Text | Texts | Tokens | TokenLists, Field(union_mode="left_to_right")]]
    encoding_format: Literal["float", "base64"] | None
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)] | None
    user: Label | None
    metadata: dict[str, Any] | None


EMBEDDINGS_BODY: Final = TypeAdapter(EmbeddingsBody)


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """Embeddings asked for; `body` is the request as it came.

    `batch_key` is the one that such jobs have where their callers name none, so that they go upstream together.
    """

    endpoint: ClassVar[str] = ENDPOINT
    streams: ClassVar[bool] = False
    include_usage: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    model: str
    body: JsonObject
    prompt_tokens: int
    batch_key: str
    dialect: str = ""
    asked: JsonObject = field(default_factory=dict[str, Any])

    def cost_tokens(self, _usual_tokens: float | None = None) -> int:
        """The tokens that the job is likely to take: an embedding has no others than its inputs'."""
        return self.prompt_tokens

    def telling(self, _usual_tokens: float | None = None) -> int:
        """None of its answers tells how long the model's are."""
        return 0


# --- in ---------------------------------------------------------------------------------------------------------------


def parse_embeddings(raw: bytes) -> EmbeddingsRequest:
    """The request for embeddings in a body. Raises BadRequest naming the field and the limit."""
    return embeddings_request(read_object(raw, lambda _: (), most_values=MAX_VALUES))


def embeddings_request(body: JsonObject) -> EmbeddingsRequest:
    """The request for embeddings in an object that `read_object` gave. Raises BadRequest."""
    if len(body) > MAX_FIELDS:
        raise BadRequest(f"The request has too many fields: at most {MAX_FIELDS}.")
    if body.pop("stream", None):
        raise BadRequest("stream: embeddings are not streamed.", param="stream")
    _check_count(body.get("input"))
    check(EMBEDDINGS_BODY, body)
    check_metadata(body.get("metadata"))
    tokens = _tokens(body["input"])
    if tokens > MAX_TOKENS and not isinstance(_first(body["input"]), str):
        raise BadRequest(f"input: at most {MAX_TOKENS} tokens, {tokens} were given.", param="input")
    return EmbeddingsRequest(body["model"], body, tokens, f"{ENDPOINT} {body.get('dimensions') or ''}")


def _check_count(given: Any) -> None:
    """Before the rest, which would look at each of many thousand entries first. Raises BadRequest."""
    if not is_list(given) or not given:
        return
    most, what = (MAX_TOKENS, "tokens") if isinstance(given[0], int) else (MAX_INPUTS, "entries")
    if len(given) > most:
        raise BadRequest(f"input: at most {most} {what}, {len(given)} were given.", param="input")


def _tokens(given: Any) -> int:
    """The tokens that the inputs are likely to have, at least one each."""
    if isinstance(given, str):
        return max(1, likely_tokens(size_bytes(given)))
    return len(given) if isinstance(given[0], int) else sum(map(_tokens, given))


def _first(given: Any) -> Any:
    return given if isinstance(given, str) else given[0]


# --- out --------------------------------------------------------------------------------------------------------------


def embeddings_object(model: str, body: JsonObject, result: bytes) -> bytes:
    """OpenAI's list of embeddings as JSON, around a job's result, written as the request wanted them.

    A result is `{"embeddings": [base64 of little-endian float32, …], "usage": {…}}`.
    """
    found = orjson.loads(result)
    in_base64 = body.get("encoding_format") == "base64"
    data = b",".join([_embedding(i, vector, in_base64=in_base64) for i, vector in enumerate(found["embeddings"])])
    rest = orjson.dumps({"model": model, "usage": found["usage"]})
    return b'{"object":"list","data":[' + data + b"]," + rest[1:]


def _embedding(index: int, vector: str, *, in_base64: bool) -> bytes:
    numbers: Any = vector if in_base64 else vector_numbers(vector)
    return orjson.dumps({"object": "embedding", "index": index, "embedding": numbers})


def vector_numbers(vector: str) -> tuple[float, ...]:
    """The numbers of a vector as results hold it: base64 of little-endian float32."""
    raw = b64decode(vector)
    return struct.unpack(f"<{len(raw) // FLOAT_BYTES}f", raw)
