// Anthropic's Node SDK at /v1/messages: whole, streamed, tools, structured answers, counts, models, errors.

import assert from "node:assert/strict";
import { suite, test } from "node:test";

import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

import { all, asked, base, CITIES, jobWhen, key, toolCalls } from "./journey.mjs";

const plain = { baseURL: base, apiKey: key, maxRetries: 0, timeout: 20_000 };
const client = new Anthropic(plain);
const of = (words, more = {}) => ({ model: "echo", max_tokens: 500, messages: asked(words), ...more });
const said = (message) =>
  message.content
    .filter((block) => block.type === "text")
    .map((block) => block.text)
    .join("");

suite("Anthropic's client", { concurrency: true }, () => {
  test("a message comes whole, with its usage and the id of its request", async () => {
    const message = await client.messages.create(of("one two 汉字", { system: "Be short.", stop_sequences: ["###"] }));
    assert.deepEqual(
      [said(message), message.stop_reason, message.usage.output_tokens],
      ["one two 汉字", "end_turn", 3],
    );
    assert.match(message._request_id, /^req_/);
  });

  test("a stream is put together to the message that would have come whole", async () => {
    const words = of({ reasoning: "let me see", text: "so it is" }, { thinking: { type: "adaptive" } });
    const whole = await client.messages.create(words);
    const stream = client.messages.stream(words);
    const pieces = [];
    stream.on("text", (text) => pieces.push(text));
    const { id: _, ...final } = await stream.finalMessage();
    assert.deepEqual(final.content, whole.content);
    assert.deepEqual(
      final.content.map((block) => block.type),
      ["thinking", "text"],
    );
    assert.deepEqual([final.stop_reason, final.usage], [whole.stop_reason, whole.usage]);
    assert.deepEqual(pieces, ["so", " it", " is"]);
  });

  test("raw events begin and end as they must", async () => {
    const events = await all(await client.messages.create(of("one two", { stream: true })));
    assert.deepEqual([events[0].type, events.at(-1).type], ["message_start", "message_stop"]);
  });

  for (const stream of [false, true]) {
    // The client has the server keep the conversation (`thread`), and here goes on without once that is refused.
    test(`its own tool loop ends${stream ? ", streamed" : ""}`, async () => {
      const seen = [];
      const run = ({ city }) => (seen.push(city), `sunny in ${city}`);
      const inputSchema = z.object({ city: z.string() });
      const tools = [betaZodTool({ name: "get_weather", description: "The weather.", inputSchema, run })];
      const runner = client.beta.messages.toolRunner(
        of({ tool_calls: toolCalls, then: "it is sunny" }, { tools, stream }),
      );
      assert.equal(said(await runner.runUntilDone()), "it is sunny");
      assert.deepEqual(seen, CITIES);
    });
  }

  test("an answer by a zod schema is parsed", async () => {
    const format = zodOutputFormat(z.object({ n: z.number().int() }));
    const message = await client.messages.parse(of({ text: '{"n": 3}' }, { output_config: { format } }));
    assert.deepEqual(message.parsed_output, { n: 3 });
  });

  test("tokens are counted and models listed page by page", async () => {
    const { input_tokens } = await client.messages.countTokens({ model: "echo", messages: asked("word ".repeat(100)) });
    assert.ok(input_tokens >= 90 && input_tokens <= 200, input_tokens);
    const names = (await all(client.models.list({ limit: 2 }))).map((model) => model.id);
    assert.ok(names.includes("echo") && new Set(names).size === names.length, names.join());
  });

  for (const [what, wrong, kind, type] of [
    [
      "a wrong key",
      { client: new Anthropic({ ...plain, apiKey: "wrong" }) },
      Anthropic.AuthenticationError,
      "authentication_error",
    ],
    ["an unknown model", { model: "nobody" }, Anthropic.NotFoundError, "not_found_error"],
    ["a request that can't be", { max_tokens: 0 }, Anthropic.BadRequestError, "invalid_request_error"],
  ]) {
    test(`${what} is the client's own exception, whole and streamed`, async () => {
      const { client: one = client, ...more } = wrong;
      const check = (error) => {
        assert.ok(error instanceof kind, error);
        assert.equal(error.error.error.type, type);
        assert.match(error.requestID, /^req_/);
        return true;
      };
      await assert.rejects(one.messages.create(of("x", more)), check);
      await assert.rejects(one.messages.stream(of("x", more)).finalMessage(), check);
    });
  }

  test("a stream that breaks off throws after what came", async () => {
    const stream = client.messages.stream(of({ numbered: true, tokens: 9, token_ms: 50, fail_at: 4 }));
    const pieces = [];
    stream.on("text", (text) => pieces.push(text));
    await assert.rejects(stream.finalMessage(), Anthropic.APIError);
    assert.equal(pieces.join(""), " 0 1 2 3");
  });

  test("an aborted stream cancels its job", async () => {
    const stream = client.messages.stream(of("x", { model: "remote" }));
    await new Promise((resolve) => stream.once("text", resolve));
    const { response } = await stream.withResponse();
    stream.abort();
    await jobWhen(response.headers.get("x-headrace-job-id"), "cancelled");
  });
});
