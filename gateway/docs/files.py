"""What the routes of files and batches say of themselves."""

from __future__ import annotations

from typing import Any, Final

from common.contracts import JsonObject
from gateway.dialects.files import LONGEST_LIFE_S, PURPOSES, SHORTEST_LIFE_S
from gateway.docs.words import KEY, OPENAI_ERROR, answer, body, header, linked, query, refusals, route

_TEXT: Final[JsonObject] = {"type": "string"}
_COUNT: Final[JsonObject] = {"type": "integer", "minimum": 0}
_ANY_OBJECT: Final[JsonObject] = {"type": "object"}


def _object(required: JsonObject, **optional: Any) -> JsonObject:
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def _page(item: JsonObject) -> JsonObject:
    items = {"type": "array", "items": item}
    more: JsonObject = {"first_id": _TEXT, "last_id": _TEXT, "has_more": {"type": "boolean"}}
    return _object({"object": {"const": "list"}, "data": items, **more})


_FILE: Final = _object(
    {
        "id": {"type": "string", "pattern": "^file-[0-9a-f]{32}$"},
        "object": {"const": "file"},
        "bytes": _COUNT,
        "created_at": _COUNT,
        "filename": _TEXT,
        "purpose": {"enum": [*PURPOSES, "batch_output"]},
        "status": {"const": "processed"},
    },
    expires_at=_COUNT,
)
_TIMES: Final = (
    *("in_progress_at", "finalizing_at", "completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at"),
)
_BATCH: Final = _object(
    {
        "id": {"type": "string", "pattern": "^batch_[0-9a-f]{32}$"},
        "object": {"const": "batch"},
        "endpoint": _TEXT,
        "input_file_id": _TEXT,
        "completion_window": {"const": "24h"},
        "status": {
            "enum": [
                *("validating", "failed", "in_progress", "finalizing", "completed", "expired"),
                *("cancelling", "cancelled"),
            ]
        },
        "created_at": _COUNT,
        "expires_at": _COUNT,
        "request_counts": _object({"total": _COUNT, "completed": _COUNT, "failed": _COUNT}),
        "usage": _ANY_OBJECT,
        "metadata": {"type": ["object", "null"]},
    },
    model=_TEXT,
    errors=_ANY_OBJECT,
    output_file_id=_TEXT,
    error_file_id=_TEXT,
    **dict.fromkeys(_TIMES, _COUNT),
)
_SECONDS: Final[JsonObject] = {"type": "integer", "minimum": SHORTEST_LIFE_S, "maximum": LONGEST_LIFE_S}
_UPLOAD: Final[JsonObject] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                **_object(
                    {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": [*PURPOSES]}},
                    **{"expires_after[anchor]": {"const": "created_at"}, "expires_after[seconds]": _SECONDS},
                ),
                "additionalProperties": False,
                "dependentRequired": {
                    "expires_after[anchor]": ["expires_after[seconds]"],
                    "expires_after[seconds]": ["expires_after[anchor]"],
                },
            }
        }
    },
}
_ONE: Final = (400, 401, 404, 503)

CREATE_FILE: Final = route(
    "OpenAI",
    "Upload a file of at most 200 MiB",
    {
        200: linked(answer("The file.", _FILE), "file_id", "/id", "getFile", "getFileContent", "deleteFile"),
        **refusals(OPENAI_ERROR, 400, 401, 404, 408, 413, 415, 503),
    },
    requestBody=_UPLOAD,
    operationId="createFile",
    security=KEY,
)
FILES: Final = route(
    "OpenAI",
    "List your files",
    {200: answer("Files.", _page(_FILE)), **refusals(OPENAI_ERROR, *_ONE)},
    parameters=[
        query("purpose", "Only files of this purpose.", {"type": "string"}),
        query("limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 10_000}),
        query("order", "By the time of their upload.", {"enum": ["asc", "desc"], "default": "desc"}),
        query("after", "The page before's last one.", {"type": "string"}),
    ],
    operationId="listFiles",
    security=KEY,
)
FILE: Final = route(
    "OpenAI",
    "A file",
    {200: answer("The file.", _FILE), **refusals(OPENAI_ERROR, *_ONE)},
    operationId="getFile",
    security=KEY,
)
DELETE_FILE: Final = route(
    "OpenAI",
    "Delete a file; a batch that reads it goes on",
    {
        200: answer("Deleted.", _object({"id": _TEXT, "object": {"const": "file"}, "deleted": {"const": True}})),
        **refusals(OPENAI_ERROR, *_ONE),
    },
    operationId="deleteFile",
    security=KEY,
)
FILE_CONTENT: Final = route(
    "OpenAI",
    "A file's bytes",
    {
        200: answer("Exactly the bytes that were uploaded.", {"type": "string"}, "application/octet-stream"),
        **refusals(OPENAI_ERROR, *_ONE),
    },
    operationId="getFileContent",
    security=KEY,
)
CREATE_BATCH: Final = route(
    "OpenAI",
    "Create a batch: every line of a file becomes a job",
    {
        200: linked(answer("The batch.", _BATCH), "batch_id", "/id", "getBatch", "cancelBatch"),
        **refusals(OPENAI_ERROR, 400, 401, 404, 408, 413, 415, 422, 503),
    },
    requestBody=body("BatchBody"),
    operationId="createBatch",
    parameters=[
        header("Idempotency-Key", "The same key gets the same batch.", {"type": "string", "pattern": "^[!-~]{1,255}$"})
    ],
    security=KEY,
)
BATCHES: Final = route(
    "OpenAI",
    "List your batches, the newest first",
    {200: answer("Batches.", _page(_BATCH)), **refusals(OPENAI_ERROR, *_ONE)},
    parameters=[
        query("limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
        query("after", "The page before's last one.", {"type": "string"}),
    ],
    operationId="listBatches",
    security=KEY,
)
BATCH: Final = route(
    "OpenAI",
    "A batch",
    {200: answer("The batch.", _BATCH), **refusals(OPENAI_ERROR, *_ONE)},
    operationId="getBatch",
    security=KEY,
)
CANCEL_BATCH: Final = route(
    "OpenAI",
    "Cancel a batch; the lines that have ended stay",
    {200: answer("The batch.", _BATCH), **refusals(OPENAI_ERROR, *_ONE)},
    operationId="cancelBatch",
    security=KEY,
)
