/**
 * The JavaScript client, for browsers and Node: a thin wrapper over the stock `centrifuge` SDK.
 *
 * Protocol, pings and subscriptions are the SDK's; where to connect is decided here. Each connection is an SDK object
 * of its own: when it is lost, or the server sends a `move`, the scheduler or the move names the next node. Positions
 * outlive connections, so that every publication is handed over once and in order.
 */
import { Channel, DEADLINE_MS, RoadsteadError, tell } from "./connection.js";
import { Dialer } from "./dialer.js";

export { RoadsteadError };

const SEND_TRIES = 5;
const SEND_PAUSE_MS = 200;

/** One user's place in the system, from one device, over as many connections as it takes. */
export class Client {
  /** The user's token, or an API key that may act for users. May be replaced at any time. */
  credential;
  #urls;
  #websocket;
  #onEnd;
  #positions;
  #channels = new Map();
  #inbox;
  #dialer = null;
  #connection = null;
  #error = null;
  /** Wakes the calls that wait for a connection. */
  #waiting = new Set();

  /**
   * Nothing is sent before `connect`.
   *
   * @param {string | string[]} scheduler - the scheduler's base URL; or those of several, of which any is asked first,
   *   and another one when that does not answer
   * @param {object} options
   * @param {string} options.user - who connects
   * @param {string} options.credential - that user's token
   * @param {(incoming: {channel: string, position: {epoch: string, offset: number}, data: any, isStart: boolean}) =>
   *   void} options.onMessage - called for each entry of the user's timeline, in order, each offset once. What it
   *   throws, or rejects with, is reported, and the next entry follows
   * @param {(error: RoadsteadError) => void} [options.onEnd] - told why there will be no further connection: the
   *   server closed with a code that forbids to reconnect, or a scheduler refuses the credential; told, too, of a
   *   channel that the server refused or ended (`error.channel`), the rest goes on then
   * @param {string} [options.device] - name of this device; the user's other devices have other names
   * @param {string} [options.platform] - kind of this device
   * @param {string} [options.app] - version of the application, such as `5.1.0`, by which a rollout may choose
   * @param {Object<string, {epoch: string, offset: number}>} [options.positions] - where to go on reading, by channel
   * @param {any} [options.websocket] - the WebSocket class, where there is no global one
   */
  constructor(scheduler, options) {
    const { user, credential, onMessage, onEnd = () => {}, device = "js", platform = "js", positions = {} } = options;
    const app = options.app ? { app: options.app } : {};
    this.credential = credential;
    const query = new URLSearchParams({ user, device, platform, ...app });
    this.#urls = [scheduler].flat().map((url) => `${url}/v1/access?${query}`);
    if (!this.#urls.length) throw new RangeError("there is no scheduler");
    this.#websocket = options.websocket ?? null;
    this.#onEnd = onEnd;
    this.#positions = positions;
    this.subscribe(`inbox:${user}`, onMessage);
    this.#inbox = this.#channels.get(`inbox:${user}`);
  }

  /** How far each channel was read, `inbox:<user>` among them; to be kept, and given to the next client. */
  get positions() {
    return Object.fromEntries([...this.#channels.values()].map(({ name, position }) => [name, position]));
  }

  /** Connect to a candidate and follow the inbox; resolves when both work, and keeps it so until `close`. */
  async connect() {
    this.close();
    const refused = (error) => {
      this.unsubscribe(error.channel);
      tell(this.#onEnd, error);
    };
    const options = { websocket: this.#websocket, inbox: this.#inbox, refused };
    const dialer = new Dialer(this.#urls, () => this.credential, options);
    this.#dialer = dialer;
    this.#error = null;
    try {
      this.#use(dialer, await dialer.dial());
    } catch (error) {
      this.#fail(dialer, error);
      throw error;
    }
    this.#keep(dialer);
  }

  /** Disconnect. */
  close() {
    this.#dialer?.close();
    this.#dialer = null;
    this.#connection?.sdk.disconnect();
    this.#connection = null;
    this.#error = new RoadsteadError("closed by the application", { isFinal: true });
    this.#wake();
  }

  /** Follow a channel from now on, or on from the position given to the constructor. Refused: `onEnd` is told. */
  subscribe(name, handler) {
    this.#channels.set(name, new Channel(name, handler, this.#positions[name]));
    this.#connection?.follow(this.#channels.get(name));
  }

  /** Leave a channel. Its position is forgotten. */
  unsubscribe(name) {
    this.#channels.delete(name);
    delete this.#positions[name];
    this.#connection?.leave(name);
  }

  /**
   * Send a message; resolves with `{mid, cid, seq, at, is_new}` once it is durable. Retried under the same id over lost
   * answers and reconnects, so that it is stored at most once.
   */
  async send(to, body, { clientMsgId = newId(), type = "text" } = {}) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.call("im.send", { to, client_msg_id: clientMsgId, type, body });
      } catch (error) {
        if (error.isFinal || tries === SEND_TRIES) throw error;
        await new Promise((resolve) => setTimeout(resolve, Math.random() * SEND_PAUSE_MS * 2 ** tries));
      }
    }
  }

  /** Call a method of the server; resolves with its result. Waits for a connection if there is none just now. */
  async call(method, data) {
    if (!this.#connection && !this.#error) await this.#news();
    if (!this.#connection) throw this.#error ?? new RoadsteadError("there is no connection");
    try {
      return (await this.#connection.sdk.rpc(method, data)).data;
    } catch ({ code, message, temporary }) {
      // Codes below 100 are the SDK's own: there was no answer.
      throw new RoadsteadError(message, { code, isFinal: code >= 100 && !temporary });
    }
  }

  /** Replace the connection whenever that is due, until there can be no other. */
  async #keep(dialer) {
    try {
      for (;;) this.#use(dialer, await this.#successor(dialer, this.#connection));
    } catch (error) {
      if (this.#fail(dialer, error)) tell(this.#onEnd, error);
    }
  }

  /** Have calls fail with this, those that wait, too. False if the client was closed meanwhile: of that they know. */
  #fail(dialer, error) {
    if (dialer !== this.#dialer) return false;
    this.#error = error;
    this.#wake();
    return true;
  }

  #use(dialer, connection) {
    if (dialer !== this.#dialer) throw new RoadsteadError("closed by the application", { isFinal: true });
    this.#connection?.sdk.disconnect();
    this.#connection = connection;
    for (const channel of this.#channels.values()) connection.follow(channel);
    this.#wake();
  }

  /** Wait until the connection is to be replaced, and resolve with the open one in its place. */
  async #successor(dialer, connection) {
    while (!connection.error) {
      const { move } = connection;
      connection.move = null;
      if (!move) {
        await connection.news();
        continue;
      }
      const successor = await dialer.follow(move);
      if (successor) return successor;
    }
    this.#connection = null; // calls wait from here on
    if (connection.error.isFinal) throw connection.error;
    return dialer.redial(connection);
  }

  #news() {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        this.#waiting.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, DEADLINE_MS);
      this.#waiting.add(wake);
    });
  }

  #wake() {
    for (const wake of [...this.#waiting]) wake();
  }
}

/** Unique among the messages of one user. */
function newId() {
  return `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
}
