// A client of server-sent events that reads exactly what the standard says: fields, comments, ids without data.

import { after } from "node:test";
import { get } from "node:http";

import { within } from "./harness.mjs";

const open = new Set();

after(() => {
  for (const stream of open) stream.close();
});

/** A stream of `GET /v1/events`: every event in order as `{id, type, data}`, and the last id, which a sign of life moves on, too. */
export class Stream {
  constructor(server, { token, query = "", lastEventId, headers = {} } = {}) {
    this.all = [];
    this.beats = 0;
    this.lastEventId = lastEventId;
    this.waiting = new Set();
    this.fields = {};
    this.rest = "";
    const all = {
      accept: "text/event-stream",
      ...(token ? { authorization: `Bearer ${token}` } : {}),
      ...(lastEventId ? { "last-event-id": lastEventId } : {}),
      ...headers,
    };
    this.ended = new Promise((done) => (this.isOver = done));
    this.answered = new Promise((done, wrong) => {
      this.request = get(`${server.url}/v1/events?${query}`, { headers: all, agent: false }, done).once("error", wrong);
    });
    this.request.on("error", () => this.isOver("broken"));
    this.answered.catch(() => {});
    open.add(this);
  }

  /** Waits for the answer; the stream when it is one, or else `{status, headers, body}` of the refusal. */
  async begin() {
    const answer = await within(10_000, "an answer", this.answered);
    this.headers = answer.headers;
    answer.setEncoding("utf8");
    if (answer.statusCode !== 200) {
      let text = "";
      for await (const part of answer) text += part;
      open.delete(this);
      const body = /json/.test(answer.headers["content-type"] ?? "") ? JSON.parse(text) : text;
      return { status: answer.statusCode, headers: new Headers(answer.headers), body };
    }
    this.answer = answer;
    answer.on("data", (text) => this.take(text));
    answer.on("end", () => this.isOver("ended"));
    answer.on("error", () => this.isOver("broken"));
    answer.on("aborted", () => this.isOver("broken"));
    return this;
  }

  take(text) {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith(":")) this.beats += 1;
      else if (line === "") this.dispatch();
      else {
        const at = line.indexOf(": ");
        const [name, value] = [line.slice(0, at), line.slice(at + 2)];
        this.fields[name] = name === "data" && "data" in this.fields ? `${this.fields.data}\n${value}` : value;
      }
    }
    for (const check of this.waiting) check();
  }

  dispatch() {
    const { id, event, data, retry } = this.fields;
    this.fields = {};
    if (retry) this.retry = Number(retry);
    if (id) this.lastEventId = id;
    if (data) this.all.push({ id, type: event, data: JSON.parse(data) });
  }

  of(...types) {
    return this.all.filter(({ type }) => types.includes(type)).map(({ data }) => data);
  }

  /** The first truthy answer of `find`, asked again after everything that arrives. */
  async when(what, find, ms = 10_000) {
    let check;
    const found = new Promise((done) => {
      check = () => {
        const answer = find();
        if (answer) done(answer);
      };
      this.waiting.add(check);
      check();
    });
    const shown = () => `${what}; seen: ${this.all.map(({ type }) => type).slice(-40).join(" ") || "nothing"}`;
    return within(ms, shown, found).finally(() => this.waiting.delete(check));
  }

  /** The first event of `type` that fits. */
  async until(type, fits = () => true, ms = 10_000) {
    return this.when(`event ${type}`, () => this.all.find((event) => event.type === type && fits(event.data)), ms);
  }

  /** How the server ended it: "ended", or "broken" off in its middle. */
  async over(ms = 10_000) {
    return within(ms, "the server to end the stream", this.ended);
  }

  close() {
    open.delete(this);
    this.request.destroy();
  }
}

/** A stream that has begun; `hello` is what `connected` said. */
export async function follow(server, options) {
  const stream = await new Stream(server, options).begin();
  if (!(stream instanceof Stream)) throw new Error(`no stream: ${stream.status} ${JSON.stringify(stream.body)}`);
  stream.hello = (await stream.until("connected")).data;
  return stream;
}

/** The refusal of a stream. */
export async function refusal(server, options) {
  const answer = await new Stream(server, options).begin();
  if (answer instanceof Stream) throw new Error("the server let it in");
  return answer;
}
