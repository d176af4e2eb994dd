"""A JSON object out of bytes that a stranger sent: bounded, unambiguous, and without a name that picks a destination.

The cost is kept linear and small: what can be counted in the bytes is counted before anything is built of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeGuard

import orjson

from common.contracts import JsonObject
from common.errors import BadRequest

MAX_DEPTH: Final = 64
MAX_NODES: Final = 50_000
MAX_NAMES_CHARACTERS: Final = 32_768
# Whole numbers beyond 64 bits come out of the parser as floats of about this size: they would be changed in silence.
MAX_NUMBER: Final = 2.0**64

SchemasOf = Callable[[JsonObject], Iterable[tuple[str, JsonObject]]]
MetadataOf = Callable[[JsonObject], Iterable[Any]]

# Compounds that no honest field has as a part of its name, in snake, kebab and camel case: `openai_api_base`, `apiKey`.
_COMPOUNDS: Final = (
    "api[_-]?base|base[_-]?api|base[_-]?urls?|api[_-]?urls?|api[_-]?endpoint|endpoint[_-]?url|api[_-]?keys?|"
    "api[_-]?version|api[_-]?type|api[_-]?host|model[_-]?list|custom[_-]?llm[_-]?provider|access[_-]?key|"
    "secret[_-]?key|session[_-]?token|ad[_-]?token|(?:extra|default|custom)[_-]?(?:headers?|query|body)|"
    "(?:default|context[_-]?window|content[_-]?policy)[_-]?fallbacks?|credential[_-]?names?|kv[_-]?transfer[_-]?params|"
    "logits[_-]?processors|chat[_-]?template(?![_-]?kwargs)"
)
# Ordinary words, refused only where they are the whole name (or one segment of `a.b` or `a[b]`).
_WORDS: Final = (
    "headers|fallbacks?|credentials?|authorization|proxy|proxies|deployment[_-]?id|remote[_-]?(?:host|port|url)|"
    "organization[_-]?id|mock[_-]?response|(?:aws|azure|vertex|litellm|watsonx|sagemaker|bedrock)[_-][\\w-]*"
)
_FORBIDDEN: Final = re.compile(
    rf"(?:^|[^a-z0-9])(?:{_COMPOUNDS})(?![a-z0-9])|(?:^|[\[\].\n])(?:{_WORDS})(?:$|[\[\].\n])", re.IGNORECASE
)
# Metadata is the caller's own notes, which nobody here reads: only these names are refused there.
_IN_METADATA: Final = re.compile(
    r"(?:^|[\[\].\n])(?:api[_-]?base|base[_-]?url|model[_-]?list|fallbacks|headers)(?:$|[\[\].\n])", re.IGNORECASE
)
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# Names met in nearly every request: a mapping that has only these needs no further look.
_PLAIN: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "n", "stop", "seed", "temperature", "top_p", "max_tokens"),
        *("max_completion_tokens", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("response_format", "tools", "tool_choice", "parallel_tool_calls", "metadata", "user", "store"),
        *("role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning_content", "type", "text"),
        *("image_url", "url", "detail", "id", "function", "arguments", "description", "parameters", "strict"),
        *("include_usage", "json_schema", "schema", "prompt", "system", "endpoint", "body", "priority"),
    }
)


def own_metadata(document: JsonObject) -> Iterable[Any]:
    """The metadata of a request."""
    return (document.get("metadata"),)


def metadata_with_bodys(document: JsonObject) -> Iterable[Any]:
    """The metadata of what has a request as its `body`, and that request's own."""
    body = document.get("body")
    return (document.get("metadata"), body.get("metadata") if is_object(body) else None)


def read_object(
    raw: bytes, schemas_of: SchemasOf, *, most_values: int = MAX_NODES, metadata_of: MetadataOf = own_metadata
) -> JsonObject:
    """The JSON object in these bytes, of at most so many values. Raises BadRequest.

    `schemas_of` tells the JSON schemas in it: a schema may describe a property by any name, so names are free there.
    `metadata_of` tells the metadata in it, where nearly all names are free.
    """
    outside = _outside_strings(raw)
    if _count_values(outside) > most_values:
        raise BadRequest(f"The body has too many values: at most {most_values}.", code="invalid_json")
    try:
        document: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise BadRequest(f"The body is not valid JSON: {error.msg[:80]} at {where}.", code="invalid_json") from None
    if not is_object(document):
        raise BadRequest("The body must be a JSON object.", code="invalid_json")
    notes = [found for found in metadata_of(document) if is_object(found)]
    names = _survey(document, {id(free) for free in (*notes, *(schema for _, schema in schemas_of(document)))})
    # Each name stands before one colon; a name that came twice is only once in what the parser made.
    if names != outside.count(b":"):
        raise BadRequest("The body has the same name twice in one object.", code="invalid_json")
    if notes:
        _check_names(_names_in(notes), _IN_METADATA)
    return document


def values_in(raw: bytes) -> int:
    """How many values this JSON holds at most; counted without parsing it. Raises BadRequest for far too many."""
    return _count_values(_outside_strings(raw))


def _count_values(outside: bytes) -> int:
    # A value follows a comma or opens a container.
    return 1 + outside.count(b",") + outside.count(b"[") + outside.count(b"{")


def is_object(value: Any) -> TypeGuard[JsonObject]:
    """Whether this is a JSON object."""
    return type(value) is dict


def is_list(value: Any) -> TypeGuard[list[Any]]:
    """Whether this is a JSON array."""
    return type(value) is list


def _outside_strings(raw: bytes) -> bytes:
    """The bytes between the strings. Where the text is no JSON this is nonsense, and the parser says so later."""
    if b"\\" in raw:
        # In this order: what is left of a run of backslashes after taking pairs escapes what follows.
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if raw.count(b'"') > 4 * MAX_NODES:
        raise BadRequest(f"The body has too many values: at most {MAX_NODES}.", code="invalid_json")
    return b"".join(raw.split(b'"')[::2])


def _survey(document: JsonObject, frees: set[int]) -> int:
    """How many names the document holds. Raises BadRequest for one that is forbidden, and for depth.

    `frees`: the ids of those objects in which names are not looked at.
    """
    names = 0
    depth = 0
    odd: set[str] = set()
    level: list[Any] = [document] if id(document) not in frees else []
    free: list[Any] = [] if level else [document]
    while level or free:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadRequest(f"The body is nested too deep: at most {MAX_DEPTH} levels.", code="invalid_json")
        for node in level:
            if type(node) is dict and not (node.keys() <= _PLAIN):  # pyright: ignore[reportUnknownMemberType]
                odd.update(node)  # pyright: ignore[reportUnknownArgumentType]
        inside_free, free_names = _below(free)
        inside, level_names = _below(level)
        names += free_names + level_names
        level, free = inside, inside_free
        if frees:
            free += [node for node in level if id(node) in frees]
            level = [node for node in level if id(node) not in frees]
    if odd:
        _check_names(odd, _FORBIDDEN)
    return names


def _names_in(nodes: list[JsonObject]) -> set[str]:
    """All names in these objects."""
    names: set[str] = set()
    level: list[Any] = [*nodes]
    while level:
        for node in level:
            if is_object(node):
                names.update(node)
        level, _ = _below(level)
    return names


def _below(nodes: list[Any]) -> tuple[list[Any], int]:
    """The containers directly inside these, and how many names these have."""
    found: list[Any] = []
    names = 0
    for node in nodes:
        values = node
        if type(node) is dict:
            values = node.values()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            names += len(node)  # pyright: ignore[reportUnknownArgumentType]
        for value in values:  # pyright: ignore[reportUnknownVariableType]
            kind = type(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            if kind is dict or kind is list:
                found.append(value)
            elif kind is float and not -MAX_NUMBER < value < MAX_NUMBER:
                raise BadRequest("The body has a number beyond 64 bits.", code="invalid_json")
    return found, names


def _check_names(names: set[str], forbidden: re.Pattern[str]) -> None:
    """Raises BadRequest where a name could choose a destination or a credential, or where they are too much."""
    odd = names - _PLAIN
    # All in one search: it costs the same for a few long names as for many short ones.
    text = "\n".join(odd)
    if len(text) > MAX_NAMES_CHARACTERS:
        raise BadRequest(f"The body's field names are too long or too many: at most {MAX_NAMES_CHARACTERS} characters.")
    if not (forbidden.search(text) or forbidden.search(_CAMEL.sub("_", text))):
        return
    shown = next(name for name in odd if forbidden.search(name) or forbidden.search(_CAMEL.sub("_", name)))[:64]
    reason = f"{shown}: this field is not allowed: destinations and credentials are the gateway's own settings."
    raise BadRequest(reason, param=shown, code="unknown_parameter")


def check_schema(param: str, schema: Any, *, max_bytes: int, max_depth: int) -> None:
    """Raises BadRequest for a schema, grammar or pattern that is larger or deeper than allowed."""
    size_bytes = len(schema.encode("utf-8", "replace")) if isinstance(schema, str) else len(orjson.dumps(schema))
    if size_bytes > max_bytes:
        raise BadRequest(f"{param}: at most {max_bytes} bytes, {size_bytes} were given.", param=param)
    depth = 0
    level: list[Any] = [schema] if isinstance(schema, dict | list) else []
    while level:
        depth += 1
        if depth > max_depth:
            raise BadRequest(f"{param}: nested too deep: at most {max_depth} levels.", param=param)
        level, _ = _below(level)
