// Flows over HTTP: jobs that wait for each other, what follows when one fails, and what the flow shows.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { expectProblem, expectStatus, start } from "./harness.mjs";

let server;
before(async () => {
  server = await start({ app: shop() });
});

const step = (ref, after = [], more = {}) => ({ type: "pack", ref, after, data: { step: ref }, ...more });
const begin = async (tenant, body) => expectStatus(await tenant.api("/v1/flows", { body }), 201);
const show = async (tenant, id) => expectStatus(await tenant.api(`/v1/flows/${id}`), 200);

/** The steps that may run now, leased. */
async function ready(tenant, ...names) {
  const jobs = await tenant.lease({ max: 100, wait: names.length ? "10s" : "0s" });
  assert.deepEqual(jobs.map(({ data }) => data.step).sort(), names.sort());
  return jobs.sort((one, other) => one.data.step.localeCompare(other.data.step));
}

async function run(tenant, name, verdict = "done", more = {}) {
  const [job] = await ready(tenant, name);
  return tenant.settle(job, verdict, verdict === "done" ? more : { error: `${name} failed`, ...more });
}

describe("a flow", () => {
  test("runs a diamond in its order and shows how far it is", async () => {
    const tenant = server.newTenant();
    const jobs = [step("end", ["left", "right"]), step("left", ["begin"]), step("right", ["begin"]), step("begin")];
    const { flow, jobs: enqueued } = await begin(tenant, { name: "diamond", jobs });
    assert.deepEqual(enqueued.map(({ state }) => state), ["blocked", "blocked", "blocked", "pending"]);
    await run(tenant, "begin");
    const [left, right] = await ready(tenant, "left", "right");
    await tenant.settle(left, "done", { result: { n: 1 } });
    await ready(tenant);
    const halfway = await show(tenant, flow);
    assert.deepEqual([halfway.name, halfway.state], ["diamond", "running"]);
    assert.deepEqual(halfway.counts, { completed: 2, processing: 1, blocked: 1 });
    assert.deepEqual(halfway.jobs[0].after.sort(), [enqueued[1].id, enqueued[2].id].sort());
    await tenant.settle(right, "done");
    await run(tenant, "end");
    const ended = await show(tenant, flow);
    assert.deepEqual([ended.state, ended.counts], ["completed", { completed: 4 }]);
    assert.ok(ended.finishedAt);
    assert.equal((await tenant.job(enqueued[0].id)).flow, flow);
  });

  test("cancels what waits for a step that failed, and runs what comes last", async () => {
    const tenant = server.newTenant();
    const body = {
      jobs: [step("a"), step("b", ["a"]), step("c", ["b"])],
      then: step("then", undefined),
      finally: step("finally", undefined),
    };
    for (const job of [body.then, body.finally]) delete job.after;
    const { flow, jobs } = await begin(tenant, body);
    await run(tenant, "a", "fail");
    await run(tenant, "finally");
    const { state, counts } = await show(tenant, flow);
    assert.deepEqual([state, counts], ["failed", { failed: 1, cancelled: 3, completed: 1 }]);
    assert.match((await tenant.job(jobs[1].id)).error, /which it waits for, is failed/);
  });

  test("goes on where a failure is ignored", async () => {
    const tenant = server.newTenant();
    await begin(tenant, { jobs: [step("shaky", [], { onFailure: "ignore" }), step("end", ["shaky"])] });
    await run(tenant, "shaky", "fail");
    await run(tenant, "end");
  });

  test("undoes what it has completed, the last first", async () => {
    const tenant = server.newTenant();
    const undo = (name) => ({ compensate: { type: "pack", data: { step: `undo ${name}` } } });
    const jobs = [
      step("flight", [], undo("flight")),
      step("hotel", ["flight"], undo("hotel")),
      step("car", ["hotel"], { ...undo("car"), onFailure: "compensate" }),
    ];
    const { flow } = await begin(tenant, { jobs });
    await run(tenant, "flight");
    await run(tenant, "hotel");
    await run(tenant, "car", "fail");
    assert.equal((await show(tenant, flow)).state, "undoing");
    await run(tenant, "undo hotel");
    await run(tenant, "undo flight");
    await ready(tenant);
    assert.equal((await show(tenant, flow)).state, "failed");
  });

  test("is not needed: jobs that wait for each other may be the effects of one that they wait for, too", async () => {
    const tenant = server.newTenant();
    const maker = await tenant.enqueue("pack", { step: "maker" });
    const [leased] = await ready(tenant, "maker");
    const effects = { jobs: [step("one", [maker.id]), step("two", ["one"])] };
    await tenant.settle(leased, "done", { effects });
    await run(tenant, "one");
    await run(tenant, "two");
  });

  test("of ten thousand jobs is one call", async () => {
    const tenant = server.newTenant();
    const jobs = Array.from({ length: 10_000 }, (_, n) => ({ type: "pack", ref: `r${n}`, after: n ? [`r${n - 1}`] : [] }));
    const { flow, jobs: enqueued } = await begin(tenant, { jobs });
    assert.equal(enqueued.length, 10_000);
    await tenant.settle(await tenant.leaseOne(), "fail", { error: "no" });
    assert.deepEqual((await show(tenant, flow)).counts, { failed: 1, cancelled: 9_999 });
  });

  test("is its tenant's own", async () => {
    const [one, other] = [server.newTenant(), server.newTenant()];
    await begin(one, { id: "same", jobs: [step("a")] });
    expectProblem(await other.api("/v1/flows/same"), 404, "flow.not_found");
    const { jobs } = await begin(other, { id: "same", jobs: [step("a")] });
    const body = { jobs: [{ type: "pack", after: [jobs[0].id] }] };
    expectProblem(await one.api("/v1/flows", { body }), 400, "job.missing_parent");
  });

  test("that is wrong is refused whole", async () => {
    const tenant = server.newTenant();
    await begin(tenant, { id: "taken", jobs: [step("a")] });
    for (const [body, status, code] of [
      [{ jobs: [step("a", ["b"]), step("b", ["a"])] }, 400, "flow.cycle"],
      [{ jobs: [{ type: "pack", id: "x", after: ["y"] }, { type: "pack", id: "y", after: ["x"] }] }, 400, "flow.cycle"],
      [{ jobs: [step("a"), step("a")] }, 400, "flow.duplicate_ref"],
      [{ jobs: [step("a"), step("b", ["nobody"])] }, 400, "job.missing_parent"],
      [{ jobs: [] }, 400, "commit.empty"],
      [{ id: "taken", jobs: [step("b")] }, 409, "flow.exists"],
      [{ jobs: [step("a")], theen: step("b") }, 400, "request.invalid"],
    ]) {
      expectProblem(await tenant.api("/v1/flows", { body }), status, code);
    }
    assert.equal((await tenant.list("/v1/jobs")).length, 1);
  });

  test("goes on after a kill of the server", async () => {
    const own = await start({ app: shop() });
    const tenant = own.newTenant();
    const { flow } = await begin(tenant, { jobs: [step("a"), step("b", ["a"]), step("c", ["b"])] });
    await run(tenant, "a");
    const [running] = await ready(tenant, "b");
    await own.kill();
    await own.restart();
    assert.deepEqual((await show(tenant, flow)).counts, { completed: 1, processing: 1, blocked: 1 });
    await tenant.settle(running, "done");
    await run(tenant, "c");
    assert.equal((await show(tenant, flow)).state, "completed");
    await own.stop();
  });
});
