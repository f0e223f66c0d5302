// Unique jobs, keys and expiry over HTTP: what a caller is told, what a worker gets, and what a restart keeps.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { eventually, expectProblem, expectStatus, start } from "./harness.mjs";

const MORE = `
[queues.keyed]
attempts = 3
perKey = 1
keep = { completed = 100, failed = 100 }

[jobs.sync]
queue = "work"
data = { orderId = "string", n = "number?" }
unique = { key = "sync-{orderId}", onConflict = "latest" }

[jobs.charge]
queue = "keyed"
key = "{customer}"
data = { customer = "string", n = "number?" }
`;

let server;
before(async () => {
  server = await start({ app: shop({ more: MORE }) });
});

const brief = ({ state, conflict, deduplicated }) => [state, conflict, deduplicated];

describe("a unique job", () => {
  test("is declared by its type: behind a running one waits one follow-up with the newest data", async () => {
    const tenant = server.newTenant();
    const first = await tenant.enqueue("sync", { orderId: "o1", n: 1 });
    assert.deepEqual(brief(first), ["pending", undefined, undefined]);
    const running = await tenant.leaseOne();
    const follow = await tenant.enqueue("sync", { orderId: "o1", n: 2 });
    assert.deepEqual(brief(follow), ["blocked", "queued", undefined]);
    const again = await tenant.enqueue("sync", { orderId: "o1", n: 3 });
    assert.deepEqual([again.id, ...brief(again)], [follow.id, "blocked", "replaced", true]);
    assert.deepEqual(brief(await tenant.enqueue("sync", { orderId: "o2" })), ["pending", undefined, undefined]);
    assert.deepEqual((await tenant.lease({ max: 10 })).map(({ data }) => data.orderId), ["o2"]);
    await tenant.settle(running, "done");
    const next = await tenant.leaseOne();
    assert.deepEqual([next.id, next.data.n], [follow.id, 3]);
  });

  test("may be asked for in the call, with each policy", async () => {
    const tenant = server.newTenant();
    for (const [onConflict, conflict, data] of [
      ["keep", "kept", 1],
      ["replace", "replaced", 2],
      ["extend", "extended", 1],
      ["latest", "replaced", 2],
      ["supersede", "superseded", 2],
    ]) {
      const unique = { key: `k-${onConflict}`, onConflict };
      const first = await tenant.enqueue("pack", { n: 1 }, { unique });
      const second = await tenant.enqueue("pack", { n: 2 }, { unique });
      assert.equal(second.conflict, conflict);
      const leased = await tenant.lease({ max: 10 });
      assert.deepEqual(leased.map((job) => [job.id, job.data.n]), [[second.id, data]], onConflict);
      if (onConflict === "supersede") assert.equal((await tenant.job(first.id)).state, "cancelled");
      await tenant.settle(leased[0], "done");
      assert.equal((await tenant.enqueue("pack", { n: 3 }, { unique })).conflict, undefined, onConflict);
      await tenant.settle(await tenant.leaseOne(), "done");
    }
  });

  test("that supersedes a running one tells its worker and waits", async () => {
    const tenant = server.newTenant();
    const unique = { key: "report", onConflict: "supersede" };
    await tenant.enqueue("pack", { n: 1 }, { unique });
    const running = await tenant.leaseOne();
    assert.deepEqual(brief(await tenant.enqueue("pack", { n: 2 }, { unique })), ["blocked", "superseded", undefined]);
    const { id, lease } = running;
    const { leases } = expectStatus(await tenant.api("/v1/leases/renew", { body: { leases: [{ id, lease }] } }), 200);
    assert.equal(leases[0].cancelled, true);
    assert.deepEqual(await tenant.lease({ wait: "0s" }), []);
    assert.equal((await tenant.settle(running, "retry", { error: "stopped" })).state, "cancelled");
    assert.equal((await tenant.leaseOne()).data.n, 2);
  });

  test("is one inside a bulk call, too", async () => {
    const tenant = server.newTenant();
    const body = Array.from({ length: 50 }, (_, n) => ({ type: "pack", data: { n }, unique: { key: "one", onConflict: "replace" } }));
    const { jobs } = expectStatus(await tenant.api("/v1/jobs", { body }), 201);
    assert.deepEqual(new Set(jobs.map(({ id }) => id)).size, 1);
    assert.deepEqual((await tenant.lease({ max: 10 })).map(({ data }) => data.n), [49]);
  });

  test("is throttled by its window, also when it has completed", async () => {
    const tenant = server.newTenant();
    const unique = { key: "digest", window: "1h" };
    const first = await tenant.enqueue("pack", {}, { unique });
    await tenant.settle(await tenant.leaseOne(), "done");
    const second = await tenant.enqueue("pack", {}, { unique });
    assert.deepEqual([second.id, ...brief(second)], [first.id, "completed", "kept", true]);
  });

  test("is its tenant's own", async () => {
    const [one, other] = [server.newTenant(), server.newTenant()];
    const unique = { key: "same" };
    assert.equal((await one.enqueue("pack", {}, { unique })).conflict, undefined);
    assert.equal((await other.enqueue("pack", {}, { unique })).conflict, undefined);
  });

  test("with a senseless rule is refused", async () => {
    const tenant = server.newTenant();
    const ask = (unique) => tenant.api("/v1/jobs", { body: { type: "pack", unique } });
    assert.match(expectProblem(await ask({ key: "" }), 400, "job.invalid_option").detail, /unique\.key: expected 1 to 256 bytes/);
    for (const unique of [{ while: [] }, { while: "sometimes" }, { onConflict: "explode" }, { keys: "k" }]) {
      expectProblem(await ask(unique), 400, "request.invalid");
    }
    assert.deepEqual(await tenant.list("/v1/jobs"), []);
  });

  test("outlives a kill of the server, and so does who waits behind it", async () => {
    const own = await start({ app: shop({ more: MORE }) });
    const tenant = own.newTenant();
    await tenant.enqueue("sync", { orderId: "o1", n: 1 });
    const running = await tenant.leaseOne({ lease: "10m" });
    const follow = await tenant.enqueue("sync", { orderId: "o1", n: 2 });
    await own.kill();
    await own.restart();
    const again = await tenant.enqueue("sync", { orderId: "o1", n: 3 });
    assert.deepEqual([again.id, again.conflict], [follow.id, "replaced"]);
    assert.deepEqual(await tenant.lease({ wait: "0s" }), []);
    await tenant.settle(running, "done");
    const next = await tenant.leaseOne();
    assert.deepEqual([next.id, next.data.n], [follow.id, 3]);
    await own.stop();
  });
});

describe("jobs of one key", () => {
  test("run one after the other, and hold back no other key", async () => {
    const tenant = server.newTenant();
    const body = ["ann", "ann", "bob", "ann"].map((customer, n) => ({ type: "charge", data: { customer, n } }));
    expectStatus(await tenant.api("/v1/jobs", { body }), 201);
    const first = await tenant.lease({ max: 10 });
    assert.deepEqual(first.map(({ data }) => data.n), [0, 2]);
    assert.deepEqual(await tenant.lease({ wait: "0s" }), []);
    const waiting = tenant.leaseOne({ wait: "20s" });
    await tenant.settle(first[0], "done");
    const second = await waiting;
    assert.deepEqual([second.data.n, second.attempt], [1, 1]);
    await tenant.settle(second, "fail", { error: "no" });
    assert.equal((await tenant.leaseOne()).data.n, 3);
  });
});

describe("a job that expires", () => {
  test("is taken back when it has not begun in time, and only then", async () => {
    const tenant = server.newTenant();
    const begun = await tenant.enqueue("pack", {}, { ttl: "1500ms" });
    const leased = await tenant.leaseOne();
    assert.equal(leased.id, begun.id);
    const late = await tenant.enqueue("pack", {}, { ttl: "300ms" });
    const job = await eventually("the job to expire", async () => {
      const job = await tenant.job(late.id);
      return job.state === "cancelled" && job;
    });
    assert.match(job.error, /did not begin before it expired/);
    assert.equal((await tenant.settle(leased, "done")).state, "completed");
  });
});
