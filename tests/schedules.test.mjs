// Schedules that are made at run time, through the real binary: they fire, rest, end and are gone when they are told to.

import assert from "node:assert/strict";
import { join } from "node:path";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { APPS, eventually, expectProblem, expectStatus, start } from "./harness.mjs";

const CLOCK = `
[queues.clock]
concurrency = 100

[jobs.tick]
queue = "clock"
data = { n = "integer?" }

[jobs.digest]
queue = "clock"
data = { userId = "string", kind = "string?" }

[schedules.nightly]
job = "tick"
cron = "30 2 * * *"

[jobs.pulse]
queue = "clock"

[jobs.round]
queue = "clock"

[schedules.pulse]
job = "pulse"
every = "1s"
overlap = "allow"

[schedules.round]
job = "round"
every = "1s"
overlap = "allow"
per = "tenant"
`;

let server;
before(async () => {
  server = await start({ app: shop({ more: CLOCK }) });
});

const path = (key, query = "") => `/v1/schedules/${encodeURIComponent(key)}${query}`;
const put = (tenant, key, body, query) => tenant.api(path(key, query), { method: "PUT", body });
const get = async (tenant, key, query) => expectStatus(await tenant.api(path(key, query)), 200);
const within = (seconds) => new Date(Date.now() + seconds * 1_000).toISOString();

async function runOne(tenant, type) {
  const job = await tenant.leaseOne({ types: [type] });
  assert.equal((await tenant.settle(job, "done")).state, "completed");
  return tenant.job(job.id);
}

describe("a schedule of a tenant", () => {
  test("fires each second, each slot once, and as the tenant's own", async () => {
    const tenant = server.newTenant();
    const made = expectStatus(await put(tenant, "beat", { job: "tick", every: "1s", data: { n: 1 } }), 200);
    assert.deepEqual(
      [made.source, made.tenant, made.key, made.job, made.timing, made.state, made.revision, made.runs],
      ["stored", tenant.name, "beat", "tick", { every: "1s" }, "active", 1, 0],
    );
    assert.equal(made.next.length, 5);
    const causes = new Set();
    for (let n = 0; n < 3; n += 1) {
      const job = await runOne(tenant, "tick");
      assert.deepEqual([job.tenant, job.data], [tenant.name, { n: 1 }]);
      assert.match(job.causationId, /^beat@\d{4}-.*Z$/);
      causes.add(job.causationId);
    }
    assert.equal(causes.size, 3);
    const now = await get(tenant, "beat");
    assert.ok(now.runs >= 3 && now.last && now.lastJob, JSON.stringify(now));

    const paused = expectStatus(await put(tenant, "beat", { job: "tick", every: "1s", data: { n: 1 }, paused: true }), 200);
    assert.deepEqual([paused.state, paused.next], ["paused", []]);
    assert.ok(paused.runs >= now.runs && paused.last >= now.last, "what it has done is kept");
    const resumed = expectStatus(await put(tenant, "beat", { job: "tick", every: "1s", data: { n: 2 } }), 200);
    assert.equal(resumed.state, "active");
    await eventually("the new data to be used", async () => (await runOne(tenant, "tick")).data.n === 2);

    assert.equal((await tenant.api(path("beat"), { method: "DELETE" })).status, 204);
    expectProblem(await tenant.api(path("beat")), 404, "schedule.not_found");
    expectProblem(await tenant.api(path("beat"), { method: "DELETE" }), 404, "schedule.not_found");
  });

  test("may fire only once, and stays listed as ended", async () => {
    const tenant = server.newTenant();
    const at = within(1);
    expectStatus(await put(tenant, "once", { job: "tick", at }), 200);
    assert.equal(Date.parse((await runOne(tenant, "tick")).causationId.slice("once@".length)), Date.parse(at));
    const ended = await get(tenant, "once");
    assert.deepEqual([ended.state, ended.runs, ended.next], ["ended", 1, []]);
    assert.equal(expectStatus(await put(tenant, "once", { job: "tick", at }), 200).state, "ended", "the same again");
    expectProblem(await put(tenant, "late", { job: "tick", at: within(-5) }), 400, "schedule.in_the_past");
  });

  test("ends with its limit", async () => {
    const tenant = server.newTenant();
    expectStatus(await put(tenant, "twice", { job: "tick", every: "1s", limit: 2, overlap: "allow" }), 200);
    await runOne(tenant, "tick");
    await runOne(tenant, "tick");
    assert.equal((await get(tenant, "twice")).state, "ended");
  });

  test("is put by the same request again without a change", async () => {
    const tenant = server.newTenant();
    const body = { job: "tick", cron: "0 8 * * *", timezone: "Europe/Berlin" };
    const one = expectStatus(await put(tenant, "k", body), 200);
    assert.deepEqual(expectStatus(await put(tenant, "k", body), 200), one);
    assert.equal(expectStatus(await put(tenant, "k", { ...body, data: { n: 3 } }), 200).revision, 2);
  });

  test("runs now beside its slots", async () => {
    const tenant = server.newTenant();
    expectStatus(await put(tenant, "k", { job: "tick", cron: "0 8 1 1 *", data: { n: 7 } }), 200);
    const { jobs } = expectStatus(await tenant.api(`${path("k")}/run`, { method: "POST" }), 201);
    assert.equal(jobs[0].type, "tick");
    assert.deepEqual((await runOne(tenant, "tick")).data, { n: 7 });
    assert.equal((await get(tenant, "k")).runs, 0);
    expectProblem(await tenant.api("/v1/schedules/nightly/run", { method: "POST" }), 403, "auth.forbidden");
    expectProblem(await tenant.api("/v1/schedules/none/run", { method: "POST" }), 404, "schedule.not_found");
  });

  test("of the app has jobs that a key for all tenants sees to one by one", async () => {
    const { jobs } = expectStatus(await server.api("/v1/schedules/nightly/run", { method: "POST" }), 201);
    const job = (what = "", tenant = "$app") => `/v1/jobs/${encodeURIComponent(jobs[0].id)}${what}?tenant=${tenant}`;
    const post = async (what) => expectStatus(await server.api(job(what), { method: "POST" }), 200).state;
    const shown = expectStatus(await server.api(job()), 200);
    assert.deepEqual([shown.tenant, shown.type, shown.state], ["$app", "tick", "pending"]);
    assert.equal(await post("/cancel"), "cancelled");
    assert.equal(await post("/retry"), "pending");
    assert.deepEqual(expectStatus(await server.api(job("/logs")), 200).items, []);
    const changed = expectStatus(await server.api(job(), { method: "PATCH", body: { delay: "1h", data: { n: 4 } } }), 200);
    assert.deepEqual([changed.state, changed.data], ["scheduled", { n: 4 }]);
    assert.equal(await post("/promote"), "pending");

    const tenant = server.newTenant();
    await tenant.enqueue("tick", { n: 1 });
    const listed = expectStatus(await server.api("/v1/jobs?tenant=$app&type=tick"), 200).items;
    assert.ok(listed.some(({ id }) => id === jobs[0].id) && listed.every((listed) => listed.tenant === "$app"));
    const many = async (verb, chosen) =>
      expectStatus(await server.api(`/v1/jobs/${verb}`, { body: { tenant: "$app", ...chosen } }), 200).changed;
    assert.equal(await many("cancel", { ids: [jobs[0].id] }), 1);
    assert.equal(await many("retry", { type: "tick", states: ["cancelled"] }), 1);
    assert.equal((await tenant.list("/v1/jobs"))[0].state, "pending");
    const foreign = { body: { tenant: "$app", type: "tick" } };
    expectProblem(await tenant.api("/v1/jobs/cancel", foreign), 400, "tenant.invalid");
    expectProblem(await tenant.api(job()), 400, "tenant.invalid");
    expectProblem(await tenant.api(job("/cancel"), { method: "POST" }), 400, "tenant.invalid");
    expectProblem(await server.api(job("", "$other")), 400, "tenant.invalid");
    expectStatus(await server.api(job(), { method: "DELETE" }), 200);
    expectProblem(await server.api(job()), 404, "job.not_found");
  });

  test("is another tenant's secret", async () => {
    const [mine, theirs] = [server.newTenant(), server.newTenant()];
    expectStatus(await put(mine, "k", { job: "tick", every: "1h" }), 200);
    expectProblem(await theirs.api(path("k")), 404, "schedule.not_found");
    expectProblem(await theirs.api(path("k"), { method: "DELETE" }), 404, "schedule.not_found");
    const items = await theirs.list("/v1/schedules");
    assert.deepEqual(items.map(({ source, key }) => [source, key]), ["nightly", "pulse", "round"].map((key) => ["catalog", key]));
    expectStatus(await mine.api("/v1/schedules?key=k"), 200);
  });

  test("survives a kill of the server", async () => {
    const own = await start({ app: shop({ more: CLOCK }) });
    const tenant = own.newTenant();
    expectStatus(await put(tenant, "beat", { job: "tick", every: "1s" }), 200);
    const before = (await runOne(tenant, "tick")).causationId;
    await own.kill();
    await own.restart();
    const after = await eventually("a later slot", async () => {
      const { causationId } = await runOne(tenant, "tick");
      return causationId > before && causationId;
    });
    const jobs = await tenant.list("/v1/jobs?type=tick");
    const causes = jobs.map(({ causationId }) => causationId);
    assert.ok(causes.includes(before) && causes.includes(after));
    assert.equal(new Set(causes).size, causes.length, "each slot once");
    await own.stop();
  });
});

describe("the app", () => {
  const of = (key, call = {}) => server.api(path(key, "?tenant=$app"), call);
  const shown = async (key) => expectStatus(await of(key), 200);

  test("pauses a schedule of the catalog, over a restart, and resumes it", async () => {
    const own = await start({ app: shop({ more: CLOCK }) });
    const pulse = (call) => own.api(path("pulse", "?tenant=$app"), call);
    const now = async () => expectStatus(await pulse(), 200);
    const ran = await eventually("a slot to fire", async () => {
      const shown = await now();
      return shown.runs > 0 && shown;
    });
    assert.deepEqual([ran.source, ran.per, ran.paused, ran.next.length], ["catalog", "app", false, 5]);
    assert.equal(ran.lastJob, `pulse@${ran.last}`);
    const paused = expectStatus(await pulse({ method: "PUT", body: { paused: true } }), 200);
    assert.deepEqual([paused.paused, paused.next], [true, []]);
    await own.kill();
    await own.restart();
    // Slots pass, and each is looked at, but no job comes of them.
    await eventually("two slots to pass", async () => Date.parse((await now()).last) >= Date.parse(paused.last ?? 0) + 2_000);
    const rested = await now();
    assert.deepEqual([rested.paused, rested.runs, rested.lastJob], [true, paused.runs, paused.lastJob]);
    assert.equal((await own.api(`/v1/schedules?key=pulse`)).body.items.length, 1, "it is listed once");
    const { jobs } = expectStatus(await own.api("/v1/schedules/pulse/run", { method: "POST" }), 201);
    assert.equal(jobs[0].type, "pulse", "it can be run all the same");
    assert.equal(expectStatus(await pulse({ method: "PUT", body: { paused: false } }), 200).paused, false);
    await eventually("it to fire again", async () => (await now()).runs > rested.runs);
    await own.stop();
  });

  test("has schedules that an operator made while it runs", async () => {
    const tenant = server.newTenant();
    const body = { job: "tick", every: "1h", data: { n: 5 } };
    const made = expectStatus(await server.api(path("reindex"), { method: "PUT", body: { tenant: "$app", ...body } }), 200);
    assert.deepEqual([made.source, made.tenant, made.state], ["stored", "$app", "active"]);
    assert.deepEqual(await shown("reindex"), made);
    const { jobs } = expectStatus(await server.api(`${path("reindex")}/run?tenant=$app`, { method: "POST" }), 201);
    const job = expectStatus(await server.api(`/v1/jobs/${jobs[0].id}?tenant=$app`), 200);
    assert.deepEqual([job.tenant, job.data, job.causationId], ["$app", { n: 5 }, "reindex"]);
    const listed = expectStatus(await server.api("/v1/schedules?tenant=$app&key=reindex"), 200).items;
    assert.deepEqual(listed, [made]);

    // A worker ends its runs, and changes nothing of it.
    const { jobs: leased } = expectStatus(await server.api("/v1/leases", { body: { types: ["tick"], queues: [job.queue], max: 100 } }), 200);
    const { id, lease } = leased.find((one) => one.id === job.id);
    const effects = { schedules: [{ key: "reindex", paused: true }] };
    const settled = await server.api("/v1/leases/settle", { body: { results: [{ id, lease, verdict: "done", effects }] } });
    assert.equal(expectStatus(settled, 200).results[0].error.code, "auth.forbidden");
    assert.equal((await shown("reindex")).paused, false);

    // It is nobody's but the operators'.
    for (const call of [{}, { method: "PUT", body }, { method: "DELETE" }]) {
      expectProblem(await tenant.api(path("reindex", "?tenant=$app"), call), 400, "tenant.invalid");
    }
    expectProblem(await tenant.api(path("reindex"), { method: "PUT", body: { tenant: "$app", ...body } }), 400, "tenant.invalid");
    expectProblem(await tenant.api(path("reindex")), 404, "schedule.not_found");
    const commit = { tenant: tenant.name, schedules: [{ tenant: "$app", key: "x", job: "tick", every: "1h" }] };
    expectProblem(await server.api("/v1/commit", { body: commit }), 400, "tenant.mixed");

    assert.equal((await of("reindex", { method: "DELETE" })).status, 204);
    expectProblem(await of("reindex"), 404, "schedule.not_found");
  });

  test("lets nobody change what the catalog says", async () => {
    for (const body of [{ job: "tick", every: "1h" }, { paused: true, every: "1h" }]) {
      expectProblem(await of("nightly", { method: "PUT", body }), 409, "schedule.declared");
    }
    for (const body of [{}, []]) expectProblem(await of("nightly", { method: "PUT", body }), 400, "request.invalid");
    expectProblem(await of("nightly", { method: "DELETE" }), 409, "schedule.declared");
    const tenant = server.newTenant();
    expectProblem(await tenant.api(path("nightly"), { method: "PUT", body: { paused: true } }), 409, "schedule.declared");
    assert.equal((await shown("nightly")).paused, false);
  });

  test("has schedules that fire for each tenant alone", async () => {
    const [one, other] = [server.newTenant(), server.newTenant()];
    for (const tenant of [one, other]) await tenant.enqueue("audit");
    for (const tenant of [one, other]) {
      const jobs = [await tenant.leaseOne({ types: ["round"] }), await tenant.leaseOne({ types: ["round"] })];
      assert.ok(jobs.every((job) => job.tenant === tenant.name && job.id === job.causationId));
      assert.equal(new Set(jobs.map(({ id }) => id)).size, 2, "each slot once");
      const { per, runs, lastJob } = await get(tenant, "round");
      assert.ok(per === "tenant" && runs >= 2 && lastJob.startsWith("round@"), JSON.stringify({ per, runs, lastJob }));
    }
    const { jobs } = expectStatus(await one.api(`${path("round")}/run`, { method: "POST" }), 201);
    assert.equal((await one.job(jobs[0].id)).causationId, "round");
  });
});

describe("in a commit", () => {
  test("schedules are written with the rest, or nothing is", async () => {
    const tenant = server.newTenant();
    const schedules = [{ key: "a", job: "tick", every: "1h" }, { key: "b", job: "digest", userId: "u1", cron: "0 8 * * *" }];
    const body = { events: [{ type: "item:sold", data: { itemId: "a" } }], schedules };
    const bad = { ...body, schedules: [...schedules, { key: "c", job: "tick", limit: 0, every: "1h" }] };
    const refused = expectProblem(await tenant.api("/v1/commit", { body: bad }), 400, "schedule.invalid_option");
    assert.match(refused.detail, /^schedules\[2\]\.limit/);
    assert.deepEqual([(await tenant.log()).length, (await tenant.list("/v1/schedules?key=a")).length], [0, 0]);

    const committed = expectStatus(await tenant.api("/v1/commit", { body }), 201);
    assert.deepEqual(committed.schedules.map(({ key, userId }) => [key, userId]), [["a", undefined], ["b", "u1"]]);
    assert.ok(committed.schedules.every(({ next }) => Date.parse(next) > Date.now()));
    assert.deepEqual((await get(tenant, "b", "?userId=u1")).data, { userId: "u1" });

    const gone = { schedules: [{ key: "a", delete: true }, { key: "b", userId: "u1", delete: true }] };
    expectStatus(await tenant.api("/v1/commit", { body: gone }), 201);
    assert.deepEqual((await tenant.list("/v1/schedules")).filter(({ source }) => source === "stored"), []);
  });
});

describe("what is wrong is refused with a code", () => {
  const cases = [
    ["no time", { job: "tick" }, "schedule.invalid_option"],
    ["two times", { job: "tick", every: "1h", cron: "0 8 * * *" }, "schedule.invalid_option"],
    ["a zone without cron", { job: "tick", every: "1h", timezone: "UTC" }, "schedule.invalid_option"],
    ["no job", { every: "1h" }, "schedule.invalid_option"],
    ["an unknown job", { job: "tikc", every: "1h" }, "job.unknown_type"],
    ["data that does not fit", { job: "tick", every: "1h", data: { n: "x" } }, "job.invalid_data"],
    ["no cron", { job: "tick", cron: "every day" }, "schedule.invalid_cron"],
    ["a cron that never fires", { job: "tick", cron: "0 0 31 2 *" }, "schedule.never_fires"],
    ["an unknown zone", { job: "tick", cron: "0 8 * * *", timezone: "Europe/Berlyn" }, "schedule.unknown_zone"],
    ["too short an interval", { job: "tick", every: "10ms" }, "schedule.invalid_interval"],
    ["an end before the start", { job: "tick", every: "1h", start: within(99), end: within(9) }, "schedule.invalid_option"],
    ["an end in the past", { job: "tick", every: "1h", end: within(-9) }, "schedule.never_fires"],
    ["no run at all", { job: "tick", every: "1h", limit: 0 }, "schedule.invalid_option"],
    ["an unknown field", { job: "tick", evry: "1h" }, "request.invalid"],
    ["another key", { key: "other", job: "tick", every: "1h" }, "request.invalid"],
    ["a delete by PUT", { delete: true }, "request.invalid"],
  ];
  for (const [what, body, code] of cases) {
    test(what, async () => {
      const tenant = server.newTenant();
      expectProblem(await put(tenant, "k", body), 400, code);
      expectProblem(await tenant.api(path("k")), 404, "schedule.not_found");
    });
  }

  test("a key that cannot be, and one of the catalog", async () => {
    const tenant = server.newTenant();
    const body = { job: "tick", every: "1h" };
    expectProblem(await put(tenant, "a b", body), 400, "schedule.invalid_option");
    expectProblem(await put(tenant, "x".repeat(129), body), 400, "schedule.invalid_option");
    expectProblem(await put(tenant, "nightly", body), 409, "schedule.declared");
    expectProblem(await tenant.api(path("nightly"), { method: "DELETE" }), 409, "schedule.declared");
  });
});

test("a user's digest of Port Nimara comes when the user wants it", async () => {
  const nimara = await start({ app: join(APPS, "port-nimara"), tenantClaim: "portId" });
  const port = nimara.newTenant();
  const key = "notification-digest";
  expectProblem(await put(port, key, { cron: "0 8 * * *" }), 400, "schedule.invalid_option");
  const made = expectStatus(await put(port, key, { at: within(1) }, "?userId=ada"), 200);
  assert.deepEqual([made.userId, made.job, made.missed, made.overlap], ["ada", key, "last", "skip"]);
  expectStatus(await put(port, key, { cron: "0 8 * * MON", timezone: "Europe/Rome" }, "?userId=bob"), 200);
  const job = await runOne(port, key);
  assert.deepEqual([job.userId, job.data], ["ada", { userId: "ada" }]);
  assert.match(job.causationId, /^notification-digest\/ada@/);
  const items = await port.list(`/v1/schedules?key=${key}`);
  assert.deepEqual(items.map(({ source, userId }) => [source, userId]), [
    ["catalog", undefined],
    ["stored", "ada"],
    ["stored", "bob"],
  ]);
  assert.deepEqual((await port.list("/v1/schedules?userId=bob")).map(({ state }) => state), ["active"]);
  await nimara.stop();
});

test("a tenant has no more schedules than the catalog says", async () => {
  const own = await start({ app: shop({ more: CLOCK, app: "schedules = 2" }) });
  const [tenant, other] = [own.newTenant(), own.newTenant()];
  const body = { job: "tick", every: "1h" };
  for (const key of ["a", "b", "a"]) expectStatus(await put(tenant, key, body), 200);
  assert.match(expectProblem(await put(tenant, "c", body), 409, "schedule.too_many").detail, /may have 2/);
  expectStatus(await put(other, "c", body), 200);
  expectStatus(await tenant.api(path("a"), { method: "DELETE" }), 204);
  expectStatus(await put(tenant, "c", body), 200);
});
