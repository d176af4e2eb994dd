"""OpenAI's published schemas, as checks of what we answer."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import orjson
from jsonschema_rs import Draft202012Validator

_HERE: Final = Path(__file__).parent
# Responses are cut to the items and events that a model alone can give.
_SCHEMAS: Final = {
    **orjson.loads((_HERE / "openai_schemas.json").read_bytes())["components"]["schemas"],
    **orjson.loads((_HERE / "openai_responses.json").read_bytes())["components"]["schemas"],
}


def published(name: str) -> Draft202012Validator:
    """What checks a document against this schema: `validate` raises a ValueError that says what is wrong."""
    return Draft202012Validator({"components": {"schemas": _SCHEMAS}, "$ref": f"#/components/schemas/{name}"})
