"""Ollama's native API: JSON lines, because its OpenAI layer can set neither `num_ctx` nor `keep_alive`."""

from __future__ import annotations

import secrets as randomness
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, ClassVar, Final

import httpx
import orjson

from common.contracts import Chunk, JsonObject, Usage
from common.errors import UpstreamBusy, UpstreamError, UpstreamProtocolError, UpstreamRefused, UpstreamUnsupported
from workers.providers.base import Call, Embedded
from workers.providers.counts import Counts, count, told_in
from workers.providers.logprobs import is_logprob
from workers.providers.marks import cleaned, failed_text, unmarked
from workers.providers.shapes import common_refusals, refuse
from workers.providers.turns import in_call_order
from workers.providers.upstream import drain, opened, read_all, reads, refusal, retry_after_s, secrets_of, words
from workers.providers.vectors import checked, inputs_of, pack
from workers.providers.wire import JsonLineDecoder, is_list, is_object, json_object

CHAT: Final = "/v1/chat/completions"
NATIVE_CHAT: Final = "/api/chat"
NATIVE_EMBED: Final = "/api/embed"
TOO_LONG: Final = "exceeds the context length"

# --- 1. our shapes to theirs -----------------------------------------------------------------------------------------

# Request fields that are Ollama's `options` under the same name: OpenAI's, and its own that callers add.
_OPTIONS: Final = (
    *("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty"),
    *("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n"),
)
_BACKEND_TOP_LEVEL: Final = ("keep_alive", "think")
_LOGPROBS: Final = ("logprobs", "top_logprobs")


def to_wire(call: Call) -> JsonObject:
    """The body for `/api/chat`. Raises UpstreamRefused for what that API can't do."""
    body, ours = call.body, call.backend.options
    _refuse_unsupported(body)
    wire: JsonObject = {
        "model": call.model,
        "messages": _messages(body.get("messages")),
        "stream": call.stream,
        # Left to itself it cuts a long conversation in silence, and forgets its beginning while it answers.
        "truncate": False,
        "shift": False,
        "options": {**{k: v for k, v in ours.items() if k not in _BACKEND_TOP_LEVEL}, **_options(body)},
        **{key: ours[key] for key in _BACKEND_TOP_LEVEL if key in ours},
    }
    if body.get("tools") and body.get("tool_choice") != "none":
        wire["tools"] = cleaned({"tools": body["tools"]}, unmarked)["tools"]
    told = {"format": _format(body.get("response_format")), "think": _think(body)}
    told |= {key: body.get(key) for key in _LOGPROBS if body.get("logprobs")}
    return {**wire, **{key: value for key, value in told.items() if value is not None}}


def to_embedding_wire(call: Call) -> JsonObject:
    """The body for `/api/embed`. Raises UpstreamUnsupported for tokens, which that API does not take."""
    body, ours = call.body, call.backend.options
    inputs = inputs_of(body)
    if not all(isinstance(one, str) for one in inputs):
        raise UpstreamUnsupported("Ollama embeds texts only, not tokens.", param="input")
    wire: JsonObject = {
        "model": call.model,
        "input": inputs,
        # Left to itself it cuts a long text in silence.
        "truncate": bool(body.get("truncate")),
        "options": {key: value for key, value in ours.items() if key not in _BACKEND_TOP_LEVEL},
    }
    if "keep_alive" in ours:
        wire["keep_alive"] = ours["keep_alive"]
    if body.get("dimensions") is not None:
        wire["dimensions"] = body["dimensions"]
    return wire


def _refuse_unsupported(body: JsonObject) -> None:
    asked = {
        "n": body.get("n") not in (None, 1),
        **common_refusals(body),
        **dict.fromkeys(_LOGPROBS, False),
        "tool_choice": body.get("tool_choice") not in (None, "none", "auto"),
    }
    refuse("Ollama", asked)


def _options(body: JsonObject) -> JsonObject:
    options = {key: body[key] for key in _OPTIONS if body.get(key) is not None}
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None:
        options["num_predict"] = limit
    stop = body.get("stop")
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else stop
    return options


def _format(wanted: Any) -> Any:
    if not is_object(wanted):
        return None
    wrapped = wanted.get("json_schema")
    schema = wrapped.get("schema") if is_object(wrapped) else None
    return {"json_object": "json", "json_schema": schema}.get(str(wanted.get("type")))


# It takes low, medium and high, newer ones max; others are 400 there.
_THINK: Final = {"none": False, "minimal": "low", "xhigh": "high"}


def _think(body: JsonObject) -> Any:
    effort = body.get("reasoning_effort")
    if effort is None:
        return body.get("think")
    return _THINK.get(effort, effort)


def _messages(messages: Any) -> list[JsonObject]:
    if not is_list(messages):
        raise UpstreamRefused("An array is expected.", param="messages")
    names: dict[str, str] = {}  # of the tools called so far, by the call's id: Ollama matches results by name
    placed = [(message, f"messages[{number}]") for number, message in enumerate(messages)]
    return [_message(message, place, names) for message, place in in_call_order(placed, itemgetter(0))]


def _message(message: Any, place: str, names: dict[str, str]) -> JsonObject:
    if not is_object(message):
        raise UpstreamRefused("An object is expected.", param=place)
    role = message.get("role")
    text, images = _content(message.get("content"), place)
    wire: JsonObject = {"role": {"developer": "system", "function": "tool"}.get(str(role), role), "content": text}
    if images:
        wire["images"] = images
    if is_list(message.get("tool_calls")):
        wire["tool_calls"] = [_called(called, place, names) for called in message["tool_calls"]]
    if isinstance(thought := message.get("reasoning_content"), str) and thought and role == "assistant":
        wire["thinking"] = thought
    if wire["role"] == "tool" and message.get("is_error") is True:
        wire["content"] = failed_text(text)
    if wire["role"] == "tool":
        wire["tool_name"] = message.get("name") or names.get(str(message.get("tool_call_id")), "")
    return wire


def _content(content: Any, place: str) -> tuple[str, list[str]]:
    if content is None or isinstance(content, str):
        return content or "", []
    texts: list[str] = []
    images: list[str] = []
    for number, part in enumerate(content if is_list(content) else [content]):
        kind = part.get("type") if is_object(part) else None
        if kind in ("text", "refusal"):
            texts.append(str(part.get(kind) or ""))
        elif kind == "image_url":
            images.append(_image(part, f"{place}.content[{number}]"))
        else:
            raise UpstreamUnsupported("Ollama takes text and images only.", param=f"{place}.content[{number}].type")
    return "".join(texts), images


def _image(part: JsonObject, place: str) -> str:
    image = part.get("image_url")
    url = image.get("url") if is_object(image) else image
    head, found, data = str(url).partition(";base64,")
    if not found or not head.startswith("data:image/"):
        raise UpstreamUnsupported(
            "Ollama takes images only as data URLs ('data:image/png;base64,…').", param=f"{place}.image_url"
        )
    return data


def _called(called: Any, place: str, names: dict[str, str]) -> JsonObject:
    function = called.get("function") if is_object(called) else None
    if not is_object(called) or not is_object(function):
        raise UpstreamRefused("A tool call with a function is expected.", param=f"{place}.tool_calls")
    try:
        arguments = orjson.loads(str(function.get("arguments") or "{}"))
    except orjson.JSONDecodeError:
        raise UpstreamRefused("A tool call's arguments must be JSON.", param=f"{place}.tool_calls") from None
    names[str(called.get("id"))] = str(function.get("name") or "")
    return {"function": {"name": function.get("name"), "arguments": arguments}}


# --- 2. their events to ours -----------------------------------------------------------------------------------------


def from_wire(event: JsonObject, *, called: int = 0) -> Chunk | None:
    """The chunk in a line, or None where it says nothing; `called` tool calls came in earlier lines."""
    message = event.get("message")
    delta, logprobs = _delta(message if is_object(message) else {}, called), _logprobs(event.get("logprobs"))
    if not event.get("done"):
        said = delta or logprobs
        return Chunk([{"index": 0, "delta": delta, "finish_reason": None, **logprobs}]) if said else None
    tools = called or "tool_calls" in delta
    reason = "length" if event.get("done_reason") == "length" else "tool_calls" if tools else "stop"
    return told_in([{"index": 0, "delta": delta, "finish_reason": reason, **logprobs}], _counts(event))


def _logprobs(told: Any) -> JsonObject:
    """The log probabilities in a line, which are OpenAI's entries; nothing where there are none."""
    if not is_list(told) or not told:
        return {}
    entries = [_logprob(one) for one in told]
    return {"logprobs": {"content": entries, "refusal": None}}


def _logprob(entry: Any) -> JsonObject:
    if not is_logprob(entry):
        raise UpstreamProtocolError("The model's server sent a log probability that is none.")
    return {"bytes": None, "top_logprobs": [], **entry}


def _delta(message: JsonObject, called: int) -> JsonObject:
    delta: JsonObject = {}
    for theirs, ours in (("content", "content"), ("thinking", "reasoning_content")):
        if text := message.get(theirs):
            if not isinstance(text, str):
                raise UpstreamProtocolError("The model's server sent a text that is not a string.")
            delta[ours] = text
    if is_list(message.get("tool_calls")) and message["tool_calls"]:
        delta["tool_calls"] = [_call(number, tool) for number, tool in enumerate(message["tool_calls"], called)]
    return delta


def _call(number: int, tool: Any) -> JsonObject:
    if not is_object(tool) or not is_object(function := tool.get("function")):
        raise UpstreamProtocolError("The model's server sent a tool call without a function.")
    arguments = orjson.dumps(function.get("arguments") or {}).decode()
    name = function.get("name")
    return {
        "index": number,
        "id": tool.get("id") or f"call_{randomness.token_hex(12)}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _counts(event: JsonObject) -> Counts:
    """The tokens told: the prompt's are left out when the prompt was in the cache, and are not 0 then."""
    return Counts(count(event.get("prompt_eval_count")), count(event.get("eval_count")))


def from_embeddings(event: JsonObject, call: Call) -> Embedded:
    """The vectors in an answer, one for each input. Raises UpstreamProtocolError, UpstreamRefused."""
    rows = event.get("embeddings")
    if not is_list(rows) or not all(is_list(row) for row in rows):
        raise UpstreamProtocolError("The model's server sent no list of embeddings.")
    read = count(event.get("prompt_eval_count"))
    usage = Usage(read) if read else None
    return Embedded(checked([pack(row) for row in rows], call.body), usage)


# --- 3. their refusals to our errors ---------------------------------------------------------------------------------


def to_error(status: int, body: bytes, headers: Mapping[str, str], *, secrets: Iterable[str] = ()) -> UpstreamError:
    """Our error for an HTTP refusal."""
    try:
        told = json_object(body).get("error")
    except UpstreamProtocolError:
        told = None
    if status == 503:  # its own queue is full
        return UpstreamBusy(words(told, secrets) or None, retry_after_s=retry_after_s(headers))
    return refusal(_meant(status, told), told, secrets=secrets, retry_after_s=retry_after_s(headers))


def _meant(status: int, told: Any) -> int:
    """The status that a refusal deserves: of a length, its engine tells as of a fault of the server's own."""
    return 400 if TOO_LONG in str(told) else status


# --- 4. the exchange -------------------------------------------------------------------------------------------------


class OllamaProvider:
    """An Ollama server."""

    kind: ClassVar[str] = "ollama"

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def stream(self, call: Call) -> AsyncGenerator[Chunk, None]:
        """The answer's chunks, in order."""
        if call.endpoint != CHAT:
            raise UpstreamUnsupported(f"Backends of kind {self.kind!r} do not serve {call.endpoint}.")
        async with opened(self._client, call, NATIVE_CHAT, body=to_wire(call), to_error=to_error) as answer:
            progress = Progress()
            if not call.stream:
                yield progress.whole(_event(await read_all(answer), call))
                return
            decoder, rest = JsonLineDecoder(), reads(answer)
            async for raw in rest:
                for chunk in _chunks(decoder.feed(raw), progress, call):
                    yield chunk
                if progress.done:
                    break
            for chunk in _chunks(decoder.finish(), progress, call):
                yield chunk
            progress.check()
            await drain(rest)

    async def embed(self, call: Call) -> Embedded:
        """The embeddings of the call's inputs."""
        body = to_embedding_wire(call)
        async with opened(self._client, call, NATIVE_EMBED, body=body, to_error=to_error) as answer:
            return from_embeddings(_event(await read_all(answer), call), call)


def _chunks(lines: list[bytes], progress: Progress, call: Call) -> Iterator[Chunk]:
    for line in lines:
        if progress.done:
            return
        if (chunk := progress.next(_event(line, call))) is not None:
            yield chunk


class Progress:
    """How far an answer has come: its role told or not, its tool calls counted, its end seen."""

    __slots__ = ("_begun", "_called", "done")

    def __init__(self) -> None:
        self.done = False
        self._begun = False
        self._called = 0

    def next(self, event: JsonObject) -> Chunk | None:
        """This line's chunk, or None."""
        chunk = from_wire(event, called=self._called)
        self.done = bool(event.get("done"))
        if chunk is None:
            return None
        delta: JsonObject = chunk.choices[0]["delta"]
        self._called += len(delta.get("tool_calls", ()))
        if not self._begun:
            self._begun = True
            chunk.choices[0]["delta"] = {"role": "assistant", **delta}
        return chunk

    def whole(self, event: JsonObject) -> Chunk:
        """The one chunk of an answer that was not streamed."""
        chunk = self.next(event)
        self.check()
        assert chunk is not None
        return chunk

    def check(self) -> None:
        """Raises where the answer broke off."""
        if not self.done:
            raise UpstreamProtocolError("The model's server ended its answer before it was finished.")


def _event(line: bytes, call: Call) -> JsonObject:
    event = json_object(line)
    if event.get("error"):
        raise refusal(_meant(500, event["error"]), event["error"], secrets=secrets_of(call))
    return event
