"""`headrace demo` with the real little model, as a script sees it: no terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.up import clean_environ, headrace, processes_with

pytestmark = pytest.mark.timeout(240)


def test_it_answers_cuts_its_stream_and_shows_that_nothing_is_missing(tmp_path: Path) -> None:
    result = headrace("demo", environ=clean_environ(TMPDIR=str(tmp_path)), limit_s=200)
    assert result.returncode == 0, result.stdout + result.stderr
    said = result.stdout
    for words in ("starting Valkey", "loading the model", "✂", "Last-Event-ID: ", "nothing missing", "tokens/s"):
        assert words in said
    assert said.index("✂") < said.index("nothing missing")
    assert said.partition("Try next:")[2].count("#") == 3
    assert "\x1b" not in said
    assert list(tmp_path.iterdir()) == []
    assert processes_with(str(tmp_path)) == {}


def test_a_short_answer_is_shown_whole_too(tmp_path: Path) -> None:
    environ = clean_environ(TMPDIR=str(tmp_path), HEADRACE_REDIS_URL="redis://nowhere:1/0", HEADRACE_HTTP_PORT="1")
    result = headrace("demo", "Answer only yes or no: is", "water wet?", environ=environ, limit_s=200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing missing" in result.stdout


def test_on_a_terminal_it_shows_progress_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy.local.cli", "demo"],
        env=clean_environ(TMPDIR=str(tmp_path), TERM="xterm-256color"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""
    while b"loading the model" not in seen:
        seen += os.read(ours, 4096)
    process.send_signal(2)
    try:
        while os.read(ours, 4096):
            pass
    except OSError:
        pass  # the terminal ends with its last user
    os.close(ours)
    assert process.wait(60) == 130
    assert list(tmp_path.iterdir()) == []
    assert processes_with(str(tmp_path)) == {}
