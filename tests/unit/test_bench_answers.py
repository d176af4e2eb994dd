"""The bench's own judges: each kind of damage to an answer is seen, however the bytes are cut."""

from __future__ import annotations

import httptools
import orjson
import pytest

from tests.bench.answers import StreamedAnswer, WholeAnswer
from tests.bench.upstream import Script, render

SCRIPT = Script(tokens=5, ttft_ms=0, gap_ms=1)


class Body:
    """An answer's decoded body, as the HTTP parser hands it over."""

    def __init__(self, raw: bytes) -> None:
        self.data = b""
        self.complete = False
        httptools.HttpResponseParser(self).feed_data(raw)

    def on_body(self, data: bytes) -> None:
        self.data += data

    def on_message_complete(self) -> None:
        self.complete = True


def events() -> list[bytes]:
    body = Body(b"".join(render("m", SCRIPT).with_usage))
    assert body.complete
    return [event + b"\n\n" for event in body.data.split(b"\n\n")[:-1]]


def verdict(frames: list[bytes]) -> str | None:
    check = StreamedAnswer(SCRIPT.text)
    for frame in frames:
        check.feed(frame)
    return check.verdict()


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_a_whole_stream_is_right_however_its_bytes_are_cut(size: int) -> None:
    joined = b"".join(events())
    assert verdict([joined[at : at + size] for at in range(0, len(joined), size)]) is None


def test_comments_ids_and_carriage_returns_are_no_damage() -> None:
    frames = [b": ping\r\n\r\n", *(b"id: 1-2\r\n" + event.replace(b"\n", b"\r\n") for event in events())]
    assert verdict(frames) is None


@pytest.mark.parametrize("number", range(1, 6))
def test_a_lost_token_is_seen(number: int) -> None:
    frames = events()
    del frames[number]
    assert "wrong text" in (verdict(frames) or "")


@pytest.mark.parametrize("number", range(1, 6))
def test_a_doubled_token_is_seen(number: int) -> None:
    frames = events()
    frames.insert(number, frames[number])
    assert "wrong text" in (verdict(frames) or "")


def test_two_tokens_in_the_wrong_order_are_seen() -> None:
    frames = events()
    frames[2], frames[3] = frames[3], frames[2]
    assert "wrong text" in (verdict(frames) or "")


def test_a_stream_that_stops_before_its_end_is_seen() -> None:
    assert "without [DONE]" in (verdict(events()[:-1]) or "")


def test_a_stream_without_a_finish_reason_is_seen() -> None:
    frames = [frame for frame in events() if b'"stop"' not in frame]
    assert "finish_reason" in (verdict(frames) or "")


def test_an_error_event_is_seen() -> None:
    frames = events()
    frames[3:] = [b'data: {"error": {"message": "broke off"}}\n\n']
    assert "broke off" in (verdict(frames) or "")


def test_an_event_after_the_end_is_seen() -> None:
    assert "after [DONE]" in (verdict([*events(), events()[1]]) or "")


def test_a_whole_answer_with_another_text_is_seen() -> None:
    body = Body(render("m", SCRIPT).whole).data
    right, wrong = WholeAnswer(SCRIPT.text), WholeAnswer(SCRIPT.text)
    right.feed(body)
    wrong.feed(body.replace(b"t3 ", b""))
    assert right.verdict() is None
    assert "wrong text" in (wrong.verdict() or "")


def test_an_answer_that_is_no_chat_completion_is_seen() -> None:
    check = WholeAnswer(SCRIPT.text)
    check.feed(orjson.dumps({"detail": "no"}))
    assert "no chat completion" in (check.verdict() or "")
