"""Responses, asked for with OpenAI's own client: whole, streamed, resumed, in the background, gone on from, deleted."""

from __future__ import annotations

from typing import Any, Final

import httpx
import openai
import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.support.fleet import KEY, Fleet, until
from tests.support.say import Frame, frames, record

pytestmark = pytest.mark.timeout(60)

PATH: Final = "/v1/responses"
EVENTS: Final[TypeAdapter[Any]] = TypeAdapter(ResponseStreamEvent)
KEYS: Final = frozenset(
    "id object created_at completed_at status incomplete_details model previous_response_id instructions output error "
    "tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty top_logprobs "
    "temperature reasoning user usage max_output_tokens max_tool_calls store background service_tier metadata "
    "safety_identifier prompt_cache_key".split()
)
WEATHER: Final[Any] = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}


def script(**words: Any) -> str:
    """Input that has the echo model answer by a script."""
    return "echo: " + orjson.dumps(words).decode()


def ended(client: httpx.Client, response: str) -> dict[str, Any]:
    """The response once it has ended."""

    def look() -> dict[str, Any] | None:
        found = client.get(f"{PATH}/{response}").json()
        return found if found["status"] not in ("queued", "in_progress") else None

    found = until(look, 15, f"{response} never ended")
    assert found is not None
    return found


def followed(client: httpx.Client, response: str, after: int | None = None) -> list[Frame]:
    """The events of a response's stream after one of them."""
    query = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
    answer = client.get(f"{PATH}/{response}", params=query)
    assert answer.status_code == 200, answer.text
    return frames(answer.content)


def kinds(events: list[Frame]) -> list[str]:
    """The events' types, each run of deltas as one."""
    found: list[str] = []
    for event in events:
        assert event.name == event.json["type"]
        if not (event.name.endswith("delta") and found and found[-1] == event.name):
            found.append(event.name)
    return found


def checked(events: list[Frame]) -> list[Frame]:
    """The events, numbered from 0 without a gap, each as OpenAI's client knows it."""
    assert [event.json["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        EVENTS.validate_json(event.data, strict=True)
    return events


# --- whole answers ----------------------------------------------------------------------------------------------------


def test_a_response_is_whole_and_has_every_key(client: httpx.Client, sdk: openai.OpenAI) -> None:
    answer = client.post(PATH, json={"model": "echo", "input": "one two three"})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found.keys() == KEYS
    response = Response.model_validate_json(answer.content, strict=True)
    assert (response.output_text, response.status) == ("one two three", "completed")
    assert found["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 6,
    }
    assert found["completed_at"] >= found["created_at"]
    assert client.get(f"{PATH}/{found['id']}").json() == found
    assert sdk.responses.retrieve(found["id"]).output_text == "one two three"
    assert found["id"].removeprefix("resp_") == answer.headers["x-headrace-job-id"].removeprefix("job_")


def test_what_was_asked_is_repeated(client: httpx.Client) -> None:
    asked: dict[str, Any] = {
        "instructions": "Be short.",
        "temperature": 0.5,
        "top_p": 0.25,
        "max_output_tokens": 100,
        "max_tool_calls": 3,
        "top_logprobs": 2,
        "parallel_tool_calls": False,
        "tools": [{**WEATHER, "description": "The weather."}],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
        "truncation": "auto",
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
    }
    answer = client.post(PATH, json={"model": "echo", "input": "hi", **asked})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert {name: found[name] for name in asked} == asked
    Response.model_validate_json(answer.content, strict=True)


def test_a_limit_and_a_filter_leave_it_incomplete(client: httpx.Client) -> None:
    cut = client.post(PATH, json={"model": "echo", "input": "a b c d", "max_output_tokens": 2}).json()
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in cut["output"]] == ["incomplete"]
    given = script(text="no", finish_reason="content_filter")
    filtered = client.post(PATH, json={"model": "echo", "input": given}).json()
    assert filtered["incomplete_details"] == {"reason": "content_filter"}


def test_log_probabilities_come_whole_and_streamed(client: httpx.Client) -> None:
    asked = {"model": "echo", "input": "a b", "top_logprobs": 2}
    whole = client.post(PATH, json=asked).json()["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in whole] == ["a", " b"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in whole)
    streamed = checked(frames(client.post(PATH, json={**asked, "stream": True}).content))
    deltas = [event.json["logprobs"] for event in streamed if event.name == "response.output_text.delta"]
    assert [entry for entries in deltas for entry in entries] == whole


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_tells_each_step_in_order(client: httpx.Client) -> None:
    answer = client.post(PATH, json={"model": "echo", "input": "one two", "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = checked(frames(answer.content))
    assert kinds(events) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    final = events[-1].json["response"]
    assert client.get(f"{PATH}/{final['id']}").json() == final
    assert final.keys() == KEYS


def test_reasoning_and_calls_are_items_of_their_own(client: httpx.Client) -> None:
    thought = script(reasoning="let me think", text="an answer")
    events = checked(frames(client.post(PATH, json={"model": "echo", "input": thought, "stream": True}).content))
    final = events[-1].json["response"]
    assert [item["type"] for item in final["output"]] == ["reasoning", "message"]
    assert final["output"][0]["content"] == [{"type": "reasoning_text", "text": "let me think"}]
    assert kinds(events)[2:7] == [
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
    ]
    assert client.get(f"{PATH}/{final['id']}").json() == final


def test_the_sdk_puts_a_stream_with_calls_together(sdk: openai.OpenAI) -> None:
    calls = [{"name": "get_weather", "arguments": {"city": city}} for city in ("Saint-Étienne", "東京")]
    with sdk.responses.stream(model="echo", input=script(tool_calls=calls), tools=[WEATHER]) as stream:
        seen = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= seen
    found = [orjson.loads(item.arguments) for item in final.output if item.type == "function_call"]
    assert found == [call["arguments"] for call in calls]
    assert final.status == "completed"


def test_the_sdks_accumulated_text_is_the_final_text(sdk: openai.OpenAI) -> None:
    said = ""
    with sdk.responses.stream(model="echo", input="one two three") as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                said = event.snapshot
        assert stream.get_final_response().output_text == said == "one two three"


@pytest.mark.parametrize(
    "words",
    [
        {"text": "one two three"},
        {"text": ""},
        {"reasoning": "hm hm", "text": "yes"},
        {"tool_calls": [{"name": "get_weather", "arguments": {"city": "Lyon"}}]},
        {"text": "a b", "finish_reason": "length"},
    ],
    ids=["text", "empty", "reasoning", "call", "cut"],
)
def test_whole_streamed_and_stored_say_the_same(client: httpx.Client, words: dict[str, Any]) -> None:
    asked = {"model": "echo", "input": script(**words), "tools": [WEATHER]}
    whole = client.post(PATH, json=asked).json()
    events = checked(frames(client.post(PATH, json={**asked, "stream": True}).content))
    streamed = events[-1].json["response"]

    def bare(response: dict[str, Any]) -> str:
        text = orjson.dumps({**response, "created_at": 0, "completed_at": 0}, option=orjson.OPT_SORT_KEYS).decode()
        return text.replace(response["id"][-32:], "")

    assert bare(whole) == bare(streamed)
    done = [event.json["item"] for event in events if event.name == "response.output_item.done"]
    assert done == streamed["output"]
    again = followed(client, whole["id"])
    assert bare(checked(again)[-1].json["response"]) == bare(whole)


# --- resumed ----------------------------------------------------------------------------------------------------------


def test_any_response_is_read_again_from_any_event_at_any_gateway(
    client: httpx.Client, elsewhere: httpx.Client
) -> None:
    events = frames(client.post(PATH, json={"model": "echo", "input": "a b c d e", "stream": True}).content)
    response = events[0].json["response"]["id"]
    for after in range(-1, len(events)):
        assert followed(elsewhere, response, None if after < 0 else after) == events[after + 1 :]


@pytest.mark.parametrize("background", [True, False])
def test_a_stream_that_was_cut_goes_on_where_it_was(
    fleet: Fleet, sdk: openai.OpenAI, client: httpx.Client, background: bool
) -> None:
    given = script(numbered=True, tokens=60, token_ms=12)
    seen: list[Any] = []
    headers = {"x-headrace-on-disconnect": "continue"}
    with sdk.responses.create(
        model="echo", input=given, stream=True, background=background, extra_headers=headers
    ) as stream:
        for event in stream:
            seen.append(event)
            if len(seen) == 12:
                break
    assert seen[0].type == "response.created"
    response = seen[0].response.id
    with openai.OpenAI(api_key=KEY, base_url=fleet.url(1) + "/v1", max_retries=0, timeout=20) as other:
        with other.responses.retrieve(response, stream=True, starting_after=seen[-1].sequence_number) as rest:
            seen += list(rest)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
    assert text == "".join(f" {number}" for number in range(60)) == seen[-1].response.output_text
    assert [event.json for event in followed(client, response)] == [event.to_dict(mode="json") for event in seen]


def test_a_malformed_place_to_go_on_from_is_refused(client: httpx.Client) -> None:
    response = client.post(PATH, json={"model": "echo", "input": "a"}).json()["id"]
    for query in ({"stream": "true", "starting_after": "x"}, {"starting_after": "3"}, {"stream": "perhaps"}):
        answer = client.get(f"{PATH}/{response}", params=query)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_who_asks_for_more_than_an_ended_response_had_is_told_what_its_last_event_was(client: httpx.Client) -> None:
    response = client.post(PATH, json={"model": "echo", "input": "a"}).json()["id"]
    last = followed(client, response)[-1].json["sequence_number"]
    assert followed(client, response, last) == []
    for after in (last + 1, 999_999_999):
        answer = client.get(f"{PATH}/{response}", params={"stream": "true", "starting_after": str(after)})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "starting_after")
        assert error["message"].endswith(f"its last event is {last}.")


def test_when_its_stream_is_gone_the_answer_is_told_once_more(fleet: Fleet, client: httpx.Client) -> None:
    response = client.post(PATH, json={"model": "echo", "input": "a b c"}).json()
    fleet.redis.command("DEL", f"hr:{{default}}:stream:job_{response['id'].removeprefix('resp_')}")
    events = checked(followed(client, response["id"]))
    assert events[-1].json["response"]["output"] == response["output"]
    late = client.get(f"{PATH}/{response['id']}", params={"stream": "true", "starting_after": "2"})
    assert (late.status_code, late.json()["error"]["code"]) == (410, "stream_expired")


# --- in the background ------------------------------------------------------------------------------------------------


def test_a_background_response_is_queued_at_once_and_found_later(sdk: openai.OpenAI, client: httpx.Client) -> None:
    queued = sdk.responses.create(model="echo", input=script(text="later", first_token_ms=200), background=True)
    assert queued.status in ("queued", "in_progress") and queued.output == [] and queued.background
    done = ended(client, queued.id)
    assert (done["status"], done["output"][0]["content"][0]["text"]) == ("completed", "later")
    events = checked(followed(client, queued.id))
    assert kinds(events)[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert events[-1].json["response"] == done


def test_a_response_is_cancelled_once_and_says_so_ever_after(sdk: openai.OpenAI, client: httpx.Client) -> None:
    slow = script(numbered=True, tokens=500, token_ms=50)
    response = sdk.responses.create(model="echo", input=slow, background=True).id
    until(lambda: client.get(f"{PATH}/{response}").json()["status"] == "in_progress", 10)
    first = sdk.responses.cancel(response)
    again = sdk.responses.cancel(response)
    assert first.status == "cancelled" and first == again == sdk.responses.retrieve(response)
    events = checked(followed(client, response))
    assert (events[-1].name, events[-1].json["response"]["status"]) == ("response.failed", "cancelled")
    waiting = sdk.responses.create(model="unserved", input="x", background=True).id
    assert sdk.responses.cancel(waiting).status == "cancelled"


def test_background_needs_to_be_kept(client: httpx.Client) -> None:
    answer = client.post(PATH, json={"model": "echo", "input": "a", "background": True, "store": False})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "background")


def test_a_failure_is_in_the_response_and_ends_its_stream(client: httpx.Client) -> None:
    given = script(numbered=True, tokens=9, token_ms=5, fail_at=4)
    events = checked(frames(client.post(PATH, json={"model": "echo", "input": given, "stream": True}).content))
    final = events[-1].json["response"]
    assert (events[-1].name, final["status"]) == ("response.failed", "failed")
    assert final["error"]["code"] == "server_error" and "upstream_interrupted" in final["error"]["message"]
    assert final["output"][0]["status"] == "incomplete"
    stored = client.get(f"{PATH}/{final['id']}")
    Response.model_validate_json(stored.content, strict=True)
    assert stored.json() == final


def test_an_answer_begun_anew_leaves_one_answer(client: httpx.Client) -> None:
    given = script(numbered=True, tokens=6, token_ms=5, fail_at=3, attempts_failing=1)
    response = client.post(PATH, json={"model": "echo", "input": given, "background": True}).json()["id"]
    done = ended(client, response)
    assert done["output"][0]["content"][0]["text"] == " 0 1 2 3 4 5"
    events = checked(followed(client, response))
    items = [event.json["item"] for event in events if event.name == "response.output_item.done"]
    assert [item["status"] for item in items] == ["incomplete", "completed"]
    assert events[-1].json["response"]["output"] == items[1:]
    assert events[-1].json["response"] == done
    assert followed(client, response, 7) == events[8:]


def test_before_the_first_token_a_failure_is_a_status(sdk: openai.OpenAI) -> None:
    for streamed in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            sdk.responses.create(model="echo", input=script(error="upstream_credentials"), stream=streamed)
        assert (caught.value.status_code, caught.value.code) == (502, "upstream_credentials")


# --- gone on from -----------------------------------------------------------------------------------------------------


def test_a_response_goes_on_from_another_without_its_instructions(sdk: openai.OpenAI, client: httpx.Client) -> None:
    first = sdk.responses.create(model="echo", input="one", instructions="Be short.")
    second = sdk.responses.create(model="echo", input="two", previous_response_id=first.id, instructions="Be long.")
    third = sdk.responses.create(model="echo", input="three", previous_response_id=second.id)
    assert (third.previous_response_id, third.instructions) == (second.id, None)
    items = sdk.responses.input_items.list(third.id, order="asc").data
    said = [(item.role, item.content[0].text) for item in items if item.type == "message"]  # pyright: ignore
    assert said == [("user", "one"), ("assistant", "one"), ("user", "two"), ("assistant", "two"), ("user", "three")]
    # The echo model counts words of all that it is sent: five, and no instructions.
    assert third.usage is not None and third.usage.input_tokens == 5


def test_a_call_is_answered_by_its_output(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model="echo", input="weather?", tools=[WEATHER], tool_choice="required")
    (call,) = [item for item in first.output if item.type == "function_call"]
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    second = sdk.responses.create(model="echo", input=output, previous_response_id=first.id, tools=[WEATHER])
    assert second.status == "completed"
    items = sdk.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in items] == ["message", "function_call", "function_call_output"]
    history: Any = [{"role": "user", "content": "weather?"}, *[item.to_dict() for item in first.output], *output]
    assert sdk.responses.create(model="echo", input=history, tools=[WEATHER]).status == "completed"


def test_items_may_be_named_instead_of_sent_again(
    sdk: openai.OpenAI, client: httpx.Client, elsewhere: httpx.Client, stranger: httpx.Client
) -> None:
    def asked(*items: Any) -> dict[str, Any]:
        references = [{"type": "item_reference", "id": item.id} if hasattr(item, "id") else item for item in items]
        return {"model": "echo", "input": [{"role": "user", "content": "weather?"}, *references], "tools": [WEATHER]}

    words = script(reasoning="hm", text="let me see")
    first = sdk.responses.create(model="echo", input=words)
    called = sdk.responses.create(model="echo", input="x", tools=[WEATHER], tool_choice="required")
    (call,) = called.output
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}  # pyright: ignore
    body = asked(*first.output, call, output, {"role": "user", "content": "and so?"})
    answer = elsewhere.post(PATH, json=body).json()
    assert answer["output"][0]["content"][0]["text"] == "and so?"
    items = client.get(f"{PATH}/{answer['id']}/input_items", params={"order": "asc"}).json()["data"]
    kinds = ["message", "message", "function_call", "function_call_output", "message"]
    assert [item["type"] for item in items] == kinds
    assert items[1]["content"][0]["text"] == "let me see"
    assert client.post(f"{PATH}/input_tokens", json=body).status_code == 200
    forgotten = sdk.responses.create(model="echo", input=words, store=False)
    for one, wrong in ((stranger, body), (client, asked(*forgotten.output)), (client, asked(call, call))):
        refused = one.post(PATH, json=wrong)
        assert refused.status_code == 400 and "input[" in refused.json()["error"]["param"]


def test_what_was_put_in_may_be_named_too_under_the_id_that_every_turn_lists(
    sdk: openai.OpenAI, client: httpx.Client, stranger: httpx.Client
) -> None:
    def listed(response: str) -> list[dict[str, Any]]:
        return client.get(f"{PATH}/{response}/input_items", params={"order": "asc"}).json()["data"]

    first = sdk.responses.create(model="echo", input="one")
    second = sdk.responses.create(model="echo", input="two", previous_response_id=first.id)
    assert listed(second.id)[0] == listed(first.id)[0]
    assert listed(second.id)[1]["id"] == first.output[0].id
    (question, answer, own) = listed(second.id)
    references: Any = [{"id": item["id"]} for item in (question, answer, own)]
    named = client.post(PATH, json={"model": "echo", "input": references})
    assert named.status_code == 200, named.text
    assert listed(named.json()["id"]) == [question, answer, own]
    assert stranger.post(PATH, json={"model": "echo", "input": references}).status_code == 400


def test_a_call_without_its_output_is_not_gone_on_from(sdk: openai.OpenAI, client: httpx.Client) -> None:
    first = sdk.responses.create(model="echo", input="weather?", tools=[WEATHER], tool_choice="required")
    asked = {"model": "echo", "input": "so?", "previous_response_id": first.id}
    answer = client.post(PATH, json=asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("No tool output found for function call ")


def test_an_unknown_one_to_go_on_from_is_refused(client: httpx.Client, stranger: httpx.Client) -> None:
    kept = client.post(PATH, json={"model": "echo", "input": "a"}).json()["id"]
    forgotten = client.post(PATH, json={"model": "echo", "input": "a", "store": False}).json()["id"]
    for one, previous in ((client, forgotten), (stranger, kept), (client, "resp_x"), (client, kept[:-1] + "z")):
        answer = one.post(PATH, json={"model": "echo", "input": "b", "previous_response_id": previous})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "previous_response_not_found")


def test_a_conversation_that_has_grown_beyond_what_a_body_may_hold_is_not_gone_on_with(client: httpx.Client) -> None:
    asked: dict[str, Any] = {"model": "echo", "input": "x" * 1_200_000, "max_output_tokens": 1}
    first = client.post(PATH, json=asked).json()["id"]
    second = client.post(PATH, json={**asked, "previous_response_id": first}).json()["id"]
    refused = client.post(PATH, json={"model": "echo", "input": "x", "previous_response_id": second})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (413, "request_too_large", "previous_response_id")


def test_input_items_come_in_pages(client: httpx.Client) -> None:
    given: Any = [{"role": "user", "content": f"n{number}"} for number in range(5)]
    response = client.post(PATH, json={"model": "echo", "input": given}).json()["id"]
    seen: list[str] = []
    page: dict[str, Any] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        query = {"limit": "2"} | ({"after": page["last_id"]} if page["last_id"] else {})
        page = client.get(f"{PATH}/{response}/input_items", params=query).json()
        seen += [item["content"][0]["text"] for item in page["data"]]
    assert seen == ["n4", "n3", "n2", "n1", "n0"]


def test_the_tokens_of_an_input_are_estimated_with_all_that_goes_along(
    sdk: openai.OpenAI, client: httpx.Client
) -> None:
    text = "four letters make one token, or so it is said" * 20
    bare = sdk.responses.input_tokens.count(model="echo", input=text)
    assert bare.object == "response.input_tokens"
    assert len(text) // 6 < bare.input_tokens < len(text) // 2
    more: Any = {"instructions": text, "tools": [WEATHER]}
    assert sdk.responses.input_tokens.count(model="echo", input=text, **more).input_tokens > 2 * bare.input_tokens
    first = sdk.responses.create(model="echo", input=text)
    gone_on = sdk.responses.input_tokens.count(model="echo", input="x", previous_response_id=first.id)
    assert gone_on.input_tokens > 2 * bare.input_tokens, "the question and its answer count"
    unknown = client.post(f"{PATH}/input_tokens", json={"model": "none", "input": "x"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    lacking = client.post(f"{PATH}/input_tokens", json={"model": "echo"})
    assert (lacking.status_code, lacking.json()["error"]["param"]) == (400, "input")


# --- whose, and how long ----------------------------------------------------------------------------------------------


def test_a_response_of_somebody_else_or_not_kept_is_not_found(client: httpx.Client, stranger: httpx.Client) -> None:
    kept = client.post(PATH, json={"model": "echo", "input": "a"}).json()["id"]
    forgotten = client.post(PATH, json={"model": "echo", "input": "a", "store": False}).json()["id"]
    chat = client.post("/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": "a"}]})
    other = "resp_" + chat.headers["x-headrace-job-id"].removeprefix("job_")
    for one, response in ((stranger, kept), (client, forgotten), (client, other), (client, "resp_nothing")):
        home = f"{PATH}/{response}"
        for method, path in (
            ("GET", home),
            ("DELETE", home),
            ("POST", home + "/cancel"),
            ("GET", home + "/input_items"),
        ):
            answer = one.request(method, path)
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, "invalid_request_error"), path
    assert client.get(f"{PATH}/{kept}").status_code == 200


def test_a_deleted_response_is_gone_with_its_job(sdk: openai.OpenAI, client: httpx.Client) -> None:
    done = sdk.responses.create(model="echo", input="a")
    runs = sdk.responses.create(model="echo", input=script(tokens=500, token_ms=50), background=True)
    for response in (done.id, runs.id):
        sdk.responses.delete(response)
        for path in ("", "?stream=true", "/input_items"):
            assert client.get(f"{PATH}/{response}{path}").status_code == 404
        assert client.get("/v1/jobs/job_" + response.removeprefix("resp_")).status_code == 404
        with pytest.raises(openai.NotFoundError):
            sdk.responses.delete(response)


def test_the_job_of_a_response_names_its_endpoint(client: httpx.Client) -> None:
    answer = client.post(PATH, json={"model": "echo", "input": "a", "metadata": {"k": "v"}})
    found = record(client, answer.headers["x-headrace-job-id"])
    assert (found["endpoint"], found["metadata"], found["status"]) == (PATH, {"k": "v"}, "succeeded")


def test_a_key_that_comes_again_gets_the_same_response(client: httpx.Client) -> None:
    for more in ({}, {"background": True}, {"stream": True}):
        asked: dict[str, Any] = {"model": "echo", "input": "same", **more}
        headers = {"idempotency-key": f"responses-{more}"}
        first = client.post(PATH, json=asked, headers=headers)
        again = client.post(PATH, json=asked, headers=headers)
        assert again.headers["x-headrace-job-id"] == first.headers["x-headrace-job-id"]
        assert again.headers["x-headrace-replayed"] == "true"


class Place(BaseModel):
    """What a structured answer is to be."""

    city: str
    people: int


def test_a_structured_answer_is_parsed_by_the_sdk(sdk: openai.OpenAI) -> None:
    given = script(text='{"city": "Lyon", "people": 522250}')
    parsed = sdk.responses.parse(model="echo", input=given, text_format=Place)
    assert parsed.output_parsed == Place(city="Lyon", people=522250)
