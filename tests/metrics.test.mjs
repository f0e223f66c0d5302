// What monitoring sees: GET /metrics and GET /v1/stats.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { Raw, connect, connectError } from "./clients.mjs";
import { Metrics } from "./exposition.mjs";
import { eventually, expectProblem, expectStatus, start } from "./harness.mjs";

const READS_ALL = "a-key-that-reads-all-tenants";
const WORKS = "a-key-of-all-that-only-works";

let server;
before(async () => {
  const config = `[[keys]]\nkey = "${READS_ALL}"\ntenant = "*"\nscopes = ["read"]\n[[keys]]\nkey = "${WORKS}"\ntenant = "*"\nscopes = ["work"]\n`;
  server = await start({ app: shop(), config });
});

/** How much counters grew while `work` ran. */
async function growth(work) {
  const earlier = await Metrics.of(server);
  await work();
  const later = await Metrics.of(server);
  return { later, by: (name, labels) => later.get(name, labels) - (earlier.find(name, labels) ?? 0) };
}

describe("GET /metrics", () => {
  test("is for keys of all tenants with the scope read", async () => {
    expectProblem(await server.api("/metrics", { key: null }), 401, "auth.required");
    expectProblem(await server.api("/metrics", { key: "nobody-has-this-key-here" }), 401, "auth.invalid");
    expectProblem(await server.newTenant().api("/metrics"), 403, "auth.forbidden");
    expectProblem(await server.api("/metrics", { key: WORKS }), 403, "auth.forbidden");
    const answer = await server.api("/metrics", { key: READS_ALL });
    expectStatus(answer, 200);
    assert.equal(answer.headers.get("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  });

  test("needs no key where the configuration says so", async () => {
    const open = await start({ app: shop(), env: { TIDEWIRE_METRICS__PUBLIC: "true" } });
    expectStatus(await open.api("/metrics", { key: null }), 200);
    expectProblem(await open.api("/v1/stats", { key: null }), 401, "auth.required");
    await open.stop();
  });

  test("has the families that the documentation lists, with their types and labels", async () => {
    const tenant = server.newTenant();
    await connect(server, { token: tenant.token("ann") });
    await tenant.enqueue("pack");
    const told = new Map();
    for (const [name, { type, samples }] of (await Metrics.of(server)).families) {
      const labels = samples.flatMap((sample) => Object.keys(sample.labels)).filter((label) => label !== "le");
      told.set(name, `${type} ${[...new Set(labels)].join(", ")}`.trim());
    }
    const page = readFileSync(new URL("../docs/operations.md", import.meta.url), "utf8");
    const rows = [...page.matchAll(/^\| `((?:tidewire|process)_[a-z_]+)` \| (counter|gauge|histogram) \| ([^|]*)\|/gm)];
    const listed = new Map(rows.map(([, name, type, labels]) => [name, `${type} ${labels.replaceAll("`", "").trim()}`.trim()]));
    assert.deepEqual([...told].toSorted(), [...listed].toSorted());
  });
});

describe("sockets", () => {
  test("are counted by transport, and what they get", async () => {
    const tenant = server.newTenant();
    const { later, by } = await growth(async () => {
      const ann = await connect(server, { token: tenant.token("ann") });
      const bob = await connect(server, { token: tenant.token("bob"), transports: ["polling"] });
      await tenant.publish("item:added", { itemId: "a", amount: 1 });
      for (const client of [ann, bob]) await client.seen.until("item:added");
      await ann.must("join", "item:7");
    });
    assert.equal(by("tidewire_socket_connections", { transport: "websocket" }), 1);
    assert.equal(by("tidewire_socket_connections", { transport: "polling" }), 1);
    assert.equal(by("tidewire_sockets"), 2);
    assert.equal(by("tidewire_socket_opened_total"), 2);
    assert.equal(by("tidewire_socket_events_total"), 1);
    assert.equal(by("tidewire_socket_deliveries_total"), 2);
    assert.equal(by("tidewire_socket_messages_total"), 1);
    assert.equal(by("tidewire_socket_delivery_seconds_count"), 2, "both were written live");
    assert.ok(by("tidewire_socket_delivery_seconds_sum") < 10, "in seconds");
    assert.equal(by("tidewire_socket_rooms"), 4);
    assert.equal(later.get("tidewire_tenant_sockets", { tenant: tenant.name }), 2);
    assert.equal(later.get("tidewire_tenant_deliveries_total", { tenant: tenant.name }), 2);
    assert.equal(later.get("tidewire_tenant_messages_total", { tenant: tenant.name }), 1);
    const bytes = later.get("tidewire_tenant_delivered_bytes_total", { tenant: tenant.name });
    assert.equal(by("tidewire_socket_delivered_bytes_total"), bytes);
  });

  test("are counted by why they were refused, closed and not recovered", async () => {
    const tenant = server.newTenant();
    const closed = async (reason, count) =>
      eventually(`${count} closed as ${reason}`, async () => (await Metrics.of(server)).get("tidewire_socket_closed_total", { reason }) >= count);
    const at = (await Metrics.of(server)).get("tidewire_socket_closed_total", { reason: "malformed" });
    const { by } = await growth(async () => {
      await connectError(server, { token: "x.y.z" });
      await connectError(server, {});
      await connectError(server, { token: tenant.token("ann"), namespace: "/nowhere" });
      const raw = new Raw(server);
      await raw.until(/^0\{/);
      raw.ws.send("nonsense");
      await raw.closed();
      await closed("malformed", at + 1);
      const ann = await connect(server, { token: tenant.token("ann"), reconnection: false });
      await ann.refused("join", "item:sealed");
      await ann.refused("no such message");
      await ann.drop("cut");
      await ann.comeBack();
      assert.equal(ann.socket.recovered, true);
      ann.socket.auth = { token: tenant.token("bob") };
      await ann.drop("cut");
      await ann.comeBack();
      assert.equal(ann.socket.recovered, false);
      assert.equal((await server.api("/socket.io/?EIO=4&transport=polling&sid=unknown")).status, 400);
      assert.equal((await server.api("/socket.io/?EIO=3&transport=polling")).status, 400);
    });
    for (const code of ["auth.invalid", "auth.required", "namespace.unknown"]) {
      assert.equal(by("tidewire_socket_connects_refused_total", { code }), 1, code);
    }
    for (const code of ["room.forbidden", "message.unknown"]) {
      assert.equal(by("tidewire_socket_messages_refused_total", { code }), 1, code);
    }
    for (const outcome of ["recovered", "foreign"]) {
      assert.equal(by("tidewire_socket_recoveries_total", { outcome }), 1, outcome);
    }
    for (const reason of ["unknown_sid", "unsupported_protocol"]) {
      assert.equal(by("tidewire_socket_transports_refused_total", { reason }), 1, reason);
    }
    assert.equal(by("tidewire_socket_closed_total", { reason: "malformed" }), 1);
  });

  test("that come back are counted by what became of it", async () => {
    const own = await start({ app: shop({ history: `{ count = 3, age = "2s" }` }) });
    const tenant = own.newTenant();
    const auth = { token: tenant.token("ann") };
    const session = async (more) => {
      const raw = new Raw(own);
      const { pid } = await raw.session({ ...auth, ...more });
      const hello = JSON.parse((await raw.until(/^42\["connected"/)).slice(2));
      return { raw, pid, offset: hello.at(-1) };
    };
    const returned = async (outcome, count = 1) =>
      assert.equal((await Metrics.of(own)).get("tidewire_socket_recoveries_total", { outcome }), count, outcome);
    const publish = (amount) => tenant.publish("item:added", { itemId: "a", amount });

    const first = await session();
    first.raw.close();
    await publish(1);
    const again = await session({ pid: first.pid, offset: first.offset });
    await returned("recovered");
    again.raw.close();
    for (let n = 2; n < 6; n += 1) await publish(n);
    const late = await session({ pid: first.pid, offset: first.offset });
    await returned("trimmed");
    late.raw.ws.send(`420["subscribe",{"eventTypes":["item:*"]}]`);
    await late.raw.until(/^430\[\{"/);
    late.raw.ws.send("41");
    await eventually("the socket to have left", async () => (await own.api("/health/ws")).body.realtime.sockets === 0);
    // Behind this commit the store has kept that the session has ended.
    await publish(6);
    await session({ pid: late.pid, offset: late.offset });
    await returned("ended");
    const [epoch, position] = late.offset.split(".");
    await session({ pid: late.pid, offset: `${epoch.split("").reverse().join("")}x.${position}` });
    await returned("epoch");
    await session({ pid: "x", offset: late.offset });
    await returned("foreign");

    const aging = await session();
    aging.raw.close();
    await publish(7);
    // Nothing tells that an event has become too old but that it is refused.
    await eventually("the event to be too old", async () => {
      (await session({ pid: aging.pid, offset: aging.offset })).raw.close();
      return (await Metrics.of(own)).get("tidewire_socket_recoveries_total", { outcome: "expired" }) === 1;
    });
    await own.stop();
  });

  test("of the busiest tenants only have metrics of their own", async () => {
    const own = await start({ app: shop(), config: "[metrics]\nmaxTenants = 2\n" });
    const tenants = [own.newTenant(), own.newTenant(), own.newTenant()];
    for (const [index, tenant] of tenants.entries()) {
      const client = await connect(own, { token: tenant.token("ann") });
      for (let n = 0; n < index; n += 1) await tenant.publish("item:added", { itemId: "a", amount: n });
      if (index) await client.seen.until("item:added", ({ amount }) => amount === index - 1);
    }
    const metrics = await Metrics.of(own);
    const deliveries = tenants.map(({ name }) => metrics.find("tidewire_tenant_deliveries_total", { tenant: name }));
    assert.deepEqual(deliveries, [undefined, 1, 2]);
    await own.stop();
  });
});

describe("the store, jobs and the process", () => {
  test("are counted", async () => {
    const tenant = server.newTenant();
    const queue = "work";
    const { later, by } = await growth(async () => {
      await tenant.publish("item:added", { itemId: "a", amount: 1 });
      await tenant.enqueue("pack");
      await tenant.enqueue("pack");
      await tenant.enqueue("pack");
      const jobs = [];
      for (let n = 0; n < 3; n += 1) jobs.push(await tenant.leaseOne());
      await tenant.settle(jobs[0], "done");
      await tenant.settle(jobs[1], "fail", { error: "never" });
    });
    assert.equal(by("tidewire_store_events_total"), 1);
    assert.equal(by("tidewire_store_commits_total"), 4);
    assert.ok(by("tidewire_store_turns_total") >= 4 && by("tidewire_store_calls_total") >= 9);
    assert.equal(by("tidewire_store_turn_seconds_count"), by("tidewire_store_turns_total"));
    assert.ok(later.get("tidewire_store_turn_seconds_sum") >= later.get("tidewire_store_sync_seconds_sum"));
    assert.ok(later.get("tidewire_store_database_bytes") > 4096);
    assert.ok(later.get("tidewire_store_logs") >= 1 && by("tidewire_store_log_events") === 1);
    assert.equal(later.get("tidewire_store_up", { durability: "synced" }), 1);
    assert.equal(by("tidewire_jobs_enqueued_total", { queue }), 3);
    assert.equal(by("tidewire_job_runs_started_total", { queue }), 3);
    assert.equal(by("tidewire_job_runs_ended_total", { queue, outcome: "completed" }), 1);
    assert.equal(by("tidewire_job_runs_ended_total", { queue, outcome: "failed" }), 1);
    assert.equal(by("tidewire_jobs", { queue, state: "processing" }), 1);
    assert.equal(by("tidewire_job_leases"), 1);
    assert.equal(by("tidewire_job_wait_seconds_count", { queue }), 3);
    assert.equal(by("tidewire_job_run_seconds_count", { queue }), 2);
    assert.ok(later.get("process_resident_memory_bytes") > 1e6);
    assert.ok(later.get("process_open_fds") > 5 && later.get("process_open_fds") < later.get("process_max_fds"));
    assert.ok(later.get("process_cpu_seconds_total") > 0 && later.get("tidewire_uptime_seconds") > 0);
  });
});

describe("GET /v1/stats", () => {
  test("has everything for a key of all tenants", async () => {
    const { process, sockets, store, jobs } = expectStatus(await server.api("/v1/stats", { key: READS_ALL }), 200);
    assert.ok(process.residentBytes > 1e6 && process.version);
    assert.ok(sockets.opened >= 1 && sockets.closed.lost >= 0 && sockets.transports.polling >= 0 && Array.isArray(sockets.busiest));
    assert.ok(sockets.delivery.count >= 1 && sockets.delivery.p99 > 0);
    assert.ok(store.turns >= 1 && store.durability.startsWith("synced") && !("queues" in store));
    assert.ok(jobs.states.work.completed >= 1 && jobs.runs.work.completed >= 1 && jobs.runs.work.wait.count >= 1);
  });

  test("has what concerns its tenant for a key of one", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    await other.publish("item:added", { itemId: "a", amount: 1 });
    const ann = await connect(server, { token: tenant.token("ann") });
    await tenant.publish("item:added", { itemId: "a", amount: 1 });
    await ann.seen.until("item:added");
    await tenant.enqueue("pack");
    const { deliveryBytes, ...sockets } = expectStatus(await tenant.api("/v1/stats"), 200).sockets;
    assert.ok(deliveryBytes > 10);
    assert.deepEqual(sockets, { sockets: 1, rooms: 2, deliveries: 1, messagesIn: 0, messagesLimited: 0 });
    const { store, jobs, tenant: name } = expectStatus(await server.api(`/v1/stats?tenant=${tenant.name}`), 200);
    assert.deepEqual({ name, store, jobs }, { name: tenant.name, store: { position: 1 }, jobs: { states: { work: { pending: 1 } } } });
    expectProblem(await tenant.api(`/v1/stats?tenant=${other.name}`), 404, "tenant.unknown");
    expectProblem(await server.api("/v1/stats", { key: WORKS }), 403, "auth.forbidden");
  });
});
