// The stock client over every transport, parser and extension: nothing is lost, doubled or reordered on the way.

import assert from "node:assert/strict";
import { once } from "node:events";
import { before, describe, test } from "node:test";

import { NodeWebSocket, NodeXHR } from "engine.io-client";
import msgpack from "socket.io-msgpack-parser";
import { shop } from "./catalogs.mjs";
import { Client, connect, connectError, Raw } from "./clients.mjs";
import { eventually, freePort, run, start, within } from "./harness.mjs";

/** A shop whose clients may publish what they like, bytes too. */
const more = `
[messages.note]
data = { itemId = "string", note = "any" }
publish = [{ type = "thing:noted", data = { itemId = "{{ data.itemId }}", note = "{{ data.note }}" } }]

[events."thing:noted"]
rooms = ["org:{orgId}"]
data = { itemId = "string", note = "any" }
`;

/** The client's WebSocket, held back until `gate` says so: an upgrade at a moment of our choice. */
function held(gate) {
  return class Held extends NodeWebSocket {
    doOpen() {
      gate.then(() => super.doOpen());
    }
  };
}

/**
 * Lets clients connect over polling and move to a WebSocket while numbered events are published, at least 2,000, and looks at what each
 * of them got: everything from its first moment on, in order, once.
 */
async function moveUnderTraffic(server, options = {}) {
  const tenant = server.newTenant();
  const movers = Array.from({ length: 8 }, (_, n) => {
    const mover = {};
    const gate = new Promise((move) => (mover.move = move));
    mover.client = new Client(server, { token: tenant.token(`u${n}`), transports: [NodeXHR, held(gate)], ...options });
    mover.moved = mover.client.connected().then(() => once(mover.client.socket.io.engine, "upgrade"));
    return mover;
  });
  let all = false;
  const everybody = within(20_000, "all upgrades", Promise.all(movers.map(({ moved }) => moved))).then(() => (all = true));
  await Promise.all(movers.map(({ client }) => client.connected()));
  let count = 0;
  while (count < 2_000 || !all) {
    const events = Array.from({ length: 10 }, (_, n) => ({ type: "item:added", data: { itemId: "i", amount: count + n } }));
    assert.equal((await tenant.api("/v1/events", { body: events })).status, 201);
    count += events.length;
    // One after the other, each in the middle of what it gets.
    movers.forEach(({ client, move }, n) => amounts(client).length > 100 * n && move());
    assert.ok(count < 100_000, "the upgrades take too long");
  }
  await everybody;
  for (const { client } of movers) {
    await client.seen.until("item:added", ({ amount }) => amount === count - 1);
    assert.equal(client.socket.io.engine.transport.name, "websocket");
    assert.deepEqual(amounts(client), Array.from({ length: count }, (_, n) => n));
    client.close();
  }
}

const amounts = (client) => client.seen.of("item:added").map(({ amount }) => amount);

describe("with the client's own parser", () => {
  let server;
  before(async () => (server = await start({ app: shop({ more }) })));

  test("2,000 events go through an upgrade, each once and in order", () => moveUnderTraffic(server));

  test("bytes that a client published arrive as bytes, live, over polling and in a replay", async () => {
    const tenant = server.newTenant();
    const sender = await connect(server, { token: tenant.token("ann") });
    const listeners = [
      await connect(server, { token: tenant.token("bob") }),
      await connect(server, { token: tenant.token("cid"), transports: ["polling"] }),
    ];
    const away = await connect(server, { token: tenant.token("dan") });
    await sender.must("note", { itemId: "zero", note: null });
    await away.seen.until("thing:noted");
    await away.drop("cut");
    const note = { deep: [Buffer.from([0, 1, 254, 255]), "text", Buffer.alloc(0)] };
    await sender.must("note", { itemId: "a", note });
    await away.comeBack();
    assert.equal(away.socket.recovered, true);
    for (const client of [...listeners, away]) {
      assert.deepEqual((await client.seen.until("thing:noted", ({ itemId }) => itemId === "a")).note, note);
    }
  });

  test("nobody can end the clients of a room by an event that the client library misreads", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    const away = await connect(server, { token: tenant.token("bob") });
    await tenant.publish("thing:noted", { itemId: "zero", note: null });
    await away.seen.until("thing:noted");
    await away.drop("cut");
    const notes = ['{"_placeholder":true,"num":7}', '{"\\u005fplaceholder":true,"num":7}'];
    for (const [n, note] of notes.entries()) {
      const body = `{"type":"thing:noted","data":{"itemId":"${n}","note":[{"$binary":"AQID"},${note}]}}`;
      assert.equal((await tenant.api("/v1/events", { body })).status, 201);
    }
    await away.comeBack();
    for (const { seen } of [client, away]) {
      const heard = (await seen.until("thing:noted", ({ itemId }) => itemId === "1")).note;
      assert.deepEqual(heard, [{ $binary: "AQID" }, { _placeholder: true, num: 7 }]);
    }
    assert.ok(client.socket.connected && away.socket.recovered);
  });

  test("nothing is compressed that was not asked for", async () => {
    const { ws } = new Raw(server);
    await once(ws, "open");
    assert.equal(ws.extensions, "");
  });
});

describe("with socket.io-msgpack-parser", () => {
  let server;
  before(async () => (server = await start({ app: shop({ more }), config: '[sockets]\nparser = "msgpack"\n' })));
  const parser = { parser: msgpack };

  for (const transports of [["websocket"], ["polling"]]) {
    test(`a client connects, asks, hears and comes back over ${transports}`, async () => {
      const tenant = server.newTenant();
      const client = await connect(server, { token: tenant.token("ann"), transports, ...parser });
      assert.equal(client.hello.userId, "ann");
      const data = { itemId: "ä".repeat(300), amount: -1.5e300, list: [0, -1, 255, 65_536, 2 ** 40, -(2 ** 40), 0.1, true, null] };
      await tenant.publish("item:added", data);
      assert.deepEqual(await client.seen.until("item:added"), data);
      assert.match(client.seen.all.at(-1).offset, /^[^.]+\.1$/);
      assert.equal((await client.refused("join", "item:sealed")).code, "room.forbidden");
      assert.equal((await client.must("join", "item:a")).room, "item:a");
      if (transports[0] === "websocket") {
        await client.drop("cut");
        await tenant.publish("item:added", { itemId: "missed", amount: 2 });
        await client.comeBack();
        assert.equal(client.socket.recovered, true);
        assert.deepEqual(client.seen.of("item:added").map(({ itemId }) => itemId), [data.itemId, "missed"]);
      }
    });
  }

  test("bytes, dates and undefined are what they are in JSON, and bytes arrive as bytes", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann"), ...parser });
    const at = new Date(Date.UTC(2024, 1, 29, 12, 34, 56, 789));
    const note = { bytes: Buffer.from([1, 2, 255]), at, nothing: undefined, list: [undefined] };
    await client.must("note", { itemId: "a", note });
    const heard = (await client.seen.until("thing:noted")).note;
    assert.deepEqual(heard, { bytes: Buffer.from([1, 2, 255]), at: at.toISOString(), list: [null] });
    const [event] = await tenant.log();
    assert.deepEqual(event.data.note, { bytes: { $binary: "AQL/" }, at: at.toISOString(), list: [null] });
  });

  test("2,000 events go through an upgrade, each once and in order", () => moveUnderTraffic(server, parser));

  test("a refused client is told why", async () => {
    const error = await connectError(server, { token: "bad", ...parser });
    assert.deepEqual([error.message, error.data.code], ["Invalid token", "auth.invalid"]);
  });

  test("a client with the other parser is closed", async () => {
    const raw = new Raw(server);
    await raw.until(/^0/);
    raw.ws.send("40");
    assert.equal(await raw.closed(), 1002);
    const noise = new Raw(server);
    await noise.until(/^0/);
    noise.ws.send(Buffer.from([0xc1]));
    assert.equal(await noise.closed(), 1002);
  });
});

describe("with compression", () => {
  let server;
  before(async () => (server = await start({ app: shop({ more }), config: "[sockets]\ncompression = true\n" })));

  /** How many bytes a bare WebSocket received between two moments. */
  const received = (raw) => raw.ws._socket.bytesRead;

  test("large messages arrive whole and small, to those who asked for it; the others get them plain", async () => {
    const tenant = server.newTenant();
    const [packed, plain] = [new Raw(server), new Raw(server, undefined, { perMessageDeflate: false })];
    for (const [raw, extensions] of [[packed, "permessage-deflate"], [plain, ""]]) {
      await raw.session({ token: tenant.token("ann") });
      await raw.until(/"connected"/);
      assert.equal(raw.ws.extensions, extensions);
      raw.before = received(raw);
    }
    const data = { itemId: "x".repeat(50_000), amount: 1 };
    await tenant.publish("item:added", data);
    for (const raw of [packed, plain]) {
      assert.deepEqual(JSON.parse((await raw.until(/^42\["item:added"/)).slice(2))[1], data);
    }
    // Pings may come between; they are three bytes each.
    assert.ok(received(packed) - packed.before < 1_000, `${received(packed) - packed.before} bytes`);
    assert.ok(received(plain) - plain.before > 50_000, `${received(plain) - plain.before} bytes`);
  });

  test("a message is compressed once, however many get it", async () => {
    const tenant = server.newTenant();
    const clients = [];
    for (let n = 0; n < 20; n += 1) clients.push(await connect(server, { token: tenant.token(`u${n}`), perMessageDeflate: true }));
    const compressed = async () => (await server.api("/health/ws")).body.realtime.compressed;
    const before = await compressed();
    await tenant.publish("item:added", { itemId: "x".repeat(5_000), amount: 1 });
    await Promise.all(clients.map(({ seen }) => seen.until("item:added")));
    assert.equal((await compressed()) - before, 1);
  });

  test("small messages stay as they are", async () => {
    const tenant = server.newTenant();
    const raw = new Raw(server);
    await raw.session({ token: tenant.token("ann") });
    await raw.until(/"connected"/);
    const begin = received(raw);
    await tenant.publish("item:added", { itemId: "a".repeat(900), amount: 1 });
    const packet = await raw.until(/^42\["item:added"/);
    assert.ok(packet.length < 1_024);
    assert.ok(received(raw) - begin >= packet.length, "it was compressed");
  });

  test("a client may compress, and its answers are compressed, too", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann"), perMessageDeflate: { threshold: 0 } });
    const ws = client.socket.io.engine.transport.ws;
    assert.equal(ws.extensions, "permessage-deflate");
    const note = "never gonna give you up ".repeat(10_000);
    const [read, written] = [ws._socket.bytesRead, ws._socket.bytesWritten];
    await client.must("note", { itemId: "a", note });
    assert.equal((await client.seen.until("thing:noted")).note, note);
    const { events } = await client.must("history", {});
    assert.equal(events[0].data.note, note);
    assert.ok(ws._socket.bytesWritten - written < 10_000, "the client compressed");
    assert.ok(ws._socket.bytesRead - read < 20_000, "the server compressed");
  });

  test("2,000 events go through an upgrade, each once and in order", () => moveUnderTraffic(server, { perMessageDeflate: { threshold: 0 } }));

  test("what inflates to more than a message may have is refused, and nobody else notices", async () => {
    const tenant = server.newTenant();
    const bystander = await connect(server, { token: tenant.token("bob") });
    const raw = new Raw(server);
    await raw.until(/^0/);
    raw.ws.send(Buffer.alloc(20_000_000), { compress: true });
    assert.equal(await raw.closed(), 1009);
    const broken = new Raw(server);
    await broken.until(/^0/);
    // A compressed frame of one byte that no deflate begins with.
    broken.ws._socket.write(Buffer.from([0xc1, 0x81, 0, 0, 0, 0, 0xff]));
    assert.equal(await broken.closed(), 1007);
    await tenant.publish("item:added", { itemId: "still", amount: 1 });
    await bystander.seen.until("item:added");
  });
});

test("with all of it at once, bytes come back from the echo as they were sent", async () => {
  const port = await freePort();
  const child = run(["conformance", "--listen", `127.0.0.1:${port}`, "--msgpack", "--compression"]);
  await eventually("the conformance server to listen", () => child.out.includes("conformance on"));
  const client = new Client({ url: `http://127.0.0.1:${port}` }, { parser: msgpack, transports: ["polling", "websocket"] });
  await client.connected();
  const bytes = Buffer.alloc(300_000, "abc");
  for (let n = 0; n < 5; n += 1) {
    const [back, number] = await client.ask("message-with-ack", { bytes, list: [bytes.subarray(0, n)] }, n).then((first) => [first, n]);
    assert.equal(number, n);
    assert.ok(bytes.equals(back.bytes));
    assert.equal(back.list[0].length, n);
  }
});

test("a client that offers subprotocols gets a WebSocket, at once or by the upgrade", async () => {
  const server = await start({ app: shop() });
  const tenant = server.newTenant();
  for (const transports of [["websocket"], ["polling", "websocket"]]) {
    const client = await connect(server, { token: tenant.token("ann"), transports, protocols: ["mine", "yours"] });
    const { engine } = client.socket.io;
    await eventually("a WebSocket", () => engine.transport.name === "websocket");
    assert.equal(engine.transport.ws.protocol, "mine");
    client.close();
  }
});
