"""Tokens where nobody upstream counted them."""

from __future__ import annotations

import asyncio
import lzma
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.tokens import TokenCounter, likely_tokens, size_bytes, texts_of_prompt
from common.tokens.counting import SLICE_CHARACTERS, VOCABULARY, count_tokens, read_vocabulary


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        # As OpenAI's cookbook counts them with the same vocabulary.
        ("antidisestablishmentarianism", 6),
        ("2 + 2 = 4", 7),
        ("お誕生日おめでとう", 8),
        ("", 0),
        ("<|endoftext|>", 7),
        ("\ud800", 1),
    ],
)
def test_texts_are_counted_by_the_vocabulary(text: str, tokens: int) -> None:
    assert count_tokens([text]) == tokens
    assert count_tokens([text, text]) == 2 * tokens


def test_a_text_of_any_length_is_counted_slice_by_slice() -> None:
    words = "word " * (SLICE_CHARACTERS // 5 * 3)
    assert abs(count_tokens([words]) - len(words) // 5) <= len(words) // SLICE_CHARACTERS + 1
    assert count_tokens([" " * 200_000]) < 4_000


def test_a_guess_from_the_length_holds_for_scripts_other_than_ours() -> None:
    assert likely_tokens(size_bytes("four")) == 1
    assert likely_tokens(size_bytes("fours")) == 2
    assert likely_tokens(0) == 0
    for text in (
        "Привет, как дела? Сегодня хорошая погода.",
        "你好,世界,今天天气很好",
        "مرحبا بالعالم",
        "It is what it is.",
    ):
        assert 0.5 <= likely_tokens(size_bytes(text)) / count_tokens([text]) <= 2.0


def test_everything_that_a_model_reads_of_a_prompt_is_counted() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
    body = {
        "messages": [
            {"role": "system", "content": "one"},
            {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "image_url", "image_url": {}}]},
            {
                "role": "assistant",
                "content": None,
                "refusal": "three",
                "reasoning_content": "four",
                "tool_calls": [call],
            },
            {"role": "tool", "content": "five", "tool_call_id": "c", "name": "six"},
        ],
        "tools": [{"type": "function", "function": {"name": "look"}}],
    }
    texts, others = texts_of_prompt(body)
    assert texts[:-1] == ["one", "two", "three", "four", "look", '{"at":1}', "five", "six"]
    assert texts[-1] == '[[{"type":"function","function":{"name":"look"}}]]'
    assert others == 4 * 4 + 256


async def test_the_event_loop_goes_on_while_a_thread_counts() -> None:
    counter = TokenCounter()
    names: list[str] = []

    class Told(str):
        __slots__ = ()

        def __len__(self) -> int:
            names.append(threading.current_thread().name)
            return super().__len__()

    try:
        assert await counter.count([Told("one two"), "three"]) == 3
    finally:
        counter.close()
    assert names
    assert all(name.startswith("tokens") for name in names)


async def test_whom_a_count_would_keep_too_long_gets_a_guess() -> None:
    counter = TokenCounter(limit_s=0.01)
    held, thread = threading.Event(), counter._thread  # pyright: ignore[reportPrivateUsage]
    thread.submit(held.wait)
    try:
        assert await counter.count(["antidisestablishmentarianism"]) == 7
    finally:
        held.set()
        counter.close()


async def test_a_counter_that_is_closed_ends_its_thread() -> None:
    counter = TokenCounter()
    await counter.count(["a"])
    counter.close()
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(counter.count(["a"]), 5)


def test_a_damaged_vocabulary_is_told(tmp_path: Path) -> None:
    damaged = tmp_path / "v.xz"
    damaged.write_bytes(lzma.compress(lzma.decompress(VOCABULARY.read_bytes())[:-10], preset=0))
    with pytest.raises(ValueError, match=r"v\.xz is damaged"):
        read_vocabulary(damaged)


async def test_without_a_vocabulary_tokens_are_guessed_and_it_is_told(tmp_path: Path) -> None:
    counter = TokenCounter(count=lambda _: len(str(read_vocabulary(tmp_path / "none"))))
    try:
        with capture_logs() as logs:
            assert await counter.count(["antidisestablishmentarianism"]) == 7
    finally:
        counter.close()
    assert [(line["event"], line["log_level"]) for line in logs] == [("tokens.no_vocabulary", "error")]
