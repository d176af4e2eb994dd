"""Key pools: keys in turn, those at rest left out, and what an answer's headers say of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.backends import Rest
from tests.support.clock import ManualClock
from workers.keypool import BUSY_S, MOST_BLOCKED_S, Block, KeyPool, digest_of, judge, limited, refused, seconds

NAMES = ("one-secret", "two-secret", "three-secret")


def _pool() -> tuple[KeyPool, ManualClock]:
    clock = ManualClock()
    return KeyPool(NAMES, clock), clock


def _drawn(pool: KeyPool, times: int) -> list[str]:
    return [key.secret for key in (pool.next() for _ in range(times)) if key is not None]


def test_keys_are_used_in_turn() -> None:
    pool, _ = _pool()
    assert sorted(_drawn(pool, 3)) == sorted(NAMES)
    assert _drawn(pool, 3) == _drawn(pool, 3)


def test_a_key_at_rest_is_left_out_until_its_time_is_up() -> None:
    pool, clock = _pool()
    key = pool.next()
    assert key is not None
    pool.block(key, Block(5, "rate_limited"))
    assert key.secret not in _drawn(pool, 6)
    assert (pool.rests(key), pool.usable, pool.wait_s) == (True, 2, 0)
    clock.advance(5)
    assert key.secret in _drawn(pool, 3)


def test_where_all_keys_rest_there_is_none_and_the_wait_is_the_soonest() -> None:
    pool, clock = _pool()
    for for_s in (7, 3, 5):
        key = pool.next()
        assert key is not None
        pool.block(key, Block(for_s, "spent"))
    assert (pool.next(), pool.usable, pool.wait_s) == (None, 0, 3)
    clock.advance(3)
    assert len(_drawn(pool, 1)) == 1


def test_what_others_found_is_taken_over_and_a_shorter_rest_never_ends_a_longer() -> None:
    pool, clock = _pool()
    pool.learn({digest_of(NAMES[0]): Rest(4_000, "spent"), "another-backends": Rest(9_000, "spent")})
    pool.learn({digest_of(NAMES[0]): Rest(1_000, "spent")})
    clock.advance(3.9)
    assert NAMES[0] not in _drawn(pool, 6)
    clock.advance(0.2)
    assert NAMES[0] in _drawn(pool, 3)


def test_a_key_that_is_forbidden_something_is_kept_where_it_is_the_last_one() -> None:
    pool = KeyPool(["only"], ManualClock())
    key = pool.next()
    assert key is not None
    assert not pool.block(key, Block(60, "forbidden"))
    assert pool.next() == key
    assert pool.block(key, Block(60, "refused"))
    assert pool.next() is None


@pytest.mark.parametrize(
    ("whys", "all_refused", "pace_s"),
    [
        (("refused", "refused", "refused"), True, 0),
        (("refused", "forbidden", "refused"), True, 0),
        (("refused", "rate_limited", "refused"), False, 20),
        (("rate_limited", "refused", "spent"), False, 10),
        (("refused", "refused", "a word of another version"), False, 30),
        (("refused", "refused"), False, 0),
        ((), False, 0),
    ],
)
@pytest.mark.parametrize("told", [False, True])
def test_whether_waiting_is_of_use_goes_by_why_the_keys_rest(
    whys: tuple[str, ...], all_refused: bool, pace_s: float, told: bool
) -> None:
    pool, clock = _pool()
    for number, why in enumerate(whys):
        if told:
            pool.learn({digest_of(NAMES[number]): Rest((number + 1) * 10_000, why)})
        elif (key := pool.next()) is not None:
            pool.block(key, Block((number + 1) * 10, why))
    assert (pool.all_refused, pool.pace_s) == (all_refused, pytest.approx(pace_s))
    clock.advance(10)
    assert not pool.all_refused
    assert pool.usable


def test_why_a_key_rests_is_told_by_the_longest_of_its_rests() -> None:
    pool = KeyPool(["only"], ManualClock())
    key = pool.next()
    assert key is not None
    pool.block(key, refused(401))
    pool.block(key, Block(2, "rate_limited"))
    assert (pool.all_refused, pool.pace_s) == (True, 0)
    pool.block(key, Block(3_000, "rate_limited"))
    assert (pool.all_refused, pool.pace_s) == (False, 3_000)


def test_a_refused_key_rests_for_long_and_one_that_is_only_forbidden_something_less() -> None:
    assert {refused(status) for status in (200, 400, 401, 402, 429)} == {Block(300, "refused")}
    assert refused(403) == Block(60, "forbidden")


def test_a_key_is_never_shown() -> None:
    pool, _ = _pool()
    key = pool.next()
    assert key is not None
    assert key.secret not in repr(key) and key.secret not in digest_of(key.secret)
    assert digest_of(key.secret) in repr(key)


SPENT = Block(7, "spent")


@pytest.mark.parametrize(
    ("status", "pace", "asked_s", "block"),
    [
        (429, Block(BUSY_S, "rate_limited"), 34.0, Block(34, "rate_limited")),
        (429, Block(40, "rate_limited"), 34.0, Block(40, "rate_limited")),
        (429, Block(0.25, "rate_limited"), 0.25, Block(0.25, "rate_limited")),
        (413, None, None, None),
        (413, SPENT, None, SPENT),
        (413, None, 5.0, Block(5, "rate_limited")),
        (429, None, 99_999.0, Block(MOST_BLOCKED_S, "rate_limited")),
        *((status, None, 5.0, None) for status in (498, 503, 529, 200)),
        *((status, SPENT, 50.0, SPENT) for status in (498, 503, 529, 200)),
    ],
)
def test_a_key_at_its_limit_rests_as_long_as_the_refusal_says_and_one_of_a_busy_server_does_not(
    status: int, pace: Block | None, asked_s: float | None, block: Block | None
) -> None:
    assert limited(status, pace, asked_s) == block


R, T = "x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens"
RESET_R, RESET_T = "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"


@pytest.mark.parametrize(
    ("status", "headers", "block"),
    [
        (200, {}, None),
        (200, {R: "5", RESET_R: "1s", T: "100", RESET_T: "6m0s"}, None),
        (200, {R: "0", RESET_R: "1.5s"}, Block(1.5, "spent")),
        (200, {R: "0", RESET_R: "2s", T: "0", RESET_T: "6m0s"}, Block(360, "spent")),
        (200, {R: "0"}, None),
        (200, {R: "0", RESET_R: "soon"}, None),
        (429, {}, Block(BUSY_S, "rate_limited")),
        (429, {"retry-after": "7"}, Block(7, "rate_limited")),
        (429, {"retry-after-ms": "250", "retry-after": "7"}, Block(0.25, "rate_limited")),
        (429, {R: "0", RESET_R: "17ms"}, Block(0.017, "rate_limited")),
        (429, {"retry-after": "99999999"}, Block(MOST_BLOCKED_S, "rate_limited")),
        *((status, {}, None) for status in (400, 401, 402, 403)),
        (403, {R: "0", RESET_R: "1.5s"}, Block(1.5, "spent")),
        (500, {}, None),
        (503, {"retry-after": "7"}, None),
    ],
)
def test_an_answer_says_whether_its_key_must_rest_for_its_pace(
    status: int, headers: dict[str, str], block: Block | None
) -> None:
    assert judge(status, headers) == block


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("17ms", 0.017),
        ("1h2m3.5s", 3_723.5),
        ("1m", 60),
        ("1m30ms", 60.03),
        ("2.5", 2.5),
        ("0", 0),
        ("", None),
        ("-1", None),
        ("inf", None),
        ("nan", None),
        ("tomorrow", None),
        ("1s1m", None),
    ],
)
def test_a_duration_is_read_as_it_is_meant(text: str, value: float | None) -> None:
    found = seconds(text)
    assert found == value if value is None else found == pytest.approx(value)


@given(st.text())
def test_no_text_breaks_the_reading_of_a_duration(text: str) -> None:
    found = seconds(text)
    assert found is None or found >= 0
