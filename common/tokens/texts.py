"""Pure: which texts of a chat completion a model reads or wrote, and how many tokens a text is likely to have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

import orjson

from common.contracts import JsonObject

# OpenAI's rule of thumb is four characters of English to a token. Bytes of UTF-8 hold for other scripts as well: a few
# sentences had 4 to a token of our vocabulary in English, Chinese and Japanese, 5 to 6 in Russian and Arabic.
BYTES_A_TOKEN: Final = 4
# A template's marks around each message, and a picture or a sound: both differ from model to model.
MESSAGE_TOKENS: Final = 4
MEDIA_TOKENS: Final = 256

_SAID: Final = ("refusal", "reasoning_content", "name")
# Of a function's call, of a custom tool's, of a sound.
_CALLED: Final = ("name", "arguments", "input", "transcript")


def size_bytes(text: str) -> int:
    """The length in UTF-8, without making a copy of what is ASCII."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def likely_tokens(length_bytes: int) -> int:
    """A guess at the tokens of a text, from its length alone; rounded up, so that a short text has one."""
    return -(-length_bytes // BYTES_A_TOKEN)


def texts_of_prompt(body: JsonObject) -> tuple[list[str], int]:
    """What a model reads of a chat completion that was checked: its texts, and the tokens of all that is no text."""
    messages: list[JsonObject] = body.get("messages") or []
    texts = [text for message in messages for text in texts_of_message(message)]
    if definitions := definitions_of(body):
        texts.append(definitions.decode())
    media = sum(part["type"] not in ("text", "refusal") for message in messages for part in _parts(message))
    return texts, len(messages) * MESSAGE_TOKENS + media * MEDIA_TOKENS


def definitions_of(body: JsonObject) -> bytes:
    """The tools that a request defines, as JSON: about what a template writes out. Nothing where it has none."""
    given = [body[name] for name in ("tools", "functions") if body.get(name)]
    return orjson.dumps(given) if given else b""


def texts_of_message(message: JsonObject) -> Iterator[str]:
    """All that a message says: its text, what was refused, reasoned or spoken, and the calls of tools."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    for part in _parts(message):
        yield from (part[kind] for kind in ("text", "refusal") if isinstance(part.get(kind), str))
    yield from (message[name] for name in _SAID if isinstance(message.get(name), str))
    calls: list[JsonObject] = [
        call.get("function") or call.get("custom") or {} for call in message.get("tool_calls") or ()
    ]
    for said in (*calls, message.get("function_call"), message.get("audio")):
        if isinstance(said, dict):
            found = cast(JsonObject, said)
            yield from (found[name] for name in _CALLED if isinstance(found.get(name), str))


def _parts(message: JsonObject) -> list[JsonObject]:
    """The parts of a content that comes in parts."""
    content: Any = message.get("content")
    return cast(list[JsonObject], content) if isinstance(content, list) else []
