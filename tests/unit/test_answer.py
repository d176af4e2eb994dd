"""A whole answer out of its chunks."""

from __future__ import annotations

import pytest

from common.contracts import Chunk, JsonObject, Usage
from workers.answer import Answer, Unsaid


def _chunk(delta: JsonObject, reason: str | None = None, *, index: int = 0, **more: object) -> Chunk:
    return Chunk([{"index": index, "delta": delta, "finish_reason": reason, **more}])


def _result(*chunks: Chunk) -> JsonObject:
    answer = Answer()
    for chunk in chunks:
        answer.add(chunk)
    return answer.result()


def test_texts_are_joined_in_order() -> None:
    result = _result(
        _chunk({"role": "assistant", "content": ""}),
        _chunk({"reasoning_content": "h"}),
        _chunk({"reasoning_content": "m"}),
        _chunk({"content": "a"}),
        _chunk({"content": "b"}),
        _chunk({}, "length"),
        Chunk([], Usage(3, 2, {"prompt_tokens_details": {"cached_tokens": 1}})),
    )
    message = {"role": "assistant", "content": "ab", "refusal": None, "reasoning_content": "hm"}
    assert result == {
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


def test_the_stop_sequence_that_was_met_is_kept_where_it_is_one() -> None:
    assert (
        _result(_chunk({"content": "a"}), _chunk({}, "stop", stop_reason="END"))["choices"][0]["stop_reason"] == "END"
    )
    assert "stop_reason" not in _result(_chunk({"content": "a"}, "stop", stop_reason=2))["choices"][0]


def test_choices_are_kept_apart_and_put_in_order() -> None:
    choices = _result(
        _chunk({"content": "b"}, index=1), _chunk({"content": "a"}), _chunk({"content": "B"}, "stop", index=1)
    )["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [(0, "a"), (1, "bB")]
    assert [choice["finish_reason"] for choice in choices] == [None, "stop"]


def test_tool_calls_are_put_together_from_their_pieces() -> None:
    def piece(index: int, arguments: str, **more: object) -> Chunk:
        function = {"arguments": arguments, **more}
        named = {"id": f"call_{index}", "type": "function"} if more else {}
        return _chunk({"tool_calls": [{"index": index, **named, "function": function}]})

    message = _result(piece(0, "", name="f"), piece(0, '{"a'), piece(1, "{}", name="g"), piece(0, '":1}'))["choices"][
        0
    ]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "call_1", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_a_call_whose_id_and_name_are_repeated_in_each_piece_has_them_once() -> None:
    chunk = _chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "1"}}]})
    message = _result(chunk, chunk)["choices"][0]["message"]
    assert message["tool_calls"][0] == {"id": "c", "type": "function", "function": {"name": "f", "arguments": "11"}}


def test_the_older_function_call_is_put_together_too() -> None:
    message = _result(
        _chunk({"function_call": {"name": "f", "arguments": "{"}}), _chunk({"function_call": {"arguments": "}"}})
    )["choices"][0]["message"]
    assert message["function_call"] == {"name": "f", "arguments": "{}"}


def test_a_call_of_a_custom_tool_is_put_together_from_its_pieces() -> None:
    def piece(index: int, custom: JsonObject, **more: object) -> Chunk:
        return _chunk({"tool_calls": [{"index": index, **more, "custom": custom}]})

    message = _result(
        piece(0, {"name": "c", "input": ""}, id="call_1", type="custom"),
        piece(0, {"input": "SELECT "}),
        piece(1, {"name": "d", "input": "x"}, id="call_2"),
        piece(0, {"input": "1"}),
    )["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "call_1", "type": "custom", "custom": {"name": "c", "input": "SELECT 1"}},
        {"id": "call_2", "type": "custom", "custom": {"name": "d", "input": "x"}},
    ]


def test_a_custom_calls_text_is_counted() -> None:
    answer = Answer()
    answer.add(_chunk({"tool_calls": [{"index": 0, "custom": {"name": "fn", "input": "abc"}}]}))
    assert answer.text_bytes == 5
    assert answer.texts() == ["fn", "abc"]


def test_a_sound_is_put_together_from_its_pieces() -> None:
    answer = Answer()
    for piece in (
        {"id": "audio_1", "transcript": "he"},
        {"data": "AAAA", "transcript": "llo"},
        {"data": "BBBB", "expires_at": None},
        {"expires_at": 123},
    ):
        answer.add(_chunk({"audio": piece}))
    assert answer.result()["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "audio": {"id": "audio_1", "expires_at": 123, "data": "AAAABBBB", "transcript": "hello"},
    }
    assert answer.text_bytes == len("hello" + "AAAABBBB")
    assert answer.texts() == ["hello"]


def test_the_data_of_a_sound_whose_pieces_were_filled_up_can_be_read_in_one() -> None:
    said = _result(*(_chunk({"audio": {"data": data}}) for data in ("AQ==", "AgM=", "BAUG")))
    assert said["choices"][0]["message"]["audio"] == {"data": "AQIDBAUG"}
    broken = _result(*(_chunk({"audio": {"data": data}}) for data in ("A=", "AgM=")))
    assert broken["choices"][0]["message"]["audio"] == {"data": "A=AgM="}


def test_a_sound_beside_a_text_leaves_it() -> None:
    assert _result(_chunk({"content": "a", "audio": {"id": "x"}}))["choices"][0]["message"]["content"] == "a"


def test_a_refusal_leaves_no_content() -> None:
    message = _result(_chunk({"refusal": "I "}), _chunk({"refusal": "can't."}))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "refusal": "I can't."}


def test_log_probabilities_are_joined() -> None:
    entries = [{"token": "a"}, {"token": "b"}]
    chunks = [_chunk({"content": e["token"]}, logprobs={"content": [e], "refusal": None}) for e in entries]
    assert _result(*chunks)["choices"][0]["logprobs"] == {"content": entries, "refusal": None}


def test_fields_that_nobody_knows_yet_are_kept() -> None:
    message = _result(_chunk({"annotations": [1], "audio": {"id": "x"}}), _chunk({"annotations": [2]}))["choices"][0][
        "message"
    ]
    assert message["annotations"] == [1, 2]
    assert message["audio"] == {"id": "x"}


@pytest.mark.parametrize("name", ["annotations", "audio", "token_ids"])
def test_a_field_whose_type_changes_has_what_came_last(name: str) -> None:
    given = [1]
    chunks = [_chunk({name: 1}), _chunk({name: given}), _chunk({name: [2]})]
    assert _result(*chunks)["choices"][0]["message"][name] == [1, 2]
    assert given == [1]
    assert _result(*chunks, _chunk({name: 3}))["choices"][0]["message"][name] == 3


def test_extra_keys_stand_beside_the_choices() -> None:
    chunk = Chunk([], None, {"system_fingerprint": "fp"})
    assert _result(_chunk({"content": "a"}), chunk)["system_fingerprint"] == "fp"


def test_where_nobody_counted_the_usage_is_an_estimate_that_says_so() -> None:
    answer = Answer(prompt_tokens=11)
    answer.add(_chunk({"content": "nine char"}))
    assert answer.usage == Usage(11, 3, {"estimated": True})
    assert answer.result()["usage"] == {
        "prompt_tokens": 11,
        "completion_tokens": 3,
        "total_tokens": 14,
        "estimated": True,
    }


def test_the_half_that_was_counted_is_kept_and_the_other_estimated() -> None:
    answer = Answer(prompt_tokens=11)
    answer.add(Chunk([], counted={"prompt_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}))
    answer.add(_chunk({"content": "nine char"}))
    assert answer.usage == Usage(7, 3, {"prompt_tokens_details": {"cached_tokens": 2}, "estimated": True})
    answer.add(Chunk([], counted={"completion_tokens": 5}))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 5)
    assert answer.usage.details["estimated"] is True
    answer.add(Chunk([], Usage(8, 6)))
    assert answer.usage == Usage(8, 6)


def test_text_is_measured_in_bytes() -> None:
    answer = Answer()
    answer.add(_chunk({"content": "aé水", "reasoning_content": "x"}))
    answer.add(_chunk({"tool_calls": [{"index": 0, "function": {"name": "fn", "arguments": "{}"}}]}))
    assert answer.text_bytes == 1 + 2 + 3 + 1 + 2 + 2


def test_an_answer_without_chunks_has_no_choices() -> None:
    assert Answer().finish_reason is None
    assert Answer().result()["choices"] == []


# --- before the first word --------------------------------------------------------------------------------------------

SILENT: list[JsonObject] = [
    {"role": "assistant"},
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": None, "refusal": None, "reasoning_content": "", "tool_calls": []},
    {},
]


@pytest.mark.parametrize("delta", SILENT, ids=str)
def test_a_chunk_that_brings_neither_text_nor_call_nor_end_is_kept(delta: JsonObject) -> None:
    unsaid = Unsaid()
    assert unsaid.keeps(first := _chunk(delta, logprobs={"content": [], "refusal": None}))
    assert unsaid.chunks == [first]


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk({"role": "assistant", "content": "a"}),
        _chunk({"reasoning_content": "a"}),
        _chunk({"refusal": "no"}),
        _chunk({"tool_calls": [{"index": 0}]}),
        _chunk({"function_call": {"name": "f"}}),
        _chunk({"audio": {"id": "x"}}),
        _chunk({}, "stop"),
        _chunk({"content": ""}, logprobs={"content": [{"token": "<0xE2>"}], "refusal": None}),
        Chunk([*_chunk({"content": ""}).choices, *_chunk({"content": "a"}, index=1).choices]),
    ],
    ids=lambda chunk: str(chunk.choices),
)
def test_a_chunk_that_brings_anything_ends_the_silence(chunk: Chunk) -> None:
    unsaid = Unsaid()
    assert not unsaid.keeps(chunk)
    assert unsaid.chunks == []


def test_of_silent_chunks_the_first_of_each_choice_is_kept_however_many_come() -> None:
    unsaid = Unsaid()
    chunks = [_chunk({"role": "assistant"}), _chunk({"role": "assistant"}, index=1)]
    assert all(unsaid.keeps(chunk) for chunk in chunks * 1_000)
    assert unsaid.chunks == chunks


def test_pictures_are_kept_in_order_and_count_as_what_is_held_and_not_as_text() -> None:
    answer = Answer()
    images = [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000}} for _ in range(2)]
    for delta in ({"content": "Here:", "images": images[:1]}, {"images": images[1:]}):
        answer.add(Chunk([{"index": 0, "delta": delta, "finish_reason": None}]))
    assert answer.result()["choices"][0]["message"]["images"] == images
    assert answer.text_bytes == len("Here:") and 2_000 < answer.held_bytes < 2_500
