// Vercel's AI SDK, over each of its providers that we speak: text, tools in several steps, objects, embeddings, errors.

import assert from "node:assert/strict";
import { suite, test } from "node:test";

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError,
  embedMany,
  generateObject,
  generateText,
  Output,
  stepCountIs,
  streamObject,
  streamText,
  tool,
} from "ai";
import { z } from "zod";

import { all, CITIES, jobWhen, key, script, toolCalls, v1 } from "./journey.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

const Place = z.object({ city: z.string(), people: z.number().int() });
const PLACE = { city: "Saint-Étienne", people: 173_821 };
const TEXT = "one two 汉字 👩‍👩‍👧";

const compatible = (more = {}) =>
  createOpenAICompatible({
    name: "headrace",
    baseURL: v1,
    apiKey: key,
    supportsStructuredOutputs: true,
    includeUsage: true,
    ...more,
  });
const openai = (more = {}) => createOpenAI({ baseURL: v1, apiKey: key, ...more });
const anthropic = (more = {}) => createAnthropic({ baseURL: v1, apiKey: key, ...more });

// For models whose names it does not know, Anthropic's provider asks by a tool unless it is told otherwise.
const BY_SCHEMA = { providerOptions: { anthropic: { structuredOutputMode: "outputFormat" } } };

// Anthropic's API tells thoughts only to those who ask for them.
const THINKING = { providerOptions: { anthropic: { thinking: { type: "enabled", budgetTokens: 1_024 } } } };

const ROADS = {
  "openai's responses": (model, more) => openai(more)(model),
  "openai's chat": (model, more) => openai(more).chat(model),
  "openai-compatible": (model, more) => compatible(more)(model),
  "anthropic's messages": (model, more) => anthropic(more)(model),
};

function weather(seen) {
  const execute = ({ city }) => (seen.push(city), `sunny in ${city}`);
  return { get_weather: tool({ description: "The weather.", inputSchema: z.object({ city: z.string() }), execute }) };
}

suite("the AI SDK", { concurrency: true }, () => {
  for (const [road, models] of Object.entries(ROADS)) {
    const model = models("echo");

    test(`${road}: text comes whole and streamed, with its usage`, async () => {
      const whole = await generateText({ model, prompt: TEXT });
      assert.deepEqual([whole.text, whole.finishReason, whole.usage.outputTokens], [TEXT, "stop", 4]);
      const stream = streamText({ model, prompt: TEXT });
      const pieces = await all(stream.textStream);
      assert.equal(pieces.join(""), TEXT);
      assert.ok(pieces.length > 1, "it came in one piece");
      assert.deepEqual([await stream.finishReason, (await stream.usage).outputTokens], ["stop", 4]);
    });

    test(`${road}: tools are run and their results answered, whole and streamed`, async () => {
      const prompt = script({ tool_calls: toolCalls, then: "it is sunny" });
      for (const ask of [generateText, streamText]) {
        const seen = [];
        const answer = await ask({ model, prompt, tools: weather(seen), stopWhen: stepCountIs(5) });
        assert.equal(await answer.text, "it is sunny");
        assert.deepEqual(seen, CITIES);
        assert.deepEqual(
          (await answer.steps).map((step) => step.finishReason),
          ["tool-calls", "stop"],
        );
      }
    });

    test(`${road}: a conversation goes on from the messages that the client made of it`, async () => {
      const user = (content) => ({ role: "user", content });
      const messages = [user(script({ reasoning: "let me see", tool_calls: toolCalls.slice(1), then: "it is sunny" }))];
      const first = await generateText({ model, messages, tools: weather([]), stopWhen: stepCountIs(3), ...THINKING });
      messages.push(...first.response.messages, user(script({ reasoning: "hm", text: "yes" })));
      const second = await generateText({ model, messages, tools: weather([]), ...THINKING });
      messages.push(...second.response.messages, user("and then?"));
      const third = await generateText({ model, messages, tools: weather([]), ...THINKING });
      assert.deepEqual([first.text, second.text, third.text], ["it is sunny", "yes", "and then?"]);
    });

    test(`${road}: objects by a schema, whole, in parts and beside text`, async () => {
      const asked = { model, prompt: script({ text: JSON.stringify(PLACE) }), ...BY_SCHEMA };
      assert.deepEqual((await generateObject({ ...asked, schema: Place })).object, PLACE);
      const stream = streamObject({ ...asked, schema: Place });
      assert.deepEqual((await all(stream.partialObjectStream)).at(-1), PLACE);
      assert.deepEqual(await stream.object, PLACE);
      assert.deepEqual((await generateText({ ...asked, output: Output.object({ schema: Place }) })).output, PLACE);
    });

    test(`${road}: thoughts are told apart from the text`, async () => {
      const prompt = script({ reasoning: "let me see", text: "so it is" });
      const answer = await generateText({ model, prompt, ...THINKING });
      assert.equal(answer.text, "so it is");
      // OpenAI's own never tell thoughts, only summaries: its provider looks for those alone.
      if (!road.startsWith("openai's")) assert.equal(answer.reasoningText, "let me see");
    });

    test(`${road}: refusals are told with their status, and what may be tried again`, async () => {
      const status = (code) => (error) => {
        assert.ok(APICallError.isInstance(error), error);
        assert.equal(error.statusCode, code);
        assert.equal(error.isRetryable, false);
        return true;
      };
      const ask = (one) => generateText({ model: one, prompt: "x", maxRetries: 0 });
      await assert.rejects(ask(models("echo", { apiKey: "wrong" })), status(401));
      await assert.rejects(ask(models("nobody")), status(404));
      await assert.rejects(generateText({ model, prompt: script({ nonsense: 1 }), maxRetries: 0 }), status(400));
    });

    test(`${road}: a stream that breaks off is an error after what came`, async () => {
      const prompt = script({ numbered: true, tokens: 9, token_ms: 50, fail_at: 4 });
      const errors = [];
      const stream = streamText({ model, prompt, maxRetries: 0, onError: ({ error }) => errors.push(error) });
      assert.equal((await all(stream.textStream)).join(""), " 0 1 2 3");
      assert.equal(errors.length, 1);
    });

    test(`${road}: an aborted stream cancels its job`, async () => {
      const abort = new AbortController();
      let id;
      const watch = async (...words) => {
        const answer = await fetch(...words);
        id = answer.headers.get("x-headrace-job-id");
        return answer;
      };
      const stream = streamText({ model: models("remote", { fetch: watch }), prompt: "x", abortSignal: abort.signal });
      for await (const piece of stream.textStream) if (piece) abort.abort();
      await jobWhen(id, "cancelled");
    });
  }

  test("anthropic's messages: objects by a tool", async () => {
    const prompt = script({ tool_calls: [{ name: "json", arguments: PLACE }] });
    const asked = { model: anthropic()("echo"), prompt, schema: Place };
    assert.deepEqual((await generateObject(asked)).object, PLACE);
    assert.deepEqual((await all(streamObject(asked).partialObjectStream)).at(-1), PLACE);
  });

  for (const [road, model] of [
    ["openai", openai().embedding("echo")],
    ["openai-compatible", compatible().embeddingModel("echo")],
  ]) {
    test(`${road}: many texts are embedded in their order`, async () => {
      const values = Array.from({ length: 7 }, (_, number) => `text ${number % 3}`);
      const { embeddings, usage } = await embedMany({ model, values });
      assert.deepEqual(
        embeddings.map((one) => one.length),
        values.map(() => 16),
      );
      assert.deepEqual(embeddings[6], embeddings[0]);
      assert.notDeepEqual(embeddings[1], embeddings[0]);
      assert.equal(usage.tokens, 14);
    });
  }

  test("openai's older completions: text comes whole and streamed", async () => {
    for (const model of [openai().completion("echo"), compatible().completionModel("echo")]) {
      assert.match((await generateText({ model, prompt: "a b" })).text, /a b/);
      assert.match((await all(streamText({ model, prompt: "a b" }).textStream)).join(""), /a b/);
    }
  });
});
