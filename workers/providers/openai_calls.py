"""Tool calls in an answer of OpenAI's dialect: pieces mended and numbered, each call's id and name told once. Pure."""

from __future__ import annotations

import secrets as randomness
from typing import Any

import orjson

from common.contracts import JsonObject
from common.errors import UpstreamProtocolError
from workers.providers.wire import is_object

# --- one piece by itself ---------------------------------------------------------------------------------------------


def mended(piece: Any) -> JsonObject:
    """A piece of a call whose fields have their types; raises UpstreamProtocolError where they can't be given them."""
    if not is_object(piece):
        raise UpstreamProtocolError("The model's server sent a tool call that is not an object.")
    if (function := piece.get("function")) is not None:
        mended_function(function)
    if (custom := piece.get("custom")) is not None:
        _check_custom(custom)
    if len(piece) > 2 or "index" not in piece:  # nearly all pieces are index and function
        _check_texts(piece, "id", "type")
    if type(piece.get("index", 0)) is not int:
        del piece["index"]
    return piece


def mended_function(function: Any) -> JsonObject:
    """The function of a call, whose arguments are a text: some servers send the object that they stand for."""
    if not is_object(function):
        raise UpstreamProtocolError("The model's server sent a tool call that is not an object.")
    arguments = function.get("arguments")
    if type(arguments) is str and len(function) == 1:  # as nearly all are
        return function
    if is_object(arguments):
        function["arguments"] = orjson.dumps(arguments).decode()
    elif arguments is None and function.get("name"):
        function["arguments"] = ""  # to which clients add what follows
    elif arguments is None:
        function.pop("arguments", None)
    _check_texts(function, "name", "arguments")
    return function


def _check_custom(custom: Any) -> None:
    if not is_object(custom):
        raise UpstreamProtocolError("The model's server sent a tool call that is not an object.")
    _check_texts(custom, "name", "input")


def _check_texts(thing: JsonObject, *names: str) -> None:
    if not all(thing.get(name) is None or isinstance(thing[name], str) for name in names):
        raise UpstreamProtocolError("The model's server sent a tool call whose fields are not texts.")


# --- over several events ---------------------------------------------------------------------------------------------


class Calls:
    """The calls of one choice, numbered from 0 as they begin, whatever the server numbers them.

    Some servers leave `index` or `id` out, give all calls index 0, or repeat id and name in each piece.
    """

    __slots__ = ("_at", "_count", "_ids", "_last")

    def __init__(self) -> None:
        self._count = 0
        self._at: dict[int, _Call] = {}  # by the server's index, the last that had it
        self._ids: dict[str, _Call] = {}
        self._last: _Call | None = None

    def told(self, pieces: list[JsonObject]) -> list[JsonObject]:
        """The pieces as clients read them: id, type and name in a call's first one, then nothing but its arguments."""
        return [self._told(piece) for piece in pieces]

    def _told(self, piece: JsonObject) -> JsonObject:
        index: int | None = piece.get("index")
        function: JsonObject = piece.get("function") or piece.get("custom") or {}
        if len(piece) == 2 and len(function) == 1 and "arguments" in function and index in self._at:
            piece["index"] = self._at[index].number  # as nearly all are
            return piece
        call = self._of(index, piece.get("id") or "", function.get("name") or "")
        return self._begin(piece, index, function) if call is None else call.more(piece, function)

    def _of(self, index: int | None, call_id: str, name: str) -> _Call | None:
        """The call that a piece goes on with; None where it begins one."""
        here = self._last if index is None else self._at.get(index)
        if here is None:
            return None if name else self._ids.get(call_id)
        if call_id and call_id != here.id:
            # A new id with no name beside it is one made anew for every piece.
            return self._ids.get(call_id) or (None if name else here)
        # A server that gives ids begins no call without one; of one that gives none a name is the beginning.
        begins = name and not call_id and here.made_id and (index is None or name != here.name)
        return None if begins else here

    def _begin(self, piece: JsonObject, index: int | None, function: JsonObject) -> JsonObject:
        call = self._last = _Call(self._count, piece.get("id") or "", function.get("name") or "")
        self._count += 1
        self._ids[call.id] = call
        if index is not None:
            self._at[index] = call
        kind = "custom" if piece.get("custom") else "function"
        first: JsonObject = {**piece, "index": call.number, "id": call.id, "type": piece.get("type") or kind}
        if kind == "function":
            named = {} if function.get("name") is None else {"name": function["name"]}
            first["function"] = {**named, "arguments": "", **{k: v for k, v in function.items() if v is not None}}
        return first


class _Call:
    """One call."""

    __slots__ = ("id", "made_id", "name", "number")

    def __init__(self, number: int, call_id: str, name: str) -> None:
        self.number = number
        self.id = call_id or f"call_{randomness.token_hex(12)}"
        self.name = name
        self.made_id = not call_id

    def more(self, piece: JsonObject, function: JsonObject) -> JsonObject:
        """A later piece, without what the first one told."""
        name = function.pop("name", None)
        if name and not self.name:
            self.name = function["name"] = name
        piece.pop("id", None)
        piece.pop("type", None)
        piece["index"] = self.number
        return piece
