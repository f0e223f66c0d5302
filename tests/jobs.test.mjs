// Jobs, as a worker over HTTP sees them: in order, one worker at a time, as often as they may run, and never lost.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { eventually, expectProblem, expectStatus, start } from "./harness.mjs";

const CLOCK = `
[queues.clock]
concurrency = 100

[jobs.tick]
queue = "clock"
data = { from = "string" }

[schedules.every-second]
job = "tick"
every = "1s"
data = { from = "the clock" }

[schedules.nightly]
job = "tick"
cron = "30 2 * * *"
timezone = "Europe/Berlin"
data = { from = "the night" }
`;

let server;
before(async () => {
  server = await start({ app: shop({ more: CLOCK }) });
});

const control = (tenant, id, what) => tenant.api(`/v1/jobs/${encodeURIComponent(id)}/${what}`, { method: "POST" });

/** Uses up a job's attempts. */
async function exhaust(tenant, attempts = 3) {
  for (let attempt = 1; attempt <= attempts; attempt += 1) {
    const job = await tenant.leaseOne();
    assert.equal(job.attempt, attempt);
    await tenant.settle(job, "retry", { error: `boom ${attempt}` });
  }
}

describe("enqueueing", () => {
  test("gives a job the options of its type", async () => {
    const tenant = server.newTenant();
    const enqueued = await tenant.enqueue("ship", { itemId: "a" });
    assert.deepEqual([enqueued.type, enqueued.state], ["ship", "pending"]);
    const job = await tenant.job(enqueued.id);
    assert.deepEqual(
      [job.id, job.tenant, job.type, job.queue, job.state, job.priority, job.attempt, job.attempts, job.data],
      [enqueued.id, tenant.name, "ship", "work", "pending", 3, 0, 3, { itemId: "a" }],
    );
  });

  test("takes an array, all or nothing", async () => {
    const tenant = server.newTenant();
    const body = expectStatus(await tenant.api("/v1/jobs", { body: [{ type: "pack" }, { type: "audit" }] }), 201);
    assert.deepEqual(body.jobs.map(({ type }) => type), ["pack", "audit"]);
    const bad = await tenant.api("/v1/jobs", { body: [{ type: "pack" }, { type: "ship", data: { itemId: 5 } }] });
    assert.match(expectProblem(bad, 400, "job.invalid_data").detail, /jobs\[1\]\.data\.itemId: expected string, got 5/);
    assert.equal((await tenant.list("/v1/jobs")).length, 2);
  });

  test("refuses an undeclared type and says which one was meant", async () => {
    const tenant = server.newTenant();
    const { detail } = expectProblem(await tenant.api("/v1/jobs", { body: { type: "pakc" } }), 400, "job.unknown_type");
    assert.match(detail, /did you mean "pack"/);
  });

  test("refuses an undeclared queue", async () => {
    const tenant = server.newTenant();
    const answer = await tenant.api("/v1/jobs", { body: { type: "pack", queue: "wrok" } });
    assert.match(expectProblem(answer, 400, "job.unknown_queue").detail, /did you mean "work"/);
    assert.deepEqual(await tenant.list("/v1/jobs"), []);
  });

  test("takes 10,000 in one call", async () => {
    const tenant = server.newTenant();
    const body = Array.from({ length: 10_000 }, (_, n) => ({ type: "pack", data: { n } }));
    const { jobs } = expectStatus(await tenant.api("/v1/jobs", { body }), 201);
    assert.equal(new Set(jobs.map(({ id }) => id)).size, 10_000);
    const queues = expectStatus(await tenant.api("/v1/queues"), 200).items;
    assert.equal(queues.find(({ name }) => name === "work").counts.pending, 10_000);
    const [first, last] = [await tenant.job(jobs[0].id), await tenant.job(jobs.at(-1).id)];
    assert.deepEqual([first.data.n, last.data.n], [0, 9_999]);
  });

  test("stores nothing of a call with data over the limit", async () => {
    const tenant = server.newTenant();
    const text = (bytes) => ({ type: "pack", data: "x".repeat(bytes - 2) });
    const large = await tenant.api("/v1/jobs", { body: [{ type: "pack" }, text(256 * 1024 + 1)] });
    assert.match(expectProblem(large, 413, "data.too_large").detail, /262144 bytes, got 262145/);
    assert.deepEqual(await tenant.list("/v1/jobs"), []);
    expectStatus(await tenant.api("/v1/jobs", { body: text(256 * 1024) }), 201);
  });

  test("with the caller's own id is one job", async () => {
    const tenant = server.newTenant();
    await tenant.enqueue("pack", {}, { id: "order-1" });
    const again = await tenant.enqueue("pack", {}, { id: "order-1" });
    assert.deepEqual([again.id, again.deduplicated], ["order-1", true]);
    assert.equal((await tenant.lease({ max: 10 })).length, 1);
  });

  test("happens by rule in the event's own commit", async () => {
    const tenant = server.newTenant();
    await tenant.publish("item:sold", { itemId: "a" });
    const job = await tenant.leaseOne({ types: ["ship"] });
    assert.deepEqual(job.data, { itemId: "a" });
  });
});

describe("a worker", () => {
  test("gets a job whole", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack", { n: 1 });
    const job = await tenant.leaseOne();
    assert.deepEqual(
      [job.id, job.tenant, job.type, job.queue, job.data, job.attempt, job.attempts],
      [id, tenant.name, "pack", "work", { n: 1 }, 1, 3],
    );
    assert.ok(job.lease, "a token for the lease");
    const left = Date.parse(job.expires) - Date.now();
    assert.ok(left > 20_000 && left < 40_000, `expires in about 30 s: ${job.expires}`);
    assert.equal((await tenant.job(id)).state, "processing");
  });

  test("must ask for at least one job, and at most 1,000", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    for (const max of [0, 1001]) {
      const answer = await tenant.api("/v1/leases", { body: { max } });
      assert.match(expectProblem(answer, 400, "lease.invalid_option").detail, /max: expected 1 to 1000/);
    }
    assert.equal((await tenant.job(id)).state, "pending");
  });

  test("is shown with the job that it runs", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    const shown = ({ worker, leaseUntil, cancelRequested }) => [worker, leaseUntil, cancelRequested];
    const nobody = [undefined, undefined, undefined];
    assert.deepEqual(shown(await tenant.job(id)), nobody);
    const leased = await tenant.leaseOne({ worker: "packer-7" });
    assert.deepEqual(shown(await tenant.job(id)), ["packer-7", leased.expires, false]);
    assert.deepEqual(shown(expectStatus(await control(tenant, id, "cancel"), 200)), ["packer-7", leased.expires, true]);
    const [listed] = await tenant.list("/v1/jobs?state=processing");
    assert.deepEqual(shown(listed), ["packer-7", leased.expires, true]);
    await tenant.settle(leased, "done");
    assert.deepEqual(shown(await tenant.job(id)), nobody);
  });

  test("gets the first priority first", async () => {
    const tenant = server.newTenant();
    for (const priority of [5, "low", 1, 3, "high"]) await tenant.enqueue("pack", { priority }, { priority });
    const order = [];
    for (let n = 0; n < 5; n += 1) order.push((await tenant.leaseOne()).data.priority);
    assert.deepEqual(order, [1, "high", 3, "low", 5]);
  });

  test("gets jobs of one priority first in, first out", async () => {
    const tenant = server.newTenant();
    await tenant.api("/v1/jobs", { body: Array.from({ length: 20 }, (_, n) => ({ type: "pack", data: { n } })) });
    const jobs = await tenant.lease({ max: 7 });
    while (jobs.length < 20) jobs.push(await tenant.leaseOne());
    assert.deepEqual(jobs.map(({ data }) => data.n), Array.from({ length: 20 }, (_, n) => n));
  });

  test("gets a delayed job when it is due, and not before", async () => {
    const tenant = server.newTenant();
    const begin = Date.now();
    const { id, state } = await tenant.enqueue("pack", {}, { delay: "700ms" });
    assert.equal(state, "scheduled");
    assert.deepEqual(await tenant.lease({ wait: "0s" }), []);
    assert.equal((await tenant.leaseOne()).id, id);
    assert.ok(Date.now() - begin >= 690, `after ${Date.now() - begin} ms`);
  });

  test("gets a job with a run time when it is due", async () => {
    const tenant = server.newTenant();
    const { state } = await tenant.enqueue("pack", {}, { runAt: new Date(Date.now() + 600).toISOString() });
    assert.equal(state, "scheduled");
    await tenant.leaseOne();
  });

  test("that waits is woken by a new job", async () => {
    const tenant = server.newTenant();
    const waiting = tenant.leaseOne({ wait: "20s" });
    const { id } = await tenant.enqueue("pack");
    assert.equal((await waiting).id, id);
  });

  test("gets only the queues and types that it asks for", async () => {
    const tenant = server.newTenant();
    await tenant.enqueue("pack");
    await tenant.enqueue("ship", { itemId: "a" });
    await tenant.enqueue("audit");
    assert.deepEqual((await tenant.lease({ max: 10, types: ["ship"] })).map(({ type }) => type), ["ship"]);
    assert.deepEqual((await tenant.lease({ max: 10, queues: ["slow"] })).map(({ type }) => type), ["audit"]);
    assert.deepEqual((await tenant.lease({ max: 10 })).map(({ type }) => type), ["pack"]);
  });

  test("never gets a job that another one has", async () => {
    const tenant = server.newTenant();
    const jobs = Array.from({ length: 100 }, (_, n) => ({ type: "pack", data: { n } }));
    expectStatus(await tenant.api("/v1/jobs", { body: jobs }), 201);
    const leased = await Promise.all(Array.from({ length: 20 }, () => tenant.lease({ max: 10, wait: "1s" })));
    const ids = leased.flat().map(({ id }) => id);
    assert.equal(ids.length, 100);
    assert.equal(new Set(ids).size, 100);
  });
});

describe("settling", () => {
  test("with done keeps the result", async () => {
    const tenant = server.newTenant();
    const job = (await tenant.enqueue("pack"), await tenant.leaseOne());
    const settled = await tenant.settle(job, "done", { result: { boxes: 3 } });
    assert.deepEqual([settled.id, settled.state], [job.id, "completed"]);
    const after = await tenant.job(job.id);
    assert.deepEqual([after.state, after.attempt, after.result], ["completed", 1, { boxes: 3 }]);
    assert.ok(Date.parse(after.finishedAt) >= Date.parse(after.startedAt));
  });

  test("with retry runs a job exactly as often as it may, then keeps it as dead", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    const states = [];
    for (let attempt = 1; attempt <= 3; attempt += 1) {
      const job = await tenant.leaseOne();
      assert.deepEqual([job.id, job.attempt], [id, attempt]);
      states.push((await tenant.settle(job, "retry", { error: `boom ${attempt}` })).state);
    }
    assert.deepEqual(states, ["scheduled", "scheduled", "dead"]);
    assert.deepEqual(await tenant.lease({ wait: "500ms" }), [], "no run number four");
    const job = await tenant.job(id);
    assert.deepEqual([job.state, job.attempt], ["dead", 3]);
    assert.deepEqual(
      job.failedAttempts.map(({ attempt, error }) => [attempt, error]),
      [1, 2, 3].map((attempt) => [attempt, `boom ${attempt}`]),
    );
  });

  test("with retry waits the backoff, or what the worker says", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("audit", {}, { attempts: 3 });
    await tenant.settle(await tenant.leaseOne(), "retry", { error: "later", delay: "100ms" });
    await tenant.settle(await tenant.leaseOne(), "retry", { error: "much later" });
    const job = await tenant.job(id);
    const wait = Date.parse(job.runAt) - Date.now();
    assert.equal(job.state, "scheduled");
    assert.ok(wait > 55 * 60_000 && wait <= 60 * 60_000, `about an hour: ${job.runAt}`);
  });

  test("with fail ends a job at once", async () => {
    const tenant = server.newTenant();
    const job = (await tenant.enqueue("pack"), await tenant.leaseOne());
    assert.equal((await tenant.settle(job, "fail", { error: "no such address" })).state, "failed");
    const after = await tenant.job(job.id);
    assert.deepEqual([after.state, after.attempt, after.error], ["failed", 1, "no such address"]);
  });

  test("with snooze gives the attempt back", async () => {
    const tenant = server.newTenant();
    await tenant.enqueue("pack");
    for (let round = 0; round < 5; round += 1) {
      const job = await tenant.leaseOne();
      assert.equal(job.attempt, 1, "five rounds, more than the three attempts that it has");
      assert.equal((await tenant.settle(job, "snooze", { delay: "20ms" })).state, "scheduled");
    }
    assert.equal((await tenant.settle(await tenant.leaseOne(), "done")).state, "completed");
  });

  test("answers each of several results for itself", async () => {
    const tenant = server.newTenant();
    await tenant.api("/v1/jobs", { body: [{ type: "pack" }, { type: "pack" }] });
    const [one, two] = await tenant.lease({ max: 2 });
    const results = [
      { id: one.id, lease: one.lease, verdict: "done" },
      { id: two.id, lease: "not-the-lease", verdict: "done" },
      { id: "no-such-job", lease: "x", verdict: "done" },
    ];
    const body = expectStatus(await tenant.api("/v1/leases/settle", { body: { results } }), 200);
    assert.equal(body.results.length, 3);
    assert.equal(body.results[0].state, "completed");
    assert.equal(body.results[1].error.code, "job.lease_lost");
    assert.ok(["job.lease_lost", "job.not_found"].includes(body.results[2].error.code), JSON.stringify(body.results[2]));
    assert.equal((await tenant.job(two.id)).state, "processing");
  });

  test("twice is refused the second time", async () => {
    const tenant = server.newTenant();
    const job = (await tenant.enqueue("pack"), await tenant.leaseOne());
    assert.equal((await tenant.settle(job, "done", { result: 1 })).state, "completed");
    assert.equal((await tenant.settle(job, "fail", { error: "too late" })).error.code, "job.lease_lost");
    assert.deepEqual((await tenant.job(job.id)).result, 1);
  });
});

describe("effects", () => {
  const effects = {
    events: [{ type: "item:added", data: { itemId: "a", amount: 1 } }],
    jobs: [{ type: "audit", data: { why: "packed" } }],
  };

  test("are committed with done", async () => {
    const tenant = server.newTenant();
    const job = (await tenant.enqueue("pack"), await tenant.leaseOne());
    const settled = await tenant.settle(job, "done", { effects });
    assert.equal(settled.state, "completed");
    assert.equal(settled.effects.events[0].position, 1);
    const [event] = await tenant.log();
    assert.deepEqual([event.id, event.type, event.causationId], [settled.effects.events[0].id, "item:added", job.id]);
    assert.equal((await tenant.job(settled.effects.jobs[0].id)).causationId, job.id);
  });

  test("are discarded with retry", async () => {
    const tenant = server.newTenant();
    const job = (await tenant.enqueue("pack"), await tenant.leaseOne());
    await tenant.settle(job, "retry", { error: "half way", effects });
    assert.deepEqual(await tenant.log(), []);
    assert.deepEqual(await tenant.list("/v1/jobs?type=audit"), []);
    const again = await tenant.leaseOne();
    assert.equal(again.id, job.id);
    await tenant.settle(again, "done", { effects });
    assert.equal((await tenant.log()).length, 1);
  });

  test("that the catalog refuses leave the job with its worker", async () => {
    const tenant = server.newTenant();
    const job = (await tenant.enqueue("pack"), await tenant.leaseOne());
    const bad = { events: [...effects.events, { type: "item:added", data: {} }] };
    assert.equal((await tenant.settle(job, "done", { effects: bad })).error.code, "event.invalid_data");
    assert.deepEqual(await tenant.log(), []);
    assert.equal((await tenant.job(job.id)).state, "processing");
    assert.equal((await tenant.settle(job, "done")).state, "completed");
  });
});

describe("a settle call", () => {
  test("answers a result that cannot be read by itself and takes the others", async () => {
    const tenant = server.newTenant();
    const jobs = [];
    for (let n = 0; n < 3; n += 1) jobs.push((await tenant.enqueue("pack"), await tenant.leaseOne()));
    const wrong = [{ effects: { evnts: [] } }, { delay: "soon" }, { effects: null, delay: null }];
    const results = wrong.map((more, n) => ({ id: jobs[n].id, lease: jobs[n].lease, verdict: "done", ...more }));
    const [effects, delay, done] = expectStatus(await tenant.api("/v1/leases/settle", { body: { results } }), 200).results;
    assert.match(effects.error.detail, /^effects: .*evnts/);
    assert.match(delay.error.detail, /^delay: /);
    assert.deepEqual([effects.error.code, delay.error.code, done.state], ["request.invalid", "request.invalid", "completed"]);
    assert.equal((await tenant.job(jobs[0].id)).state, "processing");
  });
});

describe("a lease", () => {
  test("is short enough by default for a killed worker's job to run again within five seconds", async () => {
    const tenant = server.newTenant();
    await tenant.enqueue("pack");
    const { jobs } = expectStatus(await tenant.api("/v1/leases", { body: {} }), 200);
    const left = Date.parse(jobs[0].expires) - Date.now();
    assert.ok(left > 3_000 && left <= 4_500, `it ends in ${left} ms`);
  });

  test("that is lost gives the job to another worker and nothing to the old one", async () => {
    const tenant = server.newTenant();
    await tenant.enqueue("pack");
    const old = await tenant.leaseOne({ lease: "1s", worker: "slow" });
    const next = await tenant.leaseOne({ wait: "20s", worker: "quick" });
    assert.deepEqual([next.id, next.attempt], [old.id, 2]);
    assert.notEqual(next.lease, old.lease);

    const effects = { events: [{ type: "item:added", data: { itemId: "late", amount: 1 } }] };
    assert.equal((await tenant.settle(old, "done", { result: "old", effects })).error.code, "job.lease_lost");
    const renewal = { leases: [{ id: old.id, lease: old.lease }], extend: "30s" };
    const renewed = expectStatus(await tenant.api("/v1/leases/renew", { body: renewal }), 200);
    assert.equal(renewed.leases[0].error.code, "job.lease_lost");

    assert.equal((await tenant.settle(next, "done", { result: "new" })).state, "completed");
    const job = await tenant.job(old.id);
    assert.equal(job.result, "new");
    assert.deepEqual(job.failedAttempts.map(({ attempt, worker }) => [attempt, worker]), [[1, "slow"]]);
    assert.deepEqual(await tenant.log(), []);
  });

  test("that is lost too often leaves a dead letter", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack", {}, { attempts: 2 });
    for (const attempt of [1, 2]) assert.equal((await tenant.leaseOne({ lease: "1s", wait: "20s" })).attempt, attempt);
    await eventually("the job to be dead", async () => (await tenant.job(id)).state === "dead");
    assert.equal((await tenant.job(id)).failedAttempts.length, 2);
  });

  test("that is renewed keeps the job", async () => {
    const tenant = server.newTenant();
    await tenant.enqueue("pack");
    const job = await tenant.leaseOne({ lease: "1s" });
    const body = { leases: [{ id: job.id, lease: job.lease }], extend: "30s" };
    const [renewed] = expectStatus(await tenant.api("/v1/leases/renew", { body }), 200).leases;
    assert.deepEqual([renewed.id, renewed.cancelled], [job.id, false]);
    assert.ok(Date.parse(renewed.expires) > Date.parse(job.expires) + 20_000, renewed.expires);
    assert.deepEqual(await tenant.lease({ wait: "2500ms" }), [], "nobody else gets it");
    assert.equal((await tenant.settle(job, "done")).state, "completed");
  });
});

describe("dead letters", () => {
  test("are listed with their history and run again when they are redriven", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    await exhaust(tenant);
    const failed = await tenant.enqueue("audit");
    await tenant.settle(await tenant.leaseOne(), "fail", { error: "wrong" });
    const letters = await tenant.list("/v1/dead-letters");
    assert.deepEqual(new Map(letters.map((job) => [job.id, job.state])), new Map([[failed.id, "failed"], [id, "dead"]]));

    expectStatus(await tenant.api("/v1/dead-letters/redrive", { body: { ids: [id] } }), 200);
    assert.deepEqual((await tenant.list("/v1/dead-letters")).map((job) => job.id), [failed.id]);
    const job = await tenant.leaseOne();
    assert.deepEqual([job.id, job.attempt], [id, 1], "with all its attempts");
    await tenant.settle(job, "done");
    assert.equal((await tenant.job(id)).state, "completed");
  });

  test("are redriven by queue and by type", async () => {
    const tenant = server.newTenant();
    for (const type of ["pack", "audit"]) {
      await tenant.enqueue(type);
      await tenant.settle(await tenant.leaseOne(), "fail", { error: "wrong" });
    }
    expectStatus(await tenant.api("/v1/dead-letters/redrive", { body: { queue: "slow" } }), 200);
    assert.equal((await tenant.leaseOne()).type, "audit");
    expectStatus(await tenant.api("/v1/dead-letters/redrive", { body: { type: "pack" } }), 200);
    assert.equal((await tenant.leaseOne()).type, "pack");
    assert.deepEqual(await tenant.list("/v1/dead-letters"), []);
  });
});

describe("an operator", () => {
  test("retries a dead letter", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    await exhaust(tenant);
    expectStatus(await control(tenant, id, "retry"), 200);
    assert.equal((await tenant.leaseOne()).id, id);
  });

  test("cancels a job that waits", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack");
    expectStatus(await control(tenant, id, "cancel"), 200);
    assert.equal((await tenant.job(id)).state, "cancelled");
    assert.deepEqual(await tenant.lease({ wait: "0s" }), []);
  });

  test("cancels a job that runs: its worker is told at the next renewal", async () => {
    const tenant = server.newTenant();
    const job = (await tenant.enqueue("pack"), await tenant.leaseOne());
    expectStatus(await control(tenant, job.id, "cancel"), 200);
    const body = { leases: [{ id: job.id, lease: job.lease }] };
    const [renewed] = expectStatus(await tenant.api("/v1/leases/renew", { body }), 200).leases;
    assert.equal(renewed.cancelled, true);
  });

  test("promotes a job that is due later", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack", {}, { delay: "1h" });
    expectStatus(await control(tenant, id, "promote"), 200);
    assert.equal((await tenant.leaseOne()).id, id);
  });

  test("does nothing to a job of another tenant, or to none", async () => {
    const [mine, other] = [server.newTenant(), server.newTenant()];
    const { id } = await mine.enqueue("pack", {}, { delay: "1h" });
    for (const name of [id, "no-such-job"]) {
      expectProblem(await other.api(`/v1/jobs/${name}`), 404, "job.not_found");
      for (const what of ["retry", "cancel", "promote"]) expectProblem(await control(other, name, what), 404, "job.not_found");
    }
    assert.equal((await mine.job(id)).state, "scheduled");
  });

  test("sees how many jobs each queue has, by state", async () => {
    const tenant = server.newTenant();
    await tenant.api("/v1/jobs", { body: Array.from({ length: 4 }, () => ({ type: "pack" })) });
    await tenant.enqueue("pack", {}, { delay: "1h" });
    await tenant.settle(await tenant.leaseOne(), "done");
    await tenant.leaseOne();
    const queues = expectStatus(await tenant.api("/v1/queues"), 200).items;
    assert.deepEqual(queues.map(({ name }) => name).sort(), ["clock", "slow", "work"]);
    const { counts } = queues.find(({ name }) => name === "work");
    const some = Object.fromEntries(Object.entries(counts).filter(([, count]) => count > 0));
    assert.deepEqual(some, { pending: 2, scheduled: 1, processing: 1, completed: 1 });
  });

  test("lists jobs by state, type and queue, newest first", async () => {
    const tenant = server.newTenant();
    const ids = [];
    for (const type of ["pack", "audit", "pack"]) ids.push((await tenant.enqueue(type)).id);
    assert.deepEqual((await tenant.list("/v1/jobs")).map(({ id }) => id), ids.toReversed());
    assert.deepEqual((await tenant.list("/v1/jobs?type=pack")).map(({ id }) => id), [ids[2], ids[0]]);
    assert.deepEqual((await tenant.list("/v1/jobs?queue=slow")).map(({ id }) => id), [ids[1]]);
    assert.deepEqual(await tenant.list("/v1/jobs?state=completed"), []);
    assert.equal((await tenant.list("/v1/jobs?state=pending")).length, 3);
    for (const limit of [0, 501, "few"]) expectProblem(await tenant.api(`/v1/jobs?limit=${limit}`), 400, "request.invalid");
    const page = expectStatus(await tenant.api("/v1/jobs?limit=2"), 200);
    assert.deepEqual(page.items.map(({ id }) => id), [ids[2], ids[1]]);
    const rest = expectStatus(await tenant.api(`/v1/jobs?limit=2&cursor=${encodeURIComponent(page.nextCursor)}`), 200);
    assert.deepEqual([rest.items.map(({ id }) => id), rest.nextCursor ?? null], [[ids[0]], null]);
  });
});

describe("a schedule", () => {
  // App-wide schedules belong to no tenant, so only the key of all tenants can work on their jobs.
  async function tick() {
    const body = { types: ["tick"], max: 1, wait: "10s", lease: "30s", worker: "clock" };
    const { jobs } = expectStatus(await server.api("/v1/leases", { body }), 200);
    assert.equal(jobs.length, 1, "a tick within ten seconds");
    const results = [{ id: jobs[0].id, lease: jobs[0].lease, verdict: "done" }];
    const settled = expectStatus(await server.api("/v1/leases/settle", { body: { results } }), 200);
    assert.equal(settled.results[0].state, "completed");
    return jobs[0];
  }

  test("fires each second", async () => {
    const ids = new Set();
    for (let n = 0; n < 3; n += 1) {
      const job = await tick();
      assert.deepEqual(job.data, { from: "the clock" });
      ids.add(job.id);
    }
    assert.equal(ids.size, 3);
  });

  test("tells its next five times", async () => {
    const { items } = expectStatus(await server.api("/v1/schedules"), 200);
    const nightly = items.find(({ key }) => key === "nightly");
    assert.equal(nightly.next.length, 5);
    const times = nightly.next.map((time) => new Date(time));
    assert.ok(times[0] > new Date(), "in the future");
    for (const [n, time] of times.entries()) {
      const hour = new Intl.DateTimeFormat("en-GB", { timeZone: "Europe/Berlin", timeStyle: "short" }).format(time);
      // The night in which the clock skips half past two, the slot comes right after the gap.
      assert.ok(["02:30", "03:00"].includes(hour), `half past two in Berlin: ${time.toISOString()}`);
      if (n > 0) assert.ok(time > times[n - 1], "ascending");
    }
    const second = items.find(({ key }) => key === "every-second");
    assert.equal(Date.parse(second.next[1]) - Date.parse(second.next[0]), 1_000);
  });
});
