// OpenAI's Node SDK: refusals are its own exceptions, retries go by our headers, and what is left is cancelled.

import assert from "node:assert/strict";
import { suite, test } from "node:test";

import OpenAI from "openai";

import { asked, jobWhen, key, v1 } from "./journey.mjs";

const plain = { baseURL: v1, apiKey: key, maxRetries: 0, timeout: 20_000 };
const client = new OpenAI(plain);

// A client that keeps when it asked, and what it was answered.
function watched(options = {}) {
  const calls = [];
  const ask = async (...words) => {
    const at = performance.now();
    const answer = await fetch(...words);
    calls.push({ at, ended: performance.now(), status: answer.status, headers: answer.headers });
    return answer;
  };
  return [new OpenAI({ ...plain, ...options, fetch: ask }), calls];
}

// The ids of the newest jobs of a model.
async function jobs(model) {
  const answer = await fetch(`${v1}/jobs?limit=100`, { headers: { authorization: `Bearer ${key}` } });
  return (await answer.json()).data.filter((job) => job.model === model).map((job) => job.id);
}

// The id of one that was not there before.
async function another(model, before) {
  for (;;) {
    const id = (await jobs(model)).find((one) => !before.includes(one));
    if (id) return id;
  }
}

suite("what goes wrong", { concurrency: true }, () => {
  for (const stream of [false, true]) {
    const chat = (one, model, words, more = {}) =>
      one.chat.completions.create({ model, messages: asked(words), stream, ...more });
    const how = stream ? ", streamed" : "";

    test(`a wrong key is an AuthenticationError${how}`, async () => {
      const nobody = new OpenAI({ ...plain, apiKey: "wrong" });
      await assert.rejects(chat(nobody, "echo", "x"), (error) => {
        assert.ok(error instanceof OpenAI.AuthenticationError, error);
        assert.deepEqual([error.code, error.requestID === null], ["invalid_api_key", false]);
        return true;
      });
    });

    test(`an unknown model is a NotFoundError${how}`, async () => {
      await assert.rejects(chat(client, "nobody", "x"), (error) => {
        assert.ok(error instanceof OpenAI.NotFoundError, error);
        assert.deepEqual([error.code, error.param], ["model_not_found", "model"]);
        return true;
      });
    });

    test(`a request that can't be is a BadRequestError with its field${how}`, async () => {
      await assert.rejects(chat(client, "echo", "x", { temperature: 9 }), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError, error);
        assert.equal(error.param, "temperature");
        return true;
      });
      await assert.rejects(chat(client, "echo", { text: "a", error: "context_length_exceeded" }), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError, error);
        assert.equal(error.code, "context_length_exceeded");
        return true;
      });
    });
  }

  test("a stream that breaks off throws after what came", async () => {
    const messages = asked({ numbered: true, tokens: 9, token_ms: 50, fail_at: 4 });
    let said = "";
    const read = async () => {
      for await (const chunk of await client.chat.completions.create({ model: "echo", messages, stream: true }))
        said += chunk.choices[0]?.delta.content ?? "";
    };
    await assert.rejects(read, (error) => {
      assert.ok(error instanceof OpenAI.APIError, error);
      assert.equal(error.code, "upstream_interrupted");
      return true;
    });
    assert.equal(said, " 0 1 2 3");
  });

  test("a response that fails is told by its last event", async () => {
    const [{ content: input }] = asked({ numbered: true, tokens: 9, token_ms: 50, fail_at: 4 });
    const stream = client.responses.stream({ model: "echo", input });
    const failed = new Promise((resolve) => stream.on("response.failed", resolve));
    stream.finalResponse().catch(() => {});
    assert.match((await failed).response.error.message, /upstream_interrupted/);
  });

  test("an aborted stream cancels its job", async () => {
    const { data: stream, response } = await client.chat.completions
      .create({ model: "remote", messages: asked("x"), stream: true })
      .withResponse();
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
    const job = await jobWhen(response.headers.get("x-headrace-job-id"), "cancelled");
    assert.equal(job.status, "cancelled");
  });

  test("an aborted request is an APIUserAbortError, and its job is cancelled", async () => {
    const [before, abort] = [await jobs("unserved"), new AbortController()];
    const params = { model: "unserved", messages: asked("x") };
    const waiting = client.chat.completions.create(params, { signal: abort.signal });
    const id = await another("unserved", before);
    abort.abort();
    await assert.rejects(waiting, OpenAI.APIUserAbortError);
    await jobWhen(id, "cancelled");
  });

  test("a time-out is an APIConnectionTimeoutError, and the job that nobody waits for is cancelled", async () => {
    const before = await jobs("crowded");
    const params = { model: "crowded", messages: asked("x") };
    await assert.rejects(client.chat.completions.create(params, { timeout: 500 }), OpenAI.APIConnectionTimeoutError);
    await jobWhen(await another("crowded", before), "cancelled");
  });

  test("what may be tried again is, after the pause that the answer names", async () => {
    const [eager, calls] = watched({ maxRetries: 1 });
    const messages = asked({ text: "a", error: "upstream_busy", retry_after_s: 0.2 });
    await assert.rejects(eager.chat.completions.create({ model: "echo", messages }), OpenAI.InternalServerError);
    assert.deepEqual(
      calls.map((call) => call.status),
      [503, 503],
    );
    const pause_ms = Number(calls[0].headers.get("retry-after-ms"));
    assert.ok(pause_ms > 0, "no retry-after-ms");
    assert.ok(calls[1].at - calls[0].ended >= pause_ms - 5, `${calls[1].at - calls[0].ended} of ${pause_ms} ms`);
  });

  test("what can't get better is not tried again, whatever its status", async () => {
    const [eager, calls] = watched({ maxRetries: 2 });
    const messages = asked({ text: "a", error: "upstream_credentials" });
    await assert.rejects(eager.chat.completions.create({ model: "echo", messages }), OpenAI.InternalServerError);
    assert.deepEqual(
      calls.map((call) => [call.status, call.headers.get("x-should-retry")]),
      [[502, "false"]],
    );
  });
});
