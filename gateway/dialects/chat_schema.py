"""What a chat completion request may hold, and the message that names the field where it holds something else.

Fields that stand here are checked; others are left as they came, for backends that know them.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Annotated, Any, Final, Literal, Required

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from common.contracts import JsonObject
from common.errors import BadRequest

MAX_MESSAGES: Final = 10_000
MAX_TOOLS: Final = 128
MAX_N: Final = 8
MAX_TOKENS: Final = 1_048_576
MAX_STOPS: Final = 4
# Anthropic's and Ollama's own APIs have no such limits: agents bring hundreds of tools.
MAX_TOOLS_ELSEWHERE: Final = 1_024
MAX_STOPS_ELSEWHERE: Final = 64
MAX_LOGIT_BIASES: Final = 300
MAX_TOP_LOGPROBS: Final = 20
MAX_EXACT: Final = 2**53
"""Up to here every whole number is a float of its own."""

_OPEN: Final = ConfigDict(strict=True, extra="ignore")

Word = Annotated[str, Field(max_length=64)]
Label = Annotated[str, Field(max_length=1_024)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenLimit = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Stop = Annotated[str, Field(max_length=1_000)]
Stops = Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)]
ManyStops = Annotated[list[Stop], Field(max_length=MAX_STOPS_ELSEWHERE, fail_fast=True)]
Bias = Annotated[float, Field(ge=-100, le=100)]


@with_config(_OPEN)
class ImageUrl(TypedDict, total=False):
    url: Required[str]
    detail: Word | None


@with_config(_OPEN)
class Part(TypedDict, total=False):
    type: Required[Literal["text", "image_url", "input_audio", "file", "refusal", "audio_url", "video_url", "thinking"]]
    text: str
    refusal: str
    image_url: ImageUrl
    audio_url: ImageUrl
    video_url: ImageUrl
    input_audio: dict[str, Any]
    file: dict[str, Any]


Parts = Annotated[list[Part], Field(min_length=1, fail_fast=True)]


@with_config(_OPEN)
class CalledFunction(TypedDict, total=False):
    name: Required[FunctionName]
    arguments: Required[str]


@with_config(_OPEN)
class CalledCustom(TypedDict, total=False):
    """A call of a tool whose input is any text."""

    name: Required[FunctionName]
    input: Required[str]


@with_config(_OPEN)
class ToolCall(TypedDict, total=False):
    id: Required[Label]
    type: Word
    function: CalledFunction
    custom: CalledCustom


@with_config(_OPEN)
class Message(TypedDict, total=False):
    role: Required[Literal["developer", "system", "user", "assistant", "tool", "function"]]
    content: Annotated[str | Parts | None, Field(union_mode="left_to_right")]
    name: Label | None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
    tool_call_id: Label | None
    function_call: CalledFunction | None
    refusal: str | None
    reasoning_content: str | None
    audio: dict[str, Any] | None


@with_config(_OPEN)
class Function(TypedDict, total=False):
    name: Required[FunctionName]
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


@with_config(_OPEN)
class Custom(TypedDict, total=False):
    """A tool whose input is any text, or one that a grammar allows."""

    name: Required[FunctionName]
    description: str | None
    format: dict[str, Any] | None


@with_config(_OPEN)
class Tool(TypedDict, total=False):
    type: Required[Literal["function", "custom"]]
    function: Function
    custom: Custom


ManyTools = Annotated[list[Tool], Field(max_length=MAX_TOOLS_ELSEWHERE, fail_fast=True)]


@with_config(_OPEN)
class NamedTool(TypedDict, total=False):
    type: Required[Literal["function", "custom", "allowed_tools"]]
    function: dict[str, Any]
    custom: dict[str, Any]
    allowed_tools: dict[str, Any]


@with_config(_OPEN)
class NamedSchema(TypedDict, total=False):
    name: Required[FunctionName]
    description: str | None
    schema: dict[str, Any] | None
    strict: bool | None


@with_config(_OPEN)
class ResponseFormat(TypedDict, total=False):
    type: Required[Literal["text", "json_object", "json_schema"]]
    json_schema: NamedSchema


@with_config(_OPEN)
class StreamOptions(TypedDict, total=False):
    include_usage: bool | None
    include_obfuscation: bool | None


@with_config(_OPEN)
class ChatBody(TypedDict, total=False):
    """OpenAI's request for a chat completion."""

    model: Required[Annotated[str, Field(min_length=1, max_length=256)]]
    messages: Required[Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]]
    stream: bool | None
    stream_options: StreamOptions | None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None
    best_of: Annotated[int, Field(ge=1, le=1)] | None
    max_tokens: TokenLimit | None
    max_completion_tokens: TokenLimit | None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    frequency_penalty: Penalty | None
    presence_penalty: Penalty | None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None
    stop: Annotated[Stop | Stops | None, Field(union_mode="left_to_right")]
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_LOGIT_BIASES)] | None
    logprobs: bool | None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None
    n_probs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None
    response_format: ResponseFormat | None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
    tool_choice: Annotated[Literal["none", "auto", "required"] | NamedTool | None, Field(union_mode="left_to_right")]
    parallel_tool_calls: bool | None
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
    function_call: Annotated[Word | dict[str, Any] | None, Field(union_mode="left_to_right")]
    reasoning_effort: Word | None
    verbosity: Word | None
    modalities: Annotated[list[Word], Field(max_length=8, fail_fast=True)] | None
    service_tier: Word | None
    store: bool | None
    metadata: dict[str, Any] | None
    prompt_cache_key: Label | None
    safety_identifier: Label | None
    user: Label | None


@with_config(_OPEN)
class WideChatBody(ChatBody, total=False):
    """The same for requests of other APIs, which may hold more."""

    stop: Annotated[Stop | ManyStops | None, Field(union_mode="left_to_right")]
    tools: ManyTools | None


CHAT_BODY: Final = TypeAdapter(ChatBody)
WIDE_CHAT_BODY: Final = TypeAdapter(WideChatBody)

_TEXTS: Final = {
    "missing": "this field is required.",
    "too_long": "at most {max_length} entries.",
    "too_short": "at least {min_length} is required.",
    "string_too_long": "at most {max_length} characters.",
    "string_too_short": "at least {min_length} character is required.",
    "greater_than_equal": "must be at least {ge}.",
    "less_than_equal": "must be at most {le}.",
    "literal_error": "must be {expected}.",
    "string_pattern_mismatch": "must match {pattern}.",
    "extra_forbidden": "there is no such field.",
    "bool_type": "must be true or false.",
    "dict_type": "must be an object.",
    "float_type": "must be a number.",
    "int_type": "must be a whole number.",
    "list_type": "must be a list.",
    "none_required": "must be null.",
    "string_type": "must be a string.",
}


_LENGTHS: Final = {
    "messages": MAX_MESSAGES,
    "tools": MAX_TOOLS,
    "functions": MAX_TOOLS,
    "logit_bias": MAX_LOGIT_BIASES,
}
_WIDE_LENGTHS: Final = {**_LENGTHS, "tools": MAX_TOOLS_ELSEWHERE}


def check_chat(body: JsonObject, *, wide: bool = False) -> None:
    """Raises BadRequest where this is no chat request. `wide`: it came by an API with other limits than OpenAI's."""
    # Before the rest, which would look at each of a hundred thousand entries first.
    for name, most in (_WIDE_LENGTHS if wide else _LENGTHS).items():
        value = body.get(name)
        if value is not None and type(value) in (list, dict):
            check_length(name, value, most)
    check(WIDE_CHAT_BODY if wide else CHAT_BODY, body)


def check_length(name: str, value: Sized, most: int) -> None:
    """Raises BadRequest where there are more entries than so many."""
    if len(value) > most:
        raise BadRequest(f"{name}: at most {most} entries, {len(value)} were given.", param=name)


def check(adapter: TypeAdapter[Any], body: JsonObject) -> None:
    """Raises BadRequest naming the field, and the limit where it is one; never with the value that came.

    Whole numbers that came as `11.0`, which JSON calls the same number, are made whole in the body.
    """
    try:
        adapter.validator.validate_python(body)
        return
    except ValidationError as error:
        names = _not_whole(error)
        if not names:
            raise bad_request(error, body) from None
    body.update({name: _whole(body[name]) for name in names})
    try:
        adapter.validator.validate_python(body)
    except ValidationError as error:
        raise bad_request(error, body) from None


def _not_whole(error: ValidationError) -> set[str]:
    """The body's fields in which a number with a fraction stands where a whole one has to, the fraction being zero."""
    found = error.errors(include_url=False, include_context=False)
    return {
        str(fault["loc"][0])
        for fault in found
        if fault["type"] == "int_type" and type(fault["input"]) is float and _is_whole(fault["input"])
    }


def _is_whole(number: float) -> bool:
    """Whether the number came as a whole one. A larger one may have been another before it was read."""
    return number.is_integer() and abs(number) <= MAX_EXACT


def _whole(value: Any) -> Any:
    """The value with every number in it whole that can be without a change."""
    if type(value) is float:
        return int(value) if _is_whole(value) else value
    if type(value) is list:
        return [_whole(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
    if type(value) is dict:
        return {name: _whole(one) for name, one in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value


def bad_request(error: ValidationError, body: JsonObject) -> BadRequest:
    """The first fault in the caller's terms; of a union's branches the one that got furthest."""
    found = error.errors(include_url=False, include_input=False)
    places = [_place(fault["loc"], body, absent=fault["type"] == "missing") for fault in found[:50]]
    # At the same depth a wrong length says more than that another branch wants another type.
    deepest = max(range(len(places)), key=lambda i: (len(places[i]), not found[i]["type"].endswith("_type"), -i))
    fault, param = found[deepest], _param(places[deepest])
    template = _TEXTS.get(fault["type"])
    text = template.format(**fault.get("ctx", {})) if template else f"{fault['msg']}."
    return BadRequest(f"{param}: {text}" if param else text, param=param or None)


def _place(location: tuple[int | str, ...], body: Any, *, absent: bool) -> list[int | str]:
    """The location without what is no step in the body: a union's branches. `absent`: its last step isn't there."""
    steps: list[int | str] = []
    here = body
    for index, step in enumerate(location):
        last = absent and index == len(location) - 1
        if isinstance(here, dict) and isinstance(step, str) and (step in here or last):
            steps.append(step)
            here = here.get(step)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):  # pyright: ignore[reportUnknownArgumentType]
            steps.append(step)
            here = here[step]  # pyright: ignore[reportUnknownVariableType]
    return steps


def _param(steps: list[int | str]) -> str:
    """The place as OpenAI writes it: `messages[0].content`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:64]}" for step in steps)
    return text.removeprefix(".")
