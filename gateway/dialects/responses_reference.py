"""A request's references to items of earlier responses: which responses, and the request with the items. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from common.contracts import JsonObject
from common.errors import BadRequest, TooLarge
from gateway.dialects.bounded import is_list
from gateway.dialects.responses_schema import REFERENCE, kind_of
from gateway.dialects.responses_turns import ITEM_ID, Known

MOST_REFERENCED: Final = 128
# So many times a body's size may be read for one request. A conversation whose every turn names all before needs much.
MOST_READ_BODIES: Final = 16


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


@dataclass(slots=True)
class Allowance:
    """What a request may still name, and have read for it: each response holds all of its conversation."""

    named_bytes: int
    read_bytes: int

    @classmethod
    def of(cls, most_body_bytes: int) -> Allowance:
        """That of a new request."""
        return cls(most_body_bytes, most_body_bytes * MOST_READ_BODIES)

    def take(self, named_bytes: int, read_bytes: int) -> None:
        """Takes off the items named of a response, and the response. Raises TooLarge where it is used up."""
        self.named_bytes -= named_bytes
        self.read_bytes -= read_bytes
        if self.named_bytes < 0:
            raise TooLarge("The items named in the input are larger than a body may be.", param="input")
        if self.read_bytes < 0:
            text = f"The responses whose items are named in the input are larger than {MOST_READ_BODIES} bodies may be."
            raise TooLarge(text, param="input")


def _references(body: JsonObject) -> Iterator[tuple[int, str]]:
    given = body["input"]
    for index, item in enumerate(given if is_list(given) else ()):
        if kind_of(item) == REFERENCE:
            yield index, item["id"]


def _unknown(index: int, item_id: str) -> BadRequest:
    return BadRequest(f"input[{index}].id: item with id {item_id[:80]!r} not found.", param=f"input[{index}].id")
