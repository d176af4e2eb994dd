"""What a request for a response may hold, and what each of its input items may: checked before anything is made of it.

Fields that stand here are checked; those of no dialect of OpenAI's are left as they came, as in a chat request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Required

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from common.contracts import JsonObject
from common.errors import BadRequest
from gateway.dialects.bounded import is_list, is_object
from gateway.dialects.chat_schema import (
    MAX_MESSAGES,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    FunctionName,
    Label,
    Penalty,
    TokenLimit,
    Word,
    check,
)

MAX_ITEMS: Final = MAX_MESSAGES
REFERENCE: Final = "item_reference"
MAX_PAIRS: Final = 16

_OPEN: Final = ConfigDict(strict=True, extra="ignore")
_CLOSED: Final = ConfigDict(strict=True, extra="forbid")

Status = Literal["in_progress", "completed", "incomplete"]


@with_config(_OPEN)
class ResponsePart(TypedDict, total=False):
    type: Required[Literal["input_text", "output_text", "refusal", "input_image", "input_file", "input_audio"]]
    text: str
    refusal: str
    image_url: str | None
    detail: Word | None
    file_id: Label | None
    file_data: str | None
    file_url: str | None
    filename: Label | None
    input_audio: dict[str, Any]


ResponseParts = Annotated[list[ResponsePart], Field(min_length=1, fail_fast=True)]
Content = Annotated[str | ResponseParts, Field(union_mode="left_to_right")]


@with_config(_OPEN)
class MessageItem(TypedDict, total=False):
    type: Literal["message"]
    role: Required[Literal["user", "assistant", "system", "developer"]]
    # Only a model may have said nothing.
    content: Required[Annotated[str | list[ResponsePart], Field(union_mode="left_to_right")]]
    id: Label | None
    status: Status | None


@with_config(_OPEN)
class CallItem(TypedDict, total=False):
    type: Required[Literal["function_call"]]
    call_id: Required[Annotated[Label, Field(min_length=1)]]
    name: Required[FunctionName]
    arguments: Required[str]
    id: Label | None
    status: Status | None


@with_config(_OPEN)
class CallOutputItem(TypedDict, total=False):
    type: Required[Literal["function_call_output"]]
    call_id: Required[Annotated[Label, Field(min_length=1)]]
    output: Required[Content]
    id: Label | None
    status: Status | None


@with_config(_OPEN)
class ReasoningItem(TypedDict, total=False):
    type: Required[Literal["reasoning"]]
    id: Label | None
    summary: list[dict[str, Any]] | None
    content: list[dict[str, Any]] | None
    encrypted_content: str | None


@with_config(_OPEN)
class ReferenceItem(TypedDict, total=False):
    type: Literal["item_reference"] | None
    id: Required[Label]


@with_config(_OPEN)
class FunctionTool(TypedDict, total=False):
    type: Required[Literal["function"]]
    name: Required[FunctionName]
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


@with_config(_OPEN)
class ToolChoice(TypedDict, total=False):
    type: Required[Literal["function", "allowed_tools"]]
    name: FunctionName
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)]


@with_config(_OPEN)
class TextFormat(TypedDict, total=False):
    type: Required[Literal["text", "json_object", "json_schema"]]
    name: FunctionName
    schema: dict[str, Any]
    description: str | None
    strict: bool | None


@with_config(_CLOSED)
class TextOptions(TypedDict, total=False):
    format: TextFormat | None
    verbosity: Literal["low", "medium", "high"] | None


@with_config(_OPEN)
class ReasoningOptions(TypedDict, total=False):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
    summary: Literal["auto", "concise", "detailed"] | None
    generate_summary: Literal["auto", "concise", "detailed"] | None


Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


@with_config(_OPEN)
class ResponsesBody(TypedDict, total=False):
    """OpenAI's request for a response."""

    model: Required[Annotated[str, Field(min_length=1, max_length=256)]]
    input: Required[
        Annotated[
            Annotated[str, Field(min_length=1)]
            | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)],
            Field(union_mode="left_to_right"),
        ]
    ]
    instructions: str | None
    previous_response_id: Label | None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS, fail_fast=True)] | None
    tool_choice: Annotated[Literal["none", "auto", "required"] | ToolChoice | None, Field(union_mode="left_to_right")]
    parallel_tool_calls: bool | None
    max_tool_calls: Annotated[int, Field(ge=1)] | None
    text: TextOptions | None
    reasoning: ReasoningOptions | None
    temperature: Annotated[float, Field(ge=0, le=2)] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    presence_penalty: Penalty | None
    frequency_penalty: Penalty | None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None
    max_output_tokens: TokenLimit | None
    truncation: Literal["auto", "disabled"] | None
    include: Annotated[list[Include], Field(max_length=16)] | None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_PAIRS)] | None
    store: bool | None
    background: bool | None
    stream: bool | None
    stream_options: dict[str, Any] | None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None
    user: Label | None
    safety_identifier: Annotated[str, Field(max_length=64)] | None
    prompt_cache_key: Label | None
    prompt_cache_retention: Word | None


RESPONSES_BODY: Final = TypeAdapter(ResponsesBody)
TOOL: Final = TypeAdapter(FunctionTool)
ITEMS: Final[dict[str, TypeAdapter[Any]]] = {
    "message": TypeAdapter(MessageItem),
    "function_call": TypeAdapter(CallItem),
    "function_call_output": TypeAdapter(CallOutputItem),
    "reasoning": TypeAdapter(ReasoningItem),
    REFERENCE: TypeAdapter(ReferenceItem),
}

# What only OpenAI itself can do with what it keeps.
ABSENT_FIELDS: Final = ("conversation", "prompt", "context_management", "moderation")
# Of chat requests: each has another name here, or none.
FOREIGN_FIELDS: Final = (
    *("messages", "n", "best_of", "max_tokens", "max_completion_tokens", "response_format", "functions"),
    *("function_call", "logprobs", "modalities", "audio", "prediction", "reasoning_effort", "verbosity"),
)
# What a part of each type must have; of several, one.
_NEEDS: Final = {
    "input_text": ("text",),
    "output_text": ("text",),
    "refusal": ("refusal",),
    "input_image": ("image_url",),
    "input_file": ("file_data",),
    "input_audio": ("input_audio",),
}


def check_response(body: JsonObject) -> None:
    """Raises BadRequest, naming the field, where this is no request for a response that can be served."""
    _check_names(body)
    check(RESPONSES_BODY, body)
    for index, tool in enumerate(body.get("tools") or ()):
        _check_tool(tool, f"tools[{index}]")
    if is_list(body["input"]):
        for index, item in enumerate(body["input"]):
            _check_item(item, f"input[{index}]")
    if body.get("background") and body.get("store") is False:
        raise BadRequest("background: needs store, which is false.", param="background")
    _check_format(body)


def _check_names(body: JsonObject) -> None:
    for name in ABSENT_FIELDS:
        if body.get(name) is not None:
            raise BadRequest(f"{name}: not available here.", param=name)
    for name in FOREIGN_FIELDS:
        if name in body:
            raise BadRequest(f"{name}: there is no such field in this request.", param=name, code="unknown_parameter")


def response_schemas(body: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """The JSON schemas in a request that was not checked yet, each with the field it stands in."""
    tools = body.get("tools")
    for index, tool in enumerate(tools if is_list(tools) else ()):
        if is_object(tool) and is_object(parameters := tool.get("parameters")):
            yield f"tools[{index}].parameters", parameters
    text = body.get("text")
    form = text.get("format") if is_object(text) else None
    if is_object(form) and is_object(schema := form.get("schema")):
        yield "text.format.schema", schema


def _check_tool(tool: JsonObject, param: str) -> None:
    kind = tool.get("type")
    if kind != "function":
        if kind is None:
            raise BadRequest(f"{param}.type: this field is required.", param=f"{param}.type")
        shown = str(kind)[:64]
        raise BadRequest(f"{param}.type: only function tools are available, not {shown!r}.", param=f"{param}.type")
    _within(param, TOOL, tool)


def _check_format(body: JsonObject) -> None:
    text: JsonObject = body.get("text") or {}
    form: JsonObject = text.get("format") or {}
    if form.get("type") == "json_schema":
        _require(form, "text.format", "name", "schema")
    choice = body.get("tool_choice")
    if is_object(choice):
        _require(choice, "tool_choice", *(("name",) if choice["type"] == "function" else ("mode", "tools")))


def _require(inner: JsonObject, param: str, *names: str) -> None:
    for name in names:
        if name not in inner:
            raise BadRequest(f"{param}.{name}: this field is required.", param=f"{param}.{name}")


def _check_item(item: JsonObject, param: str) -> None:
    kind = kind_of(item)
    adapter = ITEMS.get(kind)
    if adapter is None and item.get("type") is None:
        raise BadRequest(f"{param}.type: this field is required.", param=f"{param}.type")
    if adapter is None:
        raise BadRequest(f"{param}.type: items of type {kind[:64]!r} are not available.", param=f"{param}.type")
    _within(param, adapter, item)
    if item.get("content") == [] and item.get("role") != "assistant" and kind == "message":
        raise BadRequest(f"{param}.content: must not be empty.", param=f"{param}.content")
    for name in ("content", "output"):
        if kind != "reasoning" and is_list(parts := item.get(name)):
            for index, part in enumerate(parts):
                _check_part(part, f"{param}.{name}[{index}]")


def _check_part(part: JsonObject, param: str) -> None:
    kind: str = part["type"]
    if part.get("file_url"):
        raise BadRequest(f"{param}.file_url: files are not fetched; send file_data.", param=f"{param}.file_url")
    if part.get("file_id"):
        text = f"{param}.file_id: files by id are not read here; send what it holds."
        raise BadRequest(text, param=f"{param}.file_id")
    needed = _NEEDS[kind]
    if not any(part.get(name) is not None for name in needed):
        raise BadRequest(f"{param}.{needed[0]}: this field is required.", param=f"{param}.{needed[0]}")


def kind_of(item: JsonObject) -> str:
    """An input item's type: a message may leave it out, and a reference, which has no role."""
    kind = item.get("type")
    if kind is None and "role" in item:
        return "message"
    return REFERENCE if kind is None and "id" in item else str(kind)


def _within(param: str, adapter: TypeAdapter[Any], inner: JsonObject) -> None:
    """Checks what stands in a field, and names faults from the body's top."""
    try:
        check(adapter, inner)
    except BadRequest as error:
        found = error.failure
        where = f"{param}.{found.param}" if found.param else param
        text = found.message.removeprefix(f"{found.param}: ") if found.param else found.message
        raise BadRequest(f"{where}: {text}", param=where) from None
