// The same change to many jobs over HTTP: which ones a filter means, and what it leaves.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { expectProblem, expectStatus, start } from "./harness.mjs";

let server;
before(async () => {
  server = await start({ app: shop() });
});

const all = (changed, skipped = 0) => ({ changed, skipped, nextCursor: null });
const many = async (who, what, body) => expectStatus(await who.api(`/v1/jobs/${what}`, { body }), 200);
const redrive = async (who, body) => expectStatus(await who.api("/v1/dead-letters/redrive", { body }), 200);
const ids = (jobs) => jobs.map(({ id }) => id).sort();
const inState = async (tenant, state) => ids(await tenant.list(`/v1/jobs?state=${state}`));

/** Fails one job of a type for good and answers it. */
async function fail(tenant, type, { error = "boom", data = {}, ...more } = {}) {
  const { id } = await tenant.enqueue(type, data, more);
  await tenant.settle(await tenant.leaseOne({ types: [type] }), "fail", { error });
  return tenant.job(id);
}

test("a tenant in the query of a call that takes none is not passed over", async () => {
  const [tenant, other] = [server.newTenant(), server.newTenant()];
  const { id } = await tenant.enqueue("pack");
  const calls = [
    ["/v1/jobs/cancel", { type: "pack" }],
    ["/v1/dead-letters/discard", {}],
    ["/v1/queues/work/drain", {}],
    ["/v1/leases", { max: 1 }],
    ["/v1/realtime/disconnect", { userId: "ann" }],
  ];
  for (const [path, body] of calls) {
    const refused = expectProblem(await server.api(`${path}?tenant=${other.name}`, { body }), 400, "request.invalid");
    assert.match(refused.detail, /query/, path);
  }
  assert.equal((await tenant.job(id)).state, "pending");
});

describe("jobs that match", () => {
  test("are cancelled, waiting and running ones, and no others", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const failed = await fail(tenant, "pack");
    const running = await tenant.enqueue("pack");
    const leased = await tenant.leaseOne();
    const waiting = [await tenant.enqueue("pack"), await tenant.enqueue("pack", {}, { delay: "1h" })];
    const audit = await tenant.enqueue("audit");
    const foreign = await other.enqueue("pack");
    assert.deepEqual(await many(tenant, "cancel", { type: "pack", dryRun: true }), { dryRun: true, matched: 3, nextCursor: null });
    assert.deepEqual(await inState(tenant, "cancelled"), []);
    assert.deepEqual(await many(tenant, "cancel", { type: "pack" }), all(3));
    assert.deepEqual(await inState(tenant, "cancelled"), ids(waiting));
    assert.equal((await tenant.job(running.id)).cancelRequested, true);
    assert.equal((await tenant.settle(leased, "release")).state, "cancelled");
    assert.deepEqual([(await tenant.job(failed.id)).state, (await tenant.job(audit.id)).state], ["failed", "pending"]);
    assert.equal((await other.job(foreign.id)).state, "pending");
  });

  test("are promoted by user and by correlation", async () => {
    const tenant = server.newTenant();
    const later = (more) => tenant.enqueue("pack", {}, { delay: "1h", ...more });
    const [one, two, three] = [
      await later({ userId: "ada", correlationId: "c1" }), await later({ userId: "bob", correlationId: "c1" }), await later(),
    ];
    assert.deepEqual(ids(await tenant.list("/v1/jobs?userId=ada")), [one.id]);
    assert.deepEqual(ids(await tenant.list("/v1/jobs?correlationId=c1")), ids([one, two]));
    assert.deepEqual(await many(tenant, "promote", { userId: "ada" }), all(1));
    assert.deepEqual(await inState(tenant, "pending"), [one.id]);
    assert.deepEqual(await many(tenant, "promote", { correlationId: "c1" }), all(1));
    assert.deepEqual(await inState(tenant, "scheduled"), [three.id]);
    assert.deepEqual(await many(tenant, "promote", { ids: [three.id, one.id, "nobody"] }), all(1));
  });

  test("are retried when they are dead letters, and cancelled ones only by name", async () => {
    const tenant = server.newTenant();
    const failed = await fail(tenant, "pack");
    const { id: cancelled } = await tenant.enqueue("pack");
    await many(tenant, "cancel", { ids: [cancelled] });
    assert.deepEqual(await many(tenant, "retry", { queue: "work" }), all(1));
    assert.deepEqual(await inState(tenant, "pending"), [failed.id]);
    assert.deepEqual(await many(tenant, "retry", { states: ["cancelled"] }), all(1));
    assert.deepEqual(await inState(tenant, "pending"), [failed.id, cancelled].sort());
  });

  test("are deleted, but for those that run, so many a call", async () => {
    const tenant = server.newTenant();
    await tenant.api("/v1/jobs", { body: Array.from({ length: 5 }, () => ({ type: "pack" })) });
    const running = await tenant.leaseOne();
    const first = await many(tenant, "delete", { type: "pack", limit: 3 });
    assert.equal(first.changed, 3);
    assert.deepEqual(await many(tenant, "delete", { type: "pack", cursor: first.nextCursor }), all(1));
    assert.deepEqual(ids(await tenant.list("/v1/jobs")), [running.id]);
    assert.deepEqual(await many(tenant, "delete", { states: ["processing"] }), all(0, 1));
  });
});

describe("a filter", () => {
  test("that says nothing is refused, and what is unknown, too", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    for (const what of ["cancel", "promote", "retry", "delete"]) {
      for (const body of [{}, { tenant: tenant.name }, { dryRun: true, limit: 5 }]) {
        const { detail } = expectProblem(await tenant.api(`/v1/jobs/${what}`, { body }), 400, "request.invalid");
        assert.match(detail, /name the states to mean all/);
      }
      for (const body of [{ states: [] }, { states: ["gone"] }, { qeue: "work" }, { queue: "work", limit: 0 }, { ids: [] }]) {
        expectProblem(await tenant.api(`/v1/jobs/${what}`, { body }), 400, "request.invalid");
      }
    }
    expectProblem(await tenant.api("/v1/jobs/explode", { body: { queue: "work" } }), 405, "http.no_method");
    expectProblem(await server.api("/v1/jobs/cancel", { body: { ids: [id] } }), 400, "tenant.required");
    assert.equal((await tenant.job(id)).state, "pending");
  });

  test("takes no name from a job", async () => {
    const tenant = server.newTenant();
    await tenant.enqueue("pack", {}, { id: "cancel" });
    assert.equal((await tenant.job("cancel")).id, "cancel");
    expectStatus(await tenant.api("/v1/jobs/cancel/cancel", { method: "POST" }), 200);
    assert.equal((await tenant.job("cancel")).state, "cancelled");
  });
});

describe("dead letters are run again", () => {
  test("by when they failed", async () => {
    const tenant = server.newTenant();
    const [one, two, three] = [await fail(tenant, "pack"), await fail(tenant, "pack"), await fail(tenant, "pack")];
    const between = { failedFrom: two.finishedAt, failedTo: three.finishedAt };
    const query = new URLSearchParams(between);
    assert.deepEqual(ids(await tenant.list(`/v1/dead-letters?${query}`)), [two.id]);
    assert.deepEqual(ids(await tenant.list(`/v1/jobs?${query}`)), [two.id]);
    assert.deepEqual(await redrive(tenant, between), all(1));
    assert.deepEqual(ids(await tenant.list("/v1/dead-letters")), ids([one, three]));
    const discarded = await tenant.api("/v1/dead-letters/discard", { body: { failedTo: three.finishedAt } });
    assert.deepEqual(expectStatus(discarded, 200), all(1));
    assert.deepEqual(ids(await tenant.list("/v1/dead-letters")), [three.id]);
  });

  test("by tenant, by text, and over several queues", async () => {
    const [one, two] = [server.newTenant(), server.newTenant()];
    const packed = await fail(one, "pack", { data: { to: "Ada" } });
    const audited = await fail(one, "audit", { error: "ask ada" });
    const other = await fail(one, "pack", { data: { to: "Bob" } });
    const foreign = await fail(two, "pack", { data: { to: "Ada" } });
    assert.deepEqual(await redrive(server, { tenant: one.name, text: "ada" }), all(2));
    assert.deepEqual(await inState(one, "pending"), ids([packed, audited]));
    assert.deepEqual(await redrive(server, { tenant: one.name }), all(1));
    assert.equal((await one.job(other.id)).state, "pending");
    assert.equal((await two.job(foreign.id)).state, "failed");
  });

  test("and nothing that is none", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    await many(tenant, "cancel", { ids: [id] });
    const refused = await tenant.api("/v1/dead-letters/redrive", { body: { states: ["cancelled"] } });
    expectProblem(refused, 400, "request.invalid");
    assert.deepEqual(await redrive(tenant, { ids: [id] }), all(0));
  });
});
