// Each client against any model, a real one too: what is asserted here does not depend on what the model says.

import assert from "node:assert/strict";
import { suite, test } from "node:test";

import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { generateObject, streamText } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { all, base, jobWhen, key, v1 } from "./journey.mjs";

const model = process.env.HEADRACE_TEST_MODEL;
const openai = new OpenAI({ baseURL: v1, apiKey: key, maxRetries: 0, timeout: 60_000 });
const anthropic = new Anthropic({ baseURL: base, apiKey: key, maxRetries: 0, timeout: 60_000 });
const ollama = new Ollama({ host: base, headers: { authorization: `Bearer ${key}` } });
const messages = [{ role: "user", content: "Say hello to the water mill and nothing else." }];
const same = { temperature: 0, seed: 1 };

suite(`clients in front of ${model}`, () => {
  test("OpenAI's client: what is streamed is what comes whole", async () => {
    const params = { model, messages, max_tokens: 8, ...same };
    const whole = await openai.chat.completions.create(params);
    const stream = openai.chat.completions.stream({ ...params, stream_options: { include_usage: true } });
    const streamed = await stream.finalChatCompletion();
    assert.ok(whole.choices[0].message.content.length > 0);
    assert.equal(streamed.choices[0].message.content, whole.choices[0].message.content);
    assert.equal(streamed.choices[0].finish_reason, whole.choices[0].finish_reason);
    assert.deepEqual([streamed.usage.prompt_tokens > 0, streamed.usage.completion_tokens > 0], [true, true]);
  });

  test("OpenAI's client: a response in the background is followed twice, with the same events", async () => {
    const params = { model, input: messages[0].content, max_output_tokens: 8, background: true, stream: true };
    const events = await all(await openai.responses.create(params));
    assert.deepEqual(
      events.map((event) => event.sequence_number),
      events.map((_, number) => number),
    );
    const again = await all(
      await openai.responses.retrieve(events[0].response.id, { stream: true, starting_after: 3 }),
    );
    assert.deepEqual(again, events.slice(4));
    assert.match(events.at(-1).type, /^response\.(completed|incomplete)$/);
  });

  test("OpenAI's client: a left stream ends its job", async () => {
    const { data: stream, response } = await openai.chat.completions
      .create({ model, messages, max_tokens: 400, stream: true })
      .withResponse();
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
    await jobWhen(response.headers.get("x-headrace-job-id"), "cancelled", "succeeded");
  });

  test("Anthropic's client: what is streamed is what comes whole", async () => {
    const params = { model, messages, max_tokens: 8, temperature: 0 };
    const [whole, streamed] = [
      await anthropic.messages.create(params),
      await anthropic.messages.stream(params).finalMessage(),
    ];
    assert.ok(whole.content[0].text.length > 0);
    assert.deepEqual(streamed.content, whole.content);
    assert.equal(streamed.stop_reason, whole.stop_reason);
    assert.deepEqual([streamed.usage.input_tokens > 0, streamed.usage.output_tokens > 0], [true, true]);
  });

  test("Ollama's client: what is streamed is what comes whole", async () => {
    const params = { model, messages, options: { num_predict: 8, ...same } };
    const whole = await ollama.chat(params);
    const pieces = await all(await ollama.chat({ ...params, stream: true }));
    assert.ok(whole.message.content.length > 0);
    assert.equal(pieces.map((piece) => piece.message.content).join(""), whole.message.content);
    assert.equal(pieces.at(-1).done_reason, whole.done_reason);
  });

  test("Vercel's AI SDK: text is streamed by responses and by chat", async () => {
    for (const one of [
      createOpenAI({ baseURL: v1, apiKey: key })(model),
      createOpenAICompatible({ name: "headrace", baseURL: v1, apiKey: key })(model),
    ]) {
      const stream = streamText({ model: one, messages, maxOutputTokens: 8, temperature: 0, maxRetries: 0 });
      assert.ok((await all(stream.textStream)).join("").length > 0);
      assert.match(await stream.finishReason, /^(stop|length)$/);
    }
  });

  test("answers by a schema are valid by it", { skip: model === "echo" && "it says what it is told" }, async () => {
    const schema = z.object({ wet: z.boolean(), wheels: z.enum(["one", "two"]) });
    const format = zodResponseFormat(schema, "mill");
    const asked = await openai.chat.completions.parse({
      model,
      messages,
      max_tokens: 60,
      response_format: format,
      ...same,
    });
    assert.ok(schema.safeParse(asked.choices[0].message.parsed).success);
    const { object } = await generateObject({
      model: createOpenAI({ baseURL: v1, apiKey: key })(model),
      messages,
      schema,
      maxOutputTokens: 60,
      temperature: 0,
      maxRetries: 0,
    });
    assert.ok(schema.safeParse(object).success);
  });
});
