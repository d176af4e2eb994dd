"""A request's references to items of earlier responses: which responses, and the request with the items. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from common.contracts import JsonObject
from common.errors import BadRequest
from gateway.dialects.bounded import is_list
from gateway.dialects.responses_schema import REFERENCE, kind_of
from gateway.dialects.responses_turns import ITEM_ID, Known

MOST_REFERENCED: Final = 128


def referenced(body: JsonObject) -> dict[str, list[str]]:
    """The items that a checked request names, by their response's digits (the end of its id). Raises BadRequest."""
    named: dict[str, list[str]] = {}
    seen: set[str] = set()
    for index, item_id in _references(body):
        if (found := ITEM_ID.fullmatch(item_id)) is None:
            raise _unknown(index, item_id)
        if item_id in seen:
            raise BadRequest(f"input[{index}].id: this item stands here already.", param=f"input[{index}].id")
        seen.add(item_id)
        named.setdefault(found[1], []).append(item_id)
    if len(named) > MOST_REFERENCED:
        raise BadRequest(f"input: names items of more than {MOST_REFERENCED} responses.", param="input")
    return named


def with_items(body: JsonObject, items: Mapping[str, Known]) -> JsonObject:
    """The request with these items, by their ids, in place of its references. Raises BadRequest where one lacks."""
    given: list[JsonObject] = list(body["input"])
    for index, item_id in _references(body):
        if item_id not in items:
            raise _unknown(index, item_id)
        given[index] = items[item_id]
    return {**body, "input": given}


def _references(body: JsonObject) -> Iterator[tuple[int, str]]:
    given = body["input"]
    for index, item in enumerate(given if is_list(given) else ()):
        if kind_of(item) == REFERENCE:
            yield index, item["id"]


def _unknown(index: int, item_id: str) -> BadRequest:
    return BadRequest(f"input[{index}].id: item with id {item_id[:80]!r} not found.", param=f"input[{index}].id")
