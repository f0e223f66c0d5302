// What operators do over HTTP: change and delete jobs, search them, change many at once, and change queues while they run.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { expectProblem, expectStatus, start } from "./harness.mjs";

const QUEUES = ["patched", "paused", "kept", "drained", "cleaned", "razed"];
const MORE = QUEUES.map((name) => `
[queues.${name}]
concurrency = 10
attempts = 1
[jobs.${name}]
queue = "${name}"
`).join("") + `
[queues.narrow]
backlog = 1
rate = "10/m"
[jobs.narrow]
queue = "narrow"
`;

let server;
before(async () => {
  server = await start({ app: shop({ more: MORE }) });
});

const path = (id, what = "") => `/v1/jobs/${encodeURIComponent(id)}${what}`;
const send = (method, body) => ({ method, body });
const admin = (url, body, method = "POST") => server.api(url, { body, method });

/** Fails jobs of a type for good, one for each error. */
async function fail(tenant, type, errors) {
  const ids = [];
  for (const error of errors) {
    ids.push((await tenant.enqueue(type)).id);
    await tenant.settle(await tenant.leaseOne({ types: [type] }), "fail", { error });
  }
  return ids;
}

describe("a waiting job", () => {
  test("gets another priority and another time", async () => {
    const tenant = server.newTenant();
    const [one, two] = [await tenant.enqueue("pack"), await tenant.enqueue("pack")];
    const changed = expectStatus(await tenant.api(path(two.id), send("PATCH", { priority: "critical" })), 200);
    assert.equal(changed.priority, 1);
    const later = expectStatus(await tenant.api(path(one.id), send("PATCH", { delay: "1h" })), 200);
    assert.equal(later.state, "scheduled");
    assert.equal((await tenant.leaseOne()).id, two.id);
    const now = expectStatus(await tenant.api(path(one.id), send("PATCH", { runAt: "2020-01-01T00:00:00Z" })), 200);
    assert.equal(now.state, "pending");
    assert.equal((await tenant.leaseOne()).id, one.id);
    expectProblem(await tenant.api(path(one.id), send("PATCH", { priority: 1 })), 409, "job.wrong_state");
  });

  test("is changed only in what can be changed", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    expectProblem(await tenant.api(path(id), send("PATCH", {})), 400, "request.invalid");
    expectProblem(await tenant.api(path(id), send("PATCH", { priority: 6 })), 400, "request.invalid");
    const both = { delay: "1s", runAt: "2030-01-01T00:00:00Z" };
    expectProblem(await tenant.api(path(id), send("PATCH", both)), 400, "job.invalid_option");
    expectProblem(await server.newTenant().api(path(id), send("PATCH", { priority: 1 })), 404, "job.not_found");
  });

  test("gets other data, if its type takes them and it does not run", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("ship", { itemId: "old" });
    const refused = expectProblem(await tenant.api(path(id), send("PATCH", { data: { itemId: 7 }, priority: 1 })), 400, "job.invalid_data");
    assert.deepEqual(refused.errors.map(({ path }) => path), ["data.itemId"]);
    const huge = { data: { itemId: "x".repeat(300_000) } };
    expectProblem(await tenant.api(path(id), send("PATCH", huge)), 413, "data.too_large");
    const changed = expectStatus(await tenant.api(path(id), send("PATCH", { data: { itemId: "new" } })), 200);
    assert.deepEqual([changed.data, changed.priority], [{ itemId: "new" }, 3]);
    const leased = await tenant.leaseOne({ types: ["ship"] });
    assert.deepEqual([leased.id, leased.data], [id, { itemId: "new" }]);
    expectProblem(await tenant.api(path(id), send("PATCH", { data: { itemId: "late" } })), 409, "job.wrong_state");
    expectProblem(await tenant.api(path("nobody"), send("PATCH", { data: { itemId: "a" } })), 404, "job.not_found");
  });

  test("is deleted, and one that runs is not", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    expectStatus(await tenant.api(path(id), send("DELETE")), 200);
    expectProblem(await tenant.api(path(id)), 404, "job.not_found");
    await tenant.enqueue("pack");
    const running = await tenant.leaseOne();
    expectProblem(await tenant.api(path(running.id), send("DELETE")), 409, "job.wrong_state");
  });

  test("that is blocked is not promoted", async () => {
    const tenant = server.newTenant();
    const jobs = [{ type: "pack", ref: "one" }, { type: "pack", after: ["one"] }];
    const flow = expectStatus(await tenant.api("/v1/flows", { body: { jobs } }), 201);
    const refused = await tenant.api(path(flow.jobs[1].id, "/promote"), send("POST"));
    assert.match(expectProblem(refused, 409, "job.wrong_state").detail, /waits for 1 other job/);
  });
});

test("a dead letter whose unique key is taken is not run again", async () => {
  const tenant = server.newTenant();
  const unique = { key: "k" };
  const first = await tenant.enqueue("pack", {}, { unique });
  await tenant.settle(await tenant.leaseOne(), "fail", { error: "never" });
  await tenant.enqueue("pack", {}, { unique });
  expectProblem(await tenant.api(path(first.id, "/retry"), send("POST")), 409, "job.unique_taken");
  const body = expectStatus(await tenant.api("/v1/dead-letters/redrive", { body: { ids: [first.id] } }), 200);
  assert.deepEqual([body.changed, body.skipped], [0, 1]);
});

describe("a run", () => {
  test("tells how far it is and what it does", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    const { lease } = await tenant.leaseOne();
    expectStatus(await tenant.api(path(id, "/progress"), { body: { lease, progress: { percent: 40 } } }), 204);
    assert.deepEqual((await tenant.job(id)).progress, { percent: 40 });
    expectStatus(await tenant.api(path(id, "/logs"), { body: { lease, lines: ["one", "two", "three"] } }), 204);
    const page = expectStatus(await tenant.api(path(id, "/logs?limit=2")), 200);
    assert.deepEqual(page.items.map(({ attempt, text }) => [attempt, text]), [[1, "one"], [1, "two"]]);
    const rest = expectStatus(await tenant.api(path(id, `/logs?cursor=${page.nextCursor}`)), 200);
    assert.deepEqual([rest.items.map(({ text }) => text), rest.nextCursor], [["three"], null]);
    expectProblem(await server.newTenant().api(path(id, "/logs")), 404, "job.not_found");
  });

  test("without its lease tells nothing, and not too much with it", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    const { lease } = await tenant.leaseOne();
    const progress = (body) => tenant.api(path(id, "/progress"), { body });
    expectProblem(await progress({ lease: "1-0", progress: 1 }), 409, "job.lease_lost");
    expectProblem(await progress({ lease, progress: "x".repeat(4096) }), 413, "data.too_large");
    const log = (body) => tenant.api(path(id, "/logs"), { body });
    expectProblem(await log({ lease: "1-0", lines: ["late"] }), 409, "job.lease_lost");
    expectProblem(await log({ lease, lines: [] }), 400, "request.invalid");
    expectProblem(await log({ lease, lines: Array.from({ length: 1001 }, () => "x") }), 400, "request.invalid");
    assert.equal((await tenant.job(id)).progress, undefined);
  });
});

test("jobs are searched by text, error, time and flow", async () => {
  const tenant = server.newTenant();
  const found = async (query) => (await tenant.list(`/v1/jobs?${query}`)).map(({ id }) => id);
  const { id: ada } = await tenant.enqueue("audit", { to: "Ada@example.com" }, { key: "k1" });
  await tenant.enqueue("audit", { to: "bob@example.com" });
  const [failed] = await fail(tenant, "pack", ["SMTP said 550"]);
  assert.deepEqual(await found("text=ada%40"), [ada]);
  assert.deepEqual(await found("text=smtp"), [failed]);
  assert.deepEqual(await found("error=said%20550"), [failed]);
  assert.deepEqual(await found("error=ada"), []);
  assert.deepEqual(await found("key=k1"), [ada]);
  const { createdAt } = await tenant.job(failed);
  assert.deepEqual(await found(`from=${createdAt}`), [failed]);
  assert.equal((await found(`to=${createdAt}`)).length, 2);
  const flow = expectStatus(await tenant.api("/v1/flows", { body: { id: "f1", jobs: [{ type: "ship", data: { itemId: "x" } }] } }), 201);
  assert.deepEqual(await found("flow=f1"), [flow.jobs[0].id]);
  assert.deepEqual(await server.newTenant().list("/v1/jobs?text=ada"), []);
  expectProblem(await tenant.api(`/v1/jobs?text=${"x".repeat(257)}`), 400, "request.invalid");
});

describe("dead letters", () => {
  const letters = async (tenant) => (await tenant.list("/v1/dead-letters")).map(({ id }) => id).sort();

  test("are counted, run again and thrown away by what they failed with", async () => {
    const tenant = server.newTenant();
    const [one, two, three] = await fail(tenant, "pack", ["timeout", "no such user", "Timeout"]);
    const call = async (what, body) => expectStatus(await tenant.api(`/v1/dead-letters/${what}`, { body }), 200);
    const dry = await call("redrive", { error: "timeout", dryRun: true });
    assert.deepEqual(dry, { dryRun: true, matched: 2, nextCursor: null });
    assert.deepEqual(await letters(tenant), [one, two, three].sort());
    assert.deepEqual(await call("redrive", { error: "timeout" }), { changed: 2, skipped: 0, nextCursor: null });
    assert.deepEqual(await letters(tenant), [two]);
    assert.deepEqual((await tenant.lease({ max: 5 })).map(({ id }) => id), [one, three]);
    assert.deepEqual((await call("discard", { queue: "work" })).changed, 1);
    expectProblem(await tenant.api(path(two)), 404, "job.not_found");
  });

  test("of another tenant stay", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const [id] = await fail(other, "pack", ["boom"]);
    for (const body of [{}, { ids: [id] }]) {
      const answer = expectStatus(await tenant.api("/v1/dead-letters/discard", { body }), 200);
      assert.equal(answer.changed, 0);
    }
    assert.deepEqual(await letters(other), [id]);
    expectProblem(await admin("/v1/dead-letters/discard", { ids: [id] }), 400, "tenant.required");
  });

  test("go slice by slice when they are many", async () => {
    const tenant = server.newTenant();
    const jobs = Array.from({ length: 1200 }, () => ({ type: "kept" }));
    expectStatus(await tenant.api("/v1/jobs", { body: jobs }), 201);
    const leased = await tenant.lease({ types: ["kept"], max: 1000 });
    leased.push(...(await tenant.lease({ types: ["kept"], max: 1000 })));
    const results = leased.map(({ id, lease }) => ({ id, lease, verdict: "fail", error: "boom" }));
    await tenant.api("/v1/leases/settle", { body: { results: results.slice(0, 600) } });
    await tenant.api("/v1/leases/settle", { body: { results: results.slice(600) } });
    const first = expectStatus(await tenant.api("/v1/dead-letters/discard", { body: { limit: 700 } }), 200);
    assert.equal(first.changed, 700);
    const body = { cursor: first.nextCursor };
    const second = expectStatus(await tenant.api("/v1/dead-letters/discard", { body }), 200);
    assert.deepEqual(second, { changed: 500, skipped: 0, nextCursor: null });
  });
});

describe("a queue", () => {
  const shown = async (name, options) => expectStatus(await server.api(`/v1/queues/${name}`, options), 200);

  test("is changed while it runs, and the change outlives the process", async () => {
    const tenant = server.newTenant();
    for (let n = 0; n < 4; n += 1) await tenant.enqueue("patched");
    const patched = expectStatus(await admin("/v1/queues/patched", { global: 1, rate: "100/s", tenants: { [tenant.name]: { weight: 3 } } }, "PATCH"), 200);
    assert.deepEqual([patched.global, patched.rate, patched.settings.tenants], [1, "100/1s", { [tenant.name]: { weight: 3 } }]);
    assert.equal((await tenant.lease({ types: ["patched"], max: 10 })).length, 1);
    await server.stop();
    await server.restart();
    assert.equal((await shown("patched")).global, 1);
    assert.equal((await tenant.lease({ types: ["patched"], max: 10, wait: 0 })).length, 0);
    const given = expectStatus(await admin("/v1/queues/patched", { global: null, rate: null, tenants: null }, "PATCH"), 200);
    assert.deepEqual([given.global, given.settings], [undefined, {}]);
    assert.equal((await tenant.lease({ types: ["patched"], max: 10 })).length, 3);
  });

  test("takes no senseless settings, and none from those who may not", async () => {
    for (const body of [{ global: 0 }, { glboal: 1 }, { rate: "often" }, { concurrency: -1 }]) {
      expectProblem(await admin("/v1/queues/work", body, "PATCH"), 400, "queue.invalid_settings");
    }
    const { detail } = expectProblem(await admin("/v1/queues/wrok", { global: 1 }, "PATCH"), 404, "queue.not_found");
    assert.match(detail, /did you mean "work"/);
    const bound = server.newTenant();
    expectProblem(await bound.api("/v1/queues/work", send("PATCH", { global: 1 })), 403, "auth.forbidden");
    expectProblem(await bound.api("/v1/queues/razed/obliterate", send("POST")), 403, "auth.forbidden");
  });

  test("is paused, whole or for one tenant, and goes on", async () => {
    const [one, two] = [server.newTenant(), server.newTenant()];
    await one.enqueue("paused");
    await two.enqueue("paused");
    const lease = (tenant, wait = 0) => tenant.lease({ types: ["paused"], max: 10, wait });
    const own = expectStatus(await one.api("/v1/queues/paused/pause", send("POST")), 200);
    assert.deepEqual([own.paused, own.settings, own.tenants], [true, undefined, undefined]);
    assert.equal((await lease(one)).length, 0);
    assert.equal((await shown("paused", { key: two.key })).paused, false);
    assert.equal(expectStatus(await admin("/v1/queues/paused/pause"), 200).paused, true);
    assert.equal((await lease(two)).length, 0);
    const waiting = lease(two, "20s");
    assert.equal(expectStatus(await admin("/v1/queues/paused/resume"), 200).paused, false);
    assert.equal((await waiting).length, 1);
    assert.equal((await lease(one)).length, 0);
    const waits = lease(one, "20s");
    expectStatus(await admin("/v1/queues/paused/resume", { tenant: one.name }), 200);
    assert.equal((await waits).length, 1);
  });

  test("is shown with what is in it, whose, and since when", async () => {
    const [one, two] = [server.newTenant(), server.newTenant()];
    const first = await one.enqueue("kept");
    await two.enqueue("kept");
    await two.enqueue("kept", {}, { delay: "1h" });
    const queue = await shown("kept");
    const { createdAt } = await one.job(first.id);
    assert.deepEqual([queue.counts.pending, queue.counts.scheduled, queue.oldestPending], [2, 1, createdAt]);
    const tenants = queue.tenants.filter(({ counts }) => counts.pending || counts.scheduled);
    assert.deepEqual(tenants, [
      { tenant: two.name, counts: { scheduled: 1, pending: 1 } },
      { tenant: one.name, counts: { pending: 1 } },
    ]);
    const own = await shown("kept", { key: one.key });
    assert.deepEqual([own.counts.pending, own.counts.scheduled, own.tenants], [1, 0, undefined]);
    assert.ok((await shown("kept", { key: two.key })).oldestPending > createdAt);
  });

  test("is drained of what waits", async () => {
    const [one, two] = [server.newTenant(), server.newTenant()];
    await one.enqueue("drained");
    const later = await one.enqueue("drained", {}, { delay: "1h" });
    const other = await two.enqueue("drained");
    const drain = async (body) => expectStatus(await one.api("/v1/queues/drained/drain", { body }), 200);
    assert.deepEqual(await drain({ dryRun: true }), { dryRun: true, matched: 1, nextCursor: null });
    assert.equal((await drain({})).changed, 1);
    assert.deepEqual((await one.list("/v1/jobs?queue=drained")).map(({ id }) => id), [later.id]);
    assert.equal((await drain({ scheduled: true })).changed, 1);
    assert.equal((await two.leaseOne({ types: ["drained"] })).id, other.id);
  });

  test("is cleaned of what has ended long ago", async () => {
    const tenant = server.newTenant();
    await fail(tenant, "cleaned", ["boom"]);
    const clean = (body) => tenant.api("/v1/queues/cleaned/clean", { body });
    assert.equal(expectStatus(await clean({ states: ["failed"], olderThan: "1h" }), 200).changed, 0);
    assert.equal(expectStatus(await clean({ states: ["completed"] }), 200).changed, 0);
    assert.equal(expectStatus(await clean({ states: ["failed"], olderThan: 0 }), 200).changed, 1);
    expectProblem(await clean({ states: ["processing"] }), 400, "request.invalid");
    expectProblem(await clean({ states: [] }), 400, "request.invalid");
    assert.deepEqual(await tenant.list("/v1/jobs?queue=cleaned"), []);
  });

  test("is obliterated, and what runs is asked to stop first", async () => {
    const tenant = server.newTenant();
    await fail(tenant, "razed", ["boom"]);
    await tenant.enqueue("razed");
    const running = await tenant.leaseOne({ types: ["razed"] });
    await tenant.enqueue("razed");
    await tenant.enqueue("razed", {}, { delay: "1h" });
    const raze = async (body) => expectStatus(await admin("/v1/queues/razed/obliterate", body), 200);
    assert.deepEqual(await raze({ dryRun: true }), { dryRun: true, deleted: 3, stopping: 1, nextCursor: null });
    assert.deepEqual(await raze(), { dryRun: false, deleted: 3, stopping: 1, nextCursor: null });
    const body = { leases: [{ id: running.id, lease: running.lease }] };
    const { leases } = expectStatus(await tenant.api("/v1/leases/renew", { body }), 200);
    assert.equal(leases[0].cancelled, true);
    assert.equal((await tenant.settle(running, "release")).state, "cancelled");
    assert.equal((await raze()).deleted, 1);
    assert.deepEqual(await tenant.list("/v1/jobs?queue=razed"), []);
    assert.ok(Object.values((await shown("razed")).counts).every((count) => count === 0));
  });
});

describe("a queue", () => {
  test("tells a key for all tenants how busy it is", async () => {
    const tenant = server.newTenant();
    const [done] = [await tenant.enqueue("kept")];
    await tenant.settle(await tenant.leaseOne({ types: ["kept"] }), "done");
    assert.equal((await tenant.job(done.id)).state, "completed");
    const { figures } = expectStatus(await server.api("/v1/queues/kept"), 200);
    assert.ok(figures.completedPerMinute > 0, JSON.stringify(figures));
    assert.ok(figures.failedPerMinute >= 0);
    for (const wait of [figures.waitP50, figures.waitP99]) assert.match(wait, /^[\d.]+(us|µs|ms|s|m)/);
    assert.equal(expectStatus(await tenant.api("/v1/queues/kept"), 200).figures, undefined);
  });

  test("that is full says when there may be room, if a rate tells it", async () => {
    const tenant = server.newTenant();
    await tenant.enqueue("narrow");
    const refused = await tenant.api("/v1/jobs", { body: { type: "narrow" } });
    assert.equal(expectProblem(refused, 429, "queue.backlog_full").retryAfter, 6_000);
    assert.equal(refused.headers.get("retry-after"), "6");
  });
});
