// What the protocols promise on the wire, proven on `tidewire conformance`: Engine.IO v4, Socket.IO v5 and WebSocket, told in bytes.
//
// The server echoes: /engine.io/ every message, /socket.io/ `message` as `message-back` and `message-with-ack` as an acknowledgement.
// It pings every 300 ms, waits 200 ms for a pong and 1.45 s for a namespace.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { request } from "node:http";
import { connect as open } from "node:net";
import { after, before, describe, test } from "node:test";

import { WebSocket } from "ws";

import { eventually, freePort, run, within } from "./harness.mjs";

const PING = 300;
const PONG = 200;
const HANDSHAKE = ["maxPayload", "pingInterval", "pingTimeout", "sid", "upgrades"];
const SEPARATOR = "\x1e";

let host;
before(async () => {
  host = `127.0.0.1:${await freePort()}`;
  const child = run(["conformance", "--listen", host]);
  await eventually("the conformance server to listen", () => child.out.includes("conformance on"));
});

const sockets = new Set();
after(() => {
  for (const ws of sockets) ws.terminate();
});

const http = (path) => `http://${host}${path}`;
const polling = (path, sid) => http(`${path}?EIO=4&transport=polling${sid ? `&sid=${sid}` : ""}`);

/** Opens a session over polling; `get` and `post` speak to it. */
async function poller(path) {
  const opened = await (await fetch(polling(path))).text();
  assert.equal(opened[0], "0");
  const { sid } = JSON.parse(opened.slice(1));
  const url = polling(path, sid);
  const post = (body, headers = {}) => fetch(url, { method: "POST", body, headers });
  // Pings come between whatever is waited for.
  const until = async (pattern) => {
    for (;;) {
      const packets = (await (await fetch(url)).text()).split(SEPARATOR);
      if (packets.includes("2")) await post("3");
      const found = packets.filter((packet) => pattern.test(packet));
      if (found.length > 0) return found;
    }
  };
  return { sid, url, get: () => fetch(url), post, until, isOver: async () => (await fetch(url)).status === 400 };
}

/** A bare WebSocket. Pings are answered unless `deaf`; what else comes waits in order. */
class Line {
  constructor(path, { query = "", deaf = false } = {}) {
    this.ws = new WebSocket(`ws://${host}${path}?EIO=4&transport=websocket${query}`);
    sockets.add(this.ws);
    this.waiting = [];
    this.pings = 0;
    this.arrived = () => {};
    this.ws.on("message", (data, isBinary) => {
      if (!isBinary && data.toString() === "2") {
        this.pings += 1;
        if (!deaf) this.ws.send("3");
        return;
      }
      this.waiting.push(isBinary ? data : data.toString());
      this.arrived();
    });
    this.ws.on("error", () => {});
    this.ended = new Promise((done) => this.ws.once("close", (code) => done(code)));
  }

  async next() {
    while (this.waiting.length === 0) {
      const message = new Promise((done) => (this.arrived = () => done(true)));
      const more = await within(5_000, "a message", Promise.race([message, this.ended.then(() => false)]));
      assert.ok(more || this.waiting.length > 0, "the server closed where a message was due");
    }
    return this.waiting.shift();
  }

  closed() {
    return within(5_000, () => `the server to close; waiting: ${this.waiting.join(" | ")}`, this.ended);
  }

  send(...packets) {
    for (const packet of packets) this.ws.send(packet);
  }
}

async function engine(options) {
  const line = new Line("/engine.io/", options);
  await line.next();
  return line;
}

async function joined(options) {
  const line = new Line("/socket.io/", options);
  await line.next();
  line.send("40");
  assert.match(await line.next(), /^40\{"sid":"[^"]+"\}$/);
  assert.equal(await line.next(), '42["auth",{}]');
  return line;
}

for (const path of ["/engine.io/", "/socket.io/"]) {
  describe(`a handshake at ${path}`, () => {
    test("tells five things over either transport", async () => {
      const answer = await fetch(polling(path));
      assert.equal(answer.status, 200);
      assert.match(answer.headers.get("content-type"), /^text\/plain; charset=utf-8$/i);
      const overPolling = JSON.parse((await answer.text()).slice(1));
      const overWebSocket = JSON.parse((await new Line(path).next()).slice(1));
      for (const [opened, upgrades] of [[overPolling, ["websocket"]], [overWebSocket, []]]) {
        assert.deepEqual(Object.keys(opened).sort(), HANDSHAKE);
        assert.deepEqual(opened.upgrades, upgrades);
        assert.deepEqual([opened.pingInterval, opened.pingTimeout, opened.maxPayload], [PING, PONG, 1_000_000]);
      }
      assert.notEqual(overPolling.sid, overWebSocket.sid);
    });

    test("with a wrong query or method is refused over either transport", async () => {
      for (const [query, code] of [["transport=polling", 5], ["EIO=3&transport=polling", 5], ["EIO=x&transport=polling", 5], ["EIO=4", 0], ["EIO=4&transport=tape", 0]]) {
        const answer = await fetch(http(`${path}?${query}`));
        assert.deepEqual([answer.status, (await answer.json()).code], [400, code], query);
        const ws = new WebSocket(`ws://${host}${path}?${query.replace("polling", "websocket")}`);
        const [, refused] = await once(ws, "unexpected-response");
        assert.equal(refused.statusCode, 400, query);
        refused.resume();
      }
      for (const method of ["POST", "PUT", "DELETE"]) {
        const answer = await fetch(polling(path), { method });
        assert.deepEqual([answer.status, (await answer.json()).code], [400, 2], method);
      }
    });
  });
}

describe("messages of the engine", () => {
  test("come back over polling, several and binary ones in one body", async () => {
    const poll = await poller("/engine.io/");
    for (const body of ["4hello", ["4one", "4two", "4drei ✓"].join(SEPARATOR), ["4a", "bAQIDBA==", "b", "4"].join(SEPARATOR)]) {
      const answer = await poll.post(body);
      assert.deepEqual([answer.status, await answer.text()], [200, "ok"]);
      const got = await (await poll.get()).text();
      assert.equal(got, body);
    }
  });

  test("come back over a WebSocket, text as text and bytes as bytes", async () => {
    const line = await engine();
    line.send("4hello", Buffer.from([1, 2, 3, 4]), "4", Buffer.alloc(0));
    assert.equal(await line.next(), "4hello");
    assert.deepEqual(await line.next(), Buffer.from([1, 2, 3, 4]));
    assert.equal(await line.next(), "4");
    assert.equal((await line.next()).length, 0);
  });

  test("of an unknown kind end the transport that brought them", async () => {
    for (const body of ["abc", "7", "", `4a${SEPARATOR}`, "2", "0{}", "b!!!!", "bAQI"]) {
      const poll = await poller("/engine.io/");
      assert.equal((await poll.post(body)).status, 400, JSON.stringify(body));
      assert.ok(await poll.isOver(), JSON.stringify(body));
    }
    for (const packet of ["abc", "7", "", "2", "2probe", "0{}", "5"]) {
      const line = await engine();
      line.send(packet);
      assert.equal(await line.closed(), 1002, JSON.stringify(packet));
    }
  });
});

describe("polling", () => {
  test("allows one GET at a time", async () => {
    const poll = await poller("/engine.io/");
    const both = await Promise.all([poll.get(), poll.get()]);
    const answers = await Promise.all(both.map(async (answer) => [answer.status, await answer.text()]));
    answers.sort(([a], [b]) => a - b);
    assert.deepEqual(answers[0], [200, "1"]);
    assert.equal(answers[1][0], 400);
    assert.ok(await poll.isOver());
  });

  test("ends with a GET that is given up", async () => {
    await eventually("a session to end with its GET", async () => {
      // A new one each time: a GET that the server had not begun to serve before it was given up says nothing.
      const poll = await poller("/engine.io/");
      const get = request(poll.url);
      get.on("error", () => {});
      get.end();
      await once(get, "finish");
      assert.equal((await poll.post("3")).status, 200);
      get.destroy();
      for (let n = 0; n < 50; n += 1) {
        // Pongs keep it from ending by itself.
        if ((await poll.post("3")).status === 400) return true;
      }
      return false;
    });
  });

  test("allows one POST at a time", async () => {
    const poll = await poller("/engine.io/");
    const slow = request(poll.url, { method: "POST", headers: { "content-length": 6 } });
    let slowStatus;
    slow.on("error", () => {});
    slow.on("response", ({ statusCode }) => (slowStatus = statusCode));
    slow.write("4he");
    const refused = await eventually("the second POST to be refused", async () => {
      const answer = await poll.post("3");
      return answer.status === 400 && answer;
    }, PING + PONG);
    // Which of the two came second, and was refused for it, is the system's choice. The session is over in any case.
    const { code } = await refused.json();
    if (code !== 3) await eventually("the first POST to be refused", () => slowStatus === 400);
    slow.destroy();
    assert.ok(await poll.isOver());
  });

  test("takes no more than it said, and no body of bytes", async () => {
    const over = await poller("/engine.io/");
    assert.equal((await over.post(`4${"x".repeat(1_000_000)}`)).status, 413);
    assert.ok(await over.isOver());
    const poll = await poller("/engine.io/");
    const most = `4${"x".repeat(999_999)}`;
    assert.equal((await poll.post(most)).status, 200);
    assert.deepEqual(await poll.until(/^4/), [most]);
    assert.equal((await poll.post("4hello", { "content-type": "application/octet-stream" })).status, 400);
    assert.ok(await poll.isOver());
  });

  test("ends with a close packet, and the waiting GET with a noop", async () => {
    const poll = await poller("/engine.io/");
    const waiting = poll.get();
    const answer = await poll.post("1");
    assert.equal(answer.status, 200);
    assert.equal(await (await waiting).text(), "6", "whichever of the two was seen first");
    assert.ok(await poll.isOver());
  });
});

describe("the heartbeat", () => {
  test("keeps who answers and drops who does not, over either transport", async () => {
    const [poll, silent] = [await poller("/engine.io/"), await poller("/engine.io/")];
    const [line, deaf] = [await engine(), await engine({ deaf: true })];
    const begin = performance.now();
    for (let round = 0; round < 3; round += 1) {
      assert.equal(await (await poll.get()).text(), "2");
      assert.equal((await poll.post("3")).status, 200);
    }
    assert.ok(performance.now() - begin > 2 * PING, "pings came early");
    await deaf.closed();
    assert.equal(deaf.pings, 1);
    assert.ok(await silent.isOver());
    assert.ok(line.pings >= 2, `${line.pings} pings`);
    line.send("4alive");
    assert.equal(await line.next(), "4alive");
  });

  test("counts interval and timeout from the handshake", async () => {
    const poll = await poller("/engine.io/");
    // The one sleep of this file: there is nothing to wait for but the time itself.
    await new Promise((done) => setTimeout(done, PING + PONG + 1));
    assert.ok(await poll.isOver());
  });
});

describe("the upgrade", () => {
  const upgrading = async (path) => {
    const poll = await poller(path);
    const line = new Line(path, { query: `&sid=${poll.sid}` });
    await once(line.ws, "open");
    line.send("2probe");
    assert.equal(await line.next(), "3probe");
    return { poll, line };
  };

  test("moves the session and leaves polling behind", async () => {
    const { poll, line } = await upgrading("/engine.io/");
    line.send("5", "4hello");
    assert.equal(await line.next(), "4hello");
    assert.ok(await poll.isOver());
    assert.equal((await poll.post("4x")).status, 400);
    line.send("4still");
    assert.equal(await line.next(), "4still");
  });

  test("answers a poll that waits when the probe comes, and none that is left open takes a packet", async () => {
    const poll = await poller("/engine.io/");
    const waiting = poll.get();
    const line = new Line("/engine.io/", { query: `&sid=${poll.sid}` });
    await once(line.ws, "open");
    line.send("2probe");
    assert.equal(await line.next(), "3probe");
    assert.equal(await (await waiting).text(), "6");
    const left = poll.get();
    line.send("5", "4for the WebSocket");
    assert.equal(await line.next(), "4for the WebSocket");
    assert.match(await (await left).text(), /^[6]|^\{/);
  });

  test("is offered once", async () => {
    const { line, poll } = await upgrading("/engine.io/");
    const second = new Line("/engine.io/", { query: `&sid=${poll.sid}` });
    assert.equal(await second.closed(), 1002);
    line.send("5");
    const third = new Line("/engine.io/", { query: `&sid=${poll.sid}` });
    assert.equal(await third.closed(), 1002);
    line.send("4hello");
    assert.equal(await line.next(), "4hello");
  });

  test("that goes wrong costs only the WebSocket", async () => {
    for (const packet of ["2x", "4hello", "5", "nonsense", Buffer.from("2probe")]) {
      const poll = await poller("/engine.io/");
      const line = new Line("/engine.io/", { query: `&sid=${poll.sid}` });
      await once(line.ws, "open");
      line.send(packet);
      await line.closed();
      assert.equal((await poll.post("4here")).status, 200);
      assert.deepEqual(await poll.until(/^4/), ["4here"]);
    }
  });
});

describe("a namespace", () => {
  test("is joined with and without a payload", async () => {
    const line = new Line("/socket.io/");
    const { sid } = JSON.parse((await line.next()).slice(1));
    line.send('40{"token":"123"}', "40/custom,", '40/custom,{"again":true}');
    const connected = await line.next();
    assert.deepEqual(Object.keys(JSON.parse(connected.slice(2))), ["sid"]);
    assert.ok(!connected.includes(sid), "the transport's id is a secret");
    assert.equal(await line.next(), '42["auth",{"token":"123"}]');
    assert.match(await line.next(), /^40\/custom,\{"sid":/);
    assert.equal(await line.next(), '42/custom,["auth",{}]');
    assert.equal(await line.closed(), 1002, "joining twice");
  });

  test("that is unknown is refused, and the transport stays", async () => {
    const line = new Line("/socket.io/");
    await line.next();
    line.send("40/nowhere,", "40");
    assert.equal(await line.next(), '44/nowhere,{"message":"Invalid namespace"}');
    assert.match(await line.next(), /^40\{/);
  });

  test("must be joined within a second, before anything is sent to it", async () => {
    const [late, early] = [new Line("/socket.io/"), new Line("/socket.io/")];
    await early.next();
    early.send('42["message"]');
    assert.equal(await early.closed(), 1002);
    assert.equal(await late.closed(), 1008);
  });

  test("is left without leaving the others", async () => {
    const line = await joined();
    line.send("40/custom,");
    await line.next();
    await line.next();
    line.send("41/custom,", '42["message",1]');
    assert.equal(await line.next(), '42["message-back",1]');
    line.send('42/custom,["message",1]');
    assert.equal(await line.closed(), 1002);
  });
});

describe("events", () => {
  test("come back, with their arguments and acknowledgements", async () => {
    const line = await joined();
    line.send('42["message",1,"2",{"3":[true,null,"ü"]}]', '42456["message-with-ack",[],{}]', '420["message-with-ack"]');
    assert.equal(await line.next(), '42["message-back",1,"2",{"3":[true,null,"ü"]}]');
    assert.equal(await line.next(), "43456[[],{}]");
    assert.equal(await line.next(), "430[]");
  });

  const two = '{"_placeholder":true,"num":0},{"a":{"_placeholder":true,"num":1}}';
  test("carry bytes both ways, as attachments over a WebSocket", async () => {
    const line = await joined();
    line.send(`452-["message",${two}]`, Buffer.from([1, 2, 3]), Buffer.from([4]));
    assert.equal(await line.next(), `452-["message-back",${two}]`);
    assert.deepEqual([await line.next(), await line.next()], [Buffer.from([1, 2, 3]), Buffer.from([4])]);
    line.send(`452-789["message-with-ack",${two}]`, Buffer.from([5]), Buffer.alloc(0));
    assert.equal(await line.next(), `462-789[${two}]`);
    assert.deepEqual([await line.next(), await line.next()], [Buffer.from([5]), Buffer.alloc(0)]);
  });

  test("carry bytes both ways over polling", async () => {
    const poll = await poller("/socket.io/");
    await poll.post("40");
    await poll.until(/"auth"/);
    await poll.post([`452-["message",${two}]`, "bAQID", "bBA=="].join(SEPARATOR));
    assert.deepEqual(await poll.until(/^(45|b)/), [`452-["message-back",${two}]`, "bAQID", "bBA=="]);
  });

  test("keep their order, and a packet its attachments, when many are on the way", async () => {
    const line = await joined();
    const count = 2_000;
    for (let n = 0; n < count; n += 1) {
      line.send(`451-["message",${n},{"_placeholder":true,"num":0}]`, Buffer.from(String(n)));
    }
    for (let n = 0; n < count; n += 1) {
      assert.equal(await line.next(), `451-["message-back",${n},{"_placeholder":true,"num":0}]`);
      assert.equal((await line.next()).toString(), String(n));
    }
  });
});

describe("what no client of the protocol sends", () => {
  const bytes = Buffer.from("x");
  const placeholder = '{"_placeholder":true,"num":0}';
  for (const [what, ...packets] of [
    ["an unknown type", "4abc"],
    ["no type", "4"],
    ["a type beyond the last", "47"],
    ["an error, which is the server's", '44{"message":"x"}'],
    ["an event without a payload", "42"],
    ["an event that is no array", "42{}"],
    ["an event without a name", "42[]"],
    ["an event called by an object", "42[{}]"],
    ["a reserved name", '42["disconnect"]'],
    ["a reserved name in disguise", '42["\\u0063onnect"]'],
    ["JSON that is broken", '42["message"'],
    ["an id that is no number", '42abc["message-with-ack"]'],
    ["an id beyond 64 bits", '4299999999999999999999["message"]'],
    ["an acknowledgement without an id", "43[]"],
    ["a payload where none belongs", "41{}"],
    ["a namespace that was not joined", '42/custom,["message"]'],
    ["a second join", "40"],
    ["bytes that nothing announced", bytes],
    ["text where bytes were announced", `451-["message",${placeholder}]`, '42["message"]'],
    ["attachments without a number", `45-["message",${placeholder}]`, bytes],
    ["eleven attachments", `4511-["message"]`],
    ["a million attachments", `451000000-["message",${placeholder}]`],
    ["an attachment without its place", '451-["message"]', bytes],
    ["a place without its attachment", '451-["message",{"_placeholder":true,"num":1}]', bytes],
    ["one attachment in two places", `451-["message",${placeholder},${placeholder}]`, bytes],
    ["an attachment at no place", '451-["message",{"_placeholder":true,"num":"0"}]', bytes],
  ]) {
    test(`closes: ${what}`, async () => {
      const [line, other] = [await joined(), await joined()];
      line.send(...packets);
      assert.ok([1002, 1008].includes(await line.closed()));
      other.send('42["message","unharmed"]');
      assert.equal(await other.next(), '42["message-back","unharmed"]');
    });
  }

  test("closes: more bytes than were allowed, in one message or in attachments together", async () => {
    const one = await joined();
    one.send(`42["message","${"x".repeat(1_000_000)}"]`);
    assert.equal(await one.closed(), 1009);
    const many = await joined();
    many.send(`452-["message",${placeholder},{"_placeholder":true,"num":1}]`, Buffer.alloc(600_000), Buffer.alloc(600_000));
    assert.equal(await many.closed(), 1009);
  });
});

/** A client that writes frames as it likes. Answers the close code of the server, which it must send before it closes. */
async function frames(...parts) {
  const [name, port] = host.split(":");
  const socket = open(Number(port), name);
  const key = "dGhlIHNhbXBsZSBub25jZQ==";
  socket.write(
    `GET /echo?EIO=4&transport=websocket HTTP/1.1\r\nHost: ${host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n` +
      `Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`,
  );
  let received = Buffer.alloc(0);
  socket.on("data", (data) => (received = Buffer.concat([received, data])));
  socket.on("error", () => {});
  await eventually("the handshake", () => received.includes("\r\n\r\n"));
  const accept = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
  assert.ok(received.toString("latin1").includes(accept), "the accept key");
  received = received.subarray(received.indexOf("\r\n\r\n") + 4);
  for (const part of parts) socket.write(part);
  await within(5_000, "the server to close", once(socket, "close"));
  assert.equal(received[0], 0x88, `a close frame first: ${received.toString("hex")}`);
  return received.readUInt16BE(2);
}

/** A masked frame. */
function frame(first, payload, { length = payload.length, mask = true } = {}) {
  const head = length < 126 ? [length] : length < 65_536 ? [126, length >> 8, length & 255] : [127, 0, 0, 0, 0, ...[24, 16, 8, 0].map((shift) => (length >>> shift) & 255)];
  head[0] |= mask ? 0x80 : 0;
  const key = [1, 2, 3, 4];
  const body = Buffer.from(payload).map((byte, index) => (mask ? byte ^ key[index % 4] : byte));
  return Buffer.concat([Buffer.from([first, ...head, ...(mask ? key : [])]), body]);
}

describe("a frame", () => {
  for (const [what, code, ...parts] of [
    ["without a mask", 1002, frame(0x81, "hi", { mask: false })],
    ["with a reserved bit", 1002, frame(0xc1, "hi")],
    ["of a reserved kind", 1002, frame(0x83, "")],
    ["of a reserved control kind", 1002, frame(0x8b, "")],
    ["that continues nothing", 1002, frame(0x80, "hi")],
    ["that begins anew in the middle", 1002, frame(0x01, "a"), frame(0x81, "b")],
    ["with a ping in two parts", 1002, frame(0x09, "a")],
    ["with a ping of 126 bytes", 1002, frame(0x89, "x".repeat(126))],
    ["that announces 2 GiB", 1009, frame(0x82, "", { length: 0x7fffffff })],
    ["with text that is not UTF-8", 1007, frame(0x81, Buffer.from([0xce, 0xba, 0xff]))],
    ["with text that breaks off in a character", 1007, frame(0x81, Buffer.from([0xf4, 0x8f]))],
    ["whose first part is hopeless already", 1007, frame(0x01, Buffer.from([0xf4, 0x90]))],
    ["that closes with one byte", 1002, frame(0x88, "x")],
    ["that closes with a code that is never sent", 1002, frame(0x88, Buffer.from([0x03, 0xee]))],
    ["that closes with a reason that is not UTF-8", 1007, frame(0x88, Buffer.from([0x03, 0xe8, 0xff]))],
    ["that closes as it should", 1000, frame(0x88, Buffer.from([0x03, 0xe8]))],
  ]) {
    test(`${what} is answered with ${code}`, async () => assert.equal(await frames(...parts), code));
  }

  test("may be a part of a message, with pings between the parts", async () => {
    const line = new Line("/echo");
    await once(line.ws, "open");
    const pong = once(line.ws, "pong");
    line.ws.send("κόσ", { fin: false });
    line.ws.ping("between");
    line.ws.send("με", { fin: true });
    assert.equal((await pong)[0].toString(), "between");
    assert.equal(await line.next(), "κόσμε");
    for (const length of [0, 1, 125, 126, 127, 65_535, 65_536, 1_000_000]) {
      line.ws.send(Buffer.alloc(length, 7));
      assert.equal((await line.next()).length, length);
    }
  });
});
