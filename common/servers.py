"""The model servers as rows of the configuration: where each is, who may call it, how it differs from its kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeGuard, cast

from pydantic import (
    AfterValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from common.catalogue import Row
from common.contracts import is_pool_name

Kind = Literal["vllm", "ollama", "llamacpp", "openai", "anthropic", "gemini", "cohere", "echo"]
# Where a hosted kind is when its backend names no address.
HOSTED_URLS: Final[dict[str, str]] = {
    "openai": "https://api.openai.com",
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
    "cohere": "https://api.cohere.com",
}
# The version at the end of an address that people copy: paths name it themselves.
_VERSIONS: Final = {"gemini": "/v1beta", "cohere": "/v2"}
# What a header can carry as a key.
_SENDABLE: Final = re.compile(r"[!-~]+")


def _pool_name(name: str) -> str:
    if not is_pool_name(name):
        raise ValueError("a pool's name is 1 to 40 of a-z, 0-9 and '-'")
    return name


PoolName = Annotated[str, AfterValidator(_pool_name)]


class Backend(Row):
    """A model server: where it is, who may call it, and how much it takes at once."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    kind: Kind
    base_url: str = ""
    pool: tuple[PoolName, ...] = ("default",)
    api_keys: tuple[SecretStr, ...] = ()
    concurrency: PositiveInt = 64
    timeout_s: PositiveFloat = 120
    idle_timeout_s: PositiveFloat = 60
    connect_timeout_s: PositiveFloat = 5
    health_path: str | None = None
    options: dict[str, Any] = Field(default_factory=dict[str, Any])

    @field_validator("pool", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("api_keys")
    @classmethod
    def _sendable(cls, value: tuple[SecretStr, ...], known: ValidationInfo) -> tuple[SecretStr, ...]:
        # One file may be for several places, of which only some have a key.
        keys = value if known.data.get("kind") in HOSTED_URLS else tuple(key for key in value if key.get_secret_value())
        if not all(_SENDABLE.fullmatch(key.get_secret_value()) for key in keys):
            raise ValueError("a key is not empty, and has no blanks, line ends or characters beyond ASCII")
        return keys

    @field_validator("options")
    @classmethod
    def _known(cls, value: dict[str, Any], known: ValidationInfo) -> dict[str, Any]:
        if "kind" not in known.data or "name" not in known.data:  # which is refused already
            return value
        try:
            return _checked(known.data["kind"], value)
        except ValueError as error:
            raise ValueError(f"backend {known.data['name']!r}: {error}") from None

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.kind != "echo" and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"backend {self.name!r}: base_url must begin with http:// or https://")
        return self

    @property
    def url(self) -> str:
        """The base URL without a trailing slash and without its version; a hosted kind's own where none is given."""
        url = (self.base_url or HOSTED_URLS.get(self.kind, "")).rstrip("/")
        return url if self._has_path else url.removesuffix(_VERSIONS.get(self.kind, "/v1"))

    @property
    def _has_path(self) -> bool:
        return "path" in self.options

    def path_of(self, endpoint: str) -> str:
        """The path below `url` of an endpoint of OpenAI's (`/v1/…`); where `options.path` is set, that for the /v1."""
        if not self._has_path or not endpoint.startswith("/v1/"):
            return endpoint
        path: str = self.options["path"].strip("/")
        return f"{'/' if path else ''}{path}{endpoint.removeprefix('/v1')}"


# --- options ----------------------------------------------------------------------------------------------------------

# What a backend's `options` may hold, by its kind: a closed row of names, with what is expected of each.

Test = Callable[[Any], bool]
Wanted = tuple[str, Test]
"""What is expected, in words after "… is expected", and the test of it."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list | tuple)


def _is_mapping(value: Any) -> TypeGuard[dict[Any, Any]]:
    return isinstance(value, dict) and all(isinstance(key, str) for key in cast("dict[Any, Any]", value))


def _one_of(*words: str) -> Wanted:
    return f"one of {', '.join(words)}", lambda value: value in words


TEXT: Final[Wanted] = ("a text", _is_text)
TRUTH: Final[Wanted] = ("true or false", lambda value: isinstance(value, bool))
COUNT: Final[Wanted] = ("a whole number above 0", lambda value: type(value) is int and value > 0)
LENGTH: Final[Wanted] = ("a whole number from 1 to 64", lambda value: type(value) is int and 0 < value <= 64)
TEXTS: Final[Wanted] = ("a list of texts", lambda value: _is_list(value) and all(map(_is_text, value)))
NAMES: Final[Wanted] = ("a mapping of texts to texts", lambda v: _is_mapping(v) and all(map(_is_text, v.values())))
MAPPING: Final[Wanted] = ("a mapping", _is_mapping)
MAPPINGS: Final[Wanted] = ("a list of mappings", lambda value: _is_list(value) and all(map(_is_mapping, value)))
LIST: Final[Wanted] = ("a list", _is_list)
PATH: Final[Wanted] = ("a text, as '' or '/v3',", lambda value: isinstance(value, str))
SALT: Final[Wanted] = ("true, false or a secret text", lambda value: isinstance(value, bool) or _is_text(value))
THINKING: Final = _one_of("adaptive", "budget", "off")
ANYTHING: Final[Wanted] = ("anything", lambda _: True)

_SPEAKING_OPENAIS: Final[dict[str, Wanted]] = {
    "drop": TEXTS,
    "rename": NAMES,
    "roles": NAMES,
    "set": MAPPING,
    "path": PATH,
    "tool_ids": LENGTH,
}
ROWS: Final[dict[str, dict[str, Wanted]]] = {
    "openai": {**_SPEAKING_OPENAIS, "pass": TEXTS},
    "vllm": {**_SPEAKING_OPENAIS, "priority": TRUTH, "cache_salt": SALT},
    "llamacpp": _SPEAKING_OPENAIS,
    "anthropic": {"drop": TEXTS, "max_tokens": COUNT, "thinking": THINKING},
    "gemini": {"drop": TEXTS, "safety_settings": MAPPINGS, "task_type": TEXT},
    "cohere": {
        "drop": TEXTS,
        "safety_mode": TEXT,
        "citation_options": MAPPING,
        "documents": LIST,
        "input_type": TEXT,
    },
    "ollama": {
        "keep_alive": ("a number or a text, as '5m',", lambda v: _is_text(v) or type(v) in (int, float)),
        "think": ("true, false or a text, as low,", lambda value: isinstance(value, bool) or _is_text(value)),
    },
    # The values of a script are checked where it is read, for callers write them too.
    "echo": dict.fromkeys(
        (
            *("text", "tokens", "numbered", "reasoning", "tool_calls", "then", "finish_reason", "usage"),
            *("first_token_ms", "token_ms", "error", "fail_at", "retry_after_s", "attempts_failing", "hang_at"),
        ),
        ANYTHING,
    ),
}
# Ollama's own go to it as they are, and it has many; what means something at another kind is a mistake there too.
_FREE: Final = "ollama"
_ELSEWHERE: Final = frozenset(name for kind, row in ROWS.items() if kind not in (_FREE, "echo") for name in row)


def _checked(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, each one that this kind has. Raises ValueError naming the one that is not, and never its value."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        wanted = ROWS[kind].get(name) or _unlisted(kind, name)
        if value is not None:
            found[name] = _read(wanted, value)
            if not wanted[1](found[name]):
                raise ValueError(f"options.{name}: {wanted[0]} is expected")
    return found


def _read(wanted: Wanted, value: Any) -> Any:
    """The value as it is meant: what comes from a variable is a text, and YAML reads a bare `off` as false."""
    if isinstance(value, str) and wanted in (COUNT, LENGTH) and value.isascii() and value.isdecimal():
        return int(value)
    if wanted is TRUTH and value in ("true", "false"):
        return value == "true"
    return "off" if wanted is THINKING and value is False else value


def _unlisted(kind: str, name: str) -> Wanted:
    if kind == _FREE and name not in _ELSEWHERE:
        return ANYTHING
    known = ", ".join([*ROWS[kind], *(["Ollama's own"] if kind == _FREE else [])])
    raise ValueError(f"options.{name}: backends of kind {kind!r} have no such option; they have {known}")
