"""Requests for embeddings as they come, and answers as they go out."""

from __future__ import annotations

from base64 import b64encode
from struct import pack
from typing import Any

import orjson
import pytest

from common.contracts import Job, JsonObject
from common.errors import BadRequest
from gateway.dialects.embeddings import MAX_INPUTS, MAX_TOKENS, embeddings_object, parse_embeddings
from gateway.dialects.native import parse_job_submission
from gateway.dialects.surfaces import surface_of
from tests.support.published import published

NUMBERS = (0.5, -0.25, 0.1)


def parsed(given: Any, **more: Any) -> Any:
    return parse_embeddings(orjson.dumps({"model": "m", "input": given, **more}))


def packed(numbers: tuple[float, ...]) -> str:
    return b64encode(pack(f"<{len(numbers)}f", *numbers)).decode()


# --- in ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a", ["a", "b"], [1, 2, 3], [[1, 2], [3]], ["é" * 5_000]])
def test_each_form_of_input_is_taken_as_it_came(given: Any) -> None:
    request = parsed(given, dimensions=64, encoding_format="float", user="u", truncate_prompt_tokens=5)
    assert request.body["input"] == given
    assert request.body["truncate_prompt_tokens"] == 5
    assert (request.model, request.endpoint, request.streams) == ("m", "/v1/embeddings", False)


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("", None),
        ("a", 1),
        ("a" * 40, 10),
        ("汉" * 40, 30),
        (["a" * 40, "b"], 11),
        ([7] * 12, 12),
        ([[7] * 12, [7]], 13),
    ],
)
def test_the_tokens_are_estimated_by_bytes_or_counted(given: Any, tokens: int | None) -> None:
    if tokens is None:
        with pytest.raises(BadRequest):
            parsed(given)
        return
    request = parsed(given)
    assert (request.prompt_tokens, request.cost_tokens(), request.cost_tokens(500)) == (tokens, tokens, tokens)
    assert request.telling(500) == 0


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"input": None}, "input", "string"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ["a", ""]}, "input[1]", "at least 1"),
        ({"input": ["a", 1]}, "input[1]", "string"),
        ({"input": [1, "a"]}, "input[0]", "string"),
        ({"input": [[1], []]}, "input[1]", "at least 1"),
        ({"input": [-1]}, "input[0]", "at least 0"),
        ({"input": [1.5]}, "input[0]", "string"),
        ({"input": [2**31]}, "input[0]", "at most"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input", f"at most {MAX_INPUTS}"),
        ({"input": [[1]] * (MAX_INPUTS + 1)}, "input", f"at most {MAX_INPUTS}"),
        ({"input": [1] * (MAX_TOKENS + 1)}, "input", f"at most {MAX_TOKENS}"),
        ({"input": [[1] * MAX_TOKENS, [1]]}, "input", f"at most {MAX_TOKENS}"),
        ({"dimensions": 0}, "dimensions", "at least 1"),
        ({"dimensions": True}, "dimensions", "whole number"),
        ({"encoding_format": "int8"}, "encoding_format", "float"),
        ({"user": 5}, "user", "string"),
        ({"stream": True}, "stream", "not streamed"),
        ({"api_base": "http://x"}, "api_base", "not allowed"),
        ({"metadata": {"x": "y" * 17_000}}, "metadata", "at most"),
        ({"model": ""}, "model", "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field(more: JsonObject, param: str, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parsed(**{"given": "a", **{("given" if name == "input" else name): value for name, value in more.items()}})
    assert caught.value.failure.param == param
    assert words in caught.value.failure.message


def test_a_request_lacks_neither_model_nor_input() -> None:
    for body, param in (({"input": "a"}, "model"), ({"model": "m"}, "input")):
        with pytest.raises(BadRequest) as caught:
            parse_embeddings(orjson.dumps(body))
        assert caught.value.failure.param == param


def test_jobs_that_want_vectors_of_one_length_share_a_batch_key() -> None:
    assert parsed("a").batch_key == parsed(["b", "c"], encoding_format="base64").batch_key != ""
    assert parsed("a").batch_key != parsed("a", dimensions=64).batch_key


def test_a_submitted_job_may_be_one_of_embeddings() -> None:
    raw = orjson.dumps({"endpoint": "/v1/embeddings", "body": {"model": "m", "input": ["a"]}, "batch_key": "mine"})
    job = parse_job_submission(raw)
    assert (job.asked.endpoint, job.asked.body["input"], job.options.batch_key) == ("/v1/embeddings", ["a"], "mine")


def test_a_fault_inside_a_submitted_job_is_named_as_it_stands_there() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_job_submission(orjson.dumps({"endpoint": "/v1/embeddings", "body": {"model": "m", "input": [""]}}))
    assert caught.value.failure.param == "body.input[0]"


# --- out --------------------------------------------------------------------------------------------------------------


def result(*vectors: tuple[float, ...]) -> bytes:
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return orjson.dumps({"embeddings": [packed(vector) for vector in vectors], "usage": usage})


def shown(body: JsonObject, *vectors: tuple[float, ...]) -> Any:
    return orjson.loads(embeddings_object("m", body, result(*vectors)))


@pytest.mark.parametrize("body", [{}, {"encoding_format": None}, {"encoding_format": "float"}])
def test_vectors_go_out_as_the_very_numbers_in_32_bits(body: JsonObject) -> None:
    answer = shown(body, NUMBERS, (1.0,))
    published("CreateEmbeddingResponse").validate(answer)
    assert answer["object"] == "list"
    assert [(item["object"], item["index"]) for item in answer["data"]] == [("embedding", 0), ("embedding", 1)]
    assert pack("<3f", *answer["data"][0]["embedding"]) == pack("<3f", *NUMBERS)
    assert (answer["model"], answer["usage"]) == ("m", {"prompt_tokens": 3, "total_tokens": 3})


def test_who_asks_for_base64_gets_a_string() -> None:
    answer = shown({"encoding_format": "base64"}, NUMBERS)
    assert answer["data"][0]["embedding"] == packed(NUMBERS)


def test_a_jobs_answer_has_its_endpoints_shape() -> None:
    def job(endpoint: str) -> Job:
        return Job("job_default_" + 32 * "0", "default", "t", endpoint, "m", {})

    def answer_body(one: Job, raw: bytes) -> JsonObject:
        return orjson.loads(surface_of(one).whole(one, 0, raw))

    assert answer_body(job("/v1/embeddings"), result((1.0,)))["object"] == "list"
    chat = orjson.dumps({"choices": [{"index": 0, "message": {"content": "hi"}}], "usage": None})
    assert answer_body(job("/v1/chat/completions"), chat)["object"] == "chat.completion"
