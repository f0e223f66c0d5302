// kill -9 in the middle of the work: nothing that was acknowledged is lost, nothing happens twice, nobody notices a gap.

import assert from "node:assert/strict";
import { Agent, request } from "node:http";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect } from "./clients.mjs";
import { eventually, expectStatus, start } from "./harness.mjs";

const PUBLISHES = 2_000;
let server;
before(async () => {
  server = await start({ app: shop() });
});

/**
 * Issues all publishes at once over a bounded number of connections. `acknowledged` fills with the answers, `failed` counts the
 * calls that got none, and `onAcknowledged` is told of each answer.
 */
function publishAll(tenant, onAcknowledged) {
  const agent = new Agent({ keepAlive: true, maxSockets: 200 });
  const acknowledged = [];
  let failed = 0;
  const publish = (n) =>
    new Promise((done) => {
      const lost = () => {
        failed += 1;
        done();
      };
      const body = JSON.stringify({ type: "item:sold", data: { itemId: `${n}` } });
      const headers = {
        authorization: `Bearer ${tenant.key}`,
        "content-type": "application/json",
        "content-length": Buffer.byteLength(body),
      };
      const call = request(`${server.url}/v1/events`, { method: "POST", agent, headers, timeout: 30_000 }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (part) => (text += part));
        response.once("error", lost);
        response.once("end", () => {
          if (response.statusCode !== 201) return lost();
          acknowledged.push(JSON.parse(text));
          onAcknowledged(acknowledged.length);
          done();
        });
      });
      call.once("timeout", () => call.destroy());
      call.once("error", lost);
      call.end(body);
    });
  const calls = Array.from({ length: PUBLISHES }, (_, n) => publish(n));
  const finished = Promise.all(calls).then(() => {
    agent.destroy();
    return { acknowledged, failed };
  });
  return finished;
}

/** Works on the tenant's jobs until it is told to stop. A server that is away is waited for, as a real worker would. */
function work(tenant) {
  const completed = [];
  let stopping = false;
  const call = async (path, body) => {
    const answer = await tenant.api(path, { body });
    if (answer.status === 503) throw new Error("not ready");
    return expectStatus(answer, 200);
  };
  const loop = async () => {
    while (!stopping) {
      try {
        const { jobs } = await call("/v1/leases", { types: ["ship"], max: 100, wait: "500ms", lease: "3s", worker: "crash" });
        if (jobs.length === 0) continue;
        const results = jobs.map(({ id, lease, data }) => ({ id, lease, verdict: "done", result: data.itemId }));
        const settled = (await call("/v1/leases/settle", { results })).results;
        completed.push(...settled.filter(({ state }) => state === "completed").map(({ id }) => id));
      } catch (error) {
        // Only a lost connection and a server that is just starting are to be expected here.
        if (error.code === "ERR_ASSERTION") throw error;
        await eventually("the server to be back", async () => (await server.api("/health/ready")).status === 200, 60_000);
      }
    }
  };
  const running = loop();
  // A failure is reported where the worker is awaited, not as an unhandled rejection before that.
  running.catch(() => {});
  return {
    completed,
    async stop() {
      stopping = true;
      await running;
    },
  };
}

describe("a server that is killed under load", () => {
  for (const [round, killAfter] of [50, 700, 1_600].entries()) {
    test(`after ${killAfter} answers has everything it acknowledged, once (round ${round + 1})`, async (t) => {
      const tenant = server.newTenant();
      const client = await connect(server, { token: tenant.token("ann"), reconnection: true });
      const worker = work(tenant);

      let killed;
      const { acknowledged, failed } = await publishAll(tenant, (count) => {
        if (count === killAfter) killed = server.kill();
      });
      assert.ok(killed, `the kill came: ${acknowledged.length} answers, ${failed} failures`);
      await killed;
      assert.ok(failed > 0, "the kill came too late to hit anything");
      const begin = performance.now();
      await server.restart();
      t.diagnostic(`${acknowledged.length} acknowledged, ${failed} not; ready again after ${Math.round(performance.now() - begin)} ms`);

      const final = await tenant.publish("item:added", { itemId: "the end", amount: 0 });
      const log = await tenant.log();
      assert.deepEqual(log.map(({ position }) => position), log.map((_, n) => n + 1), "positions without gaps");
      assert.equal(log.at(-1).id, final.id);
      const sold = log.slice(0, -1);
      const position = new Map(sold.map((event) => [event.id, event.position]));
      assert.equal(position.size, sold.length, "no event id twice");
      assert.equal(new Set(sold.map(({ data }) => data.itemId)).size, sold.length, "no publish twice");
      for (const { events: [event] } of acknowledged) {
        assert.equal(position.get(event.id), event.position, `the acknowledged event ${event.id} stands where it was said to`);
      }
      assert.ok(sold.length <= PUBLISHES);

      await eventually(
        "every job to be completed",
        async () => {
          const { items } = expectStatus(await tenant.api("/v1/queues"), 200);
          const { counts } = items.find(({ name }) => name === "work");
          return (counts.completed ?? 0) === sold.length;
        },
        60_000,
      );
      await worker.stop();
      const jobs = await tenant.list("/v1/jobs?type=ship");
      assert.equal(jobs.length, sold.length, "one job for each event");
      assert.deepEqual(
        jobs.map(({ data }) => data.itemId).sort(),
        sold.map(({ data }) => data.itemId).sort(),
        "each event's own job",
      );
      assert.ok(jobs.every(({ state, result, data }) => state === "completed" && result === data.itemId));
      const ids = new Set(jobs.map(({ id }) => id));
      for (const { caused } of acknowledged) assert.ok(ids.has(caused.jobs[0].id), "the acknowledged job is there");
      assert.equal(new Set(worker.completed).size, worker.completed.length, "no job was completed twice");

      await client.seen.until("item:added", ({ itemId }) => itemId === "the end", 30_000);
      assert.deepEqual(client.seen.of("continuity:lost"), []);
      assert.equal(client.socket.recovered, true);
      assert.deepEqual(
        client.seen.of("item:sold").map(({ itemId }) => itemId),
        sold.map(({ data }) => data.itemId),
        "the socket saw the log, in order, without gap or double",
      );
      client.close();
    });
  }

  test("still works as if nothing had been", async () => {
    const tenant = server.newTenant();
    await tenant.publish("item:sold", { itemId: "a" });
    const job = await tenant.leaseOne();
    assert.equal((await tenant.settle(job, "done")).state, "completed");
    assert.deepEqual(await server.stop(), { code: 0, signal: null });
  });
});
