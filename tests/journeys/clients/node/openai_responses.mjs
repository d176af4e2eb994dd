// OpenAI's Node SDK: responses whole, streamed, in the background, followed from a number, cancelled, deleted.

import assert from "node:assert/strict";
import { suite, test } from "node:test";

import OpenAI from "openai";
import { zodResponsesFunction, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { all, asked, CITIES, key, script, toolCalls, v1 } from "./journey.mjs";

const client = new OpenAI({ baseURL: v1, apiKey: key, maxRetries: 0, timeout: 20_000 });
const Place = z.object({ city: z.string(), people: z.number().int() });
const SLOW = script({ numbered: true, tokens: 40, token_ms: 25 });
const SAID = Array.from({ length: 40 }, (_, number) => ` ${number}`).join("");

const textOf = (events) =>
  events
    .filter((event) => event.type === "response.output_text.delta")
    .map((event) => event.delta)
    .join("");

suite("responses", { concurrency: true }, () => {
  test("a response comes whole, is found again and deleted", async () => {
    const response = await client.responses.create({ model: "echo", instructions: "Be short.", input: "one two" });
    assert.equal(response.output_text, "one two");
    assert.equal(response.usage.output_tokens, 2);
    const found = await client.responses.retrieve(response.id);
    assert.deepEqual([found.status, found.output_text], ["completed", "one two"]);
    await client.responses.delete(response.id);
    await assert.rejects(client.responses.retrieve(response.id), OpenAI.NotFoundError);
  });

  test("a streamed response tells numbered events, and the stream helper the same whole", async () => {
    const events = await all(await client.responses.create({ model: "echo", input: "one two", stream: true }));
    assert.deepEqual(
      events.map((event) => event.sequence_number),
      events.map((_, number) => number),
    );
    assert.deepEqual([events[0].type, events.at(-1).type], ["response.created", "response.completed"]);
    assert.equal(textOf(events), "one two");
    const stream = client.responses.stream({ model: "echo", input: script({ reasoning: "hm", text: "one two" }) });
    assert.equal((await stream.finalResponse()).output_text, "one two");
  });

  test("a structured response is parsed by its zod schema, whole and streamed", async () => {
    const params = { model: "echo", input: script({ text: '{"city": "Lyon", "people": 522250}' }) };
    const text = { format: zodTextFormat(Place, "place") };
    const whole = await client.responses.parse({ ...params, text });
    assert.deepEqual(whole.output_parsed, { city: "Lyon", people: 522_250 });
    const streamed = await client.responses.stream({ ...params, text }).finalResponse();
    assert.deepEqual(streamed.output_parsed, whole.output_parsed);
  });

  test("functions are called with parsed arguments and their results answered", async () => {
    const tools = [zodResponsesFunction({ name: "get_weather", parameters: z.object({ city: z.string() }) })];
    const params = { model: "echo", input: script({ tool_calls: toolCalls, then: "it is sunny" }), tools };
    const first = await client.responses.parse(params);
    const calls = first.output.filter((item) => item.type === "function_call");
    assert.deepEqual(
      calls.map((call) => call.parsed_arguments.city),
      CITIES,
    );
    const results = calls.map((call) => ({ type: "function_call_output", call_id: call.call_id, output: "sunny" }));
    const second = await client.responses.create({ ...params, input: results, previous_response_id: first.id });
    assert.equal(second.output_text, "it is sunny");
    const streamed = await client.responses.stream(params).finalResponse();
    assert.deepEqual(
      streamed.output.map((item) => item.parsed_arguments?.city),
      CITIES,
    );
  });

  test("one in the background is looked up until it is done", async () => {
    let response = await client.responses.create({ model: "echo", input: SLOW, background: true });
    assert.ok(["queued", "in_progress"].includes(response.status), response.status);
    while (["queued", "in_progress"].includes(response.status)) response = await client.responses.retrieve(response.id);
    assert.deepEqual([response.status, response.output_text], ["completed", SAID]);
  });

  test("a stream in the background that was left is followed from its number on", async () => {
    const first = await client.responses.create({ model: "echo", input: SLOW, background: true, stream: true });
    const before = [];
    for await (const event of first) {
      before.push(event);
      if (textOf(before).length > 20) break;
    }
    const id = before[0].response.id;
    const starting_after = before.at(-1).sequence_number;
    const after = await all(await client.responses.retrieve(id, { stream: true, starting_after }));
    const events = [...before, ...after];
    assert.deepEqual(
      events.map((event) => event.sequence_number),
      events.map((_, number) => number),
    );
    assert.equal(textOf(events), SAID);
    // The helper asks for it all, shows what came after the number, and knows the whole.
    const helper = client.responses.stream({ response_id: id, starting_after });
    assert.deepEqual(
      (await all(helper)).map((event) => event.sequence_number),
      after.map((event) => event.sequence_number),
    );
    assert.equal((await helper.finalResponse()).output_text, SAID);
  });

  test("one in the background is cancelled, and its follower told", async () => {
    const input = script({ numbered: true, tokens: 5, hang_at: 2 });
    const stream = await client.responses.create({ model: "echo", input, background: true, stream: true });
    let id, last;
    for await (const event of stream) {
      last = event;
      if (event.type === "response.created") id = event.response.id;
      if (textOf([event]) === " 1") assert.equal((await client.responses.cancel(id)).status, "cancelled");
    }
    assert.deepEqual([last.type, last.response.status], ["response.failed", "cancelled"]);
  });

  test("what was said is listed as the response's input", async () => {
    const response = await client.responses.create({ model: "echo", input: asked("one") });
    const items = await all(client.responses.inputItems.list(response.id));
    assert.deepEqual(
      items.map((item) => [item.role, item.content[0].text]),
      [["user", "one"]],
    );
  });
});
