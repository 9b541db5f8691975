/** Where the client connects: to the scheduler's candidates, or to where a node that drains sends it. */
import { Connection, DEADLINE_MS, RoadsteadError } from "./connection.js";

const TOKEN_EXPIRED = 109;
const UNAUTHORIZED_STATUS = 401;
const STABLE_MS = 10_000;
/** How long a probe may take, to be worth a thought. */
const PROBE_MS = 2_000;
const PROBES_MAX = 8;

/** Opens connections, of which each follows the inbox, until it is closed. */
export class Dialer {
  #url;
  #credential;
  #options;
  #backoff = { base_ms: 200, ceiling_ms: 20_000 };
  #tries = 0;
  #lifetimeMs = 0;
  /** Regions that were measured and not told yet: `region:ms`. */
  #distances = [];
  #timer = null;
  #opening = null;
  #isClosed = false;

  /** `url` of `GET /v1/access` with its query; `credential` returns what to ask with; `options` are `Connection`'s. */
  constructor(url, credential, options) {
    this.#url = url;
    this.#credential = credential;
    this.#options = options;
  }

  /**
   * One round: ask the scheduler, wait for our turn, try its candidates in their order. A ticket that is used up is
   * replaced, once.
   */
  async dial() {
    let last = null;
    for (let answers = 0; answers === 0 || (answers === 1 && last?.code === TOKEN_EXPIRED); answers += 1) {
      const { candidates, ticket, probe = [], not_before_ms: waitMs = 0 } = await this.#ask();
      if (waitMs) await this.#pause(waitMs);
      for (const { urls } of candidates) {
        try {
          const connection = await this.#open(urls.websocket, ticket);
          this.#measure(probe);
          return connection;
        } catch (error) {
          if (error.isFinal) throw error;
          last = error;
          if (error.code === TOKEN_EXPIRED) break;
        }
      }
    }
    throw new RoadsteadError(`no access node let us in: ${last?.message}`);
  }

  /** Rounds until a connection is open: after a wait below a doubling ceiling, which a good connection resets. */
  async redial(lost) {
    if (Date.now() - lost.openedAt > STABLE_MS) this.#tries = 0;
    let retryAfterMs = 0;
    for (;;) {
      const ceiling = Math.min(this.#backoff.ceiling_ms, this.#backoff.base_ms * 2 ** Math.min(this.#tries, 30));
      this.#tries += 1;
      await this.#pause(retryAfterMs + Math.random() * ceiling);
      try {
        return await this.dial();
      } catch (error) {
        if (error.isFinal) throw error;
        retryAfterMs = error.retryAfterMs;
      }
    }
  }

  /** Open what a move names, else what the scheduler does. Null if there is nothing to go to now. */
  follow({ url, ticket }) {
    const target = url ? this.#open(url, ticket) : Promise.reject();
    return target.catch(() => this.dial()).catch(() => null);
  }

  /** Stop: whatever waits for a connection is told so, or waits for ever and is forgotten. */
  close() {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    this.#opening?.over("closed by the application", 0, true);
  }

  async #open(url, ticket) {
    this.#requireOpen();
    this.#opening = new Connection(url, ticket, { ...this.#options, lifetimeMs: this.#lifetimeMs });
    return this.#opening.open();
  }

  async #ask() {
    this.#requireOpen();
    let response;
    let answer;
    const rtt = this.#distances.length ? `&${new URLSearchParams({ rtt: this.#distances.join() })}` : "";
    try {
      const headers = { Authorization: `Bearer ${this.#credential()}` };
      response = await fetch(this.#url + rtt, { headers, signal: AbortSignal.timeout(DEADLINE_MS) });
      answer = await response.json();
    } catch (error) {
      throw new RoadsteadError(`the scheduler cannot be reached: ${error.message}`);
    }
    if (response.ok) {
      this.#backoff = answer.backoff;
      this.#lifetimeMs = answer.lifetime_ms ?? 0;
      this.#distances = [];
      return answer;
    }
    const { code = 0, message = response.statusText, retry, detail } = answer.error ?? {};
    const isFinal = retry === "never" || response.status === UNAUTHORIZED_STATUS;
    const retryAfterMs = detail?.retry_after_ms ?? 1_000 * (Number(response.headers.get("Retry-After")) || 0);
    throw new RoadsteadError(message, { code, isFinal, retryAfterMs });
  }

  /** Time what the scheduler asks for, to tell it with the next question. What fails is left out. */
  #measure(probes) {
    for (const { region, url } of probes.slice(0, PROBES_MAX)) {
      const began = performance.now();
      fetch(url, { mode: "no-cors", cache: "no-store", signal: AbortSignal.timeout(PROBE_MS) })
        .then((response) => response.arrayBuffer())
        .then(() => this.#distances.push(`${region}:${Math.round(performance.now() - began)}`))
        .catch(() => {});
    }
  }

  #requireOpen() {
    if (this.#isClosed) throw new RoadsteadError("closed by the application", { isFinal: true });
  }

  #pause(ms) {
    return new Promise((resolve) => (this.#timer = setTimeout(resolve, ms)));
  }
}
