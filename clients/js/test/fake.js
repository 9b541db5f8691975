/** A scheduler and access nodes that do as they are told, over real sockets. All nodes serve one timeline. */
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

export const USER = "bob";
export const INBOX = `inbox:${USER}`;

const listen = async (server) => {
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return server.address().port;
};

class Node {
  sessions = new Set();
  isRefusing = false;
  isSilent = false;
  closesConnects = null;
  beforeSubscribe = null;
  states = new Map();

  constructor(world, name) {
    this.world = world;
    this.name = name;
    this.server = createServer();
    this.sockets = new WebSocketServer({ noServer: true });
    this.server.on("upgrade", (request, socket, head) => {
      if (this.isRefusing) return socket.end("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
      this.sockets.handleUpgrade(request, socket, head, (session) => this.#serve(session));
    });
  }

  async start() {
    this.url = `ws://127.0.0.1:${await listen(this.server)}/connection/websocket`;
  }

  #serve(session) {
    session.channels = new Set();
    this.sessions.add(session);
    session.on("close", () => this.sessions.delete(session));
    session.on("error", () => {});
    session.on("message", async (data) => {
      for (const line of String(data).split("\n").filter(Boolean)) {
        const { id, ...command } = JSON.parse(line);
        if (!id || this.isSilent) continue;
        const answer = await this.#answer(session, command);
        if (answer) session.send(JSON.stringify({ id, ...answer }));
      }
    });
  }

  async #answer(session, { connect, subscribe, unsubscribe, rpc }) {
    if (connect) return this.#connect(session, connect);
    if (unsubscribe) return { unsubscribe: {} };
    if (rpc) return this.#call(rpc);
    await this.beforeSubscribe?.();
    return this.#subscribe(session, subscribe);
  }

  #connect(session, { token }) {
    this.world.connects.push(this.name);
    if (this.closesConnects) return session.close(this.closesConnects, "as told");
    if (this.world.used.has(token)) return { error: { code: 109, message: "token expired" } };
    this.world.used.add(token);
    return { connect: { client: token, ping: 25, pong: true } };
  }

  #subscribe(session, { channel, recover = false, epoch = "", offset = 0, flag = 0 }) {
    const { world } = this;
    if (world.refused.has(channel)) return { error: { code: 103, message: "permission denied" } };
    world.asked.push([this.name, channel, epoch, offset]);
    const isInbox = channel === INBOX;
    const state = this.states.get(channel) ?? { offset: 1, data: "online" };
    const head = isInbox ? world.timeline.length : state.offset;
    const current = isInbox ? world.epoch : `view-of-${this.name}`;
    const entries = isInbox ? world.entries().slice(offset) : epoch === current && offset === head ? [] : [state];
    const isKnown = !isInbox || epoch === current || (!epoch && !offset);
    const recovered = recover && isKnown && entries.length <= world.recoveryMax && !world.unrecoverable.has(channel);
    if (recover && !recovered && flag & 2) return { error: { code: 112, message: "unrecoverable position" } };
    session.channels.add(channel);
    const start = { recoverable: true, positioned: true, epoch: current, offset: head, was_recovering: recover };
    const data = isInbox ? undefined : state.data;
    return { subscribe: { ...start, recovered, data, publications: recovered ? entries : [] } };
  }

  #call({ method, data }) {
    const { world } = this;
    world.calls.push(method);
    if (world.failures.length) return { error: world.failures.shift() };
    if (method === "where") return { rpc: { data: this.name } };
    if (method === "echo") return { rpc: { data } };
    if (method === "im.send") return { rpc: { data: { is_new: true, id: data.client_msg_id } } };
    if (method !== "im.sync") return { error: { code: 104, message: "method not found" } };
    const page = { epoch: world.epoch, head: world.timeline.length, entries: [], has_more: false };
    if (data.since > page.head) return { error: { code: 1311, message: "the position is beyond the end" } };
    if (data.since < world.floor) return { rpc: { data: { ...page, too_old: true } } };
    const end = data.since + Math.min(data.limit, world.pageMax);
    const entries = world.entries().slice(data.since, end);
    return { rpc: { data: { ...page, entries, has_more: end < page.head } } };
  }

  push(push) {
    for (const session of this.sessions) session.send(JSON.stringify({ push }));
  }

  tell(channel, pub) {
    for (const session of this.sessions) {
      if (session.channels.has(channel)) session.send(JSON.stringify({ push: { channel, pub } }));
    }
  }

  setState(channel, data) {
    const state = { offset: (this.states.get(channel)?.offset ?? 1) + 1, data };
    this.states.set(channel, state);
    this.tell(channel, state);
  }

  moveAll(url, ticket) {
    this.push({ message: { data: { move: { node: "another", url, ticket, after_ms: 10_000 } } } });
  }

  closeAll(code, reason = "as told") {
    for (const session of this.sessions) session.close(code, reason);
  }

  /** No close frame, no further connection. */
  kill() {
    for (const session of this.sessions) session.terminate();
    return new Promise((resolve) => this.server.close(resolve));
  }
}

/** What all nodes share, and the scheduler: it answers with `candidates`, after the `refusals`. */
export class World {
  timeline = [];
  epoch = "first";
  recoveryMax = 1_000;
  pageMax = 1_000;
  candidates = [];
  refusals = [];
  backoff = { base_ms: 1, ceiling_ms: 8 };
  /** What else stands in an answer. */
  more = {};
  probed = [];
  unrecoverable = new Set();
  refused = new Set();
  used = new Set();
  nodes = {};
  /** Entries of the timeline up to here are not kept any more. */
  floor = 0;
  connects = [];
  asked = [];
  calls = [];
  failures = [];
  questions = [];
  /** All schedulers; `scheduler` is the first. */
  schedulers = [];
  /** What stands before a scheduler and answers for it, by its URL: status, text, headers. */
  gateways = new Map();
  servers = Array.from({ length: 3 }, () => createServer((request, response) => this.#access(request, response)));
  #tickets = 0;

  static async start(...names) {
    const world = new World();
    for (const server of world.servers) world.schedulers.push(`http://127.0.0.1:${await listen(server)}`);
    [world.scheduler] = world.schedulers;
    for (const name of names) {
      world.nodes[name] = new Node(world, name);
      await world.nodes[name].start();
    }
    world.candidates = names;
    return world;
  }

  ticket() {
    this.#tickets += 1;
    return `ticket-${this.#tickets}`;
  }

  /** Where a node is, or where none listens. */
  url(name) {
    return this.nodes[name]?.url ?? "ws://127.0.0.1:1/connection/websocket";
  }

  entries() {
    return this.timeline.map((data, index) => ({ offset: index + 1, data }));
  }

  publish(...entries) {
    for (const data of entries) {
      this.timeline.push(data);
      for (const node of Object.values(this.nodes)) node.tell(INBOX, { offset: this.timeline.length, data });
    }
  }

  #access(request, response) {
    const { searchParams, pathname } = new URL(request.url, this.scheduler);
    if (pathname.startsWith("/probe/")) return this.#probe(pathname.slice(7), response);
    const params = Object.fromEntries(searchParams);
    const scheduler = `http://${request.headers.host}`;
    this.questions.push({ at: performance.now(), scheduler, params, credential: request.headers.authorization });
    const gateway = this.gateways.get(scheduler);
    if (gateway) {
      response.writeHead(gateway.status, { "Content-Type": "text/html", ...gateway.headers });
      return response.end(gateway.text);
    }
    const refusal = this.refusals.shift();
    const candidates = this.candidates.map((id) => ({ id, urls: { websocket: this.url(id) } }));
    response.writeHead(refusal?.status ?? 200, { "Content-Type": "application/json", ...refusal?.headers });
    const error = { name: "as told", retry: "same_node", ...refusal?.error };
    if (refusal) return response.end(refusal.text ?? JSON.stringify({ error }));
    const answer = { candidates, ticket: this.ticket(), ttl_ms: 60_000, backoff: this.backoff, ...this.more };
    response.end(JSON.stringify(answer));
  }

  /** Answer a probe of a region, but for one that is slow. */
  #probe(region, response) {
    this.probed.push(region);
    if (region !== "slow") response.end();
  }

  async stop() {
    for (const node of Object.values(this.nodes)) await node.kill();
    for (const server of this.servers) {
      server.closeAllConnections?.();
      await new Promise((resolve) => server.close(resolve));
    }
  }
}
