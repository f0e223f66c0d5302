// What operators can do to sockets: list them, disconnect them, revoke credentials.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect, connectError } from "./clients.mjs";
import { ADMIN_KEY, eventually, expectProblem, expectStatus, mint, start, within } from "./harness.mjs";

let server;
before(async () => {
  server = await start({ app: shop() });
});

const gone = (client) => new Promise((done) => client.socket.once("disconnect", done));

describe("lists", () => {
  test("of connections say who, where and what waits, page by page, and filter", async () => {
    const tenant = server.newTenant();
    for (const [user, roles] of [["ann", ["admin"]], ["bob", []], ["ann", ["admin"]]]) {
      const client = await connect(server, { token: tenant.token(user, { roles }) });
      if (user === "bob") await client.must("join", "item:7");
    }
    const all = await tenant.list("/v1/realtime/connections");
    assert.deepEqual(all.map(({ userId }) => userId), ["ann", "bob", "ann"], "in the order of joining");
    const { socketId, connectedAt, ...ann } = all[0];
    assert.deepEqual(ann, {
      tenant: tenant.name, userId: "ann", roles: ["admin"], namespace: "/", transport: "websocket", address: "127.0.0.1",
      rooms: [`org:${tenant.name}`, "user:ann"], bytesQueued: 0, behind: false,
    });
    assert.ok(socketId && Date.parse(connectedAt));
    const first = expectStatus(await tenant.api("/v1/realtime/connections?limit=2"), 200);
    assert.equal(first.items.length, 2);
    const second = expectStatus(await tenant.api(`/v1/realtime/connections?limit=2&cursor=${first.nextCursor}`), 200);
    assert.deepEqual([second.items.length, second.nextCursor], [1, null]);
    assert.equal((await tenant.list("/v1/realtime/connections?user=ann")).length, 2);
    assert.deepEqual((await tenant.list("/v1/realtime/connections?room=item:7")).map(({ userId }) => userId), ["bob"]);
    expectProblem(await tenant.api("/v1/realtime/connections?cursor=x"), 400, "cursor.invalid");
  });

  test("of rooms are sorted, and a tenant's key sees no other tenant", async () => {
    const [one, other] = [server.newTenant(), server.newTenant()];
    await connect(server, { token: one.token("ann") });
    await connect(server, { token: other.token("ann") });
    const rooms = await one.list("/v1/realtime/rooms");
    const mine = (room) => ({ tenant: one.name, room, members: 1 });
    assert.deepEqual(rooms, [mine(`org:${one.name}`), mine("user:ann")]);
    const page = expectStatus(await one.api("/v1/realtime/rooms?limit=1"), 200);
    const next = await one.api(`/v1/realtime/rooms?limit=1&cursor=${encodeURIComponent(page.nextCursor)}`);
    assert.deepEqual(expectStatus(next, 200).items, [mine("user:ann")]);
    expectProblem(await one.api(`/v1/realtime/rooms?tenant=${other.name}`), 404, "tenant.unknown");
    expectProblem(await one.api(`/v1/realtime/connections?tenant=${other.name}`), 404, "tenant.unknown");
  });
});

describe("disconnecting", () => {
  test("closes the transport of whom it names, and the client comes back whole", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const ann = await connect(server, { token: tenant.token("ann"), reconnection: true });
    const bob = await connect(server, { token: tenant.token("bob") });
    const namesake = await connect(server, { token: other.token("ann") });
    await tenant.publish("item:added", { itemId: "a", amount: 0 });
    await ann.seen.until("item:added");
    const left = gone(ann);
    const answer = await tenant.api("/v1/realtime/disconnect", { body: { userId: "ann" } });
    assert.deepEqual(expectStatus(answer, 200), { disconnected: 1 });
    assert.equal(await within(5_000, "disconnect", left), "transport close");
    await ann.connected();
    assert.equal(ann.socket.recovered, true);
    assert.ok(bob.socket.connected && namesake.socket.connected);
    const elsewhere = await tenant.api("/v1/realtime/disconnect", { body: { socketId: namesake.socket.id } });
    assert.deepEqual(expectStatus(elsewhere, 200), { disconnected: 0 }, "a key reaches its own tenant only");
    const everywhere = { tenant: other.name, room: `org:${other.name}` };
    const byAdmin = await server.api("/v1/realtime/disconnect", { key: ADMIN_KEY, body: everywhere });
    assert.deepEqual(expectStatus(byAdmin, 200), { disconnected: 1 });
    expectProblem(await tenant.api("/v1/realtime/disconnect", { body: {} }), 400, "request.invalid");
  });
});

describe("revoking", () => {
  test("a user puts live sockets out within a second, refuses older tokens, and takes newer ones", async () => {
    const tenant = server.newTenant();
    const issued = (user) => mint({ sub: user, orgId: tenant.name, iat: Math.floor(Date.now() / 1000) - 60 });
    const ann = await connect(server, { token: issued("ann") });
    const bob = await connect(server, { token: issued("bob") });
    const left = gone(ann);
    const began = Date.now();
    const answer = await tenant.api("/v1/realtime/revoke", { body: { userId: "ann" } });
    assert.equal(expectStatus(answer, 200).disconnected, 1);
    assert.equal((await ann.seen.until("auth:revoked")).code, "auth.revoked");
    await within(1_000, "disconnect", left);
    assert.ok(Date.now() - began < 1_000, `it took ${Date.now() - began} ms`);
    const refused = await connectError(server, { token: issued("ann") });
    assert.equal(refused.message, "Invalid token");
    assert.equal(refused.data.code, "auth.invalid");
    const undated = mint({ sub: "ann", orgId: tenant.name, iat: undefined });
    assert.equal((await connectError(server, { token: undated })).message, "Invalid token", "without iat it counts as older");
    const minted = await tenant.api("/v1/tokens", { body: { user: "ann" } });
    await connect(server, { token: expectStatus(minted, 201).token });
    assert.ok(bob.socket.connected);
    const renewed = await bob.refused("auth", { token: issued("ann") });
    assert.equal(renewed.code, "auth.invalid");
  });

  test("a session or a token hits only that, and a restart forgets nothing", async () => {
    const own = await start({ app: shop() });
    const tenant = own.newTenant();
    const token = (claims) => tenant.token("ann", claims);
    const [one, two, three] = [token({ sid: "s1" }), token({ sid: "s2" }), token({ sid: "s2", jti: "t3" })];
    for (const body of [{ sessionId: "s1" }, { tokenId: "t3" }]) {
      const before = new Date(Date.now() + 60_000).toISOString();
      expectStatus(await tenant.api("/v1/realtime/revoke", { body: { ...body, before } }), 200);
    }
    const check = async () => {
      assert.equal((await connectError(own, { token: one })).message, "Invalid token");
      assert.equal((await connectError(own, { token: three })).message, "Invalid token");
      (await connect(own, { token: two })).close();
    };
    await check();
    await own.kill();
    await own.restart();
    await check();
    await own.stop();
  });

  test("a tenant as a whole, by its own key, and no other's", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const ann = await connect(server, { token: tenant.token("ann") });
    const eve = await connect(server, { token: other.token("eve") });
    const left = gone(ann);
    const before = new Date(Date.now() + 60_000).toISOString();
    expectStatus(await tenant.api("/v1/realtime/revoke", { body: { tenant: tenant.name, before } }), 200);
    await within(5_000, "disconnect", left);
    assert.equal((await connectError(server, { token: tenant.token("bob") })).message, "Invalid token");
    assert.ok(eve.socket.connected);
    const foreign = await tenant.api("/v1/realtime/revoke", { body: { tenant: other.name } });
    expectProblem(foreign, 404, "tenant.unknown");
    for (const body of [{}, { userId: "a", tokenId: "b" }, { userId: "a", before: "2999-01-01T00:00:00Z" }, { userId: "" }]) {
      expectProblem(await tenant.api("/v1/realtime/revoke", { body }), 400, "request.invalid");
    }
  });

  test("needs the scope admin, lists need read", async () => {
    const key = "a-key-that-only-reads-sockets";
    const own = await start({ app: shop(), config: `[[keys]]\nkey = "${key}"\ntenant = "r"\nscopes = ["read"]\n` });
    expectStatus(await own.api("/v1/realtime/connections", { key }), 200);
    expectProblem(await own.api("/v1/realtime/disconnect", { key, body: { userId: "a" } }), 403, "auth.forbidden");
    expectProblem(await own.api("/v1/realtime/revoke", { key, body: { userId: "a" } }), 403, "auth.forbidden");
    await own.stop();
  });
});

describe("a session that the app changes", () => {
  let app, asking, answer;
  before(async () => {
    app = createServer((request, response) => {
      const token = request.headers.authorization?.split(" ")[1];
      response.setHeader("content-type", "application/json");
      response.end(JSON.stringify(answer(token)));
    });
    await new Promise((done) => app.listen(0, "127.0.0.1", done));
    const introspect = `http://127.0.0.1:${app.address().port}/session`;
    const more = `[rooms."staff:{orgId}"]\njoin = "auto"\nwhen = "'admin' in user.roles"\n`;
    asking = await start({ app: shop({ auth: `[auth.session]\nintrospect = "${introspect}"\nrecheck = "1s"`, more }) });
  });
  after(() => app.close());

  test("changes the rooms of the live socket, and its end puts the socket out", async () => {
    const tenant = asking.newTenant();
    let roles = ["admin"];
    answer = () => ({ user: { id: "ann", roles }, session: { id: "s9", orgId: tenant.name, createdAt: new Date().toISOString() } });
    const ann = await connect(asking, { token: "opaque" });
    const own = [`org:${tenant.name}`, "user:ann"];
    assert.deepEqual(ann.hello.rooms.toSorted(), [own[0], `staff:${tenant.name}`, own[1]]);
    roles = ["agent"];
    assert.deepEqual(await ann.seen.until("roles:changed"), { roles: ["agent"], rooms: own });
    roles = ["agent", "admin"];
    const back = await ann.seen.until("roles:changed", (data) => data.roles.length === 2);
    assert.deepEqual(back.rooms, [own[0], `staff:${tenant.name}`, own[1]]);
    const left = gone(ann);
    answer = () => null;
    await ann.seen.until("auth:revoked");
    await within(5_000, "disconnect", left);
  });

  test("that each check extends a little is announced once as about to end", async () => {
    const tenant = asking.newTenant();
    let checks = 0;
    answer = () => {
      checks += 1;
      const session = { id: "s8", orgId: tenant.name, createdAt: new Date().toISOString() };
      return { user: { id: "ann", roles: [] }, session: { ...session, expiresAt: new Date(Date.now() + 30_000).toISOString() } };
    };
    const ann = await connect(asking, { token: "sliding" });
    await ann.seen.until("auth:expiring");
    const before = checks;
    await eventually("three more checks", () => checks >= before + 3);
    await tenant.publish("item:sold", { itemId: "a" });
    await ann.seen.until("item:sold");
    assert.equal(ann.seen.of("auth:expiring").length, 1);
  });

  test("is revoked by its id at once", async () => {
    const tenant = asking.newTenant();
    answer = (token) => ({ user: { id: token, roles: [] }, session: { id: `s-${token}`, orgId: tenant.name, createdAt: 1_700_000_000 } });
    const [ann, bob] = [await connect(asking, { token: "ann" }), await connect(asking, { token: "bob" })];
    const left = gone(ann);
    expectStatus(await tenant.api("/v1/realtime/revoke", { body: { sessionId: "s-ann" } }), 200);
    await within(1_000, "disconnect", left);
    assert.equal((await connectError(asking, { token: "ann" })).message, "Invalid token");
    assert.ok(bob.socket.connected);
  });
});
