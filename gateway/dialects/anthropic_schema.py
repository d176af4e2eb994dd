"""What a request to Anthropic's Messages API may hold.

Fields that stand here are checked; others are left as they came, for backends that know them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Required

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from gateway.dialects.chat_schema import (
    MAX_MESSAGES,
    MAX_TOOLS_ELSEWHERE,
    FunctionName,
    Label,
    ManyStops,
    TokenLimit,
    Word,
)

MAX_BLOCKS: Final = 10_000
MAX_EXAMPLES: Final = 100
MAX_TOP_K: Final = 1_000_000

_OPEN: Final = ConfigDict(strict=True, extra="ignore")


@with_config(_OPEN)
class AnthropicCacheControl(TypedDict, total=False):
    type: Required[Word]
    ttl: Word | None


@with_config(_OPEN)
class AnthropicSource(TypedDict, total=False):
    type: Required[Literal["base64", "url", "text", "content"]]
    media_type: Word
    data: str
    url: str
    content: Any


Matter = Literal["text", "image", "document", "search_result"]
# A search result's is a name, as its address.
Source = Annotated[AnthropicSource | str, Field(union_mode="left_to_right")]


@with_config(_OPEN)
class AnthropicInnerBlock(TypedDict, total=False):
    type: Required[Matter]
    text: str
    source: Source
    title: str | None
    context: str | None
    content: Any
    cache_control: AnthropicCacheControl | None


InnerBlocks = Annotated[list[AnthropicInnerBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)]


@with_config(_OPEN)
class AnthropicBlock(TypedDict, total=False):
    type: Required[Literal[Matter, "thinking", "redacted_thinking", "tool_use", "tool_result"]]
    text: str
    source: Source
    title: str | None
    context: str | None
    thinking: str
    signature: str | None
    data: str
    id: Label
    name: FunctionName
    input: dict[str, Any]
    tool_use_id: Label
    content: Annotated[str | InnerBlocks | None, Field(union_mode="left_to_right")]
    is_error: bool | None
    cache_control: AnthropicCacheControl | None


Blocks = Annotated[list[AnthropicBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)]


@with_config(_OPEN)
class AnthropicMessage(TypedDict, total=False):
    role: Required[Literal["user", "assistant", "system"]]
    content: Required[Annotated[str | Blocks, Field(union_mode="left_to_right")]]


@with_config(_OPEN)
class AnthropicSystemBlock(TypedDict, total=False):
    type: Required[Literal["text"]]
    text: Required[str]
    cache_control: AnthropicCacheControl | None


SystemBlocks = Annotated[list[AnthropicSystemBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)]


@with_config(_OPEN)
class AnthropicTool(TypedDict, total=False):
    type: Literal["custom"] | None
    name: Required[FunctionName]
    description: str | None
    input_schema: Required[dict[str, Any]]
    strict: bool | None
    input_examples: Annotated[list[dict[str, Any]], Field(max_length=MAX_EXAMPLES, fail_fast=True)] | None
    cache_control: AnthropicCacheControl | None


@with_config(_OPEN)
class AnthropicToolChoice(TypedDict, total=False):
    type: Required[Literal["auto", "any", "tool", "none"]]
    name: FunctionName
    disable_parallel_tool_use: bool | None


@with_config(_OPEN)
class AnthropicThinking(TypedDict, total=False):
    type: Required[Word]
    budget_tokens: TokenLimit | None
    display: Word | None


@with_config(_OPEN)
class AnthropicFormat(TypedDict, total=False):
    type: Required[Literal["json_schema"]]
    schema: Required[dict[str, Any]]


@with_config(_OPEN)
class AnthropicOutput(TypedDict, total=False):
    effort: Word | None
    format: AnthropicFormat | None


@with_config(_OPEN)
class AnthropicMetadata(TypedDict, total=False):
    user_id: Label | None


@with_config(_OPEN)
class CountTokensBody(TypedDict, total=False):
    """Anthropic's request to count the tokens of a prompt."""

    model: Required[Annotated[str, Field(min_length=1, max_length=256)]]
    messages: Required[Annotated[list[AnthropicMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]]
    system: Annotated[str | SystemBlocks | None, Field(union_mode="left_to_right")]
    tools: Annotated[list[AnthropicTool], Field(max_length=MAX_TOOLS_ELSEWHERE, fail_fast=True)] | None
    tool_choice: AnthropicToolChoice | None
    thinking: AnthropicThinking | None
    output_config: AnthropicOutput | None
    output_format: AnthropicFormat | None
    cache_control: AnthropicCacheControl | None
    mcp_servers: Annotated[list[Any], Field(max_length=0)] | None
    container: None


@with_config(_OPEN)
class MessagesBody(CountTokensBody, total=False):
    """Anthropic's request for a message."""

    max_tokens: Required[TokenLimit]
    stream: bool | None
    temperature: Annotated[float, Field(ge=0, le=1)] | None
    top_p: Annotated[float, Field(ge=0, le=1)] | None
    top_k: Annotated[int, Field(ge=0, le=MAX_TOP_K)] | None
    stop_sequences: ManyStops | None
    metadata: AnthropicMetadata | None
    service_tier: Word | None


MESSAGES_BODY: Final = TypeAdapter(MessagesBody)
COUNT_TOKENS_BODY: Final = TypeAdapter(CountTokensBody)
