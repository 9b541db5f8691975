// The stock JavaScript SDK on one transport, driven over stdin and stdout: a JSON value a line, each way.
//
// First line in: {folder, transport, endpoint, emulation, token, protobuf}; then {rpc: [method, data]} or
// {disconnect: true}. Lines out: {event, ...}.

import {createRequire} from "node:module";
import {createInterface} from "node:readline";

// What the SDK needs of a browser's EventSource, which Node has none of. A stream that ends is an error, as there.
class EventSource {
  constructor(url) {
    this.abort = new AbortController();
    this.read(url).catch(() => {}).then(() => this.abort.signal.aborted || this.onerror(new Event("error")));
  }

  async read(url) {
    const response = await fetch(url, {signal: this.abort.signal, headers: {Accept: "text/event-stream"}});
    if (!response.ok || !response.headers.get("content-type").startsWith("text/event-stream")) return;
    this.onopen();
    let rest = "";
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
      const events = (rest + chunk).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
        this.onmessage({data: data.join("\n")});
      }
    }
  }

  close() {
    this.abort.abort();
  }
}

const say = (event, fields = {}) => console.log(JSON.stringify({event, ...fields}));
const lines = createInterface({input: process.stdin})[Symbol.asyncIterator]();
const setup = JSON.parse((await lines.next()).value);
const load = createRequire(`${setup.folder}/package.json`);
const {Centrifuge} = load(setup.protobuf ? "centrifuge/build/protobuf" : "centrifuge");
const plain = (data) => (data instanceof Uint8Array ? JSON.parse(new TextDecoder().decode(data)) : data);
const sent = (data) => (setup.protobuf ? new TextEncoder().encode(JSON.stringify(data)) : data);

const client = new Centrifuge([{transport: setup.transport, endpoint: setup.endpoint}], {
  token: setup.token,
  emulationEndpoint: setup.emulation,
  eventsource: EventSource,
  minReconnectDelay: 100,
  maxReconnectDelay: 500,
});
client.on("connected", (context) => say("connected", {transport: context.transport, client: context.client}));
client.on("connecting", (context) => say("connecting", {code: context.code}));
client.on("disconnected", (context) => say("disconnected", {code: context.code}));
client.on("publication", (context) =>
  say("publication", {channel: context.channel, offset: context.offset, data: plain(context.data)}));
client.connect();

for await (const line of lines) {
  const command = JSON.parse(line);
  if (command.disconnect) break;
  client.rpc(command.rpc[0], sent(command.rpc[1])).then(
    (result) => say("result", {data: plain(result.data)}),
    (error) => say("error", {code: error.code}),
  );
}
client.disconnect();
