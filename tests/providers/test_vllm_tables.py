"""vLLM's own ways as pure functions: bytes that vLLM 0.32 sent, word for word, in; values out."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from common.errors import ContextTooLong, UpstreamError, UpstreamModelMissing, UpstreamRefused
from workers.providers import vllm


def _error(message: str, kind: str = "BadRequestError", param: str | None = None, code: int = 400) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


PROMPT = (
    "This model's maximum context length is 8192 tokens. However, your prompt contains at least 8193 input tokens,"
    " which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
    " (parameter=input_tokens, value=8193)"
)
LIMIT = (
    "max_tokens=9000 cannot be greater than max_model_len=8192. Please request fewer output tokens."
    " (parameter=max_tokens, value=9000)"
)
TYPE = (
    "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.top_k', 'msg': 'Input should be a valid integer,"
    " unable to parse string as an integer', 'input': 'many'}"
)
JSON = (
    "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.1', 'msg': \"Expecting ',' delimiter\","
    " 'input': '<dict of 0 items>'}"
)
REFUSALS: list[tuple[int, bytes, type[UpstreamError], str | None, str]] = [
    (400, _error(PROMPT, param="input_tokens"), ContextTooLong, None, "at least 8193 input tokens"),
    (400, _error(LIMIT, param="max_tokens"), ContextTooLong, "max_tokens", "fewer output tokens"),
    (400, _error(TYPE, "Bad Request", "body.top_k"), UpstreamRefused, "top_k", "Input should be a valid integer"),
    (400, _error(JSON, "Bad Request", "body.1"), UpstreamRefused, "1", "Expecting ',' delimiter"),
    (
        400,
        _error("temperature must be non-negative, got -3.0. (parameter=temperature, value=-3.0)", param="temperature"),
        *(UpstreamRefused, "temperature", "must be non-negative"),
    ),
    (400, _error("tiny is not a multimodal model"), UpstreamRefused, None, "not a multimodal model"),
    (
        404,
        _error("The model `nope` does not exist. Valid aliases: tiny.", "NotFoundError", "model", 404),
        *(UpstreamModelMissing, "model", "does not exist"),
    ),
    (404, b'{"detail":"Not Found"}', UpstreamRefused, None, "Not Found"),
    (
        500,
        _error("EngineCore encountered an issue.", "InternalServerError", None, 500),
        UpstreamError,
        None,
        "EngineCore",
    ),
    (502, b"<html>bad gateway</html>", UpstreamError, None, ""),
]


@pytest.mark.parametrize(("status", "body", "kind", "param", "words"), REFUSALS)
def test_its_refusals_become_our_errors(
    status: int, body: bytes, kind: type[UpstreamError], param: str | None, words: str
) -> None:
    error = vllm.to_error(status, body, {})
    assert type(error) is kind
    assert error.failure.param == param
    assert words in error.failure.message


def test_what_a_caller_sent_is_not_repeated_among_what_is_wrong_with_it() -> None:
    error = vllm.to_error(400, _error(TYPE.replace("many", "herons"), "Bad Request", "body.top_k"), {})
    assert "herons" not in error.failure.message and "validation error" not in error.failure.message


def _event(delta: str, **choice: Any) -> Any:
    head = '{"id":"chatcmpl-8fdd2646526503ce","object":"chat.completion.chunk","created":1795268109,"model":"tiny",'
    raw = f'{head}"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":null,"token_ids":null}}]}}'
    event = orjson.loads(raw)
    event["choices"][0] |= choice
    return event


CALL = '{"content":null,"tool_calls":[{"id":"chatcmpl-tool-8a97d0b5daf99fc9","type":"function","index":0,%s}]}'


def test_a_calls_first_piece_has_arguments_to_which_the_rest_can_be_added() -> None:
    chunk = vllm.from_wire(_event(CALL % '"function":{"name":"f"}'))
    assert chunk and chunk.choices[0]["delta"]["tool_calls"][0]["function"] == {"name": "f", "arguments": ""}


def test_a_calls_later_pieces_stay_as_they_are() -> None:
    piece = '{"content":null,"tool_calls":[{"index":0,"function":{"arguments":"{\\"a"}}]}'
    chunk = vllm.from_wire(_event(piece))
    assert chunk and chunk.choices[0]["delta"]["tool_calls"] == [{"index": 0, "function": {"arguments": '{"a'}}]


@pytest.mark.parametrize(("told", "kept"), [({"token_ids": None}, False), ({"token_ids": [7]}, True), ({}, False)])
def test_a_tokens_number_is_kept_where_somebody_asked_for_it(told: Any, kept: bool) -> None:
    event = _event('{"content":"o"}')
    del event["choices"][0]["token_ids"]
    event["choices"][0] |= told
    chunk = vllm.from_wire(event)
    assert chunk and ("token_ids" in chunk.choices[0]) is kept


def test_the_last_event_of_all_holds_usage_and_the_engines_version() -> None:
    raw = b"""{"id":"chatcmpl-b36ada3e7949d43e","object":"chat.completion.chunk","created":1795268067,"model":"tiny",
        "choices":[],"usage":{"prompt_tokens":25,"total_tokens":29,"completion_tokens":4},
        "system_fingerprint":"vllm-0.32.0-f44373b0"}"""
    chunk = vllm.from_wire(orjson.loads(raw))
    assert chunk and chunk.usage and (chunk.usage.prompt_tokens, chunk.usage.completion_tokens) == (25, 4)
    assert chunk.extra == {"system_fingerprint": "vllm-0.32.0-f44373b0"}


def test_its_reasoning_gets_the_name_that_clients_read() -> None:
    chunk = vllm.from_wire(_event('{"reasoning":" bab"}'))
    assert chunk and chunk.choices[0]["delta"] == {"reasoning_content": " bab"}


def test_a_whole_answers_reasoning_usage_and_nulls_are_read() -> None:
    raw = b"""{"id":"chatcmpl-be3c2b09acc803f4","object":"chat.completion","created":1795271820,"model":"their-model",
        "choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":null,"annotations":null,"audio":null,
        "function_call":null,"reasoning":" bab bab bab"},"logprobs":null,"finish_reason":"length","stop_reason":null,
        "token_ids":null,"routed_experts":null}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-f7e83a19",
        "usage":{"prompt_tokens":19,"total_tokens":22,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":0,
        "created_cache_tokens":0,"multimodal_tokens":null},"completion_tokens_details":{"reasoning_tokens":0}},
        "prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,
        "ec_transfer_params":null,"metrics":null}"""
    chunk = vllm.VllmProvider.from_body(orjson.loads(raw))
    (choice,) = chunk.choices
    assert choice["delta"] == {"role": "assistant", "reasoning_content": " bab bab bab"}
    assert set(choice) == {"index", "delta", "logprobs", "finish_reason"}
    assert chunk.usage and (chunk.usage.prompt_tokens, chunk.usage.completion_tokens) == (19, 3)
    assert chunk.usage.details["completion_tokens_details"] == {"reasoning_tokens": 0}
