// The npm package `eventsource`, which can send a key: cut again and again, it goes on by itself and misses nothing.

import assert from "node:assert/strict";
import { test } from "node:test";

import { EventSource } from "eventsource";

import { asked, key, v1 } from "./journey.mjs";

const TOKENS = 40;
const CUTS = [1_500, 10];

// The answer's bytes up to so many, then an error, as of a connection that broke.
function cut(answer, bytes) {
  let left = bytes;
  const transform = (chunk, out) => {
    out.enqueue(chunk.subarray(0, left));
    left -= chunk.length;
    if (left <= 0) out.error(new TypeError("the connection broke"));
  };
  return new Response(answer.body.pipeThrough(new TransformStream({ transform })), answer);
}

test("every event of a job comes once and in order, over as many connections as it takes", async () => {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const messages = asked({ numbered: true, tokens: TOKENS, token_ms: 25 });
  const body = JSON.stringify({ endpoint: "/v1/chat/completions", body: { model: "echo", messages } });
  const { id } = await (await fetch(`${v1}/jobs`, { method: "POST", headers, body })).json();

  const sent = [];
  const cuts = [...CUTS];
  const source = new EventSource(`${v1}/jobs/${id}/events`, {
    fetch: async (url, init) => {
      sent.push(init.headers["Last-Event-ID"] ?? null);
      const answer = await fetch(url, { ...init, headers: { ...init.headers, ...headers } });
      return cuts.length > 0 ? cut(answer, cuts.shift()) : answer;
    },
  });
  const seen = [];
  source.addEventListener("message", (event) => seen.push([event.lastEventId, event.data]));
  await new Promise((resolve) => {
    source.addEventListener("error", () => source.readyState === EventSource.CLOSED && resolve());
  });

  const said = seen.map(([, data]) => (data === "[DONE]" ? "" : (JSON.parse(data).choices[0].delta.content ?? "")));
  assert.equal(said.join(""), Array.from({ length: TOKENS }, (_, number) => ` ${number}`).join(""));
  assert.equal(new Set(seen.map(([position]) => position)).size, TOKENS + 2);
  // One after each cut, and one that was told that there is no more.
  assert.equal(sent.length, CUTS.length + 2);
  assert.equal(sent.at(-1), seen.at(-1)[0]);
});
