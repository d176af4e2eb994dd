"""The command line as scripts and people meet it: help, examples, exit codes, one-line errors."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.local.cli import app
from deploy.local.embedded import free_port
from deploy.local.trouble import Exit

COMMANDS = ("demo", "up", "gateway", "worker", "scheduler", "doctor", "submit", "watch", "top")
RUNNER = CliRunner()


def test_the_bare_command_shows_its_help_and_lists_every_command() -> None:
    shown = RUNNER.invoke(app, []).output
    assert [name for name in COMMANDS if f" {name} " not in shown] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_an_example_and_the_exit_codes(command: str) -> None:
    result = RUNNER.invoke(app, [command, "--help"], terminal_width=200)
    assert result.exit_code == Exit.OK
    assert f"headrace {command}" in result.output.partition("Example:")[2]
    assert "Exit codes:" in result.output


@pytest.mark.parametrize("words", [["nonsense"], ["watch"], ["submit", "hello", "--priority", "urgent"]])
def test_wrong_words_end_with_the_usage_code(words: list[str]) -> None:
    assert RUNNER.invoke(app, words).exit_code == Exit.USAGE


@pytest.mark.parametrize("command", ["up", "gateway", "worker", "scheduler"])
def test_a_wrong_setting_is_told_in_one_line_by_name(command: str) -> None:
    result = RUNNER.invoke(app, [command], env={"HEADRACE_HTTP_PORT": "eighty"})
    assert result.exit_code == Exit.USAGE
    assert result.output.count("\n") == 1
    assert "http_port" in result.output.lower()


@pytest.mark.parametrize("words", [["submit", "hello"], ["top", "--once"]])
def test_no_gateway_is_told_with_what_to_do(words: list[str], tmp_path: Path) -> None:
    environ = {"HEADRACE_DATA_DIR": str(tmp_path), "HEADRACE_URL": f"http://127.0.0.1:{free_port()}"}
    result = RUNNER.invoke(app, words, env=environ)
    assert result.exit_code == Exit.UNAVAILABLE
    assert "./just up" in result.output


def test_up_names_the_setting_when_its_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environ = {"HEADRACE_HTTP_PORT": str(port), "HEADRACE_DATA_DIR": str(tmp_path)}
        result = RUNNER.invoke(app, ["up"], env=environ)
    assert result.exit_code == Exit.UNAVAILABLE
    assert f"port {port}" in result.output
    assert "HEADRACE_HTTP_PORT" in result.output
