// Ollama's own client for Node: chats and prompts whole and streamed, tools, shapes, embeddings, models, errors.

import assert from "node:assert/strict";
import { suite, test } from "node:test";

import { Ollama } from "ollama";
import { z } from "zod";

import { all, asked, base, CITIES, jobWhen, key, toolCalls } from "./journey.mjs";

const client = (options = {}) => new Ollama({ host: base, headers: { authorization: `Bearer ${key}` }, ...options });
const ollama = client();
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", description: "The weather.", parameters } }];

suite("Ollama's client", { concurrency: true }, () => {
  test("chats come whole and streamed", async () => {
    const whole = await ollama.chat({ model: "echo", messages: asked("one two three") });
    assert.deepEqual([whole.message.content, whole.done_reason, whole.eval_count], ["one two three", "stop", 3]);
    const pieces = await all(
      await ollama.chat({ model: "echo:latest", messages: asked("one two three"), stream: true }),
    );
    assert.equal(pieces.map((piece) => piece.message.content).join(""), "one two three");
    assert.deepEqual(
      pieces.slice(-2).map((piece) => piece.done),
      [false, true],
    );
  });

  test("prompts come whole and streamed, cut where the options say", async () => {
    const params = { model: "echo", prompt: "a b c d", options: { num_predict: 2 } };
    const whole = await ollama.generate(params);
    assert.deepEqual([whole.response, whole.done_reason], ["a b", "length"]);
    const pieces = await all(await ollama.generate({ ...params, stream: true }));
    assert.equal(pieces.map((piece) => piece.response).join(""), "a b");
  });

  for (const stream of [false, true]) {
    test(`tools are called and their results answered${stream ? ", streamed" : ""}`, async () => {
      const messages = asked({ tool_calls: toolCalls, then: "it is sunny" });
      const answer = await ollama.chat({ model: "echo", messages, tools, stream });
      const said = stream ? (await all(answer)).map((piece) => piece.message) : [answer.message];
      const tool_calls = said.flatMap((message) => message.tool_calls ?? []);
      assert.deepEqual(
        tool_calls.map((call) => call.function.arguments.city),
        CITIES,
      );
      const results = CITIES.map((city) => ({ role: "tool", tool_name: "get_weather", content: `sunny in ${city}` }));
      const history = [...messages, { role: "assistant", content: "", tool_calls }, ...results];
      assert.equal((await ollama.chat({ model: "echo", messages: history, tools })).message.content, "it is sunny");
    });
  }

  test("thinking and structured answers are what the client expects", async () => {
    const thought = await ollama.chat({
      model: "echo",
      messages: asked({ text: "yes", reasoning: "Hm." }),
      think: true,
    });
    assert.deepEqual([thought.message.thinking, thought.message.content], ["Hm.", "yes"]);
    const format = z.toJSONSchema(z.object({ city: z.string() }));
    const shaped = await ollama.chat({ model: "echo", messages: asked({ text: '{"city": "Oslo"}' }), format });
    assert.deepEqual(JSON.parse(shaped.message.content), { city: "Oslo" });
  });

  test("texts are embedded, and models listed and shown", async () => {
    const { embeddings } = await ollama.embed({ model: "echo", input: ["a", "b"] });
    assert.deepEqual(
      embeddings.map((one) => one.length),
      [16, 16],
    );
    const names = (await ollama.list()).models.map((model) => model.model);
    assert.ok(names.includes("echo:latest") && names.includes("org/echo:8b"), names.join());
    assert.ok((await ollama.show({ model: "echo" })).capabilities.includes("completion"));
    assert.match((await ollama.version()).version, /^\d+\.\d+/);
  });

  test("refusals are thrown with their status and words", async () => {
    const nobody = client({ headers: { authorization: "Bearer wrong" } });
    const status = (code) => (error) => (assert.equal(error.status_code, code, error), true);
    await assert.rejects(nobody.chat({ model: "echo", messages: asked("x"), stream: true }), status(401));
    await assert.rejects(ollama.chat({ model: "none", messages: asked("x") }), {
      status_code: 404,
      message: "model 'none' not found",
    });
    await assert.rejects(ollama.generate({ model: "echo", prompt: "a", suffix: "b" }), status(400));
  });

  test("a failure in mid-stream is thrown after what came", async () => {
    const messages = asked({ numbered: true, tokens: 9, token_ms: 50, fail_at: 4 });
    let said = "";
    const read = async () => {
      for await (const piece of await ollama.chat({ model: "echo", messages, stream: true }))
        said += piece.message.content;
    };
    await assert.rejects(read);
    assert.equal(said, " 0 1 2 3");
  });

  test("an aborted stream cancels its job", async () => {
    let id;
    const watch = async (...words) => {
      const answer = await fetch(...words);
      id = answer.headers.get("x-headrace-job-id");
      return answer;
    };
    const one = client({ fetch: watch });
    const read = async () => {
      for await (const piece of await one.chat({ model: "remote", messages: asked("x"), stream: true }))
        if (piece.message.content) one.abort();
    };
    await assert.rejects(read, { name: "AbortError" });
    await jobWhen(id, "cancelled");
  });
});
