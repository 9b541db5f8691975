// The JavaScript client, driven over stdin and stdout: a JSON value a line, each way.
//
// First line in: {folder, scheduler, options}; then {id, do: [method, ...arguments]} for a method of the client.
// Lines out: {event: "message", ...}, {event: "end", code}, and {id, result} or {id, error} for each method.

import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const say = (line) => console.log(JSON.stringify(line));
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { folder, scheduler, options } = JSON.parse((await lines.next()).value);
const { Client } = await import(pathToFileURL(`${folder}/roadstead.js`));
const { WebSocket } = createRequire(`${folder}/package.json`)("ws");

const hear = (incoming) => say({ event: "message", ...incoming });
const onEnd = ({ code, channel }) => say({ event: "end", code, channel });
const client = new Client(scheduler, { ...options, websocket: WebSocket, onMessage: hear, onEnd });

for await (const line of lines) {
  const { id, do: [method, ...given] } = JSON.parse(line);
  if (method === "subscribe") given.push(hear);
  try {
    say({ id, result: (await client[method](...given)) ?? null });
  } catch (error) {
    say({ id, error: error.message });
  }
}
client.close();
