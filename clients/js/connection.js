/** One connection of the client: an SDK object that never reconnects, and the channels that are read over it. */
import { Centrifuge } from "centrifuge";

export const DEADLINE_MS = 5_000;
const NEVER_MS = 86_400_000;
/** The longest that a timer takes. */
const TIMER_MS_MAX = 2 ** 31 - 1;
const SYNC_PAGE = 500;
/** Error 311 of the message services: the position is of another epoch, or beyond the end. */
const POSITION_LOST = 1311;

/**
 * A failure. `code` is the server's or that of a close; `isFinal` says that trying again is of no use; `channel` is
 * named when it is about that channel only.
 */
export class RoadsteadError extends Error {
  constructor(message, { code = 0, isFinal = false, channel = null, retryAfterMs = 0 } = {}) {
    super(message);
    this.name = "RoadsteadError";
    this.code = code;
    this.isFinal = isFinal;
    this.channel = channel;
    this.retryAfterMs = retryAfterMs;
  }
}

/** Tell of what the application's own code threw, as the platform does of what nobody catches. */
function report(error) {
  if (globalThis.reportError) globalThis.reportError(error);
  else console.error(error);
}

/** Call the application's own code, now. What it throws, or later rejects with, is reported; nothing ends by it. */
export function tell(handler, what) {
  new Promise((resolve) => resolve(handler(what))).catch(report);
}

/**
 * What the application follows, and how far it has come: positions outlive connections. Two connections may tell of a
 * channel for a while, as in a move; each tells all that comes after the position, so whichever is first is handed over.
 *
 * A handler that throws is reported, and what it was given counts as dealt with: a defect in how one publication is
 * treated must neither stop those behind it nor come again for ever.
 */
export class Channel {
  constructor(name, handler, position) {
    this.name = name;
    this.handler = handler;
    this.position = position ?? { epoch: "", offset: 0 };
  }

  /** A connection begins to tell: all after the position if it is recovered, else only what comes after `at`. */
  begin(at, data, isRecovered) {
    if (!isRecovered) {
      this.#handOver(at, data, true);
      this.position = at;
    } else if (at.epoch !== this.position.epoch) {
      this.position = { epoch: at.epoch, offset: 0 }; // another stream, which counts from its own beginning
    }
  }

  /** Hand a publication over, unless it is known or of a stream that the channel has left. */
  deliver(at, data) {
    if (!at.offset) {
      this.#handOver(this.position, data, false); // without a history
    } else if (at.epoch === this.position.epoch && at.offset > this.position.offset) {
      this.#handOver(at, data, false);
      this.position = at; // only now: it counts as read once the handler is done
    }
  }

  #handOver(position, data, isStart) {
    tell(this.handler, { channel: this.name, position, data, isStart });
  }
}

/** An SDK object for one connection to one node. */
export class Connection {
  /** Why it is over, or null. */
  error = null;
  /** Where the server wants the client to go: `{url, ticket}`, `{}` for wherever the scheduler says; or null. */
  move = null;
  openedAt = null;
  #inbox;
  #refused;
  #changed = () => {};
  #deadline = null;
  #lifetimeMs;
  #lifetime = null;

  /**
   * After `lifetimeMs` it is to be replaced, as if the server had asked for that, and again as long as it is not; 0:
   * never. `refused` is called with the error of each channel that the server does not let the client follow.
   */
  constructor(url, ticket, { websocket, inbox, refused, lifetimeMs }) {
    this.#inbox = inbox;
    this.#lifetimeMs = lifetimeMs;
    this.#refused = refused;
    this.sdk = new Centrifuge(url, {
      token: ticket,
      name: "roadstead-js",
      websocket,
      timeout: DEADLINE_MS,
      minReconnectDelay: NEVER_MS,
      maxReconnectDelay: NEVER_MS,
    });
    this.sdk.on("error", ({ error }) => this.over(error.message, error.code));
    // With code 0 these two are of our own doing.
    this.sdk.on("connecting", ({ code, reason }) => code && this.over(reason, code));
    this.sdk.on("disconnected", ({ code, reason }) => {
      clearInterval(this.#lifetime);
      if (code) this.over(reason, code, true);
    });
    this.sdk.on("message", ({ data }) => {
      if (typeof data?.move === "object") this.#go(data.move);
    });
    this.sdk.on("connected", () => this.follow(inbox));
  }

  /** Connect and follow the inbox; resolves with this. Rejects with `error` if that fails. */
  async open() {
    this.#works();
    this.sdk.connect();
    while (!this.openedAt && !this.error) await this.news();
    clearTimeout(this.#deadline);
    if (this.error) throw this.error;
    const lifetimeMs = Math.min(this.#lifetimeMs, TIMER_MS_MAX);
    if (lifetimeMs) this.#lifetime = setInterval(() => this.#go(this.move ?? {}), lifetimeMs);
    return this;
  }

  #go(move) {
    this.move = move;
    this.#changed();
  }

  /** Resolves when `error`, `move` or `openedAt` changes. One waits at a time. */
  news() {
    return new Promise((resolve) => (this.#changed = resolve));
  }

  /** Disconnect, for the first reason that is given. */
  over(reason, code = 0, isFinal = false) {
    this.error ??= new RoadsteadError(`the connection was closed: ${reason} (${code})`, { code, isFinal });
    this.sdk.disconnect();
    this.#changed();
  }

  /** Subscribe to a channel, from its position on, if that was not done yet. */
  follow(channel) {
    if (this.sdk.getSubscription(channel.name)) return;
    const isInbox = channel === this.#inbox;
    const since = channel.position.epoch ? channel.position : null;
    const start = isInbox ? { getState: this.#starter(channel) } : { since };
    const subscription = this.sdk.newSubscription(channel.name, { recoverable: true, ...start });
    let epoch = "";
    subscription.on("subscribed", ({ recovered, streamPosition, data }) => {
      epoch = streamPosition?.epoch ?? "";
      channel.begin({ epoch, offset: streamPosition?.offset ?? 0 }, data, recovered);
      if (!isInbox) return;
      this.openedAt ??= Date.now();
      this.#changed();
    });
    subscription.on("publication", ({ offset, data }) => channel.deliver({ epoch, offset: offset ?? 0 }, data));
    subscription.on("unsubscribed", ({ code, reason }) => {
      if (!code) return; // our own doing
      if (isInbox) return this.over(reason, code, true);
      this.leave(channel.name);
      const about = { code, isFinal: true, channel: channel.name };
      this.#refused(new RoadsteadError(`${channel.name}: ${reason}`, about));
    });
    subscription.subscribe();
  }

  /** Unsubscribe from a channel, if it is followed. */
  leave(name) {
    const subscription = this.sdk.getSubscription(name);
    if (subscription) this.sdk.removeSubscription(subscription);
  }

  /** Where the inbox begins, asked by the SDK. Asked again, the position was refused: page through the timeline. */
  #starter(channel) {
    let wasAsked = false;
    return async () => {
      if (wasAsked) await this.#sync(channel);
      wasAsked = true;
      return channel.position;
    };
  }

  /**
   * Page from the position on; from the beginning if the server's data was replaced, and from the end if what follows
   * the position is not kept any more.
   */
  async #sync(channel) {
    let hasMore = true;
    while (hasMore) {
      const page = await this.#page(channel);
      this.#works();
      if (!page) {
        channel.position = { epoch: "", offset: 0 };
        continue;
      }
      if (page.too_old) {
        channel.begin({ epoch: page.epoch, offset: page.head }, null, false);
        continue;
      }
      const isOther = channel.position.epoch !== "" && channel.position.epoch !== page.epoch;
      channel.position = { epoch: page.epoch, offset: isOther ? 0 : channel.position.offset };
      if (isOther) continue;
      for (const { offset, data } of page.entries) {
        if (this.error) return; // as when a handler closes the client
        channel.deliver({ epoch: page.epoch, offset }, data);
      }
      hasMore = page.has_more;
    }
  }

  /** A page of the timeline, or null when the position is none of it. */
  async #page({ position }) {
    try {
      return (await this.sdk.rpc("im.sync", { since: position.offset, limit: SYNC_PAGE })).data;
    } catch (error) {
      if (error.code === POSITION_LOST && position.offset > 0) return null;
      throw error;
    }
  }

  /** It answers, though it is not open yet: give it time. */
  #works() {
    if (this.openedAt || this.error) return;
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => this.over("no answer in time"), DEADLINE_MS);
  }
}
