"""Blocks as Anthropic's models say them, thoughts among text and calls, and the events of their stream."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from common.contracts import JsonObject

THOUGHT: JsonObject = {"type": "thinking", "thinking": "hm", "signature": "s1"}
SECOND: JsonObject = {"type": "thinking", "thinking": "oh 東", "signature": "s2"}
HIDDEN: JsonObject = {"type": "thinking", "thinking": "", "signature": "s3"}
SEALED: JsonObject = {"type": "redacted_thinking", "data": "x1"}
WORDS: JsonObject = {"type": "text", "text": "Let me see."}
MORE: JsonObject = {"type": "text", "text": " And more."}


def use(number: int) -> JsonObject:
    """A call of the tool `f`."""
    return {"type": "tool_use", "id": f"t{number}", "name": "f", "input": {"n": number}}


def upstream_events(blocks: list[JsonObject]) -> Iterator[JsonObject]:
    """The events by which Anthropic streams these blocks, texts in two pieces."""
    yield {"type": "message_start", "message": {"usage": {"input_tokens": 3}}}
    for index, block in enumerate(blocks):
        start, deltas = _pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield from ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
    yield {"type": "message_stop"}


def _pieces(block: JsonObject) -> tuple[JsonObject, list[JsonObject]]:
    kind: str = block["type"]
    if kind == "redacted_thinking":
        return block, []
    if kind == "tool_use":
        return {**block, "input": {}}, [
            {"type": "input_json_delta", "partial_json": orjson.dumps(block["input"]).decode()}
        ]
    text: str = block[kind]
    parts = [{"type": f"{kind}_delta", kind: part} for part in (text[:1], text[1:]) if part]
    if kind == "text":
        return {"type": "text", "text": ""}, parts
    signed = {"type": "signature_delta", "signature": block["signature"]}
    return {"type": kind, kind: "", "signature": ""}, [*parts, signed]


def joined(raw: bytes) -> list[JsonObject]:
    """The blocks that a client puts together out of a stream's bytes."""
    blocks: list[JsonObject] = []
    for event in raw.decode().split("\n\n")[:-1]:
        told = orjson.loads(event.partition("data: ")[2])
        if told["type"] == "content_block_start":
            assert told["index"] == len(blocks)
            blocks.append({**told["content_block"]})
        elif told["type"] == "content_block_delta":
            _add(blocks[told["index"]], told["delta"])
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = orjson.loads(block.pop("json"))
    return blocks


def _add(block: JsonObject, delta: JsonObject) -> None:
    ((name, piece),) = [(name, piece) for name, piece in delta.items() if name != "type"]
    name = "json" if name == "partial_json" else name
    block[name] = block.get(name, "") + piece
