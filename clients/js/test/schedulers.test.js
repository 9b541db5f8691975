/** Gateways before the schedulers, several of them, and what the application's own code throws. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import WebSocket from "ws";

import { Client } from "../roadstead.js";
import { INBOX, USER, World } from "./fake.js";

const SETTLE_MS = 8_000;
const HTML = { status: 502, text: "<html><h1>502 Bad Gateway</h1></html>" };
const NOWHERE = "http://127.0.0.1:1";

let world;
let inbox;
let ends;
let client;

const make = (options = {}, scheduler = world.scheduler) =>
  new Client(scheduler, {
    user: USER,
    credential: "token",
    websocket: WebSocket,
    onMessage: ({ data }) => inbox.push(data),
    onEnd: (error) => ends.push(error),
    ...options,
  });

/** A client of several schedulers, which begins with the first of them; else that is a matter of chance. */
function makeOfMany(schedulers = world.schedulers) {
  const random = mock.method(Math, "random", () => 0);
  const made = make({}, schedulers);
  const connect = made.connect.bind(made);
  made.connect = () => {
    const connecting = connect();
    random.mock.restore();
    return connecting;
  };
  return made;
}

async function becomes(look) {
  const until = performance.now() + SETTLE_MS;
  while (!(await look())) {
    assert.ok(performance.now() < until, `not in time: ${look}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

const isOn = (name) => becomes(async () => (await client.call("where", {}).catch(() => null)) === name);

async function breaks() {
  const before = world.connects.length;
  for (const node of Object.values(world.nodes)) node.closeAll(3001);
  await becomes(() => world.connects.length > before);
  await isOn("one");
}

/** Of which schedulers was asked, since that many questions. */
const askedAt = (since = 0) => world.questions.slice(since).map(({ scheduler }) => scheduler);

beforeEach(async () => {
  world = await World.start("one", "two");
  [inbox, ends] = [[], []];
  client = make();
});

afterEach(async () => {
  mock.restoreAll();
  client.close();
  await world.stop();
});

for (const gateway of [
  HTML,
  { status: 503, text: '{"error": "service unavailable"}' },
  { status: 503, text: '{"error": {"code": 503, "message": "x", "status": "UNAVAILABLE", "retry": "never"}}' },
  { status: 503, text: '{"error": {"code": 503, "name": "ServiceUnavailable", "message": "x"}}' },
  { status: 401, text: '{"error": {"code": 401, "name": "Unauthorized", "message": "x", "retry": true}}' },
  { status: 401, text: "who are you?" },
  { status: 404, text: '{"message": "no such backend"}' },
  { status: 200, text: "<html>back soon</html>" },
  { status: 200, text: "null" },
  { status: 200, text: '{"candidates": [], "ticket": "t"}' },
  { status: 200, text: '{"candidates": [null], "ticket": "t", "backoff": {"base_ms": 1, "ceiling_ms": 2}}' },
  { status: 200, text: '{"candidates": 5, "ticket": "t", "backoff": {"base_ms": 1, "ceiling_ms": 2}}' },
]) {
  test(`a client outlives what answers for its scheduler: ${gateway.status} ${gateway.text}`, async () => {
    await client.connect();
    world.gateways.set(world.scheduler, gateway);
    world.nodes.one.closeAll(3001);
    await becomes(() => world.questions.length >= 4);
    world.gateways.clear();
    await isOn("one");
    assert.deepEqual(ends, []);
  });
}

test("connecting through a gateway without a scheduler fails, and says how it answered", async () => {
  world.gateways.set(world.scheduler, HTML);
  await assert.rejects(client.connect(), { message: /502/, isFinal: false });
  world.gateways.clear();
  await client.connect();
});

test("a candidate without a WebSocket endpoint is passed over", async () => {
  world.more = { candidates: [{ urls: { grpc: "x" } }, { urls: { websocket: world.url("two") } }] };
  await client.connect();
  await isOn("two");
});

test("where one scheduler is away the next is asked at once", async () => {
  world.gateways.set(world.schedulers[0], { ...HTML, headers: { "Retry-After": "60" } });
  client = makeOfMany([NOWHERE, ...world.schedulers]);
  await client.connect();
  assert.deepEqual(askedAt(), world.schedulers.slice(0, 2));
});

test("a client stays with the scheduler that answered, and leaves it for the next when it is away", async () => {
  const [one, two, three] = world.schedulers;
  client = makeOfMany([two, three, one]);
  await client.connect();
  await breaks();
  await breaks();
  assert.deepEqual(askedAt(), [two, two, two]);
  world.gateways.set(two, HTML);
  await breaks();
  assert.deepEqual(askedAt(3), [two, three]);
  world.gateways.set(three, HTML);
  await breaks();
  assert.deepEqual(askedAt(5), [three, one]);
  assert.deepEqual(ends, []);
});

test("what a scheduler refuses is asked of no other", async () => {
  client = makeOfMany();
  world.refusals = [{ status: 503, error: { code: 104, message: "no node takes clients" } }];
  await assert.rejects(client.connect(), { code: 104 });
  assert.deepEqual(askedAt(), world.schedulers.slice(0, 1));
});

test("only when all schedulers are away a client waits, as long as the first of them says", async () => {
  client = makeOfMany();
  await client.connect();
  world.schedulers.forEach((url, place) =>
    world.gateways.set(url, { ...HTML, headers: { "Retry-After": `${place + 1}` } }),
  );
  world.nodes.one.closeAll(3001);
  await becomes(() => world.questions.length === 4);
  world.gateways.clear();
  await isOn("one");
  const times = world.questions.map(({ at }) => at);
  assert.ok(times[3] - times[1] < 900 && times[4] - times[3] >= 999, `${times}`);
  assert.deepEqual(askedAt(1).slice(0, 3), world.schedulers);
});

test("clients are spread over the schedulers, and there is at least one", async () => {
  world.nodes.one.isRefusing = world.nodes.two.isRefusing = true;
  for (let number = 0; number < 40; number += 1) {
    await assert.rejects(make({}, world.schedulers).connect(), /no access node/);
  }
  assert.deepEqual(new Set(askedAt()), new Set(world.schedulers));
  assert.throws(() => make({}, []), RangeError);
});

function fail() {
  throw new Error("a bug of the application");
}

for (const [how, failing] of Object.entries({ throws: fail, rejects: async () => fail() })) {
  test(`a handler that ${how} is reported, and what follows is handed over, once`, async () => {
    const reported = [];
    globalThis.reportError = (error) => reported.push(error.message);
    try {
      client = make({
        onMessage: ({ data }) => {
          inbox.push(data);
          return data === 1 ? failing() : null;
        },
      });
      world.publish(0, 1);
      await client.connect();
      world.publish(2);
      await becomes(() => inbox.length === 3);
      await breaks();
      assert.deepEqual([inbox, reported, ends], [[0, 1, 2], ["a bug of the application"], []]);
      assert.equal(client.positions[INBOX].offset, 3);
    } finally {
      delete globalThis.reportError;
    }
  });

  test(`an onEnd that ${how} is reported where there is no reportError, too`, async () => {
    const logged = mock.method(console, "error", () => {});
    client = make({ onEnd: failing });
    await client.connect();
    world.nodes.one.closeAll(3500, "enough");
    await becomes(() => logged.mock.callCount());
    assert.match(logged.mock.calls[0].arguments[0].message, /a bug/);
    await assert.rejects(client.call("where", {}), /enough/);
  });
}

test("a call that waits for a connection is told of the close at once", async () => {
  await client.connect();
  world.refusals = [{ status: 503, error: { code: 104, message: "starting", detail: { retry_after_ms: 60_000 } } }];
  world.nodes.one.closeAll(3001);
  await becomes(() => world.questions.length === 2);
  const began = performance.now();
  const told = assert.rejects(client.call("where", {}), { message: /closed by the application/, isFinal: true });
  client.close();
  await told;
  await assert.rejects(client.send("alice", "hi"), /closed by the application/);
  assert.ok(performance.now() - began < 1_000);
});
