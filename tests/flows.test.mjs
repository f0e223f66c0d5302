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

  test("is cancelled as a whole, and what comes last runs", async () => {
    const tenant = server.newTenant();
    const jobs = [step("a"), step("b", ["a"]), step("c", ["b"])];
    const { flow } = await begin(tenant, { jobs, finally: { type: "pack", data: { step: "last" } } });
    const [running] = await ready(tenant, "a");
    const cancelled = await expectStatus(await tenant.api(`/v1/flows/${flow}/cancel`, { method: "POST" }), 200);
    assert.deepEqual([cancelled.state, cancelled.unfinished], ["running", 2]);
    assert.deepEqual(cancelled.counts, { processing: 1, cancelled: 2, blocked: 1 });
    const { leases } = await expectStatus(await tenant.api("/v1/leases/renew", { body: { leases: [{ id: running.id, lease: running.lease }] } }), 200);
    assert.equal(leases[0].cancelled, true);
    await tenant.settle(running, "cancel");
    await run(tenant, "last");
    assert.deepEqual((await show(tenant, flow)).counts, { cancelled: 3, completed: 1 });
    expectProblem(await tenant.api(`/v1/flows/${flow}/cancel`, { method: "POST" }), 409, "flow.wrong_state");
    expectProblem(await tenant.api("/v1/flows/nobody/cancel", { method: "POST" }), 404, "flow.not_found");
  });

  test("goes on where it failed when it is retried", async () => {
    const tenant = server.newTenant();
    const { flow } = await begin(tenant, { jobs: [step("a"), step("b", ["a"]), step("c", ["b"])] });
    await run(tenant, "a");
    await run(tenant, "b", "fail");
    assert.equal((await show(tenant, flow)).state, "failed");
    const again = await expectStatus(await tenant.api(`/v1/flows/${flow}/retry`, { method: "POST" }), 200);
    assert.deepEqual([again.state, again.counts], ["running", { completed: 1, pending: 1, blocked: 1 }]);
    await run(tenant, "b");
    await run(tenant, "c");
    assert.equal((await show(tenant, flow)).state, "completed");
    expectProblem(await tenant.api(`/v1/flows/${flow}/retry`, { method: "POST" }), 409, "flow.wrong_state");
  });

  test("is listed, the newest first", async () => {
    const tenant = server.newTenant();
    for (const name of ["one", "two", "three"]) await begin(tenant, { id: name, name, jobs: [{ type: "pack" }] });
    await tenant.settle(await tenant.leaseOne(), "done");
    const list = async (query) => expectStatus(await tenant.api(`/v1/flows?${query}`), 200);
    const first = await list("limit=2");
    assert.deepEqual(first.items.map(({ id, state, unfinished, jobs }) => [id, state, unfinished, jobs]), [
      ["three", "running", 1, undefined], ["two", "running", 1, undefined],
    ]);
    assert.deepEqual((await list(`limit=2&cursor=${first.nextCursor}`)).items.map(({ id }) => id), ["one"]);
    assert.deepEqual((await list("state=completed")).items.map(({ id }) => id), ["one"]);
    assert.deepEqual((await list("name=two")).items.map(({ id }) => id), ["two"]);
    assert.deepEqual((await expectStatus(await server.newTenant().api("/v1/flows"), 200)).items, []);
    for (const query of ["state=over", "cursor=x", "limit=0"]) {
      const code = query === "cursor=x" ? "cursor.invalid" : "request.invalid";
      expectProblem(await tenant.api(`/v1/flows?${query}`), 400, code);
    }
  });

  test("has more results than a lease names", async () => {
    const tenant = server.newTenant();
    const jobs = Array.from({ length: 1_200 }, (_, n) => ({ type: "pack", ref: `r${n}` }));
    await begin(tenant, { jobs, then: { type: "pack", data: { step: "then" } } });
    for (let left = 1_200; left > 0;) {
      const leased = await tenant.lease({ max: 400, wait: "10s" });
      left -= leased.length;
      const results = leased.map(({ id, lease, ref }) => ({ id, lease, verdict: "done", result: { ref } }));
      await expectStatus(await tenant.api("/v1/leases/settle", { body: { results } }), 200);
    }
    const [last] = await ready(tenant, "then");
    assert.equal(last.parents.length, 1_000);
    const first = await expectStatus(await tenant.api(`/v1/jobs/${last.id}/parents?limit=1000`), 200);
    assert.deepEqual(first.items, last.parents);
    const rest = await expectStatus(await tenant.api(`/v1/jobs/${last.id}/parents?limit=1000&cursor=${first.nextCursor}`), 200);
    assert.deepEqual([rest.items.length, rest.nextCursor, rest.items[199].state], [200, null, "completed"]);
    expectProblem(await tenant.api("/v1/jobs/nobody/parents"), 404, "job.not_found");
  });

  test("is begun by a rule of the catalog, once for each event", async () => {
    const own = await start({
      app: shop({
        more: `
[[rules]]
on = "item:added"
when = "data.amount > 1.0"
[rules.flow]
name = "item {{ data.itemId }}"
jobs = [
  { ref = "a", job = "pack", data = { step = "a" } },
  { ref = "b", job = "pack", after = ["a"], data = { step = "{{ data.itemId }}" } },
]
finally = { job = "pack", data = { step = "last" } }
`,
      }),
    });
    const tenant = own.newTenant();
    const event = { type: "item:added", id: "e1", data: { itemId: "i1", amount: 2 } };
    const body = { events: [event, { ...event, id: "e2", data: { itemId: "i2", amount: 1 } }] };
    const { caused } = await expectStatus(await tenant.api("/v1/commit", { body }), 201);
    assert.deepEqual([caused.flows.length, caused.jobs.map(({ state }) => state)], [1, ["pending", "blocked", "blocked"]]);
    const again = await expectStatus(await tenant.api("/v1/commit", { body }), 201);
    assert.equal(again.caused, undefined);
    for (const name of ["a", "i1", "last"]) await run(tenant, name);
    const [shown] = (await expectStatus(await tenant.api("/v1/flows"), 200)).items;
    assert.deepEqual([shown.id, shown.name, shown.state], [caused.flows[0], "item i1", "completed"]);
    await own.stop();
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
