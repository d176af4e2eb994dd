// OpenAI's Node SDK: chats whole and streamed, tools, structured answers, embeddings, models, older completions.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { all, asked, CITIES, key, toolCalls, v1 } from "./journey.mjs";

const client = new OpenAI({ baseURL: v1, apiKey: key, maxRetries: 0, timeout: 20_000 });
const Place = z.object({ city: z.string(), people: z.number().int() });
const PLACE = { city: "Saint-Étienne", people: 173_821 };
const TEXT = "one two 汉字 👩‍👩‍👧";

function weather(seen) {
  const parse = (text) => z.object({ city: z.string() }).parse(JSON.parse(text));
  const run = ({ city }) => (seen.push(city), `sunny in ${city}`);
  const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  return {
    type: "function",
    function: { name: "get_weather", description: "The weather.", parameters, parse, function: run },
  };
}

test("a chat comes whole, with its usage and the id of its request", async () => {
  const { data, response, request_id } = await client.chat.completions
    .create({ model: "echo", messages: asked(TEXT), seed: 7, metadata: { of: "node" } })
    .withResponse();
  assert.equal(data.choices[0].message.content, TEXT);
  assert.equal(data.choices[0].finish_reason, "stop");
  assert.deepEqual([data.usage.prompt_tokens, data.usage.completion_tokens, data.usage.total_tokens], [4, 4, 8]);
  assert.equal(data._request_id, request_id);
  assert.match(response.headers.get("x-headrace-job-id"), /^job_/);
});

test("a streamed chat says the same in chunks of one id, and its usage at the end", async () => {
  const stream = await client.chat.completions.create({
    model: "echo",
    messages: asked(TEXT),
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = await all(stream);
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), TEXT);
  assert.equal(chunks.at(-1).usage.completion_tokens, 4);
  assert.deepEqual(chunks.at(-1).choices, []);
});

test("the stream helper puts an answer of several choices together", async () => {
  const stream = client.chat.completions.stream({ model: "echo", messages: asked("a b c"), n: 2 });
  const whole = await stream.finalChatCompletion();
  assert.deepEqual(
    whole.choices.map((choice) => choice.message.content),
    ["a b c", "a b c"],
  );
});

for (const stream of [false, true]) {
  test(`tools are run and their results answered${stream ? ", streamed" : ""}`, async () => {
    const seen = [];
    const messages = asked({ tool_calls: toolCalls, then: "it is sunny" });
    const more = stream ? { stream, stream_options: { include_usage: true } } : {};
    const runner = client.chat.completions.runTools({ model: "echo", messages, tools: [weather(seen)], ...more });
    assert.equal(await runner.finalContent(), "it is sunny");
    assert.deepEqual(seen, CITIES);
    assert.deepEqual(
      runner.messages.map((message) => message.role),
      ["user", "assistant", "tool", "tool", "assistant"],
    );
    assert.ok((await runner.totalUsage()).completion_tokens > 3);
  });
}

test("a structured answer is parsed by its zod schema", async () => {
  const format = { response_format: zodResponseFormat(Place, "place") };
  const messages = asked({ text: JSON.stringify(PLACE) });
  const whole = await client.chat.completions.parse({ model: "echo", messages, ...format });
  assert.deepEqual(whole.choices[0].message.parsed, PLACE);
  const stream = client.chat.completions.stream({ model: "echo", messages, ...format });
  assert.deepEqual((await stream.finalChatCompletion()).choices[0].message.parsed, PLACE);
});

test("an answer that was cut off is not taken for a structured one", async () => {
  const messages = asked({ text: '{"city": "Ly' });
  const params = { model: "echo", messages, max_tokens: 1, response_format: zodResponseFormat(Place, "place") };
  await assert.rejects(client.chat.completions.parse(params), OpenAI.LengthFinishReasonError);
});

test("embeddings are the same by the client's own base64 and as numbers", async () => {
  const input = ["a", "b"];
  const packed = await client.embeddings.create({ model: "echo", input });
  const plain = await client.embeddings.create({ model: "echo", input, encoding_format: "float" });
  assert.deepEqual(
    packed.data.map((one) => [one.index, one.embedding.length]),
    [
      [0, 16],
      [1, 16],
    ],
  );
  assert.deepEqual(
    packed.data.map((one) => one.embedding.map(Math.fround)),
    plain.data.map((one) => one.embedding.map(Math.fround)),
  );
  assert.equal(packed.usage.prompt_tokens, 2);
});

test("models are listed, and one is found by a name with a slash and a colon", async () => {
  const names = (await all(client.models.list())).map((model) => model.id);
  assert.ok(names.includes("echo") && names.includes("org/echo:8b"), names.join());
  assert.equal((await client.models.retrieve("org/echo:8b")).id, "org/echo:8b");
});

test("the older completions come whole and streamed", async () => {
  const params = { model: "echo", prompt: "a b c", max_tokens: 2 };
  const whole = await client.completions.create(params);
  assert.deepEqual(
    [whole.object, whole.choices[0].text, whole.choices[0].finish_reason],
    ["text_completion", "a b", "length"],
  );
  const chunks = await all(await client.completions.create({ ...params, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0]?.text ?? "").join(""), "a b");
});
