// Limits that hold over many sockets, and that whoever is over one hurts nobody else.

import assert from "node:assert/strict";
import { once } from "node:events";
import { before, describe, test } from "node:test";
import { Worker } from "node:worker_threads";

import { shop } from "./catalogs.mjs";
import { Client, Raw, connect, connectError } from "./clients.mjs";
import { Metrics } from "./exposition.mjs";
import { eventually, expectStatus, start, within } from "./harness.mjs";
import { quantile } from "./load.mjs";

const gone = (client) => new Promise((done) => client.socket.once("disconnect", done));

describe("visitors without a login", () => {
  let server;
  before(async () => {
    const config = `[http]\ntrustedProxies = ["127.0.0.1"]\n[realtime]\nmaxPerAddress = 2\n`;
    server = await start({ app: shop(), config });
  });
  const from = (address) => ({ extraHeaders: { "x-forwarded-for": address } });

  test("are limited by the address that the proxy names, and users are not", async () => {
    const tenant = server.newTenant();
    const visitor = { auth: { orgId: tenant.name }, ...from("203.0.113.7") };
    const first = await connect(server, visitor);
    await connect(server, { ...visitor, transports: ["polling"] });
    const refused = await connectError(server, visitor);
    assert.deepEqual([refused.message, refused.data.code], ["Too many connections", "limit.address"]);
    await connect(server, { ...visitor, ...from("203.0.113.8") });
    await connect(server, { token: tenant.token("ann"), ...from("203.0.113.7") });
    const left = gone(first);
    first.close();
    await left;
    await eventually("the place to be free", async () => {
      const items = await tenant.list("/v1/realtime/connections");
      return items.filter(({ address }) => address === "203.0.113.7").length === 2;
    });
    await connect(server, visitor);
    assert.equal((await connectError(server, visitor)).data.code, "limit.address");
    assert.equal((await Metrics.of(server)).get("tidewire_socket_connects_refused_total", { code: "limit.address" }), 2);
  });

  test("of one IPv6 network count together", async () => {
    const visitor = (address) => ({ auth: { orgId: server.newTenant().name }, ...from(address) });
    await connect(server, visitor("2001:db8:0:1::1"));
    await connect(server, visitor("2001:db8:0:1:ffff::2"));
    assert.equal((await connectError(server, visitor("2001:db8:0:1::3"))).data.code, "limit.address");
    await connect(server, visitor("2001:db8:0:2::1"));
  });
});

test("a user who connects too often is refused for a while, and others are not", async () => {
  const server = await start({ app: shop({ connects: "2/10m" }) });
  const tenant = server.newTenant();
  const clients = [];
  for (let n = 0; n < 2; n += 1) clients.push(await connect(server, { token: tenant.token("ann") }));
  for (const client of clients) client.close();
  const refused = await connectError(server, { token: tenant.token("ann") });
  assert.deepEqual([refused.message, refused.data.code], ["Too many connections", "limit.connects"]);
  assert.ok(refused.data.retryAfter > 0 && refused.data.retryAfter <= 600_000, `${refused.data.retryAfter} ms`);
  await connect(server, { token: tenant.token("bob") });
  await connect(server, { token: server.newTenant().token("ann") });
  await server.kill();
});

describe("refused credentials", () => {
  const config = `[realtime]\nrefusedPerAddress = "5/1h"\n`;
  const elsewhere = { localAddress: "127.0.0.2" };

  test("are looked at no more when an address has shown too many, and elsewhere they are", async () => {
    const server = await start({ app: shop(), config });
    const tenant = server.newTenant();
    const live = await connect(server, { token: tenant.token("ann") });
    for (let n = 0; n < 5; n += 1) {
      const auth = n % 2 ? { token: "nonsense" } : {};
      assert.equal((await connectError(server, { auth })).data.code, n % 2 ? "auth.invalid" : "auth.required");
    }
    // A good credential is not looked at, either.
    for (const token of ["nonsense", tenant.token("ann")]) {
      const refused = await connectError(server, { token });
      assert.deepEqual([refused.message, refused.data.code], ["Too many refused credentials", "limit.credentials"]);
      assert.ok(refused.data.retryAfter > 60_000 && refused.data.retryAfter <= 720_000, `${refused.data.retryAfter} ms`);
    }
    const stream = await fetch(`${server.url}/v1/events`, {
      headers: { accept: "text/event-stream", authorization: `Bearer ${tenant.token("ann")}` },
    });
    const problem = await stream.json();
    assert.deepEqual([stream.status, problem.code], [429, "limit.credentials"]);
    assert.ok(Number(stream.headers.get("retry-after")) > 60);
    // Who is connected stays, and whoever is somewhere else is not affected.
    await live.must("leave", "item:none");
    const raw = new Raw(server, undefined, elsewhere);
    assert.ok((await raw.session({ token: tenant.token("bob") })).sid);
    const metrics = await Metrics.of(server);
    assert.equal(metrics.get("tidewire_socket_connects_refused_total", { code: "limit.credentials" }), 3);
  });

  test("count on one transport as on many, and good ones do not", async () => {
    const server = await start({ app: shop(), config });
    const tenant = server.newTenant();
    for (let n = 0; n < 8; n += 1) (await connect(server, { token: tenant.token(`u${n}`) })).close();
    const raw = new Raw(server);
    await raw.until(/^0\{/);
    for (let n = 0; n < 20; n += 1) raw.ws.send(`40{"token":"bad-${n}"}`);
    const refusals = () => raw.received.filter((packet) => packet.startsWith("44")).map((packet) => JSON.parse(packet.slice(2)).data.code);
    await eventually("twenty answers", () => refusals().length === 20);
    assert.deepEqual(refusals(), [...Array(5).fill("auth.invalid"), ...Array(15).fill("limit.credentials")]);
  });
});

describe("rates of messages", () => {
  let server;
  before(async () => {
    const env = { TIDEWIRE_REALTIME__MESSAGES_PER_USER: "10/1h", TIDEWIRE_REALTIME__MESSAGES_PER_TENANT: "25/1h" };
    server = await start({ app: shop(), env });
  });

  test("hold for a user over all sockets, then for the tenant, and not for others", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const ann = [await connect(server, { token: tenant.token("ann") }), await connect(server, { token: tenant.token("ann") })];
    for (let n = 0; n < 10; n += 1) await ann[n % 2].must("leave", "item:none");
    for (const socket of ann) {
      const refused = await socket.refused("leave", "item:none");
      assert.equal(refused.code, "limit.user_messages");
      assert.ok(refused.retryAfter > 60_000 && refused.retryAfter <= 360_000, `${refused.retryAfter} ms`);
      const told = await socket.seen.until("limit:exceeded");
      assert.deepEqual([told.limit, told.rate], ["userMessages", "10/1h"]);
    }
    const bob = await connect(server, { token: tenant.token("bob") });
    for (let n = 0; n < 10; n += 1) await bob.must("leave", "item:none");
    const eve = await connect(server, { token: tenant.token("eve") });
    for (let n = 0; n < 5; n += 1) await eve.must("leave", "item:none");
    assert.equal((await eve.refused("leave", "item:none")).code, "limit.tenant_messages");
    const visitor = await connect(server, { auth: { orgId: tenant.name } });
    assert.equal((await visitor.refused("leave", "item:none")).code, "limit.tenant_messages");
    const mallory = await connect(server, { token: other.token("ann") });
    await mallory.must("leave", "item:none");
    // Coming back does not begin anew.
    ann[0].close();
    const again = await connect(server, { token: tenant.token("ann") });
    assert.equal((await again.refused("leave", "item:none")).code, "limit.user_messages");
    const metrics = await Metrics.of(server);
    assert.equal(metrics.get("tidewire_socket_messages_refused_total", { code: "limit.user_messages" }), 3);
    assert.equal(metrics.get("tidewire_socket_messages_refused_total", { code: "limit.tenant_messages" }), 2);
    assert.equal(metrics.get("tidewire_tenant_messages_limited_total", { tenant: tenant.name }), 5);
    assert.equal(metrics.get("tidewire_tenant_messages_limited_total", { tenant: other.name }), 0);
  });
});

test("connections over the most of the process are answered 503 with a code", async () => {
  const server = await start({ app: shop(), config: "[realtime]\nmaxConnections = 2\n" });
  const tenant = server.newTenant();
  const sockets = [await connect(server, { token: tenant.token("ann") }), await connect(server, { token: tenant.token("bob") })];
  const refused = await server.api("/socket.io/?EIO=4&transport=polling");
  assert.equal(expectStatus(refused, 503).code, "limit.process");
  assert.equal(refused.headers.get("retry-after"), "1");
  assert.equal((await Metrics.of(server)).get("tidewire_socket_transports_refused_total", { reason: "full" }), 1);
  sockets[0].close();
  await eventually("a place to be free", async () => (await server.api("/socket.io/?EIO=4&transport=polling")).status === 200);
  await server.stop();
});

test("a tenant that floods is refused, and another tenant's sockets get their events and answers", async () => {
  const server = await start({ app: shop({ rate: "50/s" }) });
  const [loud, quiet] = [server.newTenant(), server.newTenant()];
  const clients = [];
  for (const user of ["ann", "bob", "eve"]) clients.push(await connect(server, { token: quiet.token(user) }));
  const round = async (amount) => {
    const begun = performance.now();
    await quiet.publish("item:added", { itemId: "quiet", amount });
    await Promise.all(clients.map((client) => client.seen.until("item:added", (data) => data.amount === amount)));
    const seen = performance.now() - begun;
    await clients[amount % 3].must("join", `item:${amount}`);
    return seen;
  };
  for (let n = 0; n < 5; n += 1) await round(n);

  const tokens = Array.from({ length: 10 }, (_, n) => loud.token(`flood-${n}`));
  const worker = new Worker(new URL("flooder.mjs", import.meta.url), { workerData: { url: server.url, tokens, key: loud.key } });
  const told = once(worker, "message");
  await eventually("the flood to be felt", async () => {
    const metrics = await Metrics.of(server);
    return metrics.get("tidewire_socket_closed_total", { reason: "flooding" }) >= 10;
  });
  const times = [];
  for (let n = 5; n < 45; n += 1) times.push(await round(n));
  worker.postMessage("stop");
  const [{ sent, closed, published }] = await within(15_000, "the flood to end", told);

  const metrics = await Metrics.of(server);
  assert.ok(sent > 5_000 && closed >= 10 && published > 500, JSON.stringify({ sent, closed, published }));
  assert.ok(metrics.get("tidewire_socket_messages_refused_total", { code: "limit.messages" }) > 5_000);
  assert.equal(metrics.get("tidewire_tenant_messages_limited_total", { tenant: quiet.name }), 0);
  assert.ok(metrics.get("tidewire_tenant_messages_limited_total", { tenant: loud.name }) > 5_000);
  for (const client of clients) {
    assert.equal(client.seen.of("item:added").length, 45, "each event once");
    assert.ok(client.socket.connected && client.seen.of("connected").length === 1, "nobody was put out");
  }
  // A bound that a busy machine and a debug build keep; the figures are measured in bench/.
  assert.ok(quantile(times, 0.5) < 1_000, `in the middle ${quantile(times, 0.5)} ms`);
  await server.stop();
});

test("clients that stop reading are parked, then closed, and catch up; the others get everything", async () => {
  const BACKLOG = 200_000;
  const config = `[realtime]\nmaxBacklogBytes = ${BACKLOG}\nmaxStall = "5s"\n`;
  const server = await start({ app: shop(), config });
  const tenant = server.newTenant();
  const readers = [];
  for (let n = 0; n < 97; n += 1) {
    const raw = new Raw(server);
    await raw.session({ token: tenant.token(`reader-${n}`) });
    raw.got = 0;
    raw.ws.on("message", (data) => (raw.got += data.includes(`["item:moved"`) ? 1 : 0));
    // Their copies are counted and not kept.
    raw.received.push = () => 0;
    readers.push(raw);
  }
  const stopped = [];
  for (let n = 0; n < 3; n += 1) stopped.push(await connect(server, { token: tenant.token(`stopped-${n}`), reconnection: true }));
  const before = await Metrics.of(server);
  for (const { socket } of stopped) socket.io.engine.transport.ws._socket.pause();

  const padding = "x".repeat(50_000);
  let published = 0;
  const publish = () => tenant.publish("item:moved", { itemId: `${published++}`, from: padding, to: "b" });
  const now = async (name, labels) => (await Metrics.of(server)).get(name, labels);
  // Until the system's own buffers are full, and then ten times what may wait.
  let waiting = 0;
  const look = async () => (waiting = Math.max(waiting, await now("tidewire_socket_queued_bytes_max")));
  // On a busy machine a reader may be behind for a moment, too.
  const areParked = async () => {
    await look();
    const behind = (await tenant.list("/v1/realtime/connections")).filter((socket) => socket.behind);
    return behind.filter(({ userId }) => userId.startsWith("stopped")).length === 3;
  };
  while (!(await areParked())) await publish();
  assert.ok((await now("tidewire_socket_parked_total")) >= 3);
  await tenant.publish("user:typing", { text: "what may be lost" });
  await eventually("the copies to be dropped", async () => (await now("tidewire_socket_dropped_total", { reason: "behind" })) >= 3);
  for (let n = 0; n < 40; n += 1) await publish().then(look);
  assert.ok(waiting > BACKLOG / 2 && waiting <= BACKLOG, `at most ${waiting} bytes waited for one`);
  await eventually("the readers to have everything", () => readers.every(({ got }) => got === published));
  const grown = (await now("process_resident_memory_bytes")) - before.get("process_resident_memory_bytes");
  assert.ok(grown < 64e6, `the process grew by ${grown} bytes`);

  await eventually("the stopped ones to be closed", async () => (await now("tidewire_socket_closed_total", { reason: "too_slow" })) === 3, 30_000);
  await eventually("nobody to be behind", async () => (await now("tidewire_socket_behind")) === 0);
  assert.ok((await now("tidewire_socket_queued_bytes")) <= 3 * BACKLOG);
  await publish();
  for (const { socket } of stopped) socket.io.engine.transport.ws._socket.resume();
  for (const { seen, socket } of stopped) {
    await seen.until("item:moved", ({ itemId }) => itemId === `${published - 1}`, 30_000);
    assert.deepEqual(seen.of("item:moved").map(({ itemId }) => Number(itemId)), Array.from({ length: published }, (_, n) => n));
    assert.equal(socket.recovered, true);
  }
  assert.equal(await now("tidewire_socket_recoveries_total", { outcome: "recovered" }), 3);
  assert.ok(readers.every(({ ws, got }) => ws.readyState === 1 && got === published), "the others never noticed");
  await server.stop();
});
