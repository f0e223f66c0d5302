// Two tenants that call everything by the same names never see anything of each other.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect } from "./clients.mjs";
import { eventually, expectProblem, expectStatus, start } from "./harness.mjs";

let server;
let pair;
before(async () => {
  server = await start({ app: shop() });
  pair = [server.newTenant(), server.newTenant()];
});

/** Does the same for both tenants, one after the other, and answers what each got. */
async function both(what) {
  const answers = [];
  for (const tenant of pair) answers.push(await what(tenant));
  return answers;
}

describe("two tenants with equal ids", () => {
  test("have their own events, logs and positions", async () => {
    const appended = await both((tenant) =>
      tenant.publish("item:added", { itemId: "i-1", amount: 1, owner: tenant.name }, { id: "e-1", userId: "u-1" }),
    );
    for (const event of appended) assert.deepEqual([event.id, event.position, event.deduplicated ?? false], ["e-1", 1, false]);
    for (const [n, { data, tenant }] of (await both((tenant) => tenant.api("/v1/events/e-1"))).map(({ body }) => body).entries()) {
      assert.deepEqual([tenant, data.owner], [pair[n].name, pair[n].name]);
    }
    for (const query of ["", "userId=u-1", "type=item:added"]) {
      const logs = await both((tenant) => tenant.log(query));
      assert.deepEqual(logs.map((log) => log.map(({ data }) => data.owner)), pair.map(({ name }) => [name]), query);
    }
    const wide = await both((tenant) => server.api(`/v1/events?tenant=${tenant.name}`));
    assert.deepEqual(wide.map(({ body }) => body.items.map(({ data }) => data.owner)), pair.map(({ name }) => [name]));
  });

  test("have their own streams, idempotency keys and dedup keys", async () => {
    await both(async (tenant) => {
      const event = { type: "ledger:booked", data: { ledgerId: "l-1", amount: 1 }, expectedVersion: 0 };
      const headers = { "idempotency-key": "key-1" };
      const [booked] = expectStatus(await tenant.api("/v1/events", { body: event, headers }), 201).events;
      assert.equal(booked.version, 1);
      const commit = { events: [{ type: "item:added", data: { itemId: "d", amount: 1 } }], dedup: { key: "dedup-1", ttl: "1h" } };
      assert.ok(!expectStatus(await tenant.api("/v1/commit", { body: commit }), 201).deduplicated);
      // The other tenant's key would answer with the other tenant's write, or refuse another body.
      assert.equal((await tenant.log("stream=ledger-l-1")).length, 1);
    });
    const [one, two] = await both((tenant) => tenant.log("type=ledger:booked"));
    assert.notEqual(one[0].id, two[0].id);
  });

  test("have their own jobs, from enqueueing to the dead letters", async () => {
    await both((tenant) => tenant.enqueue("pack", { owner: tenant.name }, { id: "j-1", userId: "u-1" }));
    const leased = await both((tenant) => tenant.lease({ max: 10 }));
    for (const [n, jobs] of leased.entries()) {
      assert.deepEqual(jobs.map(({ id, tenant, data }) => [id, tenant, data.owner]), [["j-1", pair[n].name, pair[n].name]]);
    }
    const [[mine], [theirs]] = leased;
    const [one, two] = pair;
    assert.equal((await one.settle({ id: "j-1", lease: theirs.lease }, "done")).error?.code, "job.lease_lost");
    const renewal = { leases: [{ id: "j-1", lease: theirs.lease }] };
    assert.ok(expectStatus(await one.api("/v1/leases/renew", { body: renewal }), 200).leases[0].error);
    assert.equal((await one.settle(mine, "fail", { error: `of ${one.name}` })).state, "failed");
    assert.equal((await two.job("j-1")).state, "processing");
    assert.deepEqual((await both((tenant) => tenant.list("/v1/dead-letters"))).map(({ length }) => length), [1, 0]);

    // Its own job of this id is no dead letter, which may be an error of its own.
    await two.api("/v1/dead-letters/redrive", { body: { ids: ["j-1"] } });
    expectStatus(await two.api("/v1/dead-letters/redrive", { body: { queue: "work" } }), 200);
    assert.equal((await one.job("j-1")).state, "failed", "another tenant's re-drive does not touch it");
    assert.equal((await two.settle(theirs, "done", { result: two.name })).state, "completed");
    assert.deepEqual((await both((tenant) => tenant.job("j-1"))).map(({ state }) => state), ["failed", "completed"]);
    const lists = await both((tenant) => tenant.list("/v1/jobs"));
    for (const [n, jobs] of lists.entries()) assert.ok(jobs.every(({ tenant }) => tenant === pair[n].name), JSON.stringify(jobs));
    const counts = await both(async (tenant) => {
      const { items } = expectStatus(await tenant.api("/v1/queues"), 200);
      const { counts: states } = items.find(({ name }) => name === "work");
      return [states.failed ?? 0, states.completed ?? 0];
    });
    assert.deepEqual(counts, [[1, 0], [0, 1]]);
  });

  test("hide what only the other one has", async () => {
    const [one, two] = pair;
    const event = await one.publish("item:added", { itemId: "only", amount: 1 });
    const job = await one.enqueue("pack", {}, { delay: "1h" });
    expectProblem(await two.api(`/v1/events/${event.id}`), 404, "event.not_found");
    expectProblem(await two.api(`/v1/jobs/${job.id}`), 404, "job.not_found");
    for (const path of [`/v1/events/${event.id}`, `/v1/jobs/${job.id}`, "/v1/events", "/v1/jobs", "/v1/dead-letters"]) {
      const answer = await two.api(`${path}?tenant=${one.name}`);
      assert.ok([403, 404].includes(answer.status), `${path}: ${answer.status} ${JSON.stringify(answer.body)}`);
    }
    expectProblem(await server.api(`/v1/events/${event.id}?tenant=${two.name}`), 404, "event.not_found");
  });

  test("have their own rooms, users and history", async () => {
    const clients = await both((tenant) => connect(server, { token: tenant.token("u-1", { roles: ["admin"] }) }));
    for (const client of clients) await client.must("join room", "item:i-1");
    await both(async (tenant) => {
      const owner = tenant.name;
      await tenant.publish("item:noted", { itemId: "i-1", note: "n", owner });
      await tenant.publish("item:moved", { itemId: "i-1", from: "x", to: "y", owner });
      await tenant.publish("user:pinged", { owner }, { userId: "u-1" });
      await tenant.publish("user:typing", { text: "t", owner });
      await tenant.publish("item:sold", { itemId: "i-1", owner });
    });
    for (const [n, client] of clients.entries()) {
      await client.seen.until("item:sold");
      await client.seen.until("user:typing");
      const live = client.seen.all.filter(({ data }) => data?.owner);
      assert.deepEqual(live.map(({ data }) => data.owner), Array(5).fill(pair[n].name));
      const { events } = await client.must("history", { after: 0 });
      assert.ok(events.length > 0);
      for (const { data } of events) assert.ok(!data.owner || data.owner === pair[n].name, JSON.stringify(data));
    }
  });

  test("do not meet in a recovered session, nor through what a client claims", async () => {
    const [one, two] = pair;
    const forged = { orgId: two.name, tenant: two.name, tenantId: two.name };
    const liar = await connect(server, { token: one.token("u-1"), auth: forged, query: forged });
    assert.equal(liar.hello.tenant, one.name);
    for (const room of [`org:${two.name}`, `board:${two.name}`]) await liar.refused("join room", room);
    await liar.must("history", { after: 0, tenant: two.name, orgId: two.name }).then(({ events }) => {
      for (const { data } of events) assert.ok(!data.owner || data.owner === one.name, JSON.stringify(data));
    }, () => {
      // A field that is not asked for may be refused as well.
    });
    await liar.drop();
    await two.publish("user:pinged", { owner: two.name }, { userId: "u-1" });
    await one.publish("user:pinged", { owner: one.name, again: true }, { userId: "u-1" });
    await liar.comeBack();
    await liar.seen.until("user:pinged", ({ again }) => again);
    assert.ok(liar.seen.of("user:pinged").every(({ owner }) => owner === one.name));
  });

  test("share fairly: a backlog of one does not delay the other", async () => {
    const [loud, quiet] = [server.newTenant(), server.newTenant()];
    for (let n = 0; n < 5; n += 1) {
      const jobs = Array.from({ length: 200 }, () => ({ type: "pack", data: {} }));
      expectStatus(await loud.api("/v1/jobs", { body: jobs }), 201);
    }
    const { id } = await quiet.enqueue("pack");
    const body = { types: ["pack"], max: 10, wait: "5s", lease: "30s", worker: "shared" };
    const { jobs } = expectStatus(await server.api("/v1/leases", { body }), 200);
    assert.ok(jobs.some((job) => job.tenant === quiet.name && job.id === id), JSON.stringify(jobs.map(({ tenant }) => tenant)));
  });
});

describe("a room that spans tenants", () => {
  const rooms = `
"everywhere" = { join = "auto", scope = "app", when = "user.superAdmin" }`;
  const more = `
[events."system:alert"]
rooms = ["everywhere"]
data = { text = "string" }`;
  let server;
  before(async () => {
    server = await start({ app: shop({ rooms, more }) });
  });
  const admin = (tenant, name) => connect(server, { token: tenant.token(name, { superAdmin: true }) });
  /** An alert of some tenant, which everybody in the room has when this is done who gets it at all. */
  async function alert(text) {
    const watcher = await admin(server.newTenant(), "watcher");
    await server.newTenant().publish("system:alert", { text });
    await watcher.seen.until("system:alert", (data) => data.text === text);
    watcher.close();
  }

  test("recovers who was away while nothing happened there", async () => {
    const tenant = server.newTenant();
    const client = await admin(tenant, "root");
    for (const text of ["one", "two"]) {
      await client.drop("cut");
      await tenant.publish("item:added", { itemId: "a", amount: 1 });
      await client.comeBack();
      assert.equal(client.socket.recovered, true);
      await alert(text);
      await client.seen.until("system:alert", (data) => data.text === text);
    }
    assert.equal(client.seen.of("item:added").length, 2);
    assert.deepEqual(client.seen.of("continuity:lost"), []);
  });

  test("gives who was away what other tenants published there, and only who is in it", async () => {
    const tenant = server.newTenant();
    const clients = [await admin(tenant, "root"), await connect(server, { token: tenant.token("ann") })];
    for (const client of clients) await client.drop();
    for (const text of ["fire", "flood"]) await alert(text);
    await tenant.publish("system:alert", { text: "at home" });
    for (const client of clients) await client.comeBack();
    const [root, ann] = clients;
    assert.deepEqual(clients.map(({ socket }) => socket.recovered), [true, true]);
    await eventually("three alerts", () => root.seen.of("system:alert").length >= 3);
    assert.deepEqual(root.seen.of("system:alert").map(({ text }) => text).sort(), ["at home", "fire", "flood"]);
    assert.deepEqual([ann.seen.of("system:alert"), root.seen.of("continuity:lost")], [[], []]);
  });

  test("gives it to who comes back to another process, too", async () => {
    const own = await start({ app: shop({ rooms, more }) });
    const tenant = own.newTenant();
    const root = await connect(own, { token: tenant.token("root", { superAdmin: true }) });
    await root.drop();
    await own.newTenant().publish("system:alert", { text: "before" });
    await own.kill();
    await own.restart();
    await own.newTenant().publish("system:alert", { text: "after" });
    await root.comeBack();
    assert.equal(root.socket.recovered, true);
    await root.seen.until("system:alert", ({ text }) => text === "after");
    assert.deepEqual(root.seen.of("system:alert").map(({ text }) => text), ["before", "after"]);
  });
});

test("the log says who sees more than one tenant, and only that", async () => {
  const rooms = `
"everywhere" = { join = "auto", scope = "app", when = "user.superAdmin" }
"lobby" = { join = "auto", scope = "app" }`;
  const server = await start({ app: shop({ rooms }) });
  const tenant = server.newTenant();
  const plain = await connect(server, { token: tenant.token("u-plain") });
  const admin = await connect(server, { token: tenant.token("u-super", { superAdmin: true }) });
  assert.deepEqual([plain, admin].map(({ hello }) => hello.rooms.includes("everywhere")), [false, true]);
  await admin.drop();
  const lines = () => server.child.err.split("\n").filter((line) => line.includes("audit"));
  await eventually("two lines", () => lines().length >= 2);
  for (const [n, what] of ["joined", "left"].entries()) {
    for (const part of [`${what} a room that spans tenants`, tenant.name, "u-super", "everywhere"]) assert.ok(lines()[n].includes(part), lines()[n]);
  }
  assert.equal(lines().length, 2);
});
