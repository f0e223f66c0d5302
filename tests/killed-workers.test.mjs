// Workers that are killed in mid-job, with the settings that one gets without asking: how soon their jobs run again, and when one
// is given to nobody any more.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { writeApp } from "./catalogs.mjs";
import { eventually, start, temporaryDirectory, within } from "./harness.mjs";

const REFERENCE = new URL("../clients/node/worker.mjs", import.meta.url);
/** Says when a run begins and ends. A job may ask to be held for ever, or only in its first run. */
const PROGRAM = `
import { work } from ${JSON.stringify(REFERENCE.href)};
const say = (what, { id, attempt }) => console.log(JSON.stringify({ what, id, attempt, at: Date.now() }));
await work({ pack: async (job) => {
  say("begun", job);
  if (job.data.hold === "always" || (job.data.hold === "first" && job.attempt === 1)) await new Promise(() => {});
  say("ended", job);
} });
`;

/** Nothing but names: every setting is the default one. */
const APP = `
[app]
name = "shop"
tenant = "orgId"
[queues.work]
[jobs.pack]
queue = "work"
`;

const directory = temporaryDirectory();
writeFileSync(join(directory, "pack.mjs"), PROGRAM);
const workers = new Set();
let server;
before(async () => {
  server = await start({ app: writeApp("workers", APP) });
});
const killAll = () => workers.forEach((worker) => worker.child.kill("SIGKILL"));
after(killAll);
process.once("exit", killAll);

/** A process with the reference worker. */
class Worker {
  constructor(tenant) {
    this.said = [];
    this.err = "";
    this.child = spawn(process.execPath, [join(directory, "pack.mjs")], {
      cwd: fileURLToPath(new URL(".", import.meta.url)),
      env: { PATH: process.env.PATH, TIDEWIRE_URL: tenant.server.url, TIDEWIRE_KEY: tenant.key },
      stdio: ["ignore", "pipe", "pipe"],
    });
    workers.add(this);
    this.child.stderr.setEncoding("utf8").on("data", (text) => (this.err += text));
    this.lines = createInterface({ input: this.child.stdout });
    this.lines.on("line", (line) => this.said.push(JSON.parse(line)));
  }

  /** The lines that say that a run of each of these jobs has begun. */
  async begun(ids, ms = 20_000) {
    const lines = () => this.said.filter(({ what, id }) => what === "begun" && ids.includes(id));
    const all = async () => {
      while (lines().length < ids.length) await once(this.lines, "line");
    };
    await within(ms, () => `runs of ${ids}; said: ${JSON.stringify(this.said)}; stderr: ${this.err}`, all());
    return lines();
  }

  /** Kills it and answers when it was gone. */
  async kill() {
    const gone = once(this.child, "exit");
    this.child.kill("SIGKILL");
    await within(10_000, "the worker to be gone", gone);
    workers.delete(this);
    return Date.now();
  }
}

describe("a worker that is killed", () => {
  test("leaves its jobs to another within five seconds by default, and never at the same time", async (t) => {
    const tenant = server.newTenant();
    const ids = [];
    for (let n = 0; n < 8; n += 1) ids.push((await tenant.enqueue("pack", { hold: "first" })).id);
    const first = new Worker(tenant);
    await first.begun(ids);
    const second = new Worker(tenant);
    // The other one is there and works: it does not take what the first one holds.
    const { id: other } = await tenant.enqueue("pack");
    await eventually("another job to be done", async () => (await tenant.job(other)).state === "completed");
    assert.ok(!second.said.some(({ id }) => ids.includes(id)), JSON.stringify(second.said));

    const killed = await first.kill();
    const runs = await second.begun(ids);
    assert.deepEqual(runs.map(({ attempt }) => attempt), ids.map(() => 2));
    const waits = runs.map(({ at }) => at - killed);
    t.diagnostic(`run again ${Math.min(...waits)} to ${Math.max(...waits)} ms after the kill`);
    assert.ok(Math.min(...waits) >= 0, "none began before the first worker was gone");
    assert.ok(Math.max(...waits) < 5_000, `run again after ${waits} ms`);

    for (const id of ids) {
      const job = await eventually(`job ${id} to be completed`, async () => {
        const job = await tenant.job(id);
        return job.state === "completed" && job;
      });
      assert.equal(job.attempt, 2);
      assert.match(job.failedAttempts[0].worker, new RegExp(`^node-${first.child.pid}$`));
      assert.equal(job.failedAttempts.length, 1);
      const begun = second.said.filter((line) => line.what === "begun" && line.id === id);
      assert.equal(begun.length, 1, "it began once more, and not again");
    }
    await second.kill();
  });

  test("three times by the same job is not given that job again", async () => {
    const tenant = server.newTenant();
    const { id } = await tenant.enqueue("pack", { hold: "always" }, { attempts: 10 });
    for (let attempt = 1; attempt <= 3; attempt += 1) {
      const worker = new Worker(tenant);
      assert.deepEqual((await worker.begun([id])).map((run) => run.attempt), [attempt]);
      await worker.kill();
    }
    const job = await eventually("the job to be dead", async () => {
      const job = await tenant.job(id);
      return job.state === "dead" && job;
    });
    assert.deepEqual([job.attempt, job.attempts, job.failedAttempts.length], [3, 10, 3]);
    assert.match(job.error, /3 workers were lost with this job, so it is not given to another/);
    assert.ok((await tenant.list("/v1/dead-letters")).some((letter) => letter.id === id), "it is a dead letter");
    // Whoever comes next gets the next job and not this one.
    const next = await tenant.enqueue("pack");
    const worker = new Worker(tenant);
    await worker.begun([next.id]);
    assert.deepEqual([...new Set(worker.said.map((line) => line.id))], [next.id]);
    await worker.kill();
  });
});
