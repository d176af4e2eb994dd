// OpenAI's Node SDK: files uploaded, listed, read and deleted; batches made of them, followed to their end, cancelled.

import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import OpenAI, { toFile } from "openai";

import { all, asked, key, v1 } from "./journey.mjs";

const client = new OpenAI({ baseURL: v1, apiKey: key, maxRetries: 0, timeout: 20_000 });
const ENDED = ["completed", "failed", "expired", "cancelled"];
const url = "/v1/chat/completions";

const line = (custom_id, body) => JSON.stringify({ custom_id, method: "POST", url, body });
const chat = (words, model = "echo") => ({ model, messages: asked(words) });

async function upload(...lines) {
  const file = await toFile(Buffer.from(lines.join("\n")), "lines.jsonl");
  return client.files.create({ file, purpose: "batch" });
}

async function ended(batch) {
  for (; !ENDED.includes(batch.status); batch = await client.batches.retrieve(batch.id)) await pause(50);
  return batch;
}

const results = async (id) =>
  (await (await client.files.content(id)).text())
    .trim()
    .split("\n")
    .map((one) => JSON.parse(one));

suite("files and batches", { concurrency: true }, () => {
  test("a file comes back as it was given, is listed, and is gone once deleted", async () => {
    const given = line("one", chat("汉字"));
    const file = await upload(given);
    assert.deepEqual([file.object, file.purpose, file.bytes], ["file", "batch", Buffer.byteLength(given)]);
    assert.equal(await (await client.files.content(file.id)).text(), given);
    const ids = (await all(client.files.list({ purpose: "batch" }))).map((one) => one.id);
    assert.ok(ids.includes(file.id));
    assert.equal((await client.files.delete(file.id)).deleted, true);
    await assert.rejects(client.files.retrieve(file.id), OpenAI.NotFoundError);
  });

  test("a batch answers each of its lines, and tells those that failed apart", async () => {
    const words = Array.from({ length: 12 }, (_, number) => line(`n${number}`, chat(`word ${number}`)));
    const file = await upload(...words, line("unknown", chat("x", "nobody")));
    const params = { input_file_id: file.id, endpoint: url, completion_window: "24h", metadata: { of: "node" } };
    const batch = await ended(await client.batches.create(params));
    assert.equal(batch.status, "completed", JSON.stringify(batch));
    assert.deepEqual({ ...batch.request_counts }, { total: 13, completed: 12, failed: 1 });
    const answers = await results(batch.output_file_id);
    const said = Object.fromEntries(
      answers.map((one) => [one.custom_id, one.response.body.choices[0].message.content]),
    );
    assert.deepEqual(said, Object.fromEntries(words.map((_, number) => [`n${number}`, `word ${number}`])));
    const failed = await results(batch.error_file_id);
    assert.deepEqual(
      failed.map((one) => one.custom_id),
      ["unknown"],
    );
    assert.ok((await all(client.batches.list({ limit: 2 }))).some((one) => one.id === batch.id));
  });

  test("a file that is no batch fails it with its line", async () => {
    const file = await upload(line("a", chat("x")), "{not json");
    const batch = await ended(
      await client.batches.create({ input_file_id: file.id, endpoint: url, completion_window: "24h" }),
    );
    assert.equal(batch.status, "failed");
    assert.equal(batch.errors.data[0].line, 2);
  });

  test("a batch that is cancelled keeps what was answered", async () => {
    const file = await upload(line("done", chat("yes")), line("never", chat("x", "unserved")));
    let batch = await client.batches.create({ input_file_id: file.id, endpoint: url, completion_window: "24h" });
    while ((batch.request_counts?.completed ?? 0) < 1) {
      await pause(50);
      batch = await client.batches.retrieve(batch.id);
    }
    batch = await ended(await client.batches.cancel(batch.id));
    assert.equal(batch.status, "cancelled");
    assert.deepEqual(
      (await results(batch.output_file_id)).map((one) => one.custom_id),
      ["done"],
    );
  });
});
