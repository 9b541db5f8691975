import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import WebSocket from "ws";

import { Client, RoadsteadError } from "../roadstead.js";
import { INBOX, USER, World } from "./fake.js";

const PRESENCE = "presence:alice";
const SETTLE_MS = 8_000;

let world;
let inbox;
let other;
let ends;
let client;

const make = (options = {}) =>
  new Client(world.scheduler, {
    user: USER,
    credential: "token",
    websocket: WebSocket,
    onMessage: ({ data }) => inbox.push(data),
    onEnd: (error) => ends.push(error),
    ...options,
  });

const takeOther = ({ data, isStart }) => other.push([data, isStart]);

/** Resolves once `look` is true; fails after a while. For facts that arrive by themselves, soon. */
async function becomes(look) {
  const until = performance.now() + SETTLE_MS;
  while (!(await look())) {
    assert.ok(performance.now() < until, `not in time: ${look}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

async function has(...entries) {
  await becomes(() => inbox.length >= entries.length);
  assert.deepEqual(inbox, entries);
}

const isOn = (name) => becomes(async () => (await client.call("where", {}).catch(() => null)) === name);

/** All nodes close, and the client is back at some node. */
async function breaks(code = 3001) {
  const before = world.connects.length;
  for (const node of Object.values(world.nodes)) node.closeAll(code);
  await becomes(() => world.connects.length > before);
}

/** Close while the client connects: that ends it, and it does not wait for anything first. */
async function closesAtOnce(connecting) {
  const began = performance.now();
  client.close();
  await assert.rejects(connecting, { message: /closed by the application/, isFinal: true });
  assert.ok(performance.now() - began < 1_000);
}

beforeEach(async () => {
  world = await World.start("one", "two", "three");
  [inbox, other, ends] = [[], [], []];
  client = make();
});

afterEach(async () => {
  mock.restoreAll();
  client.close();
  await world.stop();
});

test("a client connects to the first candidate and reads on from its position", async () => {
  world.publish("a", "b", "c");
  const positions = { [INBOX]: { epoch: "first", offset: 1 } };
  client = make({ device: "phone", platform: "web", positions });
  await client.connect();
  await has("b", "c");
  world.publish("d");
  await has("b", "c", "d");
  assert.deepEqual(client.positions, { [INBOX]: { epoch: "first", offset: 4 } });
  assert.deepEqual(world.connects, ["one"]);
  assert.deepEqual(world.questions[0].params, { user: USER, device: "phone", platform: "web" });
  assert.equal(world.questions[0].credential, "Bearer token");
});

test("candidates that fail are passed over with the same ticket", async () => {
  world.candidates = ["nobody", "one", "two"];
  world.nodes.one.isRefusing = true;
  await client.connect();
  await isOn("two");
  assert.equal(world.questions.length, 1);
});

test("a candidate that closes before it answers is passed over", async () => {
  world.nodes.one.closesConnects = 3001;
  await client.connect();
  await isOn("two");
  assert.deepEqual(world.connects, ["one", "two"]);
});

test("a node that does not answer is passed over in time", async () => {
  const real = globalThis.setTimeout;
  mock.method(globalThis, "setTimeout", (call, ms, ...rest) => real(call, ms === 5_000 ? 50 : ms, ...rest));
  world.nodes.one.isSilent = true;
  await client.connect();
  await isOn("two");
});

test("a used ticket is replaced by a fresh one", async () => {
  world.used.add("ticket-1");
  await client.connect();
  assert.equal(world.questions.length, 2);
  assert.deepEqual(ends, []);
});

test("a fresh ticket that is refused as used is no endless loop", async () => {
  for (let number = 1; number < 10; number += 1) world.used.add(`ticket-${number}`);
  await assert.rejects(client.connect(), /no access node let us in/);
  assert.equal(world.questions.length, 2);
});

test("connecting fails when no candidate lets the client in, and may be tried again", async () => {
  for (const node of Object.values(world.nodes)) node.isRefusing = true;
  await assert.rejects(client.connect(), RoadsteadError);
  world.nodes.three.isRefusing = false;
  await client.connect();
  await isOn("three");
});

for (const code of [3001, 3008, 3012, 3499, 4000, 4499]) {
  test(`after a close with ${code} nothing is lost or twice`, async () => {
    await client.connect();
    world.publish("a", "b");
    await has("a", "b");
    world.candidates = ["two"];
    world.nodes.one.closeAll(code);
    world.publish("c");
    await isOn("two");
    world.publish("d");
    await has("a", "b", "c", "d");
    assert.deepEqual(world.asked.at(-1).slice(0, 3), ["two", INBOX, "first"]);
    assert.deepEqual(ends, []);
  });
}

test("after a crash of its node nothing is lost or twice", async () => {
  await client.connect();
  world.publish("a");
  await has("a");
  await world.nodes.one.kill();
  world.publish("b");
  await has("a", "b");
  await isOn("two");
});

for (const code of [3500, 3503, 3999, 4500, 4999]) {
  test(`a close with ${code} is told and not retried`, async () => {
    await client.connect();
    world.nodes.one.closeAll(code, "evicted by another device");
    await becomes(() => ends.length);
    assert.deepEqual([ends[0].code, ends[0].isFinal, ends[0].channel], [code, true, null]);
    await assert.rejects(client.call("where", {}), /evicted by another device/);
    await assert.rejects(client.send("alice", "hi"), /evicted by another device/);
    assert.equal(world.questions.length, 1);
    world.publish("a");
    await client.connect();
    await has("a");
  });
}

test("a terminal close while connecting rejects, and no other candidate is tried", async () => {
  world.nodes.one.closesConnects = 3500;
  await assert.rejects(client.connect(), { code: 3500, isFinal: true });
  assert.deepEqual(world.connects, ["one"]);
});

test("waits between rounds heed what the scheduler's refusal says", async () => {
  await client.connect();
  const status = 503;
  world.refusals = [
    { status, error: { code: 104, message: "starting", retry: "same_node", detail: { retry_after_ms: 150 } } },
    { status, text: "not JSON: a proxy's page", headers: { "Retry-After": "1" } },
    { status, text: "{}", headers: { "Retry-After": "1" } },
  ];
  await breaks();
  const times = world.questions.slice(1).map(({ at }) => at);
  assert.equal(times.length, 4);
  assert.ok(times[1] - times[0] >= 149);
  assert.ok(times[3] - times[2] >= 999);
});

test("waits are anything below a ceiling that doubles as the scheduler says", async () => {
  world.backoff = { base_ms: 10, ceiling_ms: 40 };
  await client.connect();
  const waits = [];
  const real = globalThis.setTimeout;
  mock.method(Math, "random", () => 0.5);
  mock.method(globalThis, "setTimeout", (call, ms, ...rest) => {
    if (ms <= 20) waits.push(ms);
    return real(call, ms, ...rest);
  });
  world.refusals = Array(4).fill({ status: 503, error: { code: 104, message: "starting" } });
  const before = world.connects.length;
  world.nodes.one.closeAll(3001);
  while (world.connects.length === before) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(waits, [5, 10, 20, 20, 20]);
});

test("a refused credential is told, and another one may connect", async () => {
  await client.connect();
  world.refusals = [{ status: 401, error: { code: 204, message: "the user token is expired", retry: "reroute" } }];
  world.nodes.one.closeAll(3001);
  await becomes(() => ends.length);
  assert.equal(ends[0].code, 204);
  client.credential = "another";
  await client.connect();
  assert.equal(world.questions.at(-1).credential, "Bearer another");
});

test("a client that is closed while it waits does not connect later", async () => {
  await client.connect();
  world.refusals = [{ status: 503, error: { code: 104, message: "starting", detail: { retry_after_ms: 50 } } }];
  world.nodes.one.closeAll(3001);
  await becomes(() => world.questions.length === 2);
  client.close();
  await new Promise((resolve) => setTimeout(resolve, 150));
  assert.deepEqual([world.questions.length, world.connects], [2, ["one"]]);
  assert.deepEqual(ends, []);
});

test("a client that is closed while it connects rejects", async () => {
  world.nodes.one.isSilent = true;
  const connecting = assert.rejects(client.connect(), /closed by the application/);
  await becomes(() => world.nodes.one.sessions.size);
  client.close();
  await connecting;
  await becomes(() => world.nodes.one.sessions.size === 0);
  assert.deepEqual(ends, []);
});

for (const behind of [3, 20]) {
  test(`a handler that closes is told nothing more: ${behind} entries behind`, async () => {
    world.publish(...Array(behind).keys());
    world.recoveryMax = 10;
    client = make({ onMessage: ({ data }) => inbox.push(data) && client.close() });
    await assert.rejects(client.connect(), /closed by the application/);
    await becomes(() => world.nodes.one.sessions.size === 0);
    assert.deepEqual([inbox, ends], [[0], []]);
  });
}

test("a move is followed before the old connection is closed", async () => {
  await client.connect();
  world.publish("a");
  await has("a");
  const { one, two } = world.nodes;
  const seen = [];
  one.moveAll(two.url, world.ticket());
  await becomes(() => seen.push(one.sessions.size + two.sessions.size) && one.sessions.size === 0);
  assert.ok(Math.min(...seen) > 0);
  await isOn("two");
  assert.equal(world.questions.length, 1);
  assert.deepEqual(world.asked.at(-1), ["two", INBOX, "first", 1]);
});

test("what both connections of a move tell is handed over once", async () => {
  await client.connect();
  world.publish("a");
  await has("a");
  world.nodes.two.beforeSubscribe = async () => {
    world.publish("b");
    await has("a", "b");
    world.publish("c");
  };
  world.nodes.one.moveAll(world.nodes.two.url, world.ticket());
  await isOn("two");
  world.publish("d");
  await has("a", "b", "c", "d");
});

test("during moves every publication arrives once and in order", async () => {
  await client.connect();
  const nodes = [world.nodes.one, world.nodes.two, world.nodes.three];
  for (let number = 0; number < 30; number += 1) {
    const [source, target] = [nodes[number % 3], nodes[(number + 1) % 3]];
    source.moveAll(target.url, world.ticket());
    await becomes(() => world.publish(world.timeline.length) || source.sessions.size === 0);
  }
  await has(...world.timeline.keys());
  assert.equal(world.questions.length, 1);
});

test("a move that fails asks the scheduler", async () => {
  await client.connect();
  world.candidates = ["two"];
  world.nodes.one.moveAll(world.url("nobody"), world.ticket());
  await isOn("two");
  assert.equal(world.questions.length, 2);
  await becomes(() => world.nodes.one.sessions.size === 0);
});

test("a move with a used ticket asks the scheduler", async () => {
  await client.connect();
  world.candidates = ["three"];
  world.used.add("spent");
  world.nodes.one.moveAll(world.nodes.two.url, "spent");
  await isOn("three");
});

test("a move that names no node asks the scheduler", async () => {
  await client.connect();
  world.candidates = ["two"];
  world.nodes.one.push({ message: { data: { move: { after_ms: 10_000 } } } });
  await isOn("two");
});

test("when there is nowhere to move to the old connection goes on", async () => {
  await client.connect();
  world.refusals = [{ status: 503, error: { code: 104, message: "starting" } }];
  world.nodes.one.moveAll(world.url("nobody"), world.ticket());
  await becomes(() => world.questions.length === 2);
  world.publish("a");
  await has("a");
  await isOn("one");
  world.nodes.one.moveAll(world.nodes.two.url, world.ticket());
  await isOn("two");
});

test("an eviction by its own successor is not told", async () => {
  await client.connect();
  world.nodes.two.beforeSubscribe = () => {
    world.nodes.one.closeAll(3503);
    return becomes(() => world.nodes.one.sessions.size === 0);
  };
  world.nodes.one.moveAll(world.nodes.two.url, world.ticket());
  await isOn("two");
  assert.deepEqual(ends, []);
});

test("other messages of the server are no moves", async () => {
  await client.connect();
  for (const data of ["hello", { move: "nowhere" }, { other: 1 }, null]) {
    world.nodes.one.push({ message: { data } });
  }
  world.publish("a");
  await has("a");
  await isOn("one");
});

test("a channel is followed over connections from its position", async () => {
  client.subscribe(PRESENCE, takeOther); // before there is a connection
  await client.connect();
  await becomes(() => other.length === 1);
  world.nodes.one.setState(PRESENCE, "busy");
  await becomes(() => other.length === 2);
  assert.deepEqual(client.positions[PRESENCE], { epoch: "view-of-one", offset: 2 });
  await breaks();
  await becomes(() => world.asked.filter(([, channel]) => channel === PRESENCE).length === 2);
  world.nodes.one.setState(PRESENCE, "away");
  await becomes(() => other.length === 3);
  world.nodes.one.moveAll(world.nodes.two.url, world.ticket());
  await becomes(() => other.length === 4);
  world.nodes.two.setState(PRESENCE, "busy");
  await becomes(() => other.length === 5);
  const told = ["online", "busy", "away", "online", "busy"].map((state, index) => [state, index === 0]);
  assert.deepEqual(other, told);
  assert.deepEqual(world.asked.at(-1), ["two", PRESENCE, "view-of-one", 3]);
});

test("a channel whose position is refused begins anew and says so", async () => {
  world.unrecoverable.add(PRESENCE);
  client = make({ positions: { [PRESENCE]: { epoch: "of old", offset: 7 } } });
  await client.connect();
  client.subscribe(PRESENCE, takeOther);
  await becomes(() => other.length);
  assert.deepEqual(other, [["online", true]]);
  assert.deepEqual(client.positions[PRESENCE], { epoch: "view-of-one", offset: 1 });
});

test("a refused channel is told, and the rest goes on", async () => {
  world.refused.add(PRESENCE);
  await client.connect();
  client.subscribe(PRESENCE, takeOther);
  await becomes(() => ends.length);
  assert.deepEqual([ends[0].code, ends[0].channel], [103, PRESENCE]);
  world.refused.clear();
  client.subscribe(PRESENCE, takeOther);
  await becomes(() => other.length);
  world.publish("a");
  await has("a");
});

test("a channel that was left is not followed by the next connection", async () => {
  await client.connect();
  client.subscribe(PRESENCE, takeOther);
  await becomes(() => other.length);
  client.unsubscribe(PRESENCE);
  world.nodes.one.moveAll(world.nodes.two.url, world.ticket());
  await isOn("two");
  assert.equal(world.asked.filter(([, channel]) => channel === PRESENCE).length, 1);
});

test("publications without an offset are handed over as they come", async () => {
  await client.connect();
  client.subscribe(PRESENCE, takeOther);
  await becomes(() => other.length);
  for (const data of ["x", "x"]) world.nodes.one.tell(PRESENCE, { data });
  await becomes(() => other.length === 3);
  assert.deepEqual(client.positions[PRESENCE], { epoch: "view-of-one", offset: 1 });
});

test("a refused inbox is an end", async () => {
  world.refused.add(INBOX);
  await assert.rejects(client.connect(), { code: 103, isFinal: true });
});

test("a client far behind pages through the timeline", async () => {
  world.publish(...Array(100).keys());
  Object.assign(world, { recoveryMax: 10, pageMax: 3 });
  await client.connect();
  await has(...Array(100).keys());
  assert.deepEqual(world.connects, ["one"]);
  assert.equal(world.calls.length, 34);
});

test("after the server's data was replaced the timeline is read from its beginning", async () => {
  world.publish("x", "y");
  world.epoch = "second";
  client = make({ positions: { [INBOX]: { epoch: "first", offset: 1 } } });
  await client.connect();
  await has("x", "y");
  assert.deepEqual(client.positions[INBOX], { epoch: "second", offset: 2 });
});

test("with a position beyond the end the timeline is read from its beginning", async () => {
  world.publish("x", "y");
  world.epoch = "second";
  client = make({ positions: { [INBOX]: { epoch: "first", offset: 7 } } });
  await client.connect();
  await has("x", "y");
  assert.deepEqual(client.positions[INBOX], { epoch: "second", offset: 2 });
});

test("who is behind what is kept is told to start, and goes on at the end", async () => {
  world.publish(...Array(20).keys());
  Object.assign(world, { recoveryMax: 10, floor: 15 });
  const starts = [];
  client = make({
    positions: { [INBOX]: { epoch: world.epoch, offset: 3 } },
    onMessage: ({ data, isStart, position }) => (isStart ? starts.push(position.offset) : inbox.push(data)),
  });
  await client.connect();
  world.publish("next");
  await has("next");
  assert.deepEqual(starts, [20]);
});

test("the old connection of a move is not believed about data that was replaced", async () => {
  await client.connect();
  world.publish("a");
  await has("a");
  Object.assign(world, { timeline: ["x", "y"], epoch: "second" });
  let turns = 0;
  world.nodes.two.beforeSubscribe = async () => {
    turns += 1;
    if (turns < 2) return;
    world.nodes.one.tell(INBOX, { offset: 9, data: "of old" }); // the timeline was paged through
    assert.equal(await client.call("where", {}), "one");
  };
  world.nodes.one.moveAll(world.nodes.two.url, world.ticket());
  await isOn("two");
  assert.equal(turns, 2);
  await has("a", "x", "y");
});

test("a message is sent again under the same id while no answer comes", async () => {
  await client.connect();
  world.failures = [{ code: 100, message: "internal server error", temporary: true }];
  const result = await client.send("alice", "hi", { clientMsgId: "one" });
  assert.deepEqual([result, world.calls], [{ is_new: true, id: "one" }, ["im.send", "im.send"]]);
  world.failures = [{ code: 1303, message: "conflict" }];
  await assert.rejects(client.send("alice", "hi"), { code: 1303, isFinal: true });
});

test("a call waits for the next connection", async () => {
  await client.connect();
  world.refusals = [{ status: 503, error: { code: 104, message: "starting", detail: { retry_after_ms: 100 } } }];
  world.nodes.one.closeAll(3001);
  await becomes(() => world.questions.length === 2);
  assert.equal(await client.call("echo", 7), 7);
});

test("the version of the application is told", async () => {
  client = make({ app: "5.1.0" });
  await client.connect();
  assert.deepEqual(world.questions[0].params, { user: USER, device: "js", platform: "js", app: "5.1.0" });
});

test("nobody connects before its turn, and the old connection serves meanwhile", async () => {
  world.more = { not_before_ms: 200 };
  await client.connect();
  assert.ok(performance.now() - world.questions[0].at >= 199);
  world.candidates = ["two"];
  world.nodes.one.moveAll("", "");
  await becomes(() => world.questions.length === 2);
  world.publish("a");
  await has("a");
  assert.deepEqual(world.connects, ["one"]);
  await isOn("two");
});

test("a client that is closed while it waits for its turn never connects", async () => {
  world.more = { not_before_ms: 60_000 };
  const connecting = client.connect();
  await becomes(() => world.questions.length === 1);
  await new Promise((resolve) => setTimeout(resolve, 50)); // the answer is on its way
  await closesAtOnce(connecting);
  assert.deepEqual(world.connects, []);
});

test("a client that is closed while it asks for its turn does not wait for it", async () => {
  world.more = { not_before_ms: 60_000 };
  await closesAtOnce(client.connect());
  assert.deepEqual(world.connects, []);
});

test("after connecting failed a call says why at once, until there is another try", async () => {
  for (const node of Object.values(world.nodes)) node.isRefusing = true;
  const began = performance.now();
  const connecting = assert.rejects(client.connect(), /no access node let us in/);
  await assert.rejects(client.call("where", {}), /no access node let us in/); // it waited for that
  await connecting;
  await assert.rejects(client.call("where", {}), /no access node let us in/);
  assert.ok(performance.now() - began < 1_000);
  world.nodes.one.isRefusing = false;
  await client.connect();
  await isOn("one");
});

test("of two that connect at once the last one does, and a call waits for that", async () => {
  const first = assert.rejects(client.connect(), { message: /closed by the application/, isFinal: true });
  const last = client.connect();
  assert.equal(await client.call("where", {}), "one");
  await Promise.all([first, last]);
});

test("after its lifetime a connection is replaced without a gap, and tried again if there is no other", async () => {
  world.more = { lifetime_ms: 50 };
  await client.connect();
  world.refusals = [{ status: 503, error: { code: 104, message: "starting" } }];
  world.candidates = ["two"];
  await becomes(() => world.questions.length === 2);
  world.more = {};
  const { one, two } = world.nodes;
  await becomes(() => {
    assert.ok(one.sessions.size || two.sessions.size);
    world.publish(world.timeline.length);
    return !one.sessions.size;
  });
  await isOn("two");
  await has(...world.timeline);
  await new Promise((resolve) => setTimeout(resolve, 120)); // this answer named no lifetime: it stays
  assert.deepEqual(world.connects, ["one", "two"]);
  assert.deepEqual(ends, []);
});

test("what was measured is told with the next question, once", async () => {
  const urls = { sh: `${world.scheduler}/probe/sh`, nowhere: "http://127.0.0.1:1/", nonsense: "http://" };
  world.more = { probe: Object.entries(urls).map(([region, url]) => ({ region, url })) };
  await client.connect();
  assert.equal(world.questions[0].params.rtt, undefined);
  await becomes(() => world.probed.length);
  await new Promise((resolve) => setTimeout(resolve, 50)); // the answer is on its way
  world.more = {};
  await breaks();
  await isOn("one");
  await breaks();
  await isOn("one");
  const [, first, ...others] = world.questions.map(({ params }) => params.rtt);
  assert.match(first, /^sh:[0-9]+$/);
  assert.deepEqual(new Set(others), new Set([undefined]));
});
