"""One frozen Settings from the environment (`HEADRACE_…`) and one YAML file; every default stands here.

The environment wins over the file, and the file over the defaults. An unknown key is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from common.catalogue import Model, Row, check_references, names_of
from common.sentinel import check_url
from common.servers import Backend, PoolName

DEFAULT_FILE: Final = "headrace.yaml"
DEFAULT_REDIS_URL: Final = "redis://localhost:6379/0"
DATABASE_KINDS: Final = ("postgresql+asyncpg://", "postgresql://", "postgres://", "sqlite+aiosqlite:///")
PREFIX: Final = "HEADRACE_"
OTHER_NAMES: Final = frozenset({"HEADRACE_CONFIG", "HEADRACE_URL", "HEADRACE_API_KEY"})
FREE_PREFIXES: Final = ("HEADRACE_TEST_", "HEADRACE_BENCH_")
# Kubernetes puts these into every container beside a service called headrace or headrace-….
_SERVICE_LINK: Final = re.compile(
    r"HEADRACE_(\w+_)?((SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*|PORT=(tcp|udp|sctp)://.*)"
)
ClassName = Literal["interactive", "standard", "batch"]
TENANT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ConfigError(ValueError):
    """The configuration is not usable; the message names the key and what is wrong with it."""


class Tenant(Row):
    """Whoever shares the fleet with others: keys of its own, a weight in the fair share, a limit to what may wait."""

    api_keys: tuple[SecretStr, ...] = ()
    weight: PositiveFloat = Field(default=1, le=1000, ge=0.001)
    max_waiting_jobs: PositiveInt | None = None


def _shared(pools: Sequence[Sequence[str]]) -> list[str]:
    """What is in all of them, in the first one's order."""
    return [pool for pool in pools[0] if all(pool in others for others in pools)]


class Settings(BaseSettings):
    """Everything that can be set. Names are those of the environment without `HEADRACE_`, in lower case in YAML."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_", extra="forbid", frozen=True, env_ignore_empty=True, allow_inf_nan=False
    )

    backends: tuple[Backend, ...] = ()
    models: dict[str, Model] = Field(default_factory=dict[str, Model])
    tenants: dict[str, Tenant] = Field(default_factory=dict[str, Tenant])

    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8080, ge=0, le=65535)
    grpc_port: int = Field(default=50051, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    redis_url: str | None = None
    database_url: SecretStr | None = None
    journal: Literal["on", "off"] = "on"
    data_dir: Path = Path(".headrace")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    auth: Literal["on", "off"] = "on"
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    pools: Annotated[tuple[PoolName, ...], NoDecode] = ("default",)
    workers: PositiveInt = 1
    worker_concurrency: PositiveInt = 64
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    lease_s: PositiveFloat = 15
    drain_s: PositiveFloat = 20
    status_wait_s: PositiveFloat = 5
    keepalive_s: PositiveFloat = 10
    disconnect_grace_s: NonNegativeInt = 10
    request_timeout_s: PositiveFloat = 10
    max_attempts: PositiveInt = 3
    max_lane_depth: PositiveInt = 100_000
    max_waiting_jobs: PositiveInt = 50_000
    store_memory_share: float = Field(default=0.8, gt=0, le=1)
    max_body_bytes: PositiveInt = 4 * 1024 * 1024
    max_output_bytes: PositiveInt = 16 * 1024 * 1024
    interactive_deadline_s: PositiveFloat = 600
    standard_deadline_s: PositiveFloat = 3_600
    batch_deadline_s: PositiveFloat = 86_400
    result_retention_s: PositiveInt = 86_400
    stream_retention_s: PositiveInt = 3_600
    idempotency_retention_s: PositiveInt = 86_400
    preemptible: Annotated[tuple[ClassName, ...], NoDecode] = ()
    preempt_after_ms: PositiveInt = 100
    interactive_reserve: float = Field(default=0.05, ge=0, le=0.5)
    breaker_failures: PositiveInt = 3
    breaker_cooloff_s: PositiveFloat = 30
    retry_budget: float = Field(default=0.1, ge=0, le=1)
    hedge_budget: float = Field(default=0.05, ge=0, le=1)
    probe_interval_s: PositiveFloat = 5

    @field_validator("api_keys", "cors_origins", "pools", "preemptible", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _usable_url(cls, value: str | None) -> str | None:
        if value is not None:
            check_url(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [backend.name for backend in self.backends]
        if len(set(names)) != len(names):
            raise ValueError("backends: two have the same name")
        self._check_models()
        self._check_tenants()
        if "interactive" in self.preemptible:
            raise ValueError("HEADRACE_PREEMPTIBLE: interactive work is what others give way to")
        if self.database_url is not None and not self.database_url.get_secret_value().startswith(DATABASE_KINDS):
            raise ValueError("HEADRACE_DATABASE_URL: postgresql+asyncpg://… or sqlite+aiosqlite:///… is expected")
        if self.auth == "off" and self.http_host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError("HEADRACE_AUTH=off is accepted only with HEADRACE_HTTP_HOST on loopback")
        return self

    def _check_tenants(self) -> None:
        seen = {key.get_secret_value() for key in self.api_keys}
        for name, tenant in self.tenants.items():
            if not TENANT_NAME.fullmatch(name):
                raise ValueError(f"tenants: {name!r} is no usable name (letters, digits, '._-', at most 64)")
            for key in tenant.api_keys:
                if not key.get_secret_value().strip():
                    raise ValueError(f"tenants.{name}: one of its keys is empty")
                if key.get_secret_value() in seen:
                    raise ValueError(f"tenants.{name}: one of its keys stands elsewhere too")
                seen.add(key.get_secret_value())

    def _check_models(self) -> None:
        names_of(self.models)
        check_references(self.models)
        for name, model in self.models.items():
            pools = self._pools_of(name, model)
            if model.targets and not _shared(pools):
                raise ValueError(f"models.{name}: its targets share no pool")
        for name, model in self.models.items():
            for other in model.fallback.while_away:
                if self._shared_pool(model) not in _shared(self._pools_of(other, self.models[other])):
                    text = f"the pool of {name!r} has not all targets of {other!r}, so its workers can't fall back"
                    raise ValueError(f"models.{name}.fallback: {text}")

    def _pools_of(self, name: str, model: Model) -> list[tuple[str, ...]]:
        for target in model.targets:
            if target.backend not in self.backend_by_name:
                raise ValueError(f"models.{name}: there is no backend named {target.backend!r}")
        return [self.backend_by_name[target.backend].pool for target in model.targets]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment is `load`'s to read: a Settings made by hand is what it was made of.
        return (init_settings,)

    @property
    def effective_redis_url(self) -> str:
        """Where Redis is, for a process of its own."""
        return self.redis_url or DEFAULT_REDIS_URL

    @cached_property
    def backend_by_name(self) -> dict[str, Backend]:
        """Backends by their name."""
        return {backend.name: backend for backend in self.backends}

    @cached_property
    def model_names(self) -> dict[str, str]:
        """Every name that a model can be asked for by, aliases and virtual models too, to that of its row."""
        return names_of(self.models)

    @cached_property
    def pool_by_model(self) -> dict[str, str]:
        """The pool that each model with targets is queued in: the first that all its targets share."""
        return {name: self._shared_pool(model) for name, model in self.models.items() if model.targets}

    def _shared_pool(self, model: Model) -> str:
        return _shared([self.backend_by_name[target.backend].pool for target in model.targets])[0]

    @cached_property
    def all_pools(self) -> tuple[str, ...]:
        """Every pool that a model is queued in or a worker of this process serves."""
        return tuple(dict.fromkeys([*self.pool_by_model.values(), *self.pools]))

    def models_of(self, pool: str) -> tuple[str, ...]:
        """The public models whose jobs lie in this pool."""
        return tuple(name for name, home in self.pool_by_model.items() if home == pool)


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process. Raises ConfigError with a message for people."""
    environ = os.environ if environ is None else environ
    given = _from_environment(environ)
    wanted = environ.get("HEADRACE_CONFIG")
    path = Path(wanted or DEFAULT_FILE)
    if not path.is_file():
        if wanted:
            raise ConfigError(f"HEADRACE_CONFIG: there is no file {path}")
        return _settings({}, given, "the environment")
    return _settings(read_yaml(path, environ), given, str(path))


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the environment sets. Raises ConfigError for a name that says nothing, such as a misspelt one."""
    for name in sorted(environ):
        if name.startswith(PREFIX):
            _check_name(name, environ[name])
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in environ.items() if value}
    try:
        return source()
    except SettingsError as error:
        raise ConfigError(f"the environment: {error}") from error


def _check_name(name: str, value: str) -> None:
    known = name.removeprefix(PREFIX).lower() in Settings.model_fields or name in OTHER_NAMES
    if not known and not name.startswith(FREE_PREFIXES) and not _SERVICE_LINK.fullmatch(f"{name}={value}"):
        raise ConfigError(f"{name}: there is no such setting")


def read_yaml(path: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The file's mapping with `${VAR}` replaced. Raises ConfigError where it can't be read or a variable is unset."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: a mapping is expected at the top")
    return _interpolate(document, environ, str(path))


_MERGED: Final = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Reads a mapping only where no key stands in it twice: of two models the first would vanish without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGED:
                continue
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: {key.value!r} stands there twice")
            seen.add(key.value)
        return node


def _settings(values: dict[str, Any], given: dict[str, Any], source: str) -> Settings:
    try:
        return Settings(**(values | given))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = [str(part) for part in first["loc"]] or ["settings"]
        if where[0] in given:
            source, where[0] = "the environment", PREFIX + where[0].upper()
        raise ConfigError(f"{source}: {'.'.join(where)}: {first['msg'].removeprefix('Value error, ')}") from None


_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _interpolate(value: Any, environ: Mapping[str, str], source: str) -> Any:
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _lookup(match, environ, source), value)
    if isinstance(value, dict):
        return {str(key): _interpolate(item, environ, source) for key, item in value.items()}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, list):
        return [_interpolate(item, environ, source) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _lookup(match: re.Match[str], environ: Mapping[str, str], source: str) -> str:
    name, default = match.group(1), match.group(2)
    if name in environ:
        return environ[name]
    if default is not None:
        return default
    raise ConfigError(f"{source}: ${{{name}}} is not set in the environment")
