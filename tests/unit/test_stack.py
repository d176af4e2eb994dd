"""What `headrace up` decides to run before it starts anything."""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from pydantic import SecretStr

from common.config import Settings, load
from deploy.local.embedded import DataDirectory, EmbeddedValkey, free_port
from deploy.local.stack import Stack, api_key, plan, wants_demo_model, write_state
from deploy.local.trouble import Exit, Trouble


def stack_of(directory: Path, *, demo_model: bool = False, **settings: Any) -> Stack:
    ports: dict[str, Any] = {"http_port": free_port(), "metrics_port": free_port(), "data_dir": directory}
    made = DataDirectory(directory)
    try:
        return plan(Settings(**{**ports, **settings}), made, {"PATH": "/bin"}, demo_model=demo_model)
    finally:
        made.release()


def test_as_many_workers_run_as_are_set_and_one_of_each_other(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, workers=3)
    assert [command.name for command in stack.servers] == ["valkey"]
    assert [command.name for command in stack.processes] == [
        "gateway",
        "scheduler",
        "worker-1",
        "worker-2",
        "worker-3",
    ]


def test_each_process_shows_its_metrics_on_a_port_of_its_own(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, workers=2, metrics_port=(wanted := free_port()))
    ports = [command.environ["HEADRACE_METRICS_PORT"] for command in stack.processes]
    assert ports[0] == str(wanted)
    assert len(set(ports)) == 4


def test_no_process_shows_metrics_where_none_are_wanted(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, metrics_port=0)
    assert {command.environ["HEADRACE_METRICS_PORT"] for command in stack.processes} == {"0"}
    assert stack.metrics_url is None


def test_everything_stops_before_the_store_and_the_gateway_first(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, demo_model=True)
    commands = sorted((*stack.servers, *stack.processes), key=lambda command: -command.stage)
    assert [command.name for command in commands] == ["gateway", "worker-1", "scheduler", "model", "valkey"]


def test_a_redis_of_ones_own_is_used_and_none_is_embedded(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, redis_url="redis://elsewhere:6379/3")
    assert stack.valkey is None
    assert stack.servers == ()
    assert {command.environ["HEADRACE_REDIS_URL"] for command in stack.processes} == {"redis://elsewhere:6379/3"}


def test_the_key_is_made_once_kept_for_its_owner_alone_and_used_again(tmp_path: Path) -> None:
    first = api_key(Settings(), tmp_path)
    assert first is not None
    assert len(first) > 32
    assert stat.S_IMODE((tmp_path / "api-key").stat().st_mode) == 0o600
    assert api_key(Settings(), tmp_path) == first


def test_a_key_that_is_set_is_the_one_and_none_is_made(tmp_path: Path) -> None:
    assert api_key(Settings(api_keys=(SecretStr("sk-0123456789abcdef"),)), tmp_path) == "sk-0123456789abcdef"
    assert api_key(Settings(auth="off"), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_stack_never_serves_without_a_key_unless_told(tmp_path: Path) -> None:
    stack = stack_of(tmp_path)
    assert stack.processes[0].environ["HEADRACE_API_KEYS"] == stack.api_key
    assert "HEADRACE_API_KEYS" not in stack_of(tmp_path / "off", auth="off").processes[0].environ


def test_the_demo_models_configuration_is_one_that_the_processes_accept(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, demo_model=True, pools=("gpu",))
    settings = load({"HEADRACE_CONFIG": stack.processes[0].environ["HEADRACE_CONFIG"]})
    assert settings.pool_by_model == {"smollm2": "gpu", "echo": "gpu"}
    assert settings.backends[0].base_url == stack.model_url
    assert yaml.safe_load((tmp_path / "demo.yaml").read_text())["models"].keys() == {"smollm2", "echo"}


def test_a_configuration_file_makes_the_demo_model_unnecessary() -> None:
    assert wants_demo_model({})
    assert not wants_demo_model({"HEADRACE_CONFIG": "some.yaml"})


def test_a_taken_port_is_told_with_the_setting_that_moves_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(Trouble, match="HEADRACE_METRICS_PORT") as raised:
            stack_of(tmp_path, metrics_port=other.getsockname()[1])
    assert raised.value.code == Exit.UNAVAILABLE


def test_two_stacks_cannot_share_a_data_directory(tmp_path: Path) -> None:
    first = DataDirectory(tmp_path)
    with pytest.raises(Trouble, match="HEADRACE_DATA_DIR"):
        DataDirectory(tmp_path)
    first.release()
    DataDirectory(tmp_path).release()


@pytest.mark.parametrize("depth", [1, 12])
def test_the_embedded_stores_socket_has_a_path_that_the_kernel_takes(tmp_path: Path, depth: int) -> None:
    directory = DataDirectory(tmp_path.joinpath(*["a folder"] * depth))
    valkey = EmbeddedValkey(directory)
    try:
        assert len(str(valkey.socket_path)) < 100
        assert unquote(urlsplit(valkey.url).path) == str(valkey.socket_path)
        assert " " not in valkey.url
    finally:
        valkey.clean()
        directory.release()


def test_the_note_of_the_running_stack_is_for_its_owner_alone(tmp_path: Path) -> None:
    note = write_state(stack_of(tmp_path), tmp_path)
    assert stat.S_IMODE(note.stat().st_mode) == 0o600


def test_a_callable_address_is_given_for_a_bind_to_everything(tmp_path: Path) -> None:
    port = free_port()
    stack = stack_of(tmp_path, http_host="0.0.0.0", http_port=port)
    assert stack.url == f"http://127.0.0.1:{port}"
