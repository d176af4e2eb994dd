"""Model servers of every kind, played by stand-ins: a Scene says what happens, a stage plays it in that kind's dialect.

The bytes are those of real servers, shortened. llama.cpp and vLLM are also tested as they are (`test_real_llamacpp`,
`tests/real`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import SecretStr

from common.servers import Backend
from tests.support.upstream import BREAK, HANG, Drip, Reply, Request, Step, Upstream
from workers.providers.base import Call, Provider
from workers.providers.registry import make
from workers.providers.transport import new_client

KEY = "canary-key-4f9d2b7c"
PROMPT = "the canary prompt about herons"
TOKENS = ("Once", " upon", " a", " time")


@dataclass(frozen=True)
class Scene:
    """What the model server does. Token numbers count from 0; `len(tokens)` is the answer's end."""

    tokens: tuple[str, ...] = TOKENS
    refuse: int | None = None
    fail_at: int | None = None
    hang_at: int | None = None
    break_at: int | None = None
    stop_short: bool = False
    drip: bool = False
    cut: Callable[[bytes], list[bytes]] | None = None


@dataclass
class Played:
    """A scene being played."""

    provider: Provider
    backend: Backend
    upstream: Upstream | None

    def call(self, *, stream: bool = True, timeout_s: float = 8, text: str = PROMPT, **body: Any) -> Call:
        """A call to it."""
        messages = [{"role": "user", "content": text}]
        return Call(
            backend=self.backend,
            endpoint="/v1/chat/completions",
            model="their-model",
            body={"model": "our-model", "messages": messages, **body},
            stream=stream,
            timeout_s=timeout_s,
            api_key=KEY,
            request_id="req-1",
        )


# --- over HTTP -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dialect:
    """How one kind of server writes each part of an answer."""

    kind: str
    content_type: str
    head: tuple[bytes, ...]
    token: Callable[[str], bytes]
    tail: tuple[bytes, ...]
    failure: bytes
    whole: Callable[[tuple[str, ...]], bytes]
    refusal: Callable[[int, str], bytes]
    streams: Callable[[Request], bool] = lambda request: request.json()["stream"]
    key: tuple[str, str] = ("authorization", f"Bearer {KEY}")

    def reply(self, scene: Scene, request: Request) -> Reply:
        """The reply that plays a scene."""
        if scene.refuse is not None:
            text = self.refusal(scene.refuse, f"No: {KEY} may not ask '{PROMPT}' at http://10.0.0.1:8000/v1")
            return Reply([text], status=scene.refuse, content_type="application/json", headers={"retry-after": "7"})
        if not self.streams(request):
            steps: list[Step] = [HANG] if scene.hang_at is not None else [self.whole(scene.tokens)]
            return Reply(steps, content_type="application/json")
        return Reply(self._steps(scene), content_type=self.content_type)

    def _steps(self, scene: Scene) -> list[Step]:
        steps: list[Step] = list(self.head)
        for number, token in enumerate(scene.tokens):
            if interruption := self._interruption(scene, number):
                return [*steps, interruption]
            steps.append(self.token(token))
        if interruption := self._interruption(scene, len(scene.tokens)):
            return [*steps, interruption]
        if not scene.stop_short:
            steps.extend(self.tail)
        if scene.cut is not None:
            return [*scene.cut(b"".join(step for step in steps if isinstance(step, bytes)))]
        return steps

    def _interruption(self, scene: Scene, number: int) -> Step | None:
        if scene.drip and number == 1:
            return Drip(self.token(" drip"), every_s=0.01)
        at = {scene.fail_at: self.failure, scene.hang_at: HANG, scene.break_at: BREAK}
        return at.get(number)


def sse(event: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + orjson.dumps(event) + b"\n\n"


def _chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    names = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "their-model"}
    return {**names, "choices": [choice], **more}


def _whole(tokens: tuple[str, ...], **more: Any) -> bytes:
    message = {"role": "assistant", "content": "".join(tokens)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    names = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "their-model"}
    return orjson.dumps({**names, "choices": [choice], "usage": USAGE, **more})


USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
DONE = b"data: [DONE]\n\n"
_TIMINGS = {"cache_n": 0, "prompt_n": 5, "prompt_ms": 1.2, "predicted_n": 4, "predicted_ms": 3.4}

OPENAI = Dialect(
    kind="openai",
    content_type="text/event-stream; charset=utf-8",
    head=(sse(_chunk({"role": "assistant", "content": "", "refusal": None}, usage=None, service_tier="default")),),
    token=lambda text: sse(_chunk({"content": text}, usage=None, system_fingerprint="fp_1", obfuscation="aX3")),
    tail=(sse(_chunk({}, "stop", usage=None)), sse({**_chunk({}), "choices": [], "usage": USAGE}), DONE),
    failure=sse({"error": {"message": "The server had an error", "type": "server_error", "param": None, "code": None}}),
    whole=_whole,
    refusal=lambda status, text: orjson.dumps(
        {"error": {"message": text, "type": "some_error", "param": "messages", "code": None}}
    ),
)


def _vllm(delta: dict[str, Any], reason: str | None = None) -> bytes:
    ended = {"stop_reason": None} if reason else {}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, **ended, "token_ids": None}
    return sse({**_chunk({}), "choices": [choice]})


_VLLM_VERSION = {"system_fingerprint": "vllm-0.32.0-f44373b0"}
_VLLM_NULLS = dict.fromkeys(
    ("service_tier", "prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "metrics")
)

VLLM = Dialect(
    kind="vllm",
    content_type="text/event-stream; charset=utf-8",
    head=(sse(_chunk({"role": "assistant", "content": ""}, prompt_token_ids=None, prompt_text=None)),),
    token=lambda text: _vllm({"content": text}),
    tail=(_vllm({}, "stop"), sse({**_chunk({}), "choices": [], "usage": USAGE, **_VLLM_VERSION}), DONE),
    failure=sse(
        {
            "error": {
                "message": "EngineCore encountered an issue. See stack trace (above) for the root cause.",
                **{"type": "InternalServerError", "param": None, "code": 500},
            }
        }
    )
    + DONE,
    whole=lambda tokens: _whole(tokens, **_VLLM_NULLS, **_VLLM_VERSION),
    refusal=lambda status, text: orjson.dumps(
        {"error": {"message": text, "type": "BadRequestError", "param": "messages", "code": status}}
    ),
)
LLAMACPP = Dialect(
    kind="llamacpp",
    content_type="text/event-stream",
    head=(),  # its role chunk is missing for some outputs
    token=lambda text: sse(
        {**_chunk({}), "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    ),
    tail=(sse(_chunk({}, "stop")), sse({**_chunk({}), "choices": [], "usage": USAGE, "timings": _TIMINGS}), DONE),
    failure=sse(
        {"error": {"code": 500, "message": "The model produced output that does not match", "type": "server_error"}}
    ),
    whole=lambda tokens: _whole(tokens, timings=_TIMINGS, system_fingerprint="b1-x"),
    refusal=lambda status, text: orjson.dumps({"error": {"code": status, "message": text, "type": "server_error"}}),
)


def _line(event: dict[str, Any]) -> bytes:
    return orjson.dumps({"model": "their-model", "created_at": "2026-11-21T04:10:00.1Z", **event}) + b"\n"


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


_OLLAMA_END = {"done": True, "done_reason": "stop", "total_duration": 9, "prompt_eval_count": 5, "eval_count": 4}

OLLAMA = Dialect(
    kind="ollama",
    content_type="application/x-ndjson",
    head=(),
    token=lambda text: _line({"message": _said(text), "done": False}),
    tail=(_line({"message": _said(""), **_OLLAMA_END}),),
    failure=orjson.dumps({"error": "an error was encountered while running the model"}) + b"\n",
    whole=lambda tokens: _line({"message": _said("".join(tokens)), **_OLLAMA_END}),
    refusal=lambda status, text: orjson.dumps({"error": text}),
)


def named(event: dict[str, Any]) -> bytes:
    """A server-sent event whose name is its data's type, as Anthropic and Cohere send them."""
    return b"event: " + event["type"].encode() + b"\n" + sse(event)


_ANTHROPIC_START = {
    **{"id": "msg_01XFDUDYJgAACzvnptvVoYEL", "type": "message", "role": "assistant", "model": "their-model"},
    **{"content": [], "stop_reason": None, "stop_sequence": None},
}
_ANTHROPIC_END = {
    "type": "message_delta",
    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
    "usage": {"output_tokens": 4},
}


def _anthropic_refusal(status: int, text: str) -> bytes:
    error = {"type": "api_error" if status >= 500 else "some_error", "message": text}
    return orjson.dumps({"type": "error", "error": error, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"})


ANTHROPIC = Dialect(
    kind="anthropic",
    content_type="text/event-stream; charset=utf-8",
    head=(
        named(
            {
                "type": "message_start",
                "message": {**_ANTHROPIC_START, "usage": {"input_tokens": 5, "output_tokens": 1}},
            }
        ),
        named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        named({"type": "ping"}),
    ),
    token=lambda text: named(
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    ),
    tail=(
        named({"type": "content_block_stop", "index": 0}),
        named(_ANTHROPIC_END),
        named({"type": "message_stop"}),
    ),
    failure=named({"type": "error", "error": {"type": "api_error", "message": "Internal server error"}}),
    whole=lambda tokens: orjson.dumps(
        {
            **_ANTHROPIC_START,
            "content": [{"type": "text", "text": "".join(tokens)}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 5, "output_tokens": 4},
        }
    ),
    refusal=_anthropic_refusal,
    key=("x-api-key", KEY),
)


def _gemini(text: str, **more: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **more}
    names = {"modelVersion": "their-model", "responseId": "FZQaZ8OvHp2t1PIPqZqBqAU"}
    return {"candidates": [candidate], "usageMetadata": _gemini_usage(1), **names}


def _gemini_usage(made: int) -> dict[str, Any]:
    by_kind = [{"modality": "TEXT", "tokenCount": 5}]
    counts = {"promptTokenCount": 5, "candidatesTokenCount": made, "totalTokenCount": 5 + made}
    return {**counts, "promptTokensDetails": by_kind}


GEMINI = Dialect(
    kind="gemini",
    content_type="text/event-stream",
    head=(),
    token=lambda text: sse(_gemini(text)),
    tail=(sse({**_gemini("", finishReason="STOP"), "usageMetadata": _gemini_usage(4)}),),
    failure=sse({"error": {"code": 500, "message": "An internal error has occurred.", "status": "INTERNAL"}}),
    whole=lambda tokens: orjson.dumps(
        {**_gemini("".join(tokens), finishReason="STOP", avgLogprobs=-0.1), "usageMetadata": _gemini_usage(4)}
    ),
    refusal=lambda status, text: orjson.dumps({"error": {"code": status, "message": text, "status": "SOME_STATUS"}}),
    streams=lambda request: ":streamGenerateContent?alt=sse" in request.path,
    key=("x-goog-api-key", KEY),
)


def _cohere(kind: str, **delta: Any) -> bytes:
    return named({"type": kind, "index": 0, "delta": delta})


def _cohere_text(text: str) -> dict[str, Any]:
    return {"content": {"type": "text", "text": text}}


_COHERE_USAGE = {
    "billed_units": {"input_tokens": 3.0, "output_tokens": 4.0},
    "tokens": {"input_tokens": 5.0, "output_tokens": 4.0},
    "cached_tokens": 0.0,
}

COHERE = Dialect(
    kind="cohere",
    content_type="text/event-stream",
    head=(
        named({"id": "29f14a5a", "type": "message-start", "delta": {"message": {"role": "assistant", "content": []}}}),
        _cohere("content-start", message=_cohere_text("")),
    ),
    token=lambda text: _cohere("content-delta", message={"content": {"text": text}}),
    tail=(
        named({"type": "content-end", "index": 0}),
        named({"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": _COHERE_USAGE}}),
        DONE,
    ),
    failure=named({"type": "message-end", "delta": {"finish_reason": "ERROR", "error": "the engine died"}}),
    whole=lambda tokens: orjson.dumps(
        {
            "id": "29f14a5a",
            "finish_reason": "COMPLETE",
            "message": {"role": "assistant", "content": [{"type": "text", "text": "".join(tokens)}]},
            "usage": _COHERE_USAGE,
        }
    ),
    refusal=lambda status, text: orjson.dumps({"id": "9a3a3c1d", "message": text}),
)

DIALECTS = {d.kind: d for d in (OPENAI, VLLM, LLAMACPP, OLLAMA, ANTHROPIC, GEMINI, COHERE)}


@asynccontextmanager
async def play_over_http(kind: str, scene: Scene, **settings: Any) -> AsyncGenerator[Played]:
    """A scene played by a stand-in for this kind of server."""
    dialect = DIALECTS[kind]
    async with replying(kind, lambda request: dialect.reply(scene, request), **settings) as played:
        yield played


@asynccontextmanager
async def replying(kind: str, answer: Callable[[Request], Reply], **settings: Any) -> AsyncGenerator[Played]:
    """A stand-in whose replies the test makes itself."""
    async with new_client() as client, Upstream(answer).running() as upstream:
        yield Played(make(kind, client), backend(kind, upstream.url, **settings), upstream)


# --- echo, which has no wire -----------------------------------------------------------------------------------------

_ERROR_BY_STATUS = {
    400: "upstream_refused",
    401: "upstream_credentials",
    404: "upstream_refused",
    429: "upstream_busy",
    500: "upstream_error",
    504: "upstream_timeout",
}


def _script(scene: Scene) -> dict[str, Any]:
    """The echo script that plays a scene."""
    script: dict[str, Any] = {"text": "".join(scene.tokens)}
    if scene.refuse is not None:
        script |= {"error": _ERROR_BY_STATUS[scene.refuse], "retry_after_s": 7}
    if scene.fail_at is not None:
        script |= {"error": "upstream_error", "fail_at": scene.fail_at}
    if scene.break_at is not None:
        script |= {"error": "upstream_unreachable", "fail_at": scene.break_at}
    if scene.stop_short:
        script |= {"error": "upstream_protocol_error", "fail_at": len(scene.tokens)}
    if scene.hang_at is not None:
        script |= {"hang_at": scene.hang_at}
    if scene.drip:
        script |= {"tokens": 10_000, "token_ms": 10}
    return script


def backend(kind: str, url: str = "", **settings: Any) -> Backend:
    """A backend of this kind."""
    key = () if kind == "echo" else (SecretStr(KEY),)
    return Backend.model_validate({"name": kind, "kind": kind, "base_url": url, "api_keys": key, **settings})


@asynccontextmanager
async def play(kind: str, scene: Scene, **settings: Any) -> AsyncGenerator[Played]:
    """A scene played by a server of this kind."""
    if kind == "echo":
        async with new_client() as client:
            yield Played(make("echo", client), backend("echo", options=_script(scene), **settings), None)
        return
    async with play_over_http(kind, scene, **settings) as played:
        yield played
