"""Resuming: a stream cut anywhere goes on at another gateway, each event once, in order; what can't go on says so."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from common import keys
from tests.support.fleet import KEY, Fleet
from tests.support.runner import drawn_seed
from tests.support.say import CHAT, Frame, chat, follow, frames, submit, text_of, when

pytestmark = pytest.mark.timeout(90)

TEXT = "héllo 汉字 👩‍👩‍👧 \u2028 tab\t line\r\nend €uro ñ 𝄞 naïve"
KEEPALIVE = b": keep-alive\n"


@pytest.fixture
def finished(client: httpx.Client) -> str:
    """A job that has ended, with usage and text of every width."""
    body = {**chat(text=TEXT, tokens=18), "stream": True, "stream_options": {"include_usage": True}}
    job_id = submit(client, body)
    assert when(client, job_id)["status"] == "succeeded"
    return job_id


@pytest.fixture
def restarted(client: httpx.Client) -> str:
    """A job that has ended at its second attempt: the first one broke off after its readers had seen three tokens."""
    job_id = submit(client, chat(numbered=True, tokens=6, token_ms=20, fail_at=3, attempts_failing=1))
    assert when(client, job_id)["attempt"] == 2
    return job_id


def rest_of(reader: httpx.Client, job_id: str, seen: list[Frame]) -> list[Frame]:
    """What comes after these events; nothing where the job has no more to tell."""
    status, raw = follow(reader, job_id, seen[-1].id if seen else None)
    assert status == (200 if raw else 204)
    return frames(raw)


# --- ended jobs, cut everywhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["finished", "restarted"])
def test_after_every_single_event_the_rest_comes_once(
    which: str, request: pytest.FixtureRequest, client: httpx.Client, elsewhere: httpx.Client
) -> None:
    job_id: str = request.getfixturevalue(which)
    whole = frames(follow(client, job_id)[1])
    assert whole[-1].data == "[DONE]"
    assert len({event.id for event in whole}) == len(whole)
    for count in range(len(whole) + 1):
        assert rest_of(elsewhere, job_id, whole[:count]) == whole[count:], f"after {count} events"


@pytest.mark.parametrize("which", ["finished", "restarted"])
def test_after_a_cut_at_any_byte_the_rest_comes_once(
    which: str, request: pytest.FixtureRequest, client: httpx.Client, elsewhere: httpx.Client
) -> None:
    job_id: str = request.getfixturevalue(which)
    raw = follow(client, job_id)[1]
    whole = frames(raw)
    chance = random.Random(drawn_seed())
    inside_characters = [place for place, byte in enumerate(raw) if 0x80 <= byte < 0xC0]
    ends = [place for place in range(1, len(raw)) if raw[place - 1 : place + 1] == b"\n\n"]
    around_ends = [place + step for place in ends for step in (0, 1) if place + step <= len(raw)]
    cuts = [
        *chance.sample(range(1, len(raw)), 40),
        *chance.sample(inside_characters, min(20, len(inside_characters))),
        *chance.sample(around_ends, 12),
    ]
    for cut in cuts:
        status, part = follow(client, job_id, most_bytes=cut)
        assert (status, part) == (200, raw[:cut])
        seen = frames(part)
        assert seen + rest_of(elsewhere, job_id, seen) == whole, f"cut after {cut} bytes"


def test_an_answer_begun_anew_tells_its_readers_to_forget(client: httpx.Client, restarted: str) -> None:
    events = frames(follow(client, restarted)[1])
    (reset,) = [number for number, event in enumerate(events) if event.name == "reset"]
    assert text_of(events[:reset]) == " 0 1 2"
    assert text_of(events[reset:]) == " 0 1 2 3 4 5"
    assert events[reset].json["headrace"] == {"event": "reset"}
    assert len({event.id.partition("-")[0] for event in events}) == 2


# --- running jobs -----------------------------------------------------------------------------------------------------


def begun(client: httpx.Client, job_id: str) -> None:
    """Returns once the job has a worker: until then who follows it may be told its place, and that has no position."""
    when(client, job_id, "running", "succeeded")


def read_in_pieces(readers: list[httpx.Client], job_id: str, chance: random.Random, bytes_at_once: int) -> list[Frame]:
    """Everything, over as many connections as it takes, each cut at random, in turn at each gateway."""
    seen: list[Frame] = []
    for turn in range(500):
        after = seen[-1].id if seen else None
        status, raw = follow(readers[turn % 2], job_id, after, most_bytes=chance.randrange(1, bytes_at_once))
        if status == 204:
            break
        assert status == 200, raw
        seen += frames(raw)
        if seen and seen[-1].data == "[DONE]":
            break
    return seen


def test_a_running_stream_read_in_pieces_at_both_gateways_is_whole(
    client: httpx.Client, elsewhere: httpx.Client
) -> None:
    chance = random.Random(drawn_seed())
    for tokens in (0, 1, 40, 120):
        job_id = submit(client, chat(numbered=True, tokens=tokens, token_ms=4))
        begun(client, job_id)
        seen = read_in_pieces([client, elsewhere], job_id, chance, 3_000)
        assert text_of(seen) == "".join(f" {number}" for number in range(tokens))
        assert seen == frames(follow(client, job_id)[1])


def test_a_chat_that_lost_its_connection_goes_on_at_the_other_gateway(
    client: httpx.Client, elsewhere: httpx.Client
) -> None:
    body = {**chat(stream=True, numbered=True, tokens=50, token_ms=10), "stream_options": {"include_usage": True}}
    raw = b""
    with client.stream("POST", CHAT, json=body) as answer:
        job_id = answer.headers["x-headrace-job-id"]
        for piece in answer.iter_raw():
            raw += piece
            if len(frames(raw)) >= 10:
                break
    seen = frames(raw)
    seen += rest_of(elsewhere, job_id, seen)
    assert text_of(seen[:-2]) == "".join(f" {number}" for number in range(50))
    assert [event.data == "[DONE]" for event in seen[-2:]] == [False, True]
    assert seen[-2].json["usage"]["completion_tokens"] == 50
    assert when(client, job_id)["status"] == "succeeded"


def test_several_readers_at_both_gateways_get_identical_bytes(fleet: Fleet) -> None:
    def read(number: int) -> bytes:
        with fleet.client(number % 2) as reader:
            return follow(reader, job_id)[1].replace(KEEPALIVE, b"")

    with fleet.client(0) as client:
        body = chat(numbered=True, tokens=80, token_ms=5)
        job_id = submit(client, body)
        begun(client, job_id)
        with ThreadPoolExecutor(8) as pool:
            copies = list(pool.map(read, range(8)))
        assert when(client, job_id)["status"] == "succeeded"
        assert set(copies) == {follow(client, job_id)[1]}
    assert text_of(frames(copies[0])) == "".join(f" {number}" for number in range(80))


def test_readers_that_come_one_after_the_other_see_the_same(client: httpx.Client, elsewhere: httpx.Client) -> None:
    job_id = submit(client, chat(numbered=True, tokens=30, token_ms=20))
    begun(client, job_id)
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as first:
        early = first.iter_raw()
        head = next(early)
        while not frames(head):
            head += next(early)
        late = follow(elsewhere, job_id)[1]
        early_all = head + b"".join(early)
    assert frames(late) == frames(early_all)
    assert text_of(frames(late)) == "".join(f" {number}" for number in range(30))


# --- positions that are none ------------------------------------------------------------------------------------------


def ask(client: httpx.Client, job_id: str, position: str) -> httpx.Response:
    """The events after what stands in the header."""
    return client.get(f"/v1/jobs/{job_id}/events", headers=[(b"last-event-id", position.encode())])


@pytest.mark.parametrize(
    "position",
    [
        *("x", "1", "-", "1-", "-1", "1-1-1", "0x1-1", "1.5-1", "+1-1", "1-+1", "1 - 1", "1_0-1", "½-1", "١-1"),
        *("1-99999999999", "99999999999999999-1", "9" * 4_000, "$", "*", "1-1; DROP", "null"),
    ],
)
def test_a_position_that_is_none_is_refused(client: httpx.Client, finished: str, position: str) -> None:
    for answer in (
        ask(client, finished, position),
        client.get(f"/v1/jobs/{finished}/events", params={"last_event_id": position}),
        client.get(f"/v1/jobs/{finished}/events", params={"last_event_id": position}, headers={"last-event-id": "1-1"}),
    ):
        assert answer.status_code == 400, position
        assert answer.json()["error"]["param"] == "Last-Event-ID"


Move = Callable[[int, int], str]


@pytest.mark.parametrize(
    "move",
    [
        lambda f, s: f"{f}-{s + 1}",
        lambda f, s: f"{f}-{s + 1000}",
        lambda f, s: f"{f + 1}-1",
        lambda f, s: f"{f + 10**6}-0",
    ],
    ids=["next", "far", "next fence", "later fence"],
)
def test_a_position_beyond_the_end_is_gone(client: httpx.Client, finished: str, move: Move) -> None:
    fence, _, seq = frames(follow(client, finished)[1])[-1].id.partition("-")
    answer = ask(client, finished, move(int(fence), int(seq)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "stream_expired")


def test_a_position_beyond_a_running_jobs_last_event_is_gone_too(client: httpx.Client) -> None:
    job_id = submit(client, chat(numbered=True, tokens=5, token_ms=1, hang_at=3))
    begun(client, job_id)
    events = frames(follow(client, job_id, most_bytes=500)[1])
    fence = events[0].id.partition("-")[0]
    answer = ask(client, job_id, f"{fence}-4")
    client.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "stream_expired")


def test_a_position_of_another_job_or_of_no_attempt_is_never_continued(client: httpx.Client, finished: str) -> None:
    other = submit(client, chat(words="other"))
    when(client, other)
    theirs = frames(follow(client, other)[1])[0].id
    mine = frames(follow(client, finished)[1])[0].id
    assert ask(client, finished, theirs).status_code == 410
    earlier = ask(client, other, mine)
    assert (earlier.status_code, earlier.json()["error"]["code"]) == (410, "stream_lost")
    assert ask(client, other, "1-1").status_code == 410


def test_the_position_may_stand_in_the_address_and_the_header_wins(client: httpx.Client, finished: str) -> None:
    whole = frames(follow(client, finished)[1])
    address = f"/v1/jobs/{finished}/events?last_event_id={whole[2].id}"
    assert frames(client.get(address).content) == whole[3:]
    assert frames(client.get(address, headers={"last-event-id": whole[5].id}).content) == whole[6:]
    assert frames(client.get(f"/v1/jobs/{finished}/events?last_event_id=").content) == whole


def test_the_beginning_of_an_attempt_is_a_position(client: httpx.Client, finished: str) -> None:
    whole = frames(follow(client, finished)[1])
    fence = whole[0].id.partition("-")[0]
    assert frames(ask(client, finished, f"{fence}-0").content) == whole


# --- streams that are gone --------------------------------------------------------------------------------------------


def stream_key(job_id: str) -> str:
    return keys.stream("default", job_id)


def test_an_ended_jobs_stream_that_is_no_longer_kept_is_gone_and_its_result_is_not(
    fleet: Fleet, client: httpx.Client, finished: str
) -> None:
    whole = frames(follow(client, finished)[1])
    fleet.redis.command("DEL", stream_key(finished))
    for position in (None, whole[3].id, whole[-1].id):
        status, raw = follow(client, finished, position)
        assert status == 410, raw
    assert when(client, finished)["result"]["choices"][0]["message"]["content"]


def test_a_stream_whose_beginning_was_trimmed_is_never_a_short_answer(fleet: Fleet, client: httpx.Client) -> None:
    job_id = submit(client, chat(numbered=True, tokens=20, token_ms=15))
    when(client, job_id)
    whole = frames(follow(client, job_id)[1])
    fleet.redis.command("XTRIM", stream_key(job_id), "MAXLEN", "=", 3)
    for position in (None, whole[1].id):
        status, raw = follow(client, job_id, position)
        assert status == 410, raw
    last_but_one = follow(client, job_id, whole[-2].id)
    assert (last_but_one[0], frames(last_but_one[1])) == (200, whole[-1:])


def seen_of(client: httpx.Client, job_id: str, count: int) -> list[Frame]:
    """The first so many events of a running job; then its reader hangs up."""
    raw = b""
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        for piece in answer.iter_raw():
            raw += piece
            if len(frames(raw)) >= count:
                return frames(raw)[:count]
    raise AssertionError(f"the stream ended early: {raw!r}")


def test_a_live_readers_stream_that_is_lost_ends_with_a_word(fleet: Fleet, client: httpx.Client) -> None:
    job_id = submit(client, chat(numbered=True, tokens=200, token_ms=30))
    seen_of(client, job_id, 3)
    raw = b""
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        for piece in answer.iter_raw():
            if not frames(raw) and frames(raw + piece):
                fleet.redis.command("DEL", stream_key(job_id))
            raw += piece
    *events, end = frames(raw)
    assert end.json["error"]["code"] in ("stream_lost", "stream_expired")
    numbers = text_of(events).split()
    assert numbers == [str(number) for number in range(len(numbers))]
    found = when(client, job_id)
    assert (found["status"], found["error"]["code"]) == ("failed", "stream_lost")


def test_a_stream_that_was_rebuilt_is_never_continued(fleet: Fleet, client: httpx.Client) -> None:
    job_id = submit(client, chat(numbered=True, tokens=200, token_ms=30))
    seen = seen_of(client, job_id, 3)
    key = stream_key(job_id)
    fleet.redis.command("DEL", key)
    fleet.redis.command("XADD", key, "1-1", "c", '{"choices":[]}')
    status, raw = follow(client, job_id, seen[-1].id)
    client.post(f"/v1/jobs/{job_id}/cancel")
    if status == 200:
        assert frames(raw)[-1].json["error"]["code"] in ("stream_lost", "stream_expired")
        assert text_of(frames(raw)[:-1]) == ""
    else:
        assert status == 410, raw


def test_a_reader_without_a_key_gets_nothing(fleet: Fleet, finished: str) -> None:
    url = f"{fleet.url()}/v1/jobs/{finished}/events"
    assert httpx.get(url, trust_env=False).status_code == 401
    assert httpx.get(url, params={"api_key": KEY}, trust_env=False).status_code == 401


def usage_of(event: Frame) -> Any:
    return event.json["usage"]


def test_usage_and_the_end_are_events_of_their_own(client: httpx.Client, finished: str) -> None:
    whole = frames(follow(client, finished)[1])
    *_, usage, done = whole
    assert usage_of(usage)["completion_tokens"] == 18
    assert follow(client, finished, usage.id)[1].endswith(f"id: {done.id}\ndata: [DONE]\n\n".encode())
    assert follow(client, finished, done.id) == (204, b"")
