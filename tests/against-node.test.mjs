// The same packets to a stock Socket.IO server and to `tidewire conformance`, right and wrong ones: both must react alike, over a
// WebSocket and over polling. Where they do not on purpose, the case says how each reacts and why; docs/realtime.md tells users.
//
// A reaction is what came back before an event to another namespace did; `closed` when the transport ended first; `left` when the
// namespace was no longer joined afterwards; `ignored` when nothing of it happened.

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";

import { Server } from "socket.io";
import { WebSocket } from "ws";

import { eventually, freePort, run, within } from "./harness.mjs";

const SEPARATOR = "\x1e";
const hosts = {};
let io;

before(async () => {
  hosts.tidewire = `127.0.0.1:${await freePort()}`;
  const child = run(["conformance", "--heartbeat", "25000", "--listen", hosts.tidewire]);
  await eventually("the conformance server to listen", () => child.out.includes("conformance on"));

  const http = createServer();
  io = new Server(http);
  for (const name of ["/", "/custom"]) {
    io.of(name).on("connection", (socket) => {
      const values = (args) => args.filter((arg) => typeof arg !== "function");
      socket.emit("auth", socket.handshake.auth);
      socket.on("message", (...args) => socket.emit("message-back", ...values(args)));
      socket.on("message-with-ack", (...args) => args.find((arg) => typeof arg === "function")?.(...values(args)));
    });
  }
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  hosts.node = `127.0.0.1:${http.address().port}`;
});
after(() => io?.close());

/** What both transports have in common: packets that came, and whether it is over. Bytes are told as polling writes them. */
class Line {
  constructor() {
    this.received = [];
    this.over = false;
    this.changed = () => {};
  }

  take(packet) {
    if (packet === "2") return this.send("3");
    if (packet === "1") return this.end();
    if (packet !== "6") this.received.push(packet);
    this.changed();
  }

  end() {
    this.over = true;
    this.changed();
  }

  /** Whether a packet like `pattern` came before the end. */
  async until(pattern) {
    const told = () => `${pattern}; so far ${this.received.join(" | ").slice(0, 500)}`;
    for (;;) {
      if (this.received.some((packet) => pattern.test(packet))) return true;
      if (this.over) return false;
      await within(10_000, told, new Promise((done) => (this.changed = done)));
    }
  }
}

class OverWebSocket extends Line {
  static async open(host) {
    const line = new OverWebSocket();
    line.ws = new WebSocket(`ws://${host}/socket.io/?EIO=4&transport=websocket`);
    line.ws.on("message", (data, isBinary) => line.take(isBinary ? `b${data.toString("base64")}` : data.toString()));
    line.ws.on("close", () => line.end());
    line.ws.on("error", () => {});
    assert.ok(await line.until(/^0\{/));
    return line;
  }

  send(...packets) {
    for (const packet of packets) this.ws.send(packet);
  }

  hangUp() {
    this.ws.terminate();
  }
}

class OverPolling extends Line {
  static async open(host) {
    const line = new OverPolling();
    const url = `http://${host}/socket.io/?EIO=4&transport=polling`;
    const { sid } = JSON.parse((await (await fetch(url)).text()).slice(1));
    line.url = `${url}&sid=${sid}`;
    line.posted = Promise.resolve();
    line.polled = line.poll();
    return line;
  }

  async poll() {
    while (!this.over) {
      const answer = await fetch(this.url).catch(() => undefined);
      if (answer?.status !== 200) return this.end();
      const packets = await answer.text();
      for (const packet of packets.split(SEPARATOR)) this.take(packet);
    }
  }

  // One at a time, as the protocol has it. A server that closes over a body need not answer it.
  send(...packets) {
    const body = packets.map((packet) => (typeof packet === "string" ? packet : `b${packet.toString("base64")}`)).join(SEPARATOR);
    this.posted = this.posted.then(() => fetch(this.url, { method: "POST", body })).catch(() => {});
  }

  hangUp() {
    if (!this.over) this.send("1");
  }
}

/** How the server at `host` reacts to `packets`. Both namespaces are joined before, unless `early`. */
async function reaction(host, transport, packets, { early = false } = {}) {
  const line = await transport.open(host);
  if (!early) {
    line.send("40", "40/custom,");
    assert.ok(await line.until(/^42\["auth"/));
    assert.ok(await line.until(/^42\/custom,\["auth"/));
  }
  line.received.length = 0;
  line.send(...packets);
  line.send(early ? "40/custom," : '42/custom,["message","here"]');
  if (!(await line.until(early ? /^42\/custom,\["auth"/ : /^42\/custom,\["message-back","here"\]$/))) return "closed";
  // Another way there and back, so that an answer that was overtaken is here, too.
  line.send(early ? '42/custom,["message","still"]' : '42["message","still"]');
  const stayed = await line.until(/^42(\/custom,)?\["message-back","still"\]$/);
  line.hangUp();
  await line.polled;
  const own = /"(here|still)"\]$/;
  const told = line.received.filter((packet) => !own.test(packet) && !(early && packet.startsWith("4") && packet.includes("/custom,")));
  const replies = told.map((packet) => packet.replace(/"sid":"[^"]+"/, '"sid":"…"')).join(" ");
  return stayed ? replies || "ignored" : "left";
}

const bytes = Buffer.from([1, 2, 3]);
const place = '{"_placeholder":true,"num":0}';
const nowhere = (name) => `44${name},{"message":"Invalid namespace"}`;

/** What, the packets, and the reaction of both. */
const ALIKE = [
  ["an event", ['42["message",1,"ü",null,{"a":[true]}]'], '42["message-back",1,"ü",null,{"a":[true]}]'],
  ["an event that names its namespace", ['42/,["message"]'], '42["message-back"]'],
  ["an event with an acknowledgement", ['4212["message-with-ack",1]'], "4312[1]"],
  ["an acknowledgement with the id 0", ['420["message-with-ack"]'], "430[]"],
  ["an id with leading zeros", ['42007["message-with-ack"]'], "437[]"],
  ["the largest id that a number has", ['429007199254740991["message-with-ack"]'], "439007199254740991[]"],
  ["an event with an id that nobody asks for", ['425["message"]'], '42["message-back"]'],
  ["an event that nobody knows", ['42["whatever",1]'], "ignored"],
  ["an event named by a number", ["42[7,1]"], "ignored"],
  ["an event with an empty name", ['42[""]'], "ignored"],
  ["an event called __proto__", ['42["__proto__",{"__proto__":1}]'], "ignored"],
  ["white space around the payload", ['42\t["message" , 1]\n'], '42["message-back",1]'],
  ["bytes", [`451-["message",${place}]`, bytes], `451-["message-back",${place}] bAQID`],
  ["bytes of length 0", [`451-["message",${place}]`, Buffer.alloc(0)], `451-["message-back",${place}] b`],
  ["bytes with an acknowledgement", [`451-3["message-with-ack",${place}]`, bytes], `461-3[${place}] bAQID`],
  ["bytes with zeros before their number", [`4501-["message",${place}]`, bytes], `451-["message-back",${place}] bAQID`],
  ["what only looks like a place for bytes", ['42["message",{"_placeholder":true,"num":0}]'], `42["message-back",${place}]`],
  ["an acknowledgement that nobody asked for", ["435[1]"], "ignored"],
  ["an acknowledgement with bytes that nobody asked for", [`461-5[${place}]`, bytes], "ignored"],
  ["leaving a namespace", ["41"], "left"],
  ["leaving a namespace by its name", ["41/,"], "left"],
  ["leaving a namespace that was not joined", ["41/nowhere,"], "closed"],
  ["a pong that nobody asked for", ["3"], "ignored"],
  ["a noop", ["6"], "ignored"],
  ["joining an unknown namespace", ["40/nowhere,"], nowhere("/nowhere")],
  ["joining one without the comma", ["40/nowhere"], nowhere("/nowhere")],
  ["joining one with a query", ["40/custom?a=1,"], nowhere("/custom?a=1")],
  ["joining one with a slash at its end", ["40/custom/,"], nowhere("/custom/")],
  ["joining one with its payload and no comma", ['40/custom{"a":1}'], nowhere('/custom{"a":1}')],
  ["joining one of two slashes", ["40//,"], nowhere("//")],
  ["joining twice", ["40"], "closed"],
  ["joining with a text", ['40"x"'], "closed"],
  ["joining with a list", ["40/nowhere,[]"], "closed"],
  ["joining with null", ["40/nowhere,null"], "closed"],
  ["joining with broken JSON", ["40/nowhere,{"], "closed"],
  ["a message without a type", ["4"], "closed"],
  ["an unknown type", ["4abc"], "closed"],
  ["a type beyond the last", ["47"], "closed"],
  ["a negative type", ["4-1"], "closed"],
  ["an error of the server's", ['44{"message":"x"}'], "closed"],
  ["an error of the server's for a namespace", ['44/custom,{"message":"x"}'], "closed"],
  ["an event that is an object", ["42{}"], "closed"],
  ["an event that is a text", ['42"message"'], "closed"],
  ["an event without a name", ["42[]"], "closed"],
  ["an event called null", ["42[null]"], "closed"],
  ["an event called true", ["42[true]"], "closed"],
  ["an event called by an object", ["42[{}]"], "closed"],
  ["an event called by a list", ['42[["message"]]'], "closed"],
  ...["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"].map((name) => [
    `the reserved name ${name}`,
    [`42["${name}"]`],
    "closed",
  ]),
  ["a reserved name in disguise", ['42["\\u0063onnect"]'], "closed"],
  ["JSON that breaks off", ['42["message"'], "closed"],
  ["JSON with something behind it", ['42["message"]x'], "closed"],
  ["JSON with a comma too many", ['42["message",]'], "closed"],
  ["JSON with NaN", ['42["message",NaN]'], "closed"],
  ["JSON in single quotes", ["42['message']"], "closed"],
  ["JSON with a line end in a text", ['42["mess\nage"]'], "closed"],
  ["an id of letters", ['42abc["message-with-ack"]'], "closed"],
  ["an id that begins as a number", ['422abc["message-with-ack"]'], "closed"],
  ["a negative id", ['42-1["message-with-ack"]'], "closed"],
  ["an id with a fraction", ['421.5["message-with-ack"]'], "closed"],
  ["an id and nothing that is JSON", ["421x"], "closed"],
  ["an acknowledgement that is an object", ["435{}"], "closed"],
  ["an acknowledgement that is a text", ['435"x"'], "closed"],
  ["leaving with a payload", ["41{}"], "closed"],
  ["an event to a namespace that was not joined", ['42/nowhere,["message"]'], "closed"],
  ["an event without the comma", ['42/custom["message"]'], "closed"],
  ["an acknowledgement for a namespace that was not joined", ["43/nowhere,1[]"], "closed"],
  ["bytes that nothing announced", [bytes], "closed"],
  ["a text where bytes were announced", [`451-["message",${place}]`, '42["message"]'], "closed"],
  ["fewer bytes than announced", [`452-["message",${place}]`, bytes], "closed"],
  ["more bytes than announced", [`451-["message",${place}]`, bytes, bytes], "closed"],
  ["no bytes announced", ['450-["message"]'], "closed"],
  ["a number of attachments that is missing", [`45-["message",${place}]`, bytes], "closed"],
  ["a number of attachments without a dash", [`451["message",${place}]`, bytes], "closed"],
  ["a number of attachments that is negative", [`45-1-["message",${place}]`, bytes], "closed"],
  ["a number of attachments with a fraction", [`451.5-["message",${place}]`, bytes], "closed"],
  ["eleven attachments", [`4511-["message",${place}]`], "closed"],
  ["a billion attachments", [`451000000000-["message",${place}]`], "closed"],
  ["more attachments than a number can say", [`45${"9".repeat(400)}-["message",${place}]`], "closed"],
  ["a place for bytes that did not come", ['451-["message",{"_placeholder":true,"num":1}]', bytes], "closed"],
  ["a place with a negative number", ['451-["message",{"_placeholder":true,"num":-1}]', bytes], "closed"],
  ["a place with a text for its number", ['451-["message",{"_placeholder":true,"num":"0"}]', bytes], "closed"],
  ["a place without a number", ['451-["message",{"_placeholder":true}]', bytes], "closed"],
  ["a ping of the client's", ["2"], "closed"],
  ["a probe where nothing is upgraded", ["2probe"], "closed"],
  ["an unknown kind of the engine", ["7"], "closed"],
  ["a letter for the engine", ["x"], "closed"],
  ["nothing at all", [""], "closed"],
  ["more than a message may have", [`42["message","${"x".repeat(1_000_000)}"]`], "closed"],
];

/** The same before any namespace was joined. */
const EARLY = [
  ["an event", ['42["message"]'], "closed"],
  ["an acknowledgement", ["431[]"], "closed"],
  ["bytes", [bytes], "closed"],
  ["an event with bytes", [`451-["message",${place}]`, bytes], "closed"],
  ["leaving", ["41"], "closed"],
  ["joining with a payload", ['40{"token":"x"}'], '40{"sid":"…"} 42["auth",{"token":"x"}]'],
];

const GRAMMAR = "what the grammar does not know is not guessed at";
const SIZE = "each attachment has one place, so a packet never grows beyond what was received";
const ECHOED = "the name is sent back outside of JSON, so its length and its characters are limited";
const ENGINE = "no client sends it";

/** What, the packets, how Node reacts, how Tidewire does, and why. */
const DIFFERENT = [
  ["an event without a payload", ["42"], "ignored", "closed", GRAMMAR],
  ["an event with an id and no payload", ["425"], "ignored", "closed", GRAMMAR],
  ["an acknowledgement without a payload", ["435"], "ignored", "closed", GRAMMAR],
  ["an acknowledgement without an id", ["43[]"], "ignored", "closed", GRAMMAR],
  ["joining with an id", ["40/nowhere,7"], nowhere("/nowhere"), "closed", GRAMMAR],
  ["joining with a blank", ["40/nowhere, "], nowhere("/nowhere"), "closed", GRAMMAR],
  ["leaving with an id", ["417"], "left", "closed", GRAMMAR],
  ["a blank for a type", ["4 /nowhere,"], nowhere("/nowhere"), "closed", GRAMMAR],
  ["an id with a blank before it", ['42 5["message-with-ack"]'], "435[]", "closed", GRAMMAR],
  ["a number of attachments with an exponent", [`451e0-["message",${place}]`, bytes], `451-["message-back",${place}] bAQID`, "closed", GRAMMAR],
  ["an id beyond 2^53", ['429007199254740993["message-with-ack"]'], "439007199254740992[]", "439007199254740993[]", "Node answers another id than it was asked for"],
  ["an id beyond 2^64", ['4218446744073709551616["message-with-ack"]'], "4318446744073709552000[]", "closed", "it cannot be answered"],
  ["bytes that have no place", ['451-["message"]', bytes], '42["message-back"]', "closed", SIZE],
  ["bytes with two places", [`451-["message",${place},${place}]`, bytes], `452-["message-back",${place},{"_placeholder":true,"num":1}] bAQID bAQID`, "closed", SIZE],
  ["a place with a fraction", ['451-["message",{"_placeholder":true,"num":0.5}]', bytes], '42["message-back",null]', "closed", SIZE],
  ["a namespace of 300 bytes", [`40/${"x".repeat(300)},`], nowhere(`/${"x".repeat(300)}`), "closed", ECHOED],
  ["a namespace with a control character", ["40/a\x01,"], nowhere("/a\x01"), "closed", ECHOED],
  ["a number that JavaScript cannot hold", ['42["message",1e999]'], '42["message-back",null]', '42["message-back",1e999]', "what was sent stays as it is"],
  ["a handshake from the client", ["0{}"], "ignored", "closed", ENGINE],
  ["the end of an upgrade that was not begun", ["5"], "ignored", "closed", ENGINE],
];

for (const transport of [OverWebSocket, OverPolling]) {
  const all = [
    ...ALIKE.map(([what, packets, both]) => [what, packets, both, both, {}]),
    ...EARLY.map(([what, packets, both]) => [`${what} before a namespace`, packets, both, both, { early: true }]),
    ...DIFFERENT.map(([what, packets, node, tidewire]) => [what, packets, node, tidewire, {}]),
  ];
  describe(`${transport === OverPolling ? "over polling" : "over a WebSocket"} the reaction to`, () => {
    for (const [what, packets, node, tidewire, options] of all) {
      test(what, async () => {
        const got = await Promise.all(["node", "tidewire"].map((server) => reaction(hosts[server], transport, packets, options)));
        assert.deepEqual({ node: got[0], tidewire: got[1] }, { node, tidewire });
      });
    }
  });
}

// What only one of the transports has.
for (const [what, transport, packets, node, tidewire] of [
  ["a closing packet over a WebSocket", OverWebSocket, ["1"], "ignored", "closed"],
  ["a closing packet over polling", OverPolling, ["1"], "closed", "closed"],
  ["a separator at the end of a body", OverPolling, ['42["message"]\x1e'], "closed", "closed"],
  ["letters that are no base64", OverPolling, ["b!!!!"], "closed", "closed"],
  ["base64 without padding", OverPolling, [`451-["message",${place}]`, "bAQ"], `451-["message-back",${place}] bAQ==`, "closed"],
]) {
  test(`the reaction to ${what}`, async () => {
    const got = await Promise.all(["node", "tidewire"].map((server) => reaction(hosts[server], transport, packets)));
    assert.deepEqual({ node: got[0], tidewire: got[1] }, { node, tidewire });
  });
}

test("a request that is wrong is answered alike", async () => {
  const sid = async (host) => JSON.parse((await (await fetch(`http://${host}/socket.io/?EIO=4&transport=polling`)).text()).slice(1)).sid;
  const requests = [
    ["GET", ""],
    ["GET", "EIO=4"],
    ["GET", "EIO=4&transport=tape"],
    ["GET", "EIO=4&transport=websocket"],
    ["GET", "EIO=3&transport=polling"],
    ["GET", "EIO=44&transport=polling"],
    ["GET", "transport=polling"],
    ["GET", "EIO=4&transport=polling&sid=unknown"],
    ["POST", "EIO=4&transport=polling"],
    ["POST", "EIO=4&transport=polling&sid="],
    ["POST", "EIO=4&transport=polling&sid=unknown"],
    ["PUT", "EIO=4&transport=polling"],
    ["DELETE", "EIO=4&transport=polling"],
    ["POST", "EIO=4&transport=polling&sid=", "4x", { "content-type": "application/octet-stream" }, "own"],
    ["POST", "EIO=4&transport=polling&sid=", `4${"x".repeat(1_000_000)}`, {}, "own"],
  ];
  for (const [method, query, body, headers, own] of requests) {
    const answers = await Promise.all(
      Object.values(hosts).map(async (host) => {
        // Who is answered before all was sent may be hung up on in the middle of it, by either server, and then sees no answer.
        let answer;
        for (let tries = 0; !answer; tries += 1) {
          const url = `http://${host}/socket.io/?${query}${own ? await sid(host) : ""}`;
          answer = await fetch(url, { method, body, headers }).catch((error) => {
            if (!["EPIPE", "ECONNRESET"].includes(error.cause?.code) || tries === 10) throw error;
          });
        }
        const text = await answer.text();
        return { status: answer.status, code: own ? undefined : JSON.parse(text).code };
      }),
    );
    assert.deepEqual(answers[0], answers[1], `${method} ${query}`);
  }
});
