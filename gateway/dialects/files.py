"""OpenAI's wire shapes for files: the object, pages of them, and what an upload's form may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from common.contracts import JsonObject
from common.errors import BadRequest
from common.ledger.files import File

PURPOSES: Final = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
BATCH: Final = "batch"
MOST_NAME_CHARACTERS: Final = 255
SHORTEST_LIFE_S: Final = 3_600
LONGEST_LIFE_S: Final = 2_592_000
# As at OpenAI: what batches read goes by itself after thirty days, all else stays until it is deleted.
BATCH_LIFE_S: Final = LONGEST_LIFE_S

_EXPIRY: Final = ("expires_after[anchor]", "expires_after[seconds]")
_FIELDS: Final = frozenset({"purpose", *_EXPIRY})


class Named(Protocol):
    """Anything with an id."""

    @property
    def id(self) -> str: ...


def file_object(file: File) -> JsonObject:
    """OpenAI's file object; `expires_at` only where it expires."""
    shown: JsonObject = {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_ms // 1000,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }
    return shown if file.expires_ms is None else {**shown, "expires_at": file.expires_ms // 1000}


def page_object(items: Sequence[Named], shown: Sequence[JsonObject], *, has_more: bool) -> JsonObject:
    """OpenAI's page of a list. An empty one has no first and last id; files' must be texts all the same."""
    first, last = (items[0].id, items[-1].id) if items else ("", "")
    return {"object": "list", "data": list(shown), "first_id": first, "last_id": last, "has_more": has_more}


def check_fields(fields: Mapping[str, str]) -> None:
    """Raises BadRequest where a form's fields are not those of an upload."""
    for name in fields:
        if name not in _FIELDS:
            shown = name[:64]
            raise BadRequest(f"{shown}: there is no such field.", param=shown, code="unknown_parameter")
    purpose = fields.get("purpose")
    if purpose is None:
        raise BadRequest("purpose: this field is required.", param="purpose")
    if purpose not in PURPOSES:
        raise BadRequest(f"purpose: must be one of {', '.join(PURPOSES)}.", param="purpose")
    life_s(fields)


def life_s(fields: Mapping[str, str]) -> int | None:
    """How long an uploaded file is kept, in seconds; None: until it is deleted. Raises BadRequest."""
    anchor, seconds = (fields.get(name) for name in _EXPIRY)
    if anchor is None and seconds is None:
        return BATCH_LIFE_S if fields.get("purpose") == BATCH else None
    return checked_life_s(anchor, int(seconds) if seconds and seconds.isascii() and seconds.isdigit() else None)


def checked_life_s(anchor: Any, seconds: Any, field: str = "expires_after") -> int:
    """The seconds of an expiration policy. Raises BadRequest naming the field."""
    if anchor != "created_at":
        raise BadRequest(f"{field}.anchor: must be 'created_at'.", param=f"{field}.anchor")
    if type(seconds) is not int or not SHORTEST_LIFE_S <= seconds <= LONGEST_LIFE_S:
        text = f"{field}.seconds: must be a whole number from {SHORTEST_LIFE_S} to {LONGEST_LIFE_S}."
        raise BadRequest(text, param=f"{field}.seconds")
    return seconds


def shown_name(given: str) -> str:
    """A file's name as it is kept: without folders, and without characters that no name has."""
    name = given.replace("\\", "/").rpartition("/")[2]
    return "".join([one if one.isprintable() else "_" for one in name])[:MOST_NAME_CHARACTERS] or "upload"
