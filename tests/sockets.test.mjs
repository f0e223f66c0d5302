// Live sockets, as the stock client sees them, and what becomes of a client that breaks the protocol.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join } from "node:path";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { Client, Raw, connect, connectError } from "./clients.mjs";
import { APPS, eventually, expectStatus, mint, start, within } from "./harness.mjs";

let server;
before(async () => {
  server = await start({ app: shop() });
});

/** Publishes an event that every socket of the tenant gets. What was published before it and did not come will not come. */
async function marker(tenant, clients) {
  const itemId = `marker-${Math.random()}`;
  await tenant.publish("item:added", { itemId, amount: 0 });
  for (const client of clients) await client.seen.until("item:added", (data) => data?.itemId === itemId);
}

test("the browser client that is served is the published one", async () => {
  const served = await (await fetch(`${server.url}/socket.io/socket.io.min.js`)).text();
  const published = new URL("./node_modules/socket.io-client/dist/socket.io.min.js", import.meta.url);
  assert.equal(served, await readFile(published, "utf8"));
});

describe("a connection", () => {
  for (const transports of [["websocket"], ["polling"]]) {
    test(`over ${transports[0]} gets events and acknowledgements`, async () => {
      const tenant = server.newTenant();
      const client = await connect(server, { token: tenant.token("ann"), transports });
      assert.equal(client.socket.io.engine.transport.name, transports[0]);
      await client.must("join room", "item:a");
      const event = await tenant.publish("item:noted", { itemId: "a", note: "näh ☃ 𝄞" });
      assert.deepEqual(await client.seen.until("item:noted"), { itemId: "a", note: "näh ☃ 𝄞" });
      assert.match(client.seen.all.at(-1).offset, new RegExp(`^[a-z0-9]+\\.${event.position}$`));
    });
  }

  test("begins with polling and upgrades to a WebSocket without losing anything", async () => {
    const tenant = server.newTenant();
    const client = new Client(server, { token: tenant.token("ann"), transports: ["polling", "websocket"] });
    const upgraded = new Promise((done) => client.socket.io.engine.once("upgrade", done));
    await client.connected();
    const publishing = Promise.all(
      Array.from({ length: 50 }, (_, n) => tenant.publish("item:added", { itemId: `${n}`, amount: n })),
    );
    await within(10_000, "the upgrade", upgraded);
    assert.equal(client.socket.io.engine.transport.name, "websocket");
    await publishing;
    await marker(tenant, [client]);
    const inLog = (await tenant.log("type=item:added")).map(({ data }) => data.itemId);
    assert.deepEqual(client.seen.of("item:added").map(({ itemId }) => itemId), inLog);
  });

  test("is told who and where it is", async () => {
    const tenant = server.newTenant();
    // Only what has been delivered counts as a position, and a witness knows that it has.
    const witness = await connect(server, { token: tenant.token("bob") });
    await marker(tenant, [witness]);
    const { hello, socket } = await connect(server, { token: tenant.token("ann", { roles: ["agent"] }) });
    assert.equal(hello.socketId, socket.id);
    assert.deepEqual([hello.userId, hello.tenant, hello.roles, hello.position], ["ann", tenant.name, ["agent"], 1]);
    assert.deepEqual([...hello.rooms].sort(), [`org:${tenant.name}`, "user:ann"]);
    assert.notEqual(socket.id, socket.io.engine.id, "the transport's id is a secret of its own");
  });

  test("reaches every tab of a user and nobody else", async () => {
    const tenant = server.newTenant();
    const tabs = await Promise.all([1, 2].map(() => connect(server, { token: tenant.token("ann") })));
    const other = await connect(server, { token: tenant.token("bob") });
    await tenant.publish("user:pinged", { n: 1 }, { userId: "ann" });
    await marker(tenant, [...tabs, other]);
    for (const tab of tabs) assert.deepEqual(tab.seen.of("user:pinged"), [{ n: 1 }]);
    assert.deepEqual(other.seen.of("user:pinged"), []);
    tabs[0].close();
    await tenant.publish("user:pinged", { n: 2 }, { userId: "ann" });
    await tabs[1].seen.until("user:pinged", ({ n }) => n === 2);
  });

  test("gets ephemeral events live", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    await tenant.publish("user:typing", { text: "…" });
    assert.deepEqual(await client.seen.until("user:typing"), { text: "…" });
  });
});

describe("a credential", () => {
  test("is required", async () => {
    const error = await connectError(server, {});
    assert.deepEqual([error.message, error.data?.code], ["Authentication token required", "auth.required"]);
  });

  test("must be a valid token of this server", async () => {
    const tenant = server.newTenant();
    const [header, payload, signature] = tenant.token("ann").split(".");
    const none = Buffer.from(JSON.stringify({ alg: "none", typ: "JWT" })).toString("base64url");
    const forged = Buffer.from(JSON.stringify({ sub: "ann", orgId: "t1", exp: 9999999999 })).toString("base64url");
    for (const token of [
      "nonsense",
      mint({ sub: "ann", orgId: tenant.name }, "another secret that is long enough for it"),
      tenant.token("ann", { exp: Math.floor(Date.now() / 1000) - 3600 }),
      `${header}.${forged}.${signature}`,
      `${none}.${payload}.`,
      mint({ sub: "ann" }),
    ]) {
      const error = await connectError(server, { token });
      assert.deepEqual([error.message, error.data?.code], ["Invalid token", "auth.invalid"], token);
    }
  });

  test("may come in four ways", async () => {
    const tenant = server.newTenant();
    const token = tenant.token("ann");
    for (const options of [
      { auth: { token } },
      { extraHeaders: { authorization: `Bearer ${token}` } },
      { query: { token } },
      { extraHeaders: { cookie: `theme=dark; session=${token}; last=1` } },
    ]) {
      for (const transports of [["websocket"], ["polling"]]) {
        const client = await connect(server, { ...options, transports });
        assert.equal(client.hello.userId, "ann", JSON.stringify(Object.keys(options)));
        client.close();
      }
    }
  });

  test("that is bad never falls through to a good one", async () => {
    const tenant = server.newTenant();
    const good = { authorization: `Bearer ${tenant.token("ann")}` };
    assert.equal((await connectError(server, { token: "nonsense", extraHeaders: good })).message, "Invalid token");
    const query = { token: tenant.token("bob") };
    assert.equal((await connect(server, { extraHeaders: good, query })).hello.userId, "ann", "the first source decides");
  });

  test("can be minted over HTTP", async () => {
    const tenant = server.newTenant();
    const body = { tenant: tenant.name, user: "ann", roles: ["agent"], ttl: "5m" };
    const { token } = expectStatus(await server.api("/v1/tokens", { body }), 201);
    const { hello } = await connect(server, { token });
    assert.deepEqual([hello.userId, hello.tenant, hello.roles], ["ann", tenant.name, ["agent"]]);
  });

  test("is refreshed on a live socket, for the same user only", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann", { exp: Math.floor(Date.now() / 1000) + 10 }) });
    await client.seen.until("auth:expiring");
    await client.refused("auth", { token: tenant.token("bob") });
    await client.refused("auth", { token: "nonsense" });
    await client.must("auth", { token: tenant.token("ann") });
    await marker(tenant, [client]);
  });

  test("is checked at the app's own endpoint when the catalog says so", async () => {
    let status = 401;
    const app = createServer((_, response) => response.writeHead(status).end("{}"));
    await new Promise((done) => app.listen(0, "127.0.0.1", done));
    const introspect = `http://127.0.0.1:${app.address().port}/session`;
    const asking = await start({ app: shop({ auth: `[auth.session]\nintrospect = "${introspect}"` }) });
    try {
      assert.equal((await connectError(asking, { token: "session-one" })).message, "Invalid token");
      status = 500;
      assert.equal((await connectError(asking, { token: "session-two" })).message, "Authentication failed");
    } finally {
      app.closeAllConnections();
      await new Promise((done) => app.close(done));
    }
    const error = await connectError(asking, { token: "session-three" });
    assert.deepEqual([error.message, error.data?.code], ["Authentication failed", "auth.unavailable"]);
    await asking.stop();
  });
});

describe("a room", () => {
  test("on request is joined and left with an acknowledgement", async () => {
    const tenant = server.newTenant();
    const [inside, outside] = await Promise.all([1, 2].map(() => connect(server, { token: tenant.token("ann") })));
    const note = (text) => tenant.publish("item:noted", { itemId: "a", note: text });
    await note("before");
    await marker(tenant, [inside]);
    await inside.must("join room", "item:a");
    await note("while");
    await inside.seen.until("item:noted");
    await inside.must("leave room", "item:a");
    await note("after");
    await marker(tenant, [inside]);
    await inside.must("join room", { room: "item:a" });
    await note("again");
    await marker(tenant, [inside, outside]);
    assert.deepEqual(inside.seen.of("item:noted").map(({ note: text }) => text), ["while", "again"]);
    assert.deepEqual(outside.seen.of("item:noted"), []);
  });

  test("is refused when it is not for this client", async () => {
    const [mine, other] = [server.newTenant(), server.newTenant()];
    const client = await connect(server, { token: mine.token("ann") });
    for (const room of [
      `org:${other.name}`,
      "user:bob",
      "item:sealed",
      "shelf:1",
      "item:",
      "",
      `item:${"x".repeat(5_000)}`,
      `board:${other.name}`,
    ]) {
      await client.refused("join room", room);
    }
    for (const argument of [null, 5, {}, [], { room: 5 }]) await client.refused("join room", argument);
    await other.publish("item:moved", { itemId: "a", from: "x", to: "y" });
    await marker(mine, [client]);
    assert.deepEqual(client.seen.of("item:moved"), []);
  });

  test("that is public shows a redacted copy without a login, and nothing else", async () => {
    const tenant = server.newTenant();
    const visitor = new Client(server, { auth: { orgId: tenant.name } });
    await visitor.connected();
    const member = await connect(server, { token: tenant.token("ann") });
    await visitor.must("join room", `board:${tenant.name}`);
    for (const room of ["item:a", `org:${tenant.name}`, "user:ann"]) await visitor.refused("join room", room);
    await tenant.publish("item:added", { itemId: "hidden", amount: 1 });
    await tenant.publish("item:moved", { itemId: "a", from: "cellar", to: "shop", price: 7 });
    assert.deepEqual(await visitor.seen.until("item:moved"), { itemId: "a", to: "shop" });
    await member.seen.until("item:moved");
    assert.deepEqual(member.seen.of("item:moved"), [{ itemId: "a", from: "cellar", to: "shop", price: 7 }]);
    assert.deepEqual(visitor.seen.of("item:added"), []);
  });

  test("that is public and not of the whole tenant is joined without a login, too, and only there", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const visitor = new Client(server, { auth: { orgId: tenant.name } });
    await visitor.connected();
    await visitor.must("join room", "spot:1");
    await other.publish("spot:lit", {}, { params: { spotId: "1" } });
    await tenant.publish("spot:lit", {}, { params: { spotId: "2" } });
    await tenant.publish("spot:lit", { n: 1 }, { params: { spotId: "1" } });
    assert.deepEqual(await visitor.seen.until("spot:lit"), { n: 1 });
    await visitor.must("leave room", "spot:1");
  });

  test("beside another one brings an event for both once", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    await client.must("join room", "item:a");
    await tenant.publish("item:moved", { itemId: "a", from: "x", to: "y" });
    await marker(tenant, [client]);
    assert.equal(client.seen.of("item:moved").length, 1);
  });
});

describe("an event", () => {
  test("with a visibility rule reaches only who may see it, in history, too", async () => {
    const tenant = server.newTenant();
    const people = [["root", ["admin"]], ["ann", ["agent"]], ["bob", ["agent"]]];
    const clients = await Promise.all(people.map(([user, roles]) => connect(server, { token: tenant.token(user, { roles }) })));
    await tenant.publish("lead:created", { leadId: "1", agentId: "ann" });
    await marker(tenant, clients);
    assert.deepEqual(clients.map(({ seen }) => seen.of("lead:created").length), [1, 1, 0]);
    const histories = await Promise.all(clients.map((client) => client.must("history", { after: 0 })));
    const leads = histories.map(({ events }) => events.filter(({ type }) => type === "lead:created").length);
    assert.deepEqual(leads, [1, 1, 0]);
  });

  test("arrives in log order", async () => {
    const tenant = server.newTenant();
    const clients = await Promise.all(["ann", "bob"].map((user) => connect(server, { token: tenant.token(user) })));
    await Promise.all(Array.from({ length: 300 }, (_, n) => tenant.publish("item:added", { itemId: `${n}`, amount: n })));
    await marker(tenant, clients);
    const inLog = (await tenant.log()).map(({ data }) => data.itemId);
    for (const { seen } of clients) assert.deepEqual(seen.of("item:added").map(({ itemId }) => itemId), inLog);
  });
});

describe("a client", () => {
  test("that subscribes gets the types it asked for and no others", async () => {
    const tenant = server.newTenant();
    const [client, other] = await Promise.all([1, 2].map(() => connect(server, { token: tenant.token("ann") })));
    const publish = async () => {
      await tenant.publish("item:added", { itemId: "a", amount: 1 });
      await tenant.publish("item:sold", { itemId: "a" });
      await tenant.publish("user:pinged", {}, { userId: "ann" });
    };
    await publish();
    await client.seen.until("user:pinged");
    await client.must("subscribe", { eventTypes: ["item:*", "ledger:booked"] });
    await publish();
    await client.seen.until("item:sold", () => client.seen.of("item:sold").length === 2);
    await client.must("unsubscribe", { eventTypes: ["item:*"] });
    assert.deepEqual(await other.must("unsubscribe", { eventTypes: ["item:*"] }).then(({ eventTypes }) => eventTypes), null, "it still gets all");
    await client.must("subscribe", { eventTypes: ["item:sold"] });
    await publish();
    await tenant.publish("ledger:booked", { ledgerId: "x", amount: 1 });
    await client.seen.until("ledger:booked");
    const types = ({ seen }) => seen.all.map(({ type }) => type).filter((type) => type !== "connected");
    assert.deepEqual(types(client), [
      ...["item:added", "item:sold", "user:pinged"],
      ...["item:added", "item:sold"],
      ...["item:sold", "ledger:booked"],
    ]);
    await other.seen.until("ledger:booked");
    assert.equal(types(other).length, 10, "another socket of the same user has its own filter");
  });

  test("reads history in order, by position, number and type", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    for (const itemId of ["a", "b", "c"]) await tenant.publish("item:added", { itemId, amount: 1 });
    await tenant.publish("item:noted", { itemId: "a", note: "in a room that the client is not in" });
    await tenant.publish("item:sold", { itemId: "a" });
    await client.seen.until("item:sold");
    const positions = async (request) => (await client.must("history", request)).events.map(({ position }) => position);
    assert.deepEqual(await positions({ after: 0 }), [1, 2, 3, 5]);
    assert.deepEqual(await positions({ after: 2 }), [3, 5]);
    assert.deepEqual(await positions({ after: 0, limit: 2 }), [1, 2]);
    assert.deepEqual(await positions({ after: 0, types: ["item:sold"] }), [5]);
    assert.deepEqual(await positions({}), [1, 2, 3, 5]);
    const { events, complete } = await client.must("history", { after: 4 });
    assert.equal(complete, true);
    const shown = ({ id, type, time, position, data }) => ({ id, type, time, position, data });
    assert.deepEqual(events.map(shown), (await tenant.log("after=4")).map(shown));
    await client.must("join room", "item:a");
    assert.deepEqual(await positions({ after: 3 }), [4, 5]);
  });

  test("is told with a code what was wrong with its message", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    assert.equal((await client.refused("no such message", {})).code, "message.unknown");
    assert.equal((await client.refused("switch", { tenant: "elsewhere" })).code, "switch.forbidden");
    await client.refused("history", { after: "yesterday" });
    await client.refused("history", { after: -1 });
    await client.refused("subscribe", { eventTypes: "item:added" });
    await client.refused("subscribe", { eventTypes: [5] });
    await client.must("ack", { position: 0 });
    assert.ok(client.socket.connected, "none of it costs the connection");
  });

  test("cannot publish an event by its name", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann", { roles: ["admin"] }) });
    assert.equal((await client.refused("item:added", { itemId: "a", amount: 1 })).code, "message.unknown");
    assert.deepEqual(await tenant.log(), []);
  });
});

describe("a packet that breaks the protocol", () => {
  const auth = (tenant) => ({ token: tenant.token("mallory") });
  const cases = [
    ["an unknown Engine.IO type", (ws) => ws.send("9")],
    ["an empty Engine.IO packet", (ws) => ws.send("")],
    ["an empty Socket.IO packet", (ws) => ws.send("4")],
    ["an unknown Socket.IO type", (ws) => ws.send("49")],
    ["an event without arguments", (ws) => ws.send("42")],
    ["an event that is no array", (ws) => ws.send(`42{"a":1}`)],
    ["an event of an empty array", (ws) => ws.send("42[]")],
    ["an event with a reserved name", (ws) => ws.send(`42["disconnect"]`)],
    ["an event whose name is no text", (ws) => ws.send(`42[{}]`)],
    ["cut off JSON", (ws) => ws.send(`42["subscribe",{"eventTypes":[`)],
    ["JSON that nests without end", (ws) => ws.send(`42["subscribe",${"[".repeat(100_000)}`)],
    ["an event of a namespace it is not in", (ws) => ws.send(`42/elsewhere,["subscribe",{}]`)],
    ["a second connect", (ws) => ws.send("40{}")],
    ["a connect whose auth is no object", (ws) => ws.send(`40/other,"x"`)],
    ["a thousand announced attachments", (ws) => ws.send(`451000-["subscribe",{"_placeholder":true,"num":0}]`)],
    ["text in place of an announced attachment", (ws) => {
      ws.send(`451-["subscribe",{"_placeholder":true,"num":0}]`);
      ws.send(`42["subscribe",{}]`);
    }],
    ["binary that was not announced", (ws) => ws.send(Buffer.from([1, 2, 3]))],
    ["a message over the size limit", (ws) => ws.send(`42["subscribe","${"x".repeat(1_100_000)}"]`)],
    ["text that is not UTF-8", (ws) => ws.send(Buffer.from([0x34, 0x32, 0xff, 0xfe]), { binary: false })],
    ["a WebSocket frame without a mask", (ws) => ws._socket.write(Buffer.from([0x81, 0x03, 0x34, 0x32, 0x5b]))],
    ["a WebSocket frame with reserved bits", (ws) => ws._socket.write(Buffer.from([0xf1, 0x80, 0, 0, 0, 0]))],
    ["a WebSocket frame that claims to be enormous", (ws) =>
      ws._socket.write(Buffer.from([0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]))],
  ];

  test("costs only the connection that sent it", async (t) => {
    const tenant = server.newTenant();
    const bystander = await connect(server, { token: tenant.token("ann") });
    for (const [what, send] of cases) {
      await t.test(what, async () => {
        const raw = new Raw(server);
        await raw.session(auth(tenant));
        send(raw.ws);
        await raw.closed();
        await marker(tenant, [bystander]);
      });
    }
  });

  test("before the login is closed, too", async () => {
    const raw = new Raw(server);
    await raw.until(/^0\{/);
    raw.ws.send(`42["subscribe",{}]`);
    await raw.closed();
  });

  test("is not needed to ask for an unknown namespace: it is named as such", async () => {
    const tenant = server.newTenant();
    const error = await connectError(server, { token: tenant.token("ann"), namespace: "/elsewhere" });
    assert.equal(error.message, "Invalid namespace");
  });

  for (const [query, code] of [
    ["EIO=4&transport=carrier-pigeon", 0],
    ["EIO=4&transport=polling&sid=no-such-session", 1],
    ["EIO=3&transport=polling", 5],
    ["transport=polling", 5],
  ]) {
    test(`over HTTP is answered: ?${query}`, async () => {
      const answer = await server.api(`/socket.io/?${query}`, { key: null });
      assert.deepEqual([answer.status, answer.body.code], [400, code]);
    });
  }

  test("over HTTP closes the session that sent it and no other", async () => {
    const tenant = server.newTenant();
    const bystander = await connect(server, { token: tenant.token("ann"), transports: ["polling"] });
    const path = "/socket.io/?EIO=4&transport=polling";
    const open = await server.api(path, { key: null });
    const { sid } = JSON.parse(open.body.slice(1));
    const headers = { "content-type": "text/plain;charset=UTF-8" };
    await server.api(`${path}&sid=${sid}`, { key: null, body: "nonsense", headers });
    await eventually("the session to be gone", async () => {
      return (await server.api(`${path}&sid=${sid}`, { key: null })).body.code === 1;
    });
    await marker(tenant, [bystander]);
  });

  test("leaves a server that still takes new clients", async () => {
    const tenant = server.newTenant();
    await marker(tenant, [await connect(server, { token: tenant.token("ann") })]);
  });
});

describe("the envelope profile", () => {
  let umroh;
  before(async () => {
    umroh = await start({ app: join(APPS, "travel-umroh"), tenantClaim: "tenantId" });
  });

  test("sends every event under one name, in the namespace of the catalog", async () => {
    const tenant = umroh.newTenant();
    const client = await connect(umroh, { token: tenant.token("ann"), namespace: "/ws" });
    assert.deepEqual([client.hello.userId, client.hello.tenant], ["ann", tenant.name]);
    const published = await tenant.publish("jamaah.created", { jamaahId: "j1" }, { correlationId: "c1" });
    const envelope = await client.seen.until("event");
    assert.deepEqual(
      [envelope.id, envelope.type, envelope.time, envelope.position, envelope.data, envelope.correlationId],
      [published.id, "jamaah.created", published.time, 1, { jamaahId: "j1" }, "c1"],
    );
    assert.match(client.seen.all.at(-1).offset, /^[a-z0-9]+\.1$/);
  });

  test("shows leads to administrators and to their agent only", async () => {
    const tenant = umroh.newTenant();
    const people = [["root", ["admin"]], ["ann", ["agent"]], ["bob", ["agent"]]];
    const clients = await Promise.all(
      people.map(([user, roles]) => connect(umroh, { token: tenant.token(user, { roles }), namespace: "/ws" })),
    );
    const lead = { leadId: "1", leadName: "L", leadEmail: "l@example.org", leadPhone: "1", agentId: "ann", status: "new" };
    await tenant.publish("lead.created", lead);
    await tenant.publish("package.created", { packageId: "p" });
    for (const { seen } of clients) await seen.until("event", ({ type }) => type === "package.created");
    assert.deepEqual(clients.map(({ seen }) => seen.of("event").length), [2, 2, 1]);
  });

  test("is not served outside its namespace", async () => {
    const tenant = umroh.newTenant();
    assert.equal((await connectError(umroh, { token: tenant.token("ann") })).message, "Invalid namespace");
  });
});

describe("a message that the catalog declares", () => {
  let investing;
  before(async () => {
    investing = await start({ app: join(APPS, "angel-investing"), tenantClaim: "platform" });
  });

  test("joins and leaves a room and replies to its sender only", async () => {
    const tenant = investing.newTenant();
    const [ann, bob] = await Promise.all(["ann", "bob"].map((user) => connect(investing, { token: tenant.token(user) })));
    await ann.must("subscribe_to_pitch", "p1");
    assert.deepEqual(await ann.seen.until("subscribed_to_pitch"), { pitchId: "p1" });
    await bob.must("subscribe_to_pitch", "p1");
    await ann.must("unsubscribe_from_pitch", "p1");
    assert.deepEqual(await ann.seen.until("unsubscribed_from_pitch"), { pitchId: "p1" });
    assert.equal(bob.seen.of("unsubscribed_from_pitch").length, 0);
  });

  test("publishes in the name of its sender, whatever the payload claims", async () => {
    const tenant = investing.newTenant();
    const [ann, bob, eve] = await Promise.all(
      ["ann", "bob", "eve"].map((user) => connect(investing, { token: tenant.token(user) })),
    );
    await bob.must("subscribe_to_pitch", "p1");
    await ann.must("send_message", { pitchId: "p1", content: "Hello", type: "text", sender_id: "eve", userId: "eve" });
    const { message } = await bob.seen.until("new_message");
    assert.deepEqual([message.content, message.sender_id], ["Hello", "ann"]);
    const [event] = await tenant.log("type=new_message");
    assert.equal(event.data.message.sender_id, "ann", "it is in the log, not only on the wire");
    assert.deepEqual(eve.seen.of("new_message"), []);
  });

  test("is refused when its arguments are wrong or the room is not for its sender", async () => {
    const tenant = investing.newTenant();
    const ann = await connect(investing, { token: tenant.token("ann") });
    for (const args of [[], [5], [{}], [""]]) await ann.refused("subscribe_to_pitch", ...args);
    await ann.refused("send_message", { pitchId: "p1", content: 5, type: "text" });
    await ann.refused("send_message", { content: "to nobody", type: "text" });
    await ann.refused("join_investment_room", "i1");
    const party = await connect(investing, { token: tenant.token("bob", { investments: ["i1"] }) });
    await party.must("join_investment_room", "i1");
    assert.deepEqual(await tenant.log(), []);
  });
});
