"""Pure: the refusal of a request that a model can't serve, before it is queued; nothing here is sent anywhere."""

from __future__ import annotations

from typing import Final

from common.catalogue import Model
from common.contracts import JsonObject
from common.errors import BadRequest
from common.lengths import likely_fits, surely_too_long
from common.needs import answers_shorter, lacks, limit_of, needs_of, serves

TOO_LONG: Final = "context_length_exceeded"
# By these words clients know that they have to shorten the conversation.
PROMPT_TOO_LONG: Final = "prompt is too long"
UNSUPPORTED: Final = "unsupported_parameter"


def unfit(name: str, model: Model, body: JsonObject, prompt_tokens: int) -> BadRequest | None:
    """Why this model can't serve a chat request at all; None where it may. What nobody said of it is not checked.

    `prompt_tokens` is an estimate: what may still fit is left to the upstream, which counts.
    """
    if serves(model, body, prompt_tokens):
        return None
    field, limit = limit_of(body)
    if answers_shorter(model, limit):
        text = f"{field}: at most {model.max_tokens} for this model, {limit} were asked for."
        return BadRequest(text, param=field)
    context = model.longest_context
    if context is not None and surely_too_long(context, prompt_tokens, limit):
        return too_long(context, prompt_tokens, field, limit)
    return _incapable(name, model, body)


def fits(model: Model, prompt_tokens: int, answer_tokens: int) -> bool:
    """Whether prompt and answer are likely to fit, each as it was estimated."""
    return likely_fits(model.longest_context, prompt_tokens, answer_tokens)


def too_long(context: int, prompt_tokens: int, field: str, limit: int | None) -> BadRequest:
    """The refusal of what is longer than a context, in OpenAI's words after those that Anthropic's clients look for."""
    # Where the answer alone is too long, the prompt is not what has to change.
    prompt_alone = surely_too_long(context, prompt_tokens, None)
    answer_alone = limit is not None and limit >= context and not prompt_alone
    asked_tokens = prompt_tokens + (limit or 0)
    counted = f"about {prompt_tokens} tokens" + (f" + {limit} {field}" if limit and not prompt_alone else "")
    opening = "" if answer_alone else f"{PROMPT_TOO_LONG}: {counted} > {context} maximum. "
    asked = f"about {prompt_tokens} in the messages" + (f", {limit} in the completion" if limit else "")
    text = (
        f"{opening}This model's maximum context length is {context} tokens. However, you requested about "
        f"{asked_tokens} tokens ({asked}). Please reduce the length of the messages or completion."
    )
    return BadRequest(text, param=field if answer_alone else "messages", code=TOO_LONG)


def _incapable(name: str, model: Model, body: JsonObject) -> BadRequest:
    needs = needs_of(body)
    lacking = lacks(model, needs)[0]
    field = needs[lacking]
    can = ", ".join(model.capabilities or ()) or "text only"
    text = f"Unsupported parameter: {field!r} needs {lacking!r}, which {name!r} does not have (it has: {can})."
    return BadRequest(text, param=field, code=UNSUPPORTED)
