// What users tell of themselves in the rooms they are in.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect } from "./clients.mjs";
import { expectStatus, start } from "./harness.mjs";
import { follow } from "./streams.mjs";

const MORE = `
[rooms."studio:{studioId}"]
join = "request"
presence = { data = { name = "string", typing = "boolean?" } }

[rooms."lobby:{orgId}"]
join = "auto"
presence = { data = { mood = "string" } }

[rooms."desk:{deskId}"]
join = "request"
presence = true
`;

let server;
before(async () => {
  server = await start({ app: shop({ more: MORE }) });
});

const room = "studio:1";
const told = async (client, where = room) => (await client.must("presence", where)).members.map(({ userId, data }) => [userId, data]);
const of = (client, type, where = room) => client.seen.of(type).filter((event) => event.room === where);

async function enter(tenant, user, data, of = server) {
  const client = await connect(of, { token: tenant.token(user) });
  await client.must("join", data ? { room, data } : room);
  return client;
}

describe("a member", () => {
  test("is shown with what it told when it joined", async () => {
    const tenant = server.newTenant();
    const ann = await enter(tenant, "ann");
    const bob = await enter(tenant, "bob", { name: "Bob" });
    const joined = await ann.seen.until("presence:join", (event) => event.room === room && event.userId === "bob");
    assert.deepEqual(joined, { room, userId: "bob", data: { name: "Bob" } });
    assert.deepEqual(await told(ann), [["ann", undefined], ["bob", { name: "Bob" }]]);
    const { items } = expectStatus(await tenant.api(`/v1/realtime/presence?room=${room}`), 200);
    assert.deepEqual(items[1].data, { name: "Bob" });
    await bob.must("leave", room);
    await ann.seen.until("presence:leave", (event) => event.room === room);
    await bob.must("join", room);
    assert.deepEqual(await told(ann), [["ann", undefined], ["bob", undefined]], "it had left");
  });

  test("tells something else by joining again, and the rooms hear of it once", async () => {
    const tenant = server.newTenant();
    const [ann, bob] = [await enter(tenant, "ann"), await enter(tenant, "bob", { name: "Bob" })];
    const tab = await enter(tenant, "bob", { name: "Bob" });
    await bob.must("join", { room, data: { name: "Bob", typing: true } });
    await bob.must("join", { room, data: { name: "Bob", typing: true } });
    await bob.must("join", room);
    await tab.must("join", { room, data: { name: "Robert" } });
    await ann.seen.until("presence:update", ({ data }) => data.name === "Robert");
    assert.deepEqual(of(ann, "presence:update"), [
      { room, userId: "bob", data: { name: "Bob", typing: true } },
      { room, userId: "bob", data: { name: "Robert" } },
    ]);
    assert.equal(of(ann, "presence:join").filter(({ userId }) => userId === "bob").length, 1);
    tab.close();
    assert.deepEqual(await told(ann), [["ann", undefined], ["bob", { name: "Robert" }]], "the last word of its user");
  });

  test("of a room that it is in by itself tells by joining, too", async () => {
    const tenant = server.newTenant();
    const lobby = `lobby:${tenant.name}`;
    const [ann, bob] = [await connect(server, { token: tenant.token("ann") }), await connect(server, { token: tenant.token("bob") })];
    await bob.must("join", { room: lobby, data: { mood: "fine" } });
    assert.deepEqual((await ann.seen.until("presence:update")), { room: lobby, userId: "bob", data: { mood: "fine" } });
    const stream = await follow(server, { token: tenant.token("cy") });
    await bob.must("join", { room: lobby, data: { mood: "bored" } });
    assert.deepEqual((await stream.until("presence:update")).data.data, { mood: "bored" });
    assert.deepEqual(await told(ann, lobby), [["ann", undefined], ["bob", { mood: "bored" }], ["cy", undefined]]);
  });

  test("is known by the last word of its tabs, whichever of them comes back last", async () => {
    const own = await start({ app: shop({ more: MORE }) });
    const tenant = own.newTenant();
    const ann = await enter(tenant, "ann", undefined, own);
    const first = await enter(tenant, "bob", { name: "Old" }, own);
    const second = await enter(tenant, "bob", { name: "New" }, own);
    await ann.seen.until("presence:update", ({ data }) => data.name === "New");
    await first.drop();
    await first.comeBack();
    assert.deepEqual(await told(ann), [["ann", undefined], ["bob", { name: "New" }]]);
    for (const client of [ann, first, second]) await client.drop();
    await own.kill();
    await own.restart();
    for (const client of [ann, second, first]) await client.comeBack();
    assert.deepEqual(await told(ann), [["ann", undefined], ["bob", { name: "New" }]]);
    assert.equal(of(ann, "presence:update").length, 1, "and nobody is told of the old one");
  });

  test("is known by it after its connection broke, and after the server was killed", async () => {
    const own = await start({ app: shop({ more: MORE }) });
    const tenant = own.newTenant();
    const lobby = `lobby:${tenant.name}`;
    const [ann, bob] = [await enter(tenant, "ann", { name: "Ann" }, own), await enter(tenant, "bob", { name: "Bob" }, own)];
    await bob.must("join", { room: lobby, data: { mood: "fine" } });
    await bob.drop("cut");
    assert.deepEqual(await told(ann), [["ann", { name: "Ann" }], ["bob", { name: "Bob" }]]);
    await bob.comeBack();
    // A write behind it, so that what is kept of the sessions is durable.
    await tenant.publish("item:sold", { itemId: "a" });
    for (const client of [ann, bob]) await client.seen.until("item:sold");
    await own.kill();
    await own.restart();
    for (const client of [ann, bob]) await client.comeBack();
    assert.equal(bob.socket.recovered, true);
    assert.deepEqual(await told(ann), [["ann", { name: "Ann" }], ["bob", { name: "Bob" }]]);
    assert.deepEqual((await told(ann, lobby)).at(-1), ["bob", { mood: "fine" }]);
    await own.kill();
  });

  test("can tell only what the catalog takes", async () => {
    const tenant = server.newTenant();
    const ann = await enter(tenant, "ann", { name: "Ann" });
    for (const [where, data, code] of [
      [room, { name: 7 }, "message.invalid_data"],
      [room, { typing: true }, "message.invalid_data"],
      [room, "Ann", "message.invalid_data"],
      ["desk:1", { name: "Ann" }, "message.invalid_data"],
      ["item:1", { name: "Ann" }, "message.invalid_data"],
      [room, { name: "x".repeat(1_024) }, "data.too_large"],
      ["item:sealed", { name: "Ann" }, "room.forbidden"],
    ]) {
      assert.equal((await ann.refused("join", { room: where, data })).code, code, JSON.stringify(data));
    }
    assert.equal((await ann.refused("presence", "desk:1")).code, "room.forbidden", "it is not in there");
    assert.deepEqual(await told(ann), [["ann", { name: "Ann" }]]);
    const name = "x".repeat(1_000);
    for (let n = 2; n < 34; n += 1) await ann.must("join", { room: `studio:${n}`, data: { name } });
    assert.equal((await ann.refused("join", { room: "studio:34", data: { name } })).code, "data.too_large");
    await ann.must("join", { room: "studio:34" });
    await ann.must("leave", "studio:2");
    await ann.must("join", { room: "studio:34", data: { name } });
  });
});
