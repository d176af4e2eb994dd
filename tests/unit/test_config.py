"""Settings: which source wins, what is refused, and that the message names the key and never the secret."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import common
from common.config import ConfigError, Settings, load
from common.servers import Backend

KEY = "sk-0123456789abcdef"


def written(directory: Path, document: Any) -> dict[str, str]:
    """An environment whose HEADRACE_CONFIG is a file with this document (or this very text)."""
    path = directory / "headrace.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False))
    return {"HEADRACE_CONFIG": str(path)}


def fleet(**changes: Any) -> dict[str, Any]:
    """A file with one backend and one model."""
    backend = {"name": "gpu", "kind": "vllm", "base_url": "http://gpu:8000"}
    return {"backends": [backend | changes], "models": {"m": {"targets": [{"backend": "gpu", "model": "org/M"}]}}}


def test_without_file_and_environment_every_setting_has_its_default(tmp_path: Path) -> None:
    assert load({}) == Settings()
    assert (Settings().http_host, Settings().http_port, Settings().lease_s) == ("127.0.0.1", 8080, 15)
    assert (Settings().pools, Settings().workers, Settings().worker_concurrency) == (("default",), 1, 64)
    assert Settings().redis_url is None


def test_the_file_wins_over_the_defaults_and_the_environment_over_the_file(tmp_path: Path) -> None:
    environ = written(tmp_path, {"http_port": 1111, "lease_s": 3})
    assert (load(environ).http_port, load(environ).lease_s) == (1111, 3)
    settings = load({**environ, "HEADRACE_HTTP_PORT": "2222"})
    assert (settings.http_port, settings.lease_s) == (2222, 3)


def test_a_settings_made_by_hand_does_not_look_at_the_environment_that_load_reads(tmp_path: Path) -> None:
    code = "from common.config import *; print(Settings().http_port, Settings(http_port=1).http_port, load().http_port)"
    environ = {"HEADRACE_HTTP_PORT": "2222", "PYTHONPATH": str(Path(common.__file__).parents[1])}
    said = subprocess.run([sys.executable, "-c", code], env=environ, cwd=tmp_path, capture_output=True, check=True)
    assert said.stdout.split() == [b"8080", b"1", b"2222"]


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    assert load({"HEADRACE_HTTP_PORT": "", "HEADRACE_API_KEYS": "", "HEADRACE_CONFIG": ""}) == Settings()
    assert load({**written(tmp_path, {"http_port": 1111}), "HEADRACE_HTTP_PORT": ""}).http_port == 1111


def test_lists_are_separated_by_commas(tmp_path: Path) -> None:
    settings = load({"HEADRACE_POOLS": "gpu, cpu,,", "HEADRACE_API_KEYS": f"{KEY}, {KEY}2"})
    assert settings.pools == ("gpu", "cpu")
    assert [key.get_secret_value() for key in settings.api_keys] == [KEY, KEY + "2"]
    assert load(written(tmp_path, {"pools": ["a", "b"]})).pools == ("a", "b")


@pytest.mark.parametrize("name", ["HEADRACE_HTPP_PORT", "HEADRACE_", "HEADRACE_HTTP_PORT_", "HEADRACE_CONFIGURATION"])
def test_a_name_that_says_nothing_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: there is no such setting$"):
        load({name: "1"})


def test_names_of_the_command_line_tests_and_benchmarks_are_let_be() -> None:
    names = ("HEADRACE_URL", "HEADRACE_API_KEY", "HEADRACE_TEST_SEED", "HEADRACE_BENCH_ROUNDS", "PATH", "headrace_x")
    assert load(dict.fromkeys(names, "x")) == Settings()


def test_what_kubernetes_tells_of_services_beside_us_is_let_be_and_a_misspelling_like_it_is_not() -> None:
    links = {
        "HEADRACE_SERVICE_HOST": "10.0.0.1",
        "HEADRACE_SERVICE_PORT": "8080",
        "HEADRACE_SERVICE_PORT_HTTP": "8080",
        "HEADRACE_PORT": "tcp://10.0.0.1:8080",
        "HEADRACE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "HEADRACE_PORT_8080_TCP_ADDR": "10.0.0.1",
        "HEADRACE_REDIS_SERVICE_HOST": "10.0.0.2",
        "HEADRACE_REDIS_PORT": "tcp://10.0.0.2:6379",
    }
    assert load(links) == Settings()
    with pytest.raises(ConfigError, match="HEADRACE_HTPP_PORT"):
        load({"HEADRACE_HTPP_PORT": "8080"})


@pytest.mark.parametrize(
    "name, value",
    [
        ("HTTP_PORT", "eighty"),
        ("HTTP_PORT", "65536"),
        ("HTTP_PORT", "-1"),
        ("LEASE_S", "0"),
        ("LEASE_S", "nan"),
        ("BREAKER_COOLOFF_S", "inf"),
        ("PREEMPTIBLE", "batch,bulk"),
        ("PREEMPTIBLE", "interactive"),
        ("RETRY_BUDGET", "1.1"),
        ("JOURNAL", "perhaps"),
        ("WORKERS", "0"),
        ("AUTH", "maybe"),
        ("LOG_LEVEL", "loud"),
        ("POOLS", "Default"),
        ("MODELS", "{not json"),
    ],
)
def test_a_bad_value_in_the_environment_names_its_variable_and_keeps_it_to_itself(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load({f"HEADRACE_{name}": value})
    assert name in str(refused.value).upper()
    assert "\n" not in str(refused.value)
    assert name not in ("API_KEYS", "MODELS") or value not in str(refused.value)


@pytest.mark.parametrize(
    "document, named",
    [
        ({"http_prt": 1}, "http_prt"),
        ({"http_port": "x"}, "http_port"),
        (fleet(base_url="gpu:8000"), "base_url"),
        (fleet(kind="cray"), "backends.0.kind"),
        (fleet(colour="red"), "backends.0.colour"),
        (fleet(pool="GPU"), "backends.0.pool"),
        (fleet(concurrency=0), "backends.0.concurrency"),
        (fleet(kind="openai", api_keys=["${NOT_SET_ANYWHERE:-}"]), "backends.0.api_keys: a key is not empty"),
        (fleet(api_keys=[KEY, "out-of-a-file\n"]), "backends.0.api_keys: a key is not empty"),
        (fleet(api_keys=["“quoted”-elsewhere"]), "backends.0.api_keys: a key is not empty"),
        (fleet(name="other"), "models.m: there is no backend named 'gpu'"),
        (fleet() | {"models": {"m": {"targets": []}}}, "models.m.targets"),
        (fleet() | {"models": {"bad name": {"targets": [{"backend": "gpu", "model": "x"}]}}}, "bad name"),
        ({"backends": [fleet()["backends"][0]] * 2}, "two have the same name"),
        ({"auth": "off", "http_host": "0.0.0.0"}, "HEADRACE_AUTH=off"),
        ({"tenants": {"two words": {}}}, "'two words' is no usable name"),
        ({"tenants": {"a": {"weight": 0}}}, "tenants.a.weight"),
        ({"tenants": {"a": {"weight": float("inf")}}}, "tenants.a.weight"),
        ({"tenants": {"a": {"wait": 1}}}, "tenants.a.wait"),
        ({"tenants": {"a": {"max_waiting_jobs": 0}}}, "tenants.a.max_waiting_jobs"),
        ({"tenants": {"a": {"api_keys": ["${NOT_SET_ANYWHERE:-}"]}}}, "tenants.a: one of its keys is empty"),
        (
            {"tenants": {"a": {"api_keys": [KEY]}, "b": {"api_keys": [KEY]}}},
            "tenants.b: one of its keys stands elsewhere",
        ),
        ({"api_keys": [KEY], "tenants": {"a": {"api_keys": [KEY]}}}, "tenants.a: one of its keys stands elsewhere"),
        (fleet(timeout_s=float("inf")), "backends.0.timeout_s"),
        (["a", "list"], "a mapping is expected"),
        ("a: [1", "headrace.yaml"),
        ("models:\n  m: {aliases: [a]}\n  n: {}\n  m: {aliases: [b]}\n", "line 4: 'm' stands there twice"),
        ("backends: [{name: a, kind: echo, name: b}]", "line 1: 'name' stands there twice"),
        (fleet(options={"dorp": ["n"]}), "backends.0.options: backend 'gpu': options.dorp: "),
        ("http_port: ${NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
        ("!!python/object/apply:os.system ['true']", "headrace.yaml"),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_the_key(tmp_path: Path, document: Any, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, document))
    assert named in str(refused.value)
    assert "headrace.yaml" in str(refused.value)


def test_mappings_that_share_what_an_anchor_names_repeat_no_key(tmp_path: Path) -> None:
    text = "backends:\n  - &a {name: a, kind: echo}\n  - &b {<<: *a, name: b, pool: x}\n  - {<<: *a, <<: *b, name: c}\n"
    rows = load(written(tmp_path, text)).backends
    assert [(row.name, row.kind) for row in rows] == [("a", "echo"), ("b", "echo"), ("c", "echo")]


def test_a_mistake_in_the_environment_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the environment: HEADRACE_HTTP_PORT: "):
        load({**written(tmp_path, {"lease_s": 3}), "HEADRACE_HTTP_PORT": "x"})


def test_a_file_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="HEADRACE_CONFIG: there is no file"):
        load({"HEADRACE_CONFIG": str(tmp_path / "none.yaml")})
    assert load(written(tmp_path, "")) == Settings()


def test_variables_in_the_file_are_replaced_wherever_they_stand(tmp_path: Path) -> None:
    document = fleet(base_url="http://${HOST}:${PORT:-8000}", api_keys=["${GPU_KEY}", "plain"])
    settings = load({**written(tmp_path, document), "HOST": "gpu-7", "GPU_KEY": "secret-1"})
    [backend] = settings.backends
    assert backend.base_url == "http://gpu-7:8000"
    assert [key.get_secret_value() for key in backend.api_keys] == ["secret-1", "plain"]
    assert "secret-1" not in repr(settings)


def test_what_a_variable_leaves_empty_or_says_in_words_is_read_as_meant(tmp_path: Path) -> None:
    options = {"priority": "${URGENT}", "tool_ids": "${DIGITS}", "drop": None}
    document = fleet(api_keys=["${NOT_SET_ANYWHERE:-}", "plain"], options=options)
    [backend] = load({**written(tmp_path, document), "URGENT": "true", "DIGITS": "9"}).backends
    assert [key.get_secret_value() for key in backend.api_keys] == ["plain"]
    assert backend.options == {"priority": True, "tool_ids": 9}


def test_a_models_pool_is_the_first_that_all_its_targets_share(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "backends": [
            {"name": "a", "kind": "echo", "pool": ["x", "y", "z"]},
            {"name": "b", "kind": "echo", "pool": ["z", "y"]},
            {"name": "c", "kind": "echo", "pool": "w"},
        ],
        "models": {
            "both": {"targets": [{"backend": "a", "model": "1"}, {"backend": "b", "model": "2"}]},
            "alone": {"targets": [{"backend": "c", "model": "3"}]},
        },
        "pools": ["q"],
    }
    settings = load(written(tmp_path, document))
    assert settings.pool_by_model == {"both": "y", "alone": "w"}
    assert settings.all_pools == ("y", "w", "q")
    assert (settings.models_of("y"), settings.models_of("q")) == (("both",), ())
    document["models"]["both"]["targets"].append({"backend": "c", "model": "4"})
    with pytest.raises(ConfigError, match=r"models\.both: its targets share no pool"):
        load(written(tmp_path, document))


@pytest.mark.parametrize("given", ["http://gpu:8000", "http://gpu:8000/", "http://gpu:8000/v1", "http://gpu:8000/v1/"])
def test_a_backends_url_is_the_same_with_and_without_its_v1(given: str) -> None:
    assert Backend(name="g", kind="openai", base_url=given).url == "http://gpu:8000"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_serving_without_keys_is_for_loopback_only(host: str) -> None:
    assert load({"HEADRACE_AUTH": "off", "HEADRACE_HTTP_HOST": host}).auth == "off"
