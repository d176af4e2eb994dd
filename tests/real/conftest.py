"""The one vLLM of a run, and the table of what was seen."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.real.engine import Vllm

PYTHON = os.environ.get("HEADRACE_TEST_VLLM")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """A vLLM that generates. Whoever kills it starts it again, or is the last."""
    if not PYTHON:
        pytest.skip("a real vLLM takes minutes and gigabytes: ./just vllm installs and asks it")
    one = Vllm(PYTHON, tmp_path_factory.mktemp("vllm"))
    try:
        one.start()
        yield one
    finally:
        one.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One row for each behaviour: what it was, how it went, what was measured."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, ())
        if report.when == "call" and "tests/real/" in report.nodeid
    ]
    if not PYTHON or not reports:
        return
    terminalreporter.write_line("\n| behaviour | result | seen |\n| --- | --- | --- |")
    for report in reports:
        name = report.nodeid.split("::")[-1].removeprefix("test_").replace("_", " ")
        seen = "; ".join(f"{what}: {value}" for what, value in report.user_properties)
        terminalreporter.write_line(f"| {name} | {report.outcome} | {seen} |")
