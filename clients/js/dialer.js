/**
 * Where the client connects: to the scheduler's candidates, or to where a node that drains sends it.
 *
 * Of several schedulers it stays with one, at first any, for as long as that answers. Whatever a scheduler says itself is
 * an answer, refusals too: the next one is asked only where there was none.
 */
import { Connection, DEADLINE_MS, RoadsteadError } from "./connection.js";

const TOKEN_EXPIRED = 109;
const UNAUTHORIZED_STATUS = 401;
/** The longest that is believed about when to come back. */
const RETRY_AFTER_MS_MAX = 3_600_000;
const STABLE_MS = 10_000;
/** How long a probe may take, to be worth a thought. */
const PROBE_MS = 2_000;
const PROBES_MAX = 8;

const isMs = (value) => Number.isSafeInteger(value) && value >= 0;
const isText = (value) => typeof value === "string";

/** Whether that is a scheduler's answer, as far as it is heeded. */
function isAnswer(value) {
  const { candidates, ticket, backoff, not_before_ms: before = 0, lifetime_ms: lifetime = 0, probe = [] } = value ?? {};
  return (
    [candidates, probe].every(Array.isArray) &&
    candidates.every((each) => typeof each?.urls === "object" && each.urls) &&
    probe.every((each) => isText(each?.region) && isText(each.url)) &&
    isText(ticket) &&
    [backoff?.base_ms, backoff?.ceiling_ms, before, lifetime].every(isMs) &&
    backoff.base_ms > 0
  );
}

/** Whether a scheduler says that; others' errors have no `retry` of these, or are no objects. */
const isFailure = (value) =>
  Number.isSafeInteger(value?.code) &&
  value.code > 0 &&
  isText(value.name) &&
  isText(value.message) &&
  ["same_node", "reroute", "never"].includes(value.retry);

/** Opens connections, of which each follows the inbox, until it is closed. */
export class Dialer {
  #urls;
  /** Which of them is asked. */
  #at;
  #credential;
  #options;
  #backoff = { base_ms: 200, ceiling_ms: 20_000 };
  #tries = 0;
  #lifetimeMs = 0;
  /** Regions that were measured and not told yet: `region:ms`. */
  #distances = [];
  /** Ends a pause. */
  #interrupt = () => {};
  #opening = null;
  #isClosed = false;

  /** `urls` of `GET /v1/access` with its query; `credential` returns what to ask with; `options` are `Connection`'s. */
  constructor(urls, credential, options) {
    this.#urls = urls;
    this.#at = Math.floor(Math.random() * urls.length);
    this.#credential = credential;
    this.#options = options;
  }

  /**
   * One round: ask a scheduler, wait for our turn, try its candidates in their order. A ticket that is used up is
   * replaced, once.
   */
  async dial() {
    let last = null;
    for (let answers = 0; answers === 0 || (answers === 1 && last?.code === TOKEN_EXPIRED); answers += 1) {
      const { candidates, ticket, probe = [], not_before_ms: waitMs = 0 } = await this.#ask();
      if (waitMs) await this.#pause(waitMs);
      for (const { urls } of candidates.filter((each) => isText(each.urls.websocket))) {
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
        if (error.isFinal || !(error instanceof RoadsteadError)) throw error; // a refusal, or a defect
        retryAfterMs = error.retryAfterMs;
      }
    }
  }

  /** Open what a move names, else what the scheduler does. Null if there is nothing to go to now. */
  follow({ url, ticket }) {
    const target = url ? this.#open(url, ticket) : Promise.reject();
    return target.catch(() => this.dial()).catch(() => null);
  }

  /** Stop: whatever waits for a connection is told so. */
  close() {
    this.#isClosed = true;
    this.#interrupt();
    this.#opening?.over("closed by the application", 0, true);
  }

  async #open(url, ticket) {
    this.#requireOpen();
    this.#opening = new Connection(url, ticket, { ...this.#options, lifetimeMs: this.#lifetimeMs });
    return this.#opening.open();
  }

  /** Ask the scheduler that answered last; where there is no answer, each of the others. */
  async #ask() {
    const failures = [];
    while (failures.length < this.#urls.length) {
      this.#requireOpen();
      try {
        return this.#heed(await this.#askAt(this.#urls[this.#at]));
      } catch (error) {
        if (error.code) throw error; // a refusal is an answer
        failures.push(error);
        this.#at = (this.#at + 1) % this.#urls.length;
      }
    }
    const message = failures.map((error) => error.message).join("; ");
    const retryAfterMs = Math.min(...failures.map((error) => error.retryAfterMs));
    throw new RoadsteadError(`no scheduler answers: ${message}`, { retryAfterMs });
  }

  /** Resolves with its answer. Rejects with its refusal, which has a code, or because there was none. */
  async #askAt(url) {
    const [place] = url.split("?");
    let response;
    let text;
    const rtt = this.#distances.length ? `&${new URLSearchParams({ rtt: this.#distances.join() })}` : "";
    try {
      const headers = { Authorization: `Bearer ${this.#credential()}` };
      response = await fetch(url + rtt, { headers, signal: AbortSignal.timeout(DEADLINE_MS) });
      text = await response.text();
    } catch (error) {
      throw new RoadsteadError(`${place} cannot be reached: ${error.message}`);
    }
    const answer = parsed(text);
    if (response.ok && isAnswer(answer)) return answer;
    const afterS = Number(response.headers.get("Retry-After")) || 0;
    const afterMs = Math.min(Math.max(1_000 * afterS, 0), RETRY_AFTER_MS_MAX);
    if (response.ok || !isFailure(answer?.error)) {
      const what = `${place} answered ${response.status}, but not as a scheduler does`;
      throw new RoadsteadError(what, { retryAfterMs: afterMs });
    }
    const { code, message, retry, detail } = answer.error;
    const isFinal = retry === "never" || response.status === UNAUTHORIZED_STATUS;
    const retryAfterMs = isMs(detail?.retry_after_ms) ? detail.retry_after_ms : afterMs;
    throw new RoadsteadError(message, { code, isFinal, retryAfterMs });
  }

  #heed(answer) {
    this.#backoff = answer.backoff;
    this.#lifetimeMs = answer.lifetime_ms ?? 0;
    this.#distances = [];
    return answer;
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

  async #pause(ms) {
    if (!this.#isClosed) {
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, ms);
        this.#interrupt = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#requireOpen();
  }
}

/** The value of a JSON text; undefined if it is none. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
