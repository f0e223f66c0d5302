// Users of several tenants: a socket moves from one to another, and recovery follows it.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect, connectError } from "./clients.mjs";
import { expectProblem, expectStatus, start } from "./harness.mjs";

let server;
before(async () => {
  server = await start({ app: shop() });
});

const amounts = ({ seen }) => seen.of("item:added").map(({ amount }) => amount);
const add = (tenant, amount) => tenant.publish("item:added", { itemId: "a", amount });

describe("a user of two tenants", () => {
  test("switches: leaves the rooms of one, joins those of the other, and is told", async () => {
    const [home, away] = [server.newTenant(), server.newTenant()];
    const tenants = { [away.name]: ["agent"] };
    const ann = await connect(server, { token: home.token("ann", { roles: ["admin"], tenants }) });
    assert.deepEqual([ann.hello.tenant, ann.hello.tenants], [home.name, [home.name, away.name]]);
    await add(away, 0);
    const before = ann.socket.id;
    const ack = await ann.must("switch", { tenant: away.name });
    const rooms = [`org:${away.name}`, "user:ann"];
    assert.deepEqual([ack.tenant, ack.rooms, ack.roles, ack.position], [away.name, rooms, ["agent"], 1]);
    const told = await ann.seen.until("tenant:switched");
    assert.deepEqual([told.tenant, told.rooms, told.roles, told.position], [away.name, rooms, ["agent"], 1]);
    assert.equal(ann.socket.id, told.socketId);
    assert.notEqual(ann.socket.id, before, "it is a new session");
    await add(home, 100);
    await add(away, 1);
    await ann.seen.until("item:added", ({ amount }) => amount === 1);
    await ann.must("switch", home.name);
    await add(away, 2);
    await add(home, 101);
    await ann.seen.until("item:added", ({ amount }) => amount === 101);
    assert.deepEqual(amounts(ann), [1, 101], "never an event of the tenant that it is not in");
    assert.deepEqual((await ann.must("subscribe", { eventTypes: ["*"] })).rooms, [`org:${home.name}`, "user:ann"]);
  });

  for (const restart of [false, true]) {
    test(`recovers in the tenant that it switched to${restart ? ", also after kill -9" : ""}`, async () => {
      const own = restart ? await start({ app: shop() }) : server;
      const [home, away] = [own.newTenant(), own.newTenant()];
      // The log of the home is far longer, so that a position of one is never one of the other by chance.
      for (let n = 0; n < 20; n += 1) await add(home, 1000 + n);
      const ann = await connect(own, { token: home.token("ann", { tenants: [away.name] }) });
      await ann.must("switch", away.name);
      const id = ann.socket.id;
      await add(away, 0);
      await ann.seen.until("item:added");
      await ann.drop("cut");
      await add(away, 1);
      await add(home, 2000);
      if (restart) {
        await own.kill();
        await own.restart();
      }
      const hello = await ann.comeBack();
      assert.deepEqual([ann.socket.recovered, ann.socket.id, hello.tenant], [true, id, away.name]);
      await add(away, 2);
      await ann.seen.until("item:added", ({ amount }) => amount === 2);
      assert.deepEqual(amounts(ann), [0, 1, 2]);
      if (restart) await own.stop();
    });
  }

  test("cannot go back to the session from before the switch with what it learned after it", async () => {
    const [home, away] = [server.newTenant(), server.newTenant()];
    await add(home, 1);
    const ann = await connect(server, { token: home.token("ann", { tenants: [away.name] }) });
    const old = ann.socket._pid;
    await ann.must("switch", away.name);
    await ann.drop();
    ann.socket._pid = old;
    const hello = await ann.comeBack();
    assert.deepEqual([ann.socket.recovered, hello.tenant], [false, home.name]);
    await ann.seen.until("continuity:lost");
  });

  test("chooses a tenant when it connects", async () => {
    const [home, away] = [server.newTenant(), server.newTenant()];
    const token = home.token("ann", { tenants: [away.name] });
    assert.equal((await connect(server, { token, auth: { orgId: away.name } })).hello.tenant, away.name);
    assert.equal((await connect(server, { token, auth: { orgId: "another" } })).hello.tenant, home.name);
  });

  test("gets into no other tenant, and renews its token where it is", async () => {
    const [home, away, other] = [server.newTenant(), server.newTenant(), server.newTenant()];
    const ann = await connect(server, { token: home.token("ann", { tenants: [away.name] }) });
    assert.equal((await ann.refused("switch", other.name)).code, "switch.forbidden");
    assert.equal((await ann.refused("switch", "no such tenant")).code, "switch.forbidden");
    assert.equal((await ann.refused("switch", {})).code, "message.invalid_data");
    const single = await connect(server, { token: home.token("bob") });
    assert.equal((await single.refused("switch", away.name)).code, "switch.forbidden");
    await ann.must("switch", away.name);
    assert.equal((await ann.must("auth", { token: home.token("ann", { tenants: [away.name] }) })).rooms[0], `org:${away.name}`);
    assert.equal((await ann.refused("auth", { token: home.token("ann") })).code, "auth.other_user", "no longer allowed here");
  });

  test("who was revoked in one of them gets in there no more, by whatever way, and elsewhere still does", async () => {
    const [home, away] = [server.newTenant(), server.newTenant()];
    const token = home.token("ann", { tenants: [away.name], iat: Math.floor(Date.now() / 1000) - 60 });
    const ann = await connect(server, { token });
    await ann.must("switch", away.name);
    await add(away, 0);
    await ann.seen.until("item:added");
    const { _pid: pid, _lastOffset: offset } = ann.socket;
    expectStatus(await server.api("/v1/realtime/revoke", { body: { tenant: away.name, userId: "ann" } }), 200);
    await ann.seen.until("auth:revoked");
    await add(away, 1);
    for (const auth of [{ orgId: away.name }, { pid, offset }]) {
      assert.equal((await connectError(server, { token, auth })).message, "Invalid token", JSON.stringify(Object.keys(auth)));
    }
    const headers = { accept: "text/event-stream" };
    expectProblem(await server.api(`/v1/events?orgId=${away.name}`, { key: token, headers }), 401, "auth.invalid");
    assert.deepEqual(amounts(ann), [0], "nothing that came after it was revoked");
    assert.equal((await connect(server, { token })).hello.tenant, home.name);
  });
});
