"""OpenAI's chat request, read piece by piece: what the kinds that convert it to another API share. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from common.contracts import JsonObject
from common.errors import UpstreamRefused, UpstreamUnsupported
from workers.providers.base import Call
from workers.providers.turns import with_ids_of
from workers.providers.wire import MOST_LEVELS, is_list, is_object, value_in

CHAT: Final = "/v1/chat/completions"
SYSTEM_ROLES: Final = ("system", "developer")
# What Gemini and Cohere document.
FEW_STOPS: Final = 5
_ROLES: Final = {"developer": "system", "function": "tool"}


@dataclass(frozen=True, slots=True)
class Media:
    """A picture, a sound or a file: its bytes in base64, or where it lies. We never fetch it."""

    media_type: str
    data: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A tool call that the model made earlier in the conversation; `whole` is the call as it came."""

    id: str
    name: str
    arguments: JsonObject
    whole: JsonObject


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its role (system, user, assistant or tool), its content as parts, and where it stands."""

    role: str
    parts: list[JsonObject]
    calls: list[CalledTool]
    place: str
    whole: JsonObject

    @property
    def failed(self) -> bool:
        """Whether it is a tool's result that is an error."""
        return self.role == "tool" and self.whole.get("is_error") is True


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools may, must or must not be called; `name` where it must be this one."""

    mode: Literal["auto", "required", "none"] | None = None
    name: str = ""


def body_of(call: Call) -> JsonObject:
    """The request without the fields that are null or that the backend's `options.drop` names."""
    dropped = call.backend.options.get("drop") or ()
    return {key: value for key, value in call.body.items() if value is not None and key not in dropped}


def adapted(body: JsonObject, options: Mapping[str, Any]) -> JsonObject:
    """The body for a server that differs from OpenAI's in what its backend's `options` name.

    `roles` and `rename` map names of ours to the server's, `drop` names fields not to send, `set` has fields to send
    where the caller gave none, `tool_ids` says of how many letters and digits ids of calls are.
    """
    renamed = _names(options.get("rename"))
    dropped = options.get("drop") or ()
    wire: JsonObject = {}
    for key, value in body.items():
        if key not in dropped:
            wire.setdefault(renamed.get(key, key), value)
    if (roles := _names(options.get("roles"))) and is_list(messages := wire.get("messages")):
        wire["messages"] = [_in_role(message, roles) for message in messages]
    if (characters := options.get("tool_ids")) and is_list(messages := wire.get("messages")):
        wire["messages"] = with_ids_of(characters, messages)
    return {**_names(options.get("set")), **wire}


def _names(value: Any) -> JsonObject:
    return value if is_object(value) else {}


def _in_role(message: Any, roles: JsonObject) -> Any:
    role = message.get("role") if is_object(message) else None
    return {**message, "role": roles[role]} if isinstance(role, str) and role in roles else message


def refuse(what: str, asked: Mapping[str, bool]) -> None:
    """Raises UpstreamUnsupported for the first field that was asked for and can't be had."""
    for param, wanted in asked.items():
        if wanted:
            raise UpstreamUnsupported(f"{what} does not support this value of {param!r}.", param=param)


def common_refusals(body: JsonObject) -> dict[str, bool]:
    """What none of the converting kinds can do, and whether it was asked for."""
    modalities = body.get("modalities")
    return {
        "logprobs": bool(body.get("logprobs")),
        "top_logprobs": bool(body.get("top_logprobs")),
        "logit_bias": bool(body.get("logit_bias")),
        "functions": bool(body.get("functions")),
        "modalities": bool(modalities) and modalities != ["text"],
        "audio": bool(body.get("audio")),
        "web_search_options": body.get("web_search_options") is not None,
    }


def limit_of(body: JsonObject) -> int | None:
    """The most tokens the answer may have, by whichever name it was given. Raises UpstreamRefused."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and type(limit) is not int:
        raise UpstreamRefused("A number is expected.", param="max_tokens")
    return limit


def stops_of(body: JsonObject) -> list[str]:
    """The texts at which the answer stops."""
    stop = body.get("stop")
    given = [stop] if isinstance(stop, str) else stop if is_list(stop) else []
    return [text for text in given if isinstance(text, str) and text]


def few_stops_of(what: str, body: JsonObject) -> list[str]:
    """The same for APIs that take a few. Raises UpstreamUnsupported for more: without one an answer is too long."""
    stops = stops_of(body)
    if len(stops) > FEW_STOPS:
        raise UpstreamUnsupported(f"{what} takes at most {FEW_STOPS} stop sequences.", param="stop")
    return stops


# --- messages --------------------------------------------------------------------------------------------------------


def messages_of(body: JsonObject) -> Iterator[Message]:
    """The messages in order. Raises UpstreamRefused for what is none."""
    messages = body.get("messages")
    if not is_list(messages):
        raise UpstreamRefused("An array is expected.", param="messages")
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not is_object(message) or not isinstance(role := message.get("role"), str):
            raise UpstreamRefused("An object with a role is expected.", param=place)
        parts, calls = _parts(message, place), _calls(message.get("tool_calls"), f"{place}.tool_calls")
        yield Message(_ROLES.get(role, role), parts, calls, place, message)


def conversation_of(body: JsonObject) -> list[Message]:
    """The messages, for APIs that keep the system's text apart and answer a user's alone. Raises UpstreamRefused.

    Where there is nothing else, that text is the user's: OpenAI's clients get an answer to it.
    """
    messages = list(messages_of(body))
    if any(message.role not in SYSTEM_ROLES for message in messages):
        return messages
    for message in messages:
        text_of(message)
    return [replace(message, role="user") for message in messages]


def cache_mark(marked: JsonObject) -> JsonObject:
    """Anthropic's mark that a cache may end here, as a part, message, call or tool bears it; nothing without one."""
    return {"cache_control": marked["cache_control"]} if is_object(marked.get("cache_control")) else {}


def text_of(message: Message) -> str:
    """The message's text. Raises UpstreamRefused where it holds anything else."""
    for number, part in enumerate(message.parts):
        if part["type"] != "text":
            raise UpstreamRefused("Only text is allowed here.", param=f"{message.place}.content[{number}].type")
    return "".join(part["text"] for part in message.parts)


def _parts(message: JsonObject, place: str) -> list[JsonObject]:
    """The content's parts; a refusal is a text here, for that is what the model said."""
    content = message.get("content")
    if content is None:
        content = message.get("refusal") or ""
    given: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not is_list(given):
        raise UpstreamRefused("A text or an array of parts is expected.", param=f"{place}.content")
    return [_part(part, f"{place}.content[{number}]") for number, part in enumerate(given)]


def _part(part: Any, place: str) -> JsonObject:
    kind = part.get("type") if is_object(part) else None
    if not is_object(part) or not isinstance(kind, str):
        raise UpstreamRefused("An object with a type is expected.", param=place)
    if kind not in ("text", "refusal"):
        return part
    if not isinstance(text := part.get(kind), str):
        raise UpstreamRefused("A text is expected.", param=f"{place}.{kind}")
    return {**part, "type": "text", "text": text}


def media_of(part: JsonObject, place: str) -> Media:
    """What an image, audio or file part holds. Raises UpstreamUnsupported for parts that are none of these."""
    kind = part["type"]
    inner = part.get(kind)
    inner = inner if is_object(inner) else {"url": inner}
    if kind == "image_url":
        return _located(inner.get("url"), f"{place}.image_url")
    data = inner.get("data")
    if kind == "input_audio" and isinstance(data, str):
        return Media(f"audio/{inner.get('format') or 'wav'}", data)
    if kind == "file" and isinstance(inner.get("file_data"), str):
        return _located(inner["file_data"], f"{place}.file")
    raise UpstreamUnsupported(f"Parts of type {kind[:32]!r} are not supported here.", param=f"{place}.type")


def _located(url: Any, place: str) -> Media:
    head, found, data = str(url).partition(";base64,")
    if found and head.startswith("data:"):
        return Media(head[5:].partition(";")[0], data)
    if str(url).startswith("https://"):
        return Media("", url=str(url))
    raise UpstreamUnsupported("A data URL ('data:image/png;base64,…') or an https address is expected.", param=place)


def _calls(calls: Any, place: str) -> list[CalledTool]:
    if calls is None:
        return []
    if not is_list(calls):
        raise UpstreamRefused("An array is expected.", param=place)
    return [_call(call, place) for call in calls]


def _call(call: Any, place: str) -> CalledTool:
    function = _function_of(call, place)
    if not is_object(call) or not is_object(function) or not isinstance(function.get("name"), str):
        raise UpstreamRefused("A tool call with a function is expected.", param=place)
    arguments = value_in(str(function.get("arguments") or "{}"))
    if not is_object(arguments):
        text = f"A tool call's arguments must be a JSON object of at most {MOST_LEVELS} levels."
        raise UpstreamRefused(text, param=place)
    return CalledTool(str(call.get("id") or ""), function["name"], arguments, call)


# --- tools and formats -----------------------------------------------------------------------------------------------


def tools_of(body: JsonObject) -> list[JsonObject]:
    """The functions that may be called, fewer where `tool_choice` allows only some. Raises UpstreamRefused.

    A tool's own mark for caching stands in its function.
    """
    tools = body.get("tools", [])
    if not is_list(tools):
        raise UpstreamRefused("An array is expected.", param="tools")
    functions = [_function(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    allowed = _allowed(body.get("tool_choice"))
    return functions if allowed is None else [function for function in functions if function["name"] in allowed]


def _function(tool: Any, place: str) -> JsonObject:
    function = _function_of(tool, place)
    if not is_object(function) or not isinstance(function.get("name"), str):
        raise UpstreamRefused("A tool with a named function is expected.", param=place)
    parameters = function.get("parameters")
    shape: JsonObject = {"parameters": parameters if is_object(parameters) else {"type": "object", "properties": {}}}
    return {**function, **shape, **cache_mark(tool)}


def _function_of(tool: Any, place: str) -> Any:
    """The function of a tool or of a call. Raises UpstreamUnsupported for OpenAI's other sort, which takes any text."""
    if not is_object(tool):
        return None
    if tool.get("type") == "custom":
        raise UpstreamUnsupported("Tools of type 'custom' are not supported here.", param=place)
    return tool.get("function")


def _allowed(choice: Any) -> set[str] | None:
    """The names that a choice of type `allowed_tools` lets through; None where all are."""
    inner = choice.get("allowed_tools") if is_object(choice) else None
    tools = inner.get("tools") if is_object(inner) else None
    if not is_list(tools):
        return None
    functions = [tool.get("function") for tool in tools if is_object(tool)]
    return {str(function.get("name")) for function in functions if is_object(function)}


def choice_of(body: JsonObject) -> ToolChoice:
    """What `tool_choice` says. Raises UpstreamUnsupported."""
    choice = body.get("tool_choice")
    if choice in ("auto", "required", "none"):
        return ToolChoice(choice)
    if choice is None or choice == {}:
        return ToolChoice()
    function, allowed = (choice.get(key) if is_object(choice) else None for key in ("function", "allowed_tools"))
    if is_object(allowed):
        return ToolChoice("required" if allowed.get("mode") == "required" else "auto")
    if is_object(function) and isinstance(function.get("name"), str):
        return ToolChoice("required", function["name"])
    raise UpstreamUnsupported("This value is not supported.", param="tool_choice")


def schema_of(body: JsonObject) -> JsonObject | None:
    """The JSON schema that the answer must fit: {} for any JSON object, None for free text."""
    wanted = body.get("response_format")
    if not is_object(wanted) or wanted.get("type") not in ("json_object", "json_schema"):
        return None
    wrapped = wanted.get("json_schema")
    schema = wrapped.get("schema") if is_object(wrapped) else None
    return schema if is_object(schema) else {}


def merged(turns: Iterator[tuple[str, list[JsonObject]]]) -> list[tuple[str, list[JsonObject]]]:
    """The turns with neighbours of one role made one, and without those that say nothing.

    Raises UpstreamUnsupported where none is left.
    """
    together: list[tuple[str, list[JsonObject]]] = []
    for role, pieces in turns:
        if not pieces:
            continue
        if together and together[-1][0] == role:
            together[-1][1].extend(pieces)
        else:
            together.append((role, list(pieces)))
    if not together:
        raise UpstreamUnsupported("At least one message must say something.", param="messages")
    return together


# --- out -------------------------------------------------------------------------------------------------------------


def delta_choice(delta: JsonObject, reason: str | None = None, index: int = 0) -> JsonObject:
    """A streamed choice."""
    return {"index": index, "delta": delta, "finish_reason": reason}


def tool_delta(number: int, call_id: str, name: str, arguments: str) -> JsonObject:
    """A tool call's first piece."""
    return {"index": number, "id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
