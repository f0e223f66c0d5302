// Socket clients: the stock socket.io-client, and a bare WebSocket for what the stock client would never send.

import assert from "node:assert/strict";
import { after } from "node:test";

import { io } from "socket.io-client";
import { WebSocket } from "ws";

import { within } from "./harness.mjs";

const open = new Set();

// An open socket would keep the test file's process alive.
after(() => {
  for (const client of open) client.close();
});

/** Everything that a stock socket was sent, in order, as `{type, data, offset}`; `offset` is the last argument. */
export class Seen {
  constructor(socket) {
    this.all = [];
    this.waiting = new Set();
    socket.onAny((type, ...args) => {
      this.all.push({ type, data: args[0], offset: args.length > 1 ? args.at(-1) : undefined });
      for (const check of this.waiting) check();
    });
  }

  /** The data of the events of these types, in order of arrival. */
  of(...types) {
    return this.all.filter(({ type }) => types.includes(type)).map(({ data }) => data);
  }

  /** The data of the first event of `type` that fits, as soon as it is there. */
  async until(type, fits = () => true, ms = 10_000) {
    const find = () => this.all.find((event) => event.type === type && fits(event.data));
    let check;
    const found = new Promise((done) => {
      check = () => {
        const event = find();
        if (event) done(event.data);
      };
      this.waiting.add(check);
      check();
    });
    const what = () => `event ${type}; seen: ${this.all.map((event) => event.type).slice(-40).join(" ") || "nothing"}`;
    return within(ms, what, found).finally(() => this.waiting.delete(check));
  }
}

/** A stock client. It comes back by itself only when `reconnection` is asked for. */
export class Client {
  constructor(server, { token, auth = {}, namespace = "/", transports = ["websocket"], reconnection = false, ...options }) {
    this.socket = io(server.url + (namespace === "/" ? "" : namespace), {
      auth: token ? { token, ...auth } : auth,
      transports,
      reconnection,
      reconnectionDelay: 50,
      reconnectionDelayMax: 250,
      randomizationFactor: 0.5,
      forceNew: true,
      ...options,
    });
    this.seen = new Seen(this.socket);
    open.add(this);
  }

  /** Waits for the next `connect`. */
  async connected(ms = 15_000) {
    if (this.socket.connected) return;
    const outcome = new Promise((done, refuse) => {
      this.socket.once("connect", done);
      if (!this.socket.io.reconnection()) this.socket.once("connect_error", refuse);
    });
    await within(ms, "connect", outcome);
  }

  /** Sends a message and waits for its acknowledgement. */
  async ask(message, ...args) {
    return this.socket.timeout(10_000).emitWithAck(message, ...args);
  }

  /** Sends a message whose acknowledgement must say `ok`. */
  async must(message, ...args) {
    const ack = await this.ask(message, ...args);
    assert.equal(ack?.ok, true, `${message} ${JSON.stringify(args)}: ${JSON.stringify(ack)}`);
    return ack;
  }

  /** Sends a message that must be refused, and answers the error. */
  async refused(message, ...args) {
    const ack = await this.ask(message, ...args);
    assert.equal(ack?.ok, false, `${message} ${JSON.stringify(args)} was not refused: ${JSON.stringify(ack)}`);
    assert.match(ack.error?.code ?? "", /^[a-z]+(\.[a-z_]+)+$/, `a code: ${JSON.stringify(ack)}`);
    assert.ok(ack.error.message, `a message: ${JSON.stringify(ack)}`);
    return ack.error;
  }

  /** Loses the transport and stays away. `how` is "close" for a closing handshake, "cut" for a connection that just breaks. */
  async drop(how = "close") {
    this.socket.io.reconnection(false);
    const gone = new Promise((done) => this.socket.once("disconnect", done));
    const engine = this.socket.io.engine;
    if (how === "cut") engine.transport.ws.terminate();
    else engine.close();
    return within(5_000, "disconnect", gone);
  }

  /** Comes back after {@link Client.drop}, as the same client, and waits for the new `connected` message. */
  async comeBack() {
    const hellos = this.seen.of("connected").length;
    const back = this.connected();
    this.socket.connect();
    await back;
    await this.seen.until("connected", () => this.seen.of("connected").length > hellos);
    return this.seen.of("connected").at(-1);
  }

  close() {
    open.delete(this);
    this.socket.disconnect();
  }
}

/** A stock client that is connected; `hello` is what the `connected` message said. */
export async function connect(server, options) {
  const client = new Client(server, options);
  await client.connected();
  client.hello = await client.seen.until("connected");
  return client;
}

/** The error with which the server refuses a stock client. */
export async function connectError(server, options) {
  const client = new Client(server, options);
  const outcome = new Promise((done, wrong) => {
    client.socket.once("connect_error", done);
    client.socket.once("connect", () => wrong(new Error("the server let it in")));
  });
  return within(10_000, "connect_error", outcome).finally(() => client.close());
}

/** A bare WebSocket that speaks Engine.IO as text: `received` has the packets, `closed` answers the close code. */
export class Raw {
  constructor(server, query = "EIO=4&transport=websocket", options = {}) {
    this.ws = new WebSocket(`${server.url.replace("http", "ws")}/socket.io/?${query}`, options);
    this.received = [];
    this.waiting = new Set();
    this.ws.on("message", (data) => {
      const text = data.toString();
      if (text === "2") return this.ws.send("3");
      this.received.push(text);
      for (const check of this.waiting) check();
    });
    // A server that breaks the connection off is a way of closing it, too.
    this.ws.on("error", () => {});
    this.ended = new Promise((done) => this.ws.once("close", (code) => done(code)));
    open.add(this);
  }

  /** The first packet that matches. */
  async until(pattern, ms = 10_000) {
    let check;
    const found = new Promise((done) => {
      check = () => {
        const packet = this.received.find((text) => pattern.test(text));
        if (packet !== undefined) done(packet);
      };
      this.waiting.add(check);
      check();
    });
    const what = () => `packet ${pattern}; received: ${this.received.join(" | ")}`;
    return within(ms, what, found).finally(() => this.waiting.delete(check));
  }

  /** Opens a Socket.IO session with this auth object and answers what the server calls it: `{sid, pid}`. */
  async session(auth) {
    await this.until(/^0\{/);
    this.ws.send(`40${JSON.stringify(auth)}`);
    return JSON.parse((await this.until(/^40/)).slice(2));
  }

  /** The close code, once the server has closed. */
  async closed(ms = 10_000) {
    return within(ms, () => `the server to close; received: ${this.received.join(" | ")}`, this.ended);
  }

  close() {
    open.delete(this);
    this.ws.terminate();
  }
}
