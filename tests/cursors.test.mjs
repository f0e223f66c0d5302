// Cursors of users: what was dealt with is known over sessions, devices and crashes, and how much was not.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect, connectError } from "./clients.mjs";
import { expectStatus, start } from "./harness.mjs";

let server;
before(async () => {
  server = await start({ app: shop(), config: "[realtime]\nmaxPerUser = 4\n" });
});

async function publish(tenant, from, count) {
  const events = Array.from({ length: count }, (_, n) => ({ type: "item:added", data: { itemId: "a", amount: from + n } }));
  for (let at = 0; at < count; at += 1000) {
    expectStatus(await tenant.api("/v1/events", { body: events.slice(at, at + 1000) }), 201);
  }
}

const amounts = ({ seen }) => seen.of("item:added").map(({ amount }) => amount);
const range = (from, to) => Array.from({ length: to - from }, (_, n) => from + n);

/** A new session of a user, as another device would open it. */
const session = (tenant, user = "ann", after = "acked", of = server) => connect(of, { token: tenant.token(user), auth: { after } });

/** Everything that came up to an event that is published now. */
async function upToNow(tenant, client) {
  const itemId = `end-${Math.random()}`;
  await tenant.publish("item:sold", { itemId });
  await client.seen.until("item:sold", (data) => data.itemId === itemId);
  return amounts(client);
}

describe("a cursor", () => {
  test("is where the next session begins, over kill -9, and never goes back", async () => {
    const own = await start({ app: shop() });
    const tenant = own.newTenant();
    const [ann, tab] = [await session(tenant, "ann", "acked", own), await session(tenant, "ann", "acked", own)];
    assert.deepEqual([ann.hello.acked, ann.hello.recovered], [0, false]);
    await publish(tenant, 0, 10);
    for (const client of [ann, tab]) assert.deepEqual(await upToNow(tenant, client), range(0, 10));
    assert.deepEqual(await ann.must("ack", { position: 6, cursor: "acked" }), { ok: true, cursor: "acked", position: 6 });
    assert.equal((await tab.must("ack", { position: 4, cursor: "acked" })).position, 6, "the later one counts");
    await own.kill();
    await own.restart();
    const again = await session(tenant, "ann", "acked", own);
    assert.deepEqual([again.hello.acked, again.hello.recovered, again.socket.recovered], [6, false, false]);
    await publish(tenant, 10, 2);
    assert.deepEqual(await upToNow(tenant, again), [...range(6, 10), 10, 11]);
    assert.equal(again.seen.all[0].type, "connected", "what it is told first");
    assert.deepEqual(again.seen.of("continuity:lost"), []);
    // From here on it is a session like any other: it recovers by itself, and nothing comes twice.
    await again.drop("cut");
    await publish(tenant, 12, 3);
    await again.comeBack();
    assert.equal(again.socket.recovered, true);
    assert.deepEqual(await upToNow(tenant, again), range(6, 15));
    await own.kill();
  });

  test("begins with the first session that asks for it, so that nothing before its first ack is lost", async () => {
    const tenant = server.newTenant();
    await publish(tenant, 0, 3);
    const first = await session(tenant);
    assert.equal(first.hello.acked, 3);
    await publish(tenant, 3, 2);
    assert.deepEqual(await upToNow(tenant, first), [3, 4]);
    first.close();
    const second = await session(tenant);
    assert.deepEqual(await upToNow(tenant, second), [3, 4]);
  });

  test("that breaks off before anything came is resumed from the cursor", async () => {
    const tenant = server.newTenant();
    await session(tenant);
    await publish(tenant, 0, 300);
    const client = await session(tenant);
    await client.drop("cut");
    await client.comeBack();
    assert.equal(client.socket.recovered, true);
    assert.deepEqual(await upToNow(tenant, client), range(0, 300));
  });

  test("shows only what its user may see by now, in the rooms of the session", async () => {
    const tenant = server.newTenant();
    await session(tenant, "bob");
    await tenant.publish("lead:created", { leadId: "l1", agentId: "ann" });
    await tenant.publish("lead:created", { leadId: "l2", agentId: "bob" });
    await tenant.publish("user:pinged", {}, { params: { userId: "ann" } });
    const bob = await session(tenant, "bob");
    await upToNow(tenant, bob);
    assert.deepEqual(bob.seen.of("lead:created").map(({ leadId }) => leadId), ["l2"]);
    assert.deepEqual(bob.seen.of("user:pinged"), []);
  });

  test("belongs to one user of one tenant, under its name", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    for (const each of [tenant, other]) await publish(each, 0, 5);
    const ann = await connect(server, { token: tenant.token("ann") });
    assert.equal(ann.hello.acked, undefined, "who did not ask is told nothing");
    await ann.must("ack", { position: 2, cursor: "mail" });
    await ann.must("ack", { position: 4, cursor: "sms" });
    assert.deepEqual((await session(tenant, "ann", "mail")).hello.acked, 2);
    assert.deepEqual((await session(tenant, "ann", "sms")).hello.acked, 4);
    assert.deepEqual((await session(tenant, "bob", "mail")).hello.acked, 5);
    assert.deepEqual((await session(other, "ann", "mail")).hello.acked, 5);
  });

  test("cannot be ahead of the log, nor of another one", async () => {
    const tenant = server.newTenant();
    const ann = await connect(server, { token: tenant.token("ann") });
    await publish(tenant, 0, 3);
    await upToNow(tenant, ann);
    assert.equal((await ann.must("ack", { position: 1_000_000, cursor: "acked" })).position, 4);
    assert.equal((await ann.refused("ack", { position: "0other.3", cursor: "acked" })).code, "history.other_epoch");
    for (const cursor of ["", "a b", "x".repeat(65), 7]) {
      assert.equal((await ann.refused("ack", { position: 1, cursor })).code, "message.invalid_data");
    }
    assert.equal((await ann.refused("ack", { cursor: "acked" })).code, "message.invalid_data");
    const error = await connectError(server, { token: tenant.token("ann"), auth: { after: "a b" } });
    assert.deepEqual([error.message, error.data.code], ["Invalid cursor", "message.invalid_data"]);
  });

  test("is one of at most 32 of its user, and can be forgotten", async () => {
    const tenant = server.newTenant();
    const ann = await connect(server, { token: tenant.token("ann") });
    await publish(tenant, 0, 2);
    for (let n = 0; n < 32; n += 1) await ann.must("ack", { position: 1, cursor: `c${n}` });
    assert.equal((await ann.refused("ack", { position: 1, cursor: "one-more" })).code, "limit.cursors");
    // More often than the user may have sockets: a refused one gives its place back.
    for (let n = 0; n < 5; n += 1) {
      const error = await connectError(server, { token: tenant.token("ann"), auth: { after: "one-more" } });
      assert.deepEqual([error.message, error.data.code], ["Too many cursors", "limit.cursors"]);
    }
    await ann.must("ack", { position: 2, cursor: "c7" });
    const forget = { cursor: "c7", forget: true };
    assert.deepEqual(await ann.must("ack", forget), { ok: true, cursor: "c7", forgotten: true });
    assert.equal((await ann.must("ack", forget)).forgotten, false);
    await ann.must("ack", { position: 1, cursor: "one-more" });
  });

  test("does not get ahead of what its session was sent", async () => {
    const tenant = server.newTenant();
    const ann = await session(tenant);
    await ann.must("ack", { position: 0, cursor: "acked" });
    await ann.drop();
    await publish(tenant, 0, 900);
    // Behind for as long as it is being caught up.
    const late = await session(tenant, "ann", "acked");
    const { position } = await late.must("ack", { position: 999_999, cursor: "other" });
    const sent = late.seen.of("item:added").length;
    assert.ok(position <= Math.max(sent, late.seen.of("item:added").length), `${position} of ${sent}`);
    assert.deepEqual(await upToNow(tenant, late), range(0, 900));
  });

  test("beyond the history is told, and not passed over", async () => {
    const own = await start({ app: shop({ history: `{ count = 10, age = "24h" }` }) });
    const tenant = own.newTenant();
    (await session(tenant, "ann", "acked", own)).close();
    await publish(tenant, 0, 11);
    const ann = await session(tenant, "ann", "acked", own);
    assert.equal(ann.hello.acked, 0);
    const lost = await ann.seen.until("continuity:lost");
    assert.deepEqual([lost.position, lost.offset.split(".")[1]], [11, "0"]);
    assert.deepEqual(await upToNow(tenant, ann), []);
    assert.deepEqual(await ann.must("unread"), { ok: true, cursor: "acked", position: 0, unread: 10, more: true });
    await own.kill();
  });
});

describe("unread", () => {
  test("counts what a user may see after the cursor", async () => {
    const tenant = server.newTenant();
    const ann = await connect(server, { token: tenant.token("ann") });
    assert.deepEqual(await ann.must("unread"), { ok: true, cursor: "acked", position: 0, unread: 0, more: false });
    await publish(tenant, 0, 3);
    await tenant.publish("lead:created", { leadId: "l1", agentId: "bob" });
    await tenant.publish("lead:created", { leadId: "l2", agentId: "ann" });
    await tenant.publish("user:pinged", {}, { params: { userId: "bob" } });
    await upToNow(tenant, ann);
    assert.deepEqual(await ann.must("unread", {}), { ok: true, cursor: "acked", position: 0, unread: 5, more: false });
    assert.equal((await ann.must("unread", { types: ["lead:*"] })).unread, 1);
    await ann.must("ack", { position: 2, cursor: "acked" });
    assert.deepEqual(await ann.must("unread"), { ok: true, cursor: "acked", position: 2, unread: 3, more: false });
    await ann.must("ack", { position: 1, cursor: "bell" });
    assert.equal((await ann.must("unread", { cursor: "bell" })).unread, 4);
    await ann.must("ack", { position: 7, cursor: "acked" });
    assert.equal((await ann.must("unread")).unread, 0);
    assert.equal((await ann.refused("unread", { cursor: "a b" })).code, "message.invalid_data");
  });

  test("stops at 1,000 and says that there is more", async () => {
    const tenant = server.newTenant();
    const ann = await connect(server, { token: tenant.token("ann") });
    await publish(tenant, 0, 1000);
    await ann.seen.until("item:added", ({ amount }) => amount === 999);
    assert.deepEqual(await ann.must("unread"), { ok: true, cursor: "acked", position: 0, unread: 1000, more: false });
    await publish(tenant, 1000, 1);
    await ann.seen.until("item:added", ({ amount }) => amount === 1000);
    assert.deepEqual(await ann.must("unread"), { ok: true, cursor: "acked", position: 0, unread: 1000, more: true });
  });
});
