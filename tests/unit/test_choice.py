"""Choosing: what a request scores, and that the cheapest model that it allows is taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.catalogue import Choose, Price
from common.needs import needs_of
from gateway.choice import QUALITIES, Member, choose, expected_usd, has_code, score, told, total, wanted

SCHEMA = {"type": "json_schema", "json_schema": {"name": "x"}}
TOOL = {"type": "function", "function": {"name": "f"}}


def request(content: Any = "hi", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def scored(body: dict[str, Any], prompt_tokens: int = 1) -> dict[str, int]:
    return score(body, prompt_tokens, needs_of(body))


@pytest.mark.parametrize(
    ("prompt_tokens", "points"),
    [(1, 0), (499, 0), (500, 10), (1_999, 10), (2_000, 20), (8_000, 30), (31_999, 30), (32_000, 40), (10**6, 40)],
)
def test_a_longer_prompt_scores_more(prompt_tokens: int, points: int) -> None:
    assert scored(request(), prompt_tokens).get("length", 0) == points


@pytest.mark.parametrize(
    ("body", "points"),
    [
        (request(), {}),
        (request(tools=[TOOL]), {"tools": 20}),
        (request(tools=[TOOL] * 5), {"tools": 20}),
        (request(tools=[TOOL] * 3, functions=[{"name": "f"}] * 3), {"tools": 30}),
        (request(tools=[]), {}),
        (request(response_format=SCHEMA), {"schema": 15}),
        (request(response_format={"type": "json_object"}), {"schema": 5}),
        (request(response_format={"type": "text"}), {}),
        (request(guided_json={"type": "object"}), {"schema": 15}),
        (request("```python\nx\n```"), {"code": 15}),
        (request([{"type": "image_url", "image_url": {"url": "data:"}}]), {"media": 10}),
        (request([{"type": "input_audio", "input_audio": {}}]), {"media": 10}),
        (request(reasoning_effort="high"), {"reasoning": 30}),
        (request(reasoning_effort="medium"), {"reasoning": 15}),
        (request(reasoning_effort="none"), {}),
        (request(tools=[TOOL], response_format=SCHEMA), {"tools": 20, "schema": 15}),
    ],
)
def test_what_a_request_asks_for_scores_as_the_table_says(body: dict[str, Any], points: dict[str, int]) -> None:
    assert scored(body) == points


def test_a_score_ends_at_a_hundred() -> None:
    everything = request("```", tools=[TOOL] * 9, response_format=SCHEMA, reasoning_effort="high")
    assert total(scored(everything, 50_000)) == 100


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(x):\n    y = {\n    'a': 1\n    }\n    return y", True),
        ("int a;\nint b;\nint c;", True),
        ("SELECT a FROM b;\nSELECT c FROM d;\nSELECT 1;", True),
        ("Please write a poem.\nIt shall be short.\nAnd it shall rhyme.", False),
        ("We import goods from abroad; that is for you.\nOne line; and another.", False),
        ("int a;\nint b;", False),
        ("", False),
        ("look: ```", True),
        ("a;\nb;\nc;\n" + "word " * 20_000, False),  # code too far above the end is not looked at
    ],
)
def test_code_is_a_fence_or_three_lines_that_look_like_it(text: str, code: bool) -> None:
    assert has_code(request(text)["messages"]) is code
    assert has_code(request([{"type": "text", "text": text}])["messages"]) is code


def test_an_earlier_messages_code_counts_too() -> None:
    messages = [*request("```\ncode\n```")["messages"], {"role": "assistant", "content": None}, *request()["messages"]]
    assert has_code(messages)


def test_the_reason_names_the_points_and_a_quality_that_was_asked_for() -> None:
    assert told({"length": 20, "code": 15}, "standard") == "score 35 (length 20, code 15)"
    assert told({}, "high") == "quality high, score 0"


# --- the place to begin at --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("up_to", "places"),
    [
        ((), {0: 0, 33: 0, 34: 1, 66: 1, 67: 2, 100: 2}),
        ((20, 50), {0: 0, 20: 0, 21: 1, 50: 1, 51: 2, 100: 2}),
        ((0, 99), {0: 0, 1: 1, 99: 1, 100: 2}),
    ],
)
def test_a_score_says_where_to_begin(up_to: tuple[int, ...], places: dict[int, int]) -> None:
    row = Choose(among=("a", "b", "c"), up_to=up_to)
    assert {points: row.floor(points) for points in places} == places


def test_quality_goes_before_what_the_request_looks_like() -> None:
    points = {"length": 40}
    assert [wanted(points, quality) for quality in QUALITIES] == [0, 40, 100]


# --- the choice -------------------------------------------------------------------------------------------------------

CHEAP, DEAR = Price(input=1, output=1), Price(input=9, output=9)


@pytest.mark.parametrize(
    ("members", "floor", "taken"),
    [
        ([Member("a", price=DEAR), Member("b", price=CHEAP)], 0, "b"),
        ([Member("a", price=CHEAP), Member("b", price=CHEAP)], 0, "a"),
        ([Member("a", price=CHEAP), Member("b", price=DEAR)], 1, "b"),
        ([Member("a"), Member("b", price=DEAR)], 0, "b"),
        ([Member("a"), Member("b")], 0, "a"),
        ([Member("a", able=False, price=CHEAP), Member("b", price=DEAR)], 0, "b"),
        ([Member("a", price=CHEAP), Member("b", able=False, price=CHEAP)], 1, "a"),
        ([Member("a", price=CHEAP), Member("b", price=DEAR), Member("c", able=False)], 2, "b"),
        ([Member("a", price=Price(input=0, output=0)), Member("b", price=CHEAP)], 0, "a"),
    ],
)
def test_the_cheapest_able_one_from_the_floor_on_is_taken(members: list[Member], floor: int, taken: str) -> None:
    choice = choose(members, floor, 1_000, 100)
    assert choice is not None
    assert choice.model == taken


def test_where_none_is_able_none_is_chosen() -> None:
    assert choose([Member("a", able=False), Member("b", able=False)], 0, 1, 1) is None


def test_what_is_expected_counts_prompt_and_answer_apart_and_an_unknown_price_is_not_nothing() -> None:
    assert expected_usd(Price(input=2, output=10), 1_000, 100) == pytest.approx(0.003)
    assert expected_usd(None, 1_000, 100) is None


prices = st.none() | st.builds(Price, input=st.floats(0, 100), output=st.floats(0, 100))
members = st.lists(st.tuples(st.booleans(), prices), min_size=2, max_size=6).map(
    lambda rows: [Member(f"m{place}", able, price) for place, (able, price) in enumerate(rows)]
)
tokens = st.integers(0, 200_000)


@given(members, st.integers(0, 5), tokens, tokens)
def test_nothing_that_qualifies_is_cheaper_than_what_was_chosen(
    rows: list[Member], floor: int, prompt_tokens: int, answer_tokens: int
) -> None:
    floor = min(floor, len(rows) - 1)
    choice = choose(rows, floor, prompt_tokens, answer_tokens)
    able = [place for place, row in enumerate(rows) if row.able]
    assert (choice is None) == (not able)
    if choice is None:
        return
    place = int(choice.model[1:])
    enough = [one for one in able if one >= floor]
    assert place in (enough or [able[-1]])
    costs = [expected_usd(rows[one].price, prompt_tokens, answer_tokens) for one in enough]
    known = [cost for cost in costs if cost is not None]
    if known:
        assert expected_usd(rows[place].price, prompt_tokens, answer_tokens) == min(known)
    assert choice.reason.isascii() and "\n" not in choice.reason


@given(members, st.integers(0, 100), st.integers(0, 100), tokens, tokens)
def test_a_higher_score_never_takes_a_weaker_model(
    rows: list[Member], one: int, other: int, prompt_tokens: int, answer_tokens: int
) -> None:
    row = Choose(among=tuple(member.name for member in rows))
    low, high = sorted((one, other))
    weaker = choose(rows, row.floor(low), prompt_tokens, answer_tokens)
    stronger = choose(rows, row.floor(high), prompt_tokens, answer_tokens)
    assert (weaker is None) == (stronger is None)
    if weaker is not None and stronger is not None:
        assert int(weaker.model[1:]) <= int(stronger.model[1:])


@given(st.dictionaries(st.sampled_from(["length", "tools", "code"]), st.integers(0, 60)))
def test_more_quality_never_wants_less(points: dict[str, int]) -> None:
    wants = [wanted(points, quality) for quality in QUALITIES]
    assert wants == sorted(wants) and 0 <= wants[0] <= wants[-1] <= 100
