// Who is in a room, and states of which a slow client gets the last value only.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { Raw, connect, connectError } from "./clients.mjs";
import { expectProblem, expectStatus, start } from "./harness.mjs";

const MORE = `
[rooms."desk:{deskId}"]
join = "request"
presence = true

[events."desk:moved"]
rooms = ["desk:{deskId}"]

[events."level:changed"]
rooms = ["org:{orgId}"]
data = { tankId = "string", level = "integer", pad = "string?" }
conflate = "{tankId}"
`;

let server;
before(async () => {
  server = await start({ app: shop({ more: MORE }), config: `[realtime]\npresenceGrace = "500ms"\nmaxPerTenant = 5\n` });
});

const room = "desk:1";
const users = ({ members }) => members.map(({ userId, sockets }) => [userId, sockets]);

async function enter(tenant, user) {
  const client = await connect(server, { token: tenant.token(user) });
  await client.must("join", room);
  return client;
}

describe("presence", () => {
  test("is to be asked for anew by who comes back after the server was killed, as others may not", async () => {
    const own = await start({ app: shop({ more: MORE }) });
    const tenant = own.newTenant();
    const open = async (user) => {
      const client = await connect(own, { token: tenant.token(user) });
      await client.must("join", room);
      return client;
    };
    const [ann, bob] = [await open("ann"), await open("bob")];
    await ann.seen.until("presence:join", ({ userId }) => userId === "bob");
    await ann.drop();
    await ann.comeBack();
    assert.deepEqual(ann.seen.of("presence:reset"), [], "this server knows who has gone");
    // A write behind it, so that what is kept of the sessions is durable.
    await tenant.publish("item:sold", { itemId: "a" });
    for (const client of [ann, bob]) await client.seen.until("item:sold");
    for (const client of [ann, bob]) await client.drop();
    await own.kill();
    await own.restart();
    await ann.comeBack();
    assert.equal(ann.socket.recovered, true);
    assert.deepEqual(await ann.seen.until("presence:reset"), { room });
    assert.deepEqual(users(await ann.must("presence", room)), [["ann", 1]]);
    const late = await connect(own, { token: tenant.token("late") });
    await late.must("join", room);
    await ann.seen.until("presence:join", ({ userId }) => userId === "late");
    assert.deepEqual(late.seen.of("presence:reset"), [], "a new session asks anyway");
  });

  test("tells who comes and who goes, once per user, and lists them", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const ann = await enter(tenant, "ann");
    const [bob, tab] = [await enter(tenant, "bob"), await enter(tenant, "bob")];
    await enter(other, "eve");
    await ann.seen.until("presence:join", ({ userId }) => userId === "bob");
    const list = await ann.must("presence", room);
    assert.deepEqual([users(list), list.total, list.complete], [[["ann", 1], ["bob", 2]], 2, true]);
    assert.ok(Date.parse(list.members[0].since));
    const page = expectStatus(await tenant.api(`/v1/realtime/presence?room=${room}&limit=1`), 200);
    assert.deepEqual([page.items[0].userId, page.total, page.nextCursor], ["ann", 2, "ann"]);
    assert.deepEqual((await tenant.list(`/v1/realtime/presence?room=${room}`)).map(({ userId }) => userId), ["ann", "bob"]);
    await bob.must("leave", room);
    assert.deepEqual(users(await ann.must("presence", { room })), [["ann", 1], ["bob", 1]]);
    await tab.must("leave", room);
    await ann.seen.until("presence:leave");
    assert.deepEqual(ann.seen.of("presence:join").filter(({ userId }) => userId === "bob"), [{ room, userId: "bob" }]);
    assert.deepEqual(ann.seen.of("presence:leave"), [{ room, userId: "bob" }]);
    assert.equal((await bob.refused("presence", room)).code, "room.forbidden", "only who is in it may look");
    assert.equal((await ann.refused("presence", `org:${tenant.name}`)).code, "presence.off");
    expectProblem(await tenant.api(`/v1/realtime/presence?room=org:${tenant.name}`), 400, "presence.off");
  });

  test("makes no noise over a reconnect, and knows the user afterwards", async () => {
    const tenant = server.newTenant();
    const [ann, bob] = [await enter(tenant, "ann"), await enter(tenant, "bob")];
    await ann.seen.until("presence:join", ({ userId }) => userId === "bob");
    await bob.drop("cut");
    await bob.comeBack();
    assert.equal(bob.socket.recovered, true);
    assert.deepEqual(users(await bob.must("presence", room)), [["ann", 1], ["bob", 1]]);
    // A third one goes for good. Its grace began after that of the break, so whatever that had led to is told by then.
    const cy = await enter(tenant, "cy");
    await cy.drop("cut");
    await ann.seen.until("presence:leave", ({ userId }) => userId === "cy");
    assert.deepEqual(ann.seen.of("presence:leave"), [{ room, userId: "cy" }]);
    bob.close();
    await ann.seen.until("presence:leave", ({ userId }) => userId === "bob");
    assert.deepEqual(users(await ann.must("presence", room)), [["ann", 1]]);
  });

  test("is lost with its user's credential", async () => {
    const tenant = server.newTenant();
    const [ann] = [await enter(tenant, "ann"), await enter(tenant, "bob")];
    await ann.seen.until("presence:join", ({ userId }) => userId === "bob");
    expectStatus(await tenant.api("/v1/realtime/revoke", { body: { userId: "bob" } }), 200);
    await ann.seen.until("presence:leave", ({ userId }) => userId === "bob");
  });
});

describe("a tenant", () => {
  test("has no more sockets than it may, and takes none from another", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const clients = [];
    for (let n = 0; n < 5; n += 1) clients.push(await connect(server, { token: tenant.token(`u${n}`) }));
    const error = await connectError(server, { token: tenant.token("one-more") });
    assert.deepEqual([error.message, error.data.code], ["Too many connections", "limit.tenant"]);
    await connect(server, { token: other.token("ann") });
  });
});

describe("a state", () => {
  test("reaches a slow client by its last value, in order, and recovery stays right", async () => {
    const tenant = server.newTenant();
    const slow = new Raw(server);
    await slow.session({ token: tenant.token("slow") });
    await slow.until(/^42\["connected"/);
    const quick = await connect(server, { token: tenant.token("quick") });
    slow.ws.pause();
    const [pad, count] = ["x".repeat(20_000), 1_500];
    for (let from = 0; from < count; from += 50) {
      const events = Array.from({ length: 50 }, (_, n) => ({
        type: "level:changed", data: { tankId: `tank-${n % 2}`, level: from + n, pad },
      }));
      expectStatus(await tenant.api("/v1/events", { body: events }), 201);
    }
    await quick.seen.until("level:changed", ({ level }) => level === count - 1);
    await tenant.publish("item:sold", { itemId: "end" });
    slow.ws.resume();
    await slow.until(/^42\["item:sold"/, 30_000);
    const values = slow.received.filter((text) => text.startsWith('42["level:changed"')).map((text) => JSON.parse(text.slice(2)));
    for (const tank of ["tank-0", "tank-1"]) {
      const levels = values.filter(([, data]) => data.tankId === tank).map(([, { level }]) => level);
      assert.deepEqual(levels, levels.toSorted((a, b) => a - b), "never an older value after a newer one");
      assert.equal(levels.at(-1), tank === "tank-0" ? count - 2 : count - 1);
    }
    assert.ok(values.length < count, `some of the ${count} values were passed over: ${values.length} came`);
    const positions = slow.received.map((text) => text.match(/\.(\d+)"\]$/)?.[1]).filter(Boolean).map(Number);
    assert.deepEqual(positions, positions.toSorted((a, b) => a - b), "offsets never go back");
    const { realtime } = expectStatus(await server.api("/health/ws"), 200);
    assert.ok(realtime.conflated > 0);
    slow.close();
  });
});
