// What the journeys share: where the gateway is, who asks, scripts for the echo model, and jobs as they stand.

import { setTimeout as pause } from "node:timers/promises";

const LIMIT_MS = 15_000;
const LOOK_AGAIN_MS = 20;

export const base = needed("HEADRACE_URL");
export const key = needed("HEADRACE_API_KEY");
export const v1 = `${base}/v1`;

function needed(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: tests/journeys/clients/test_node.py starts these with it`);
  return value;
}

// A prompt that has the echo model answer by this script.
export const script = (words) => `echo: ${JSON.stringify(words)}`;

// The same as a user's message.
export const asked = (words) => [{ role: "user", content: typeof words === "string" ? words : script(words) }];

// The weather as any model would be told of it; what it was asked for is in `cities`.
export const CITIES = ["Saint-Étienne", "東京"];
export const toolCalls = CITIES.map((city) => ({ name: "get_weather", arguments: { city } }));

// What the gateway says of a job once it is in one of these states.
export async function jobWhen(id, ...states) {
  const limit = Date.now() + LIMIT_MS;
  for (;;) {
    const answer = await fetch(`${v1}/jobs/${id}`, { headers: { authorization: `Bearer ${key}` } });
    const job = await answer.json();
    if (states.includes(job.status)) return job;
    if (Date.now() > limit) throw new Error(`job ${id} is ${job.status}, never was ${states.join(" or ")}`);
    await pause(LOOK_AGAIN_MS);
  }
}

// Every value of a stream.
export async function all(stream) {
  const found = [];
  for await (const one of stream) found.push(one);
  return found;
}
