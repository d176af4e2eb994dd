"""Logs: what a line holds, and what none may ever hold."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UpstreamTimeout
from common.log import MAX_TEXT_CHARACTERS, REMOVED, configure, keep_private, render


class Lines:
    """What was logged."""

    def __init__(self) -> None:
        self.out = BytesIO()
        self.log: Any = structlog.get_logger()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (orjson.loads(line) for line in self.out.getvalue().splitlines())

    @property
    def only(self) -> dict[str, Any]:
        (line,) = self
        return line


@contextmanager
def logging_to_lines(level: str = "info") -> Generator[Lines]:
    """Logs go to these lines; afterwards everything is as it was."""
    root, lines = logging.getLogger(), Lines()
    before = root.handlers, root.level
    configure(level, process="test", file=lines.out)
    try:
        yield lines
    finally:
        root.handlers, root.level = before
        logging.captureWarnings(False)
        structlog.contextvars.clear_contextvars()
        structlog.reset_defaults()


def test_a_line_is_one_json_object_with_its_time_level_process_and_ids() -> None:
    with logging_to_lines() as lines:
        structlog.contextvars.bind_contextvars(request_id="req_1")
        lines.log.info("job.admitted", job_id="job_1", ahead=3)
        line = lines.only
    assert line.pop("timestamp").endswith("Z")
    wanted = {"event": "job.admitted", "level": "info", "process": "test"}
    assert line == {**wanted, "request_id": "req_1", "job_id": "job_1", "ahead": 3}


def test_what_is_below_the_level_is_not_written() -> None:
    with logging_to_lines("warning") as lines:
        lines.log.debug("a")
        lines.log.info("b")
        lines.log.warning("c")
        assert lines.only["event"] == "c"


@pytest.mark.parametrize(
    "name", ["prompt", "messages", "content", "body", "result", "api_key", "authorization", "headers", "text"]
)
def test_a_field_that_would_hold_a_prompt_an_answer_or_a_key_is_removed(name: str) -> None:
    with logging_to_lines() as lines:
        for value in ("my secret", {"a": "my secret"}, ["my secret"], b"my secret"):
            lines.log.info("x", **{name: value})
            lines.log.info("x", outer={name: value})
        assert b"secret" not in lines.out.getvalue()
        assert all(line.get(name, line.get("outer", {}).get(name)) == REMOVED for line in lines)


def test_objects_are_told_by_their_type_only() -> None:
    class Holder:
        def __repr__(self) -> str:
            return "my secret"

    with logging_to_lines() as lines:
        lines.log.info("x", held=Holder(), many=[Holder()], deep={"in": {"er": Holder()}})
        assert b"secret" not in lines.out.getvalue()
        assert "Holder" in lines.only["held"]


def test_long_texts_are_cut() -> None:
    with logging_to_lines() as lines:
        lines.log.info("x", words="y" * 100_000, many=["z" * 100_000] * 100)
        assert len(lines.only["words"]) == MAX_TEXT_CHARACTERS + 1
        assert len(lines.only["many"]) == 50
        assert len(lines.out.getvalue()) < 60 * MAX_TEXT_CHARACTERS


def test_nothing_in_a_value_can_end_a_line_or_move_a_cursor() -> None:
    text = 'a\nb\r\n\x1b[2Jc\x00\x7f\x85\x9b31m\u2028\u2029\u202e"}\ud800'
    with logging_to_lines() as lines:
        lines.log.info(text, value=text)
        raw = lines.out.getvalue()
        assert raw.count(b"\n") == 1
        assert all(32 <= byte < 127 for byte in raw.rstrip(b"\n"))
        assert lines.only["value"] == text.replace("\ud800", "\\ud800")


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.binary(max_size=20) | st.integers(), max_size=3))
def test_whatever_is_logged_is_one_line_of_json(fields: dict[str, Any]) -> None:
    line = render(None, "info", keep_private(None, "info", {"event": "x", **fields}))
    assert b"\n" not in line
    assert isinstance(orjson.loads(line), dict)


def test_an_exception_is_told_by_type_and_place_and_not_by_its_text() -> None:
    def fail() -> None:
        try:
            raise KeyError("my secret")
        except KeyError as error:
            raise ValueError("my other secret") from error

    with logging_to_lines() as lines:
        try:
            fail()
        except ValueError:
            lines.log.exception("request.failed")
        assert b"secret" not in lines.out.getvalue()
        first, cause = lines.only["exception"]
    assert (first["type"], cause["type"]) == ("ValueError", "KeyError")
    assert first["at"][-1].endswith(" fail")


def test_an_error_of_our_own_is_told_with_its_code_and_text() -> None:
    with logging_to_lines() as lines:
        lines.log.error("x", exc_info=UpstreamTimeout("It took 3 s."))
        (told,) = lines.only["exception"]
    assert (told["code"], told["message"]) == ("upstream_timeout", "It took 3 s.")


def test_libraries_speak_in_the_same_lines_and_only_when_it_matters() -> None:
    with logging_to_lines() as lines:
        logging.getLogger("httpx").info("HTTP Request: POST http://user:secret@host")
        logging.getLogger("arq.worker").info("0.00s → job('secret')")
        try:
            raise OSError(111, "Connection refused")
        except OSError:
            logging.getLogger("some.library").exception("could not\nconnect to %s", "a")
        line = lines.only
    assert (line["logger"], line["level"], line["message"]) == ("some.library", "error", "could not\nconnect to a")
    assert line["exception"][0]["message"] == "Connection refused"
