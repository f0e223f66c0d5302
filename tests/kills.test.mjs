// Fifty kills on one data directory, under load: at random moments and at the worst ones. Nothing acknowledged is lost, nothing is
// completed twice, every run is counted once.
//
// KILLS=200 KILLS_SEED=7 node --test kills.test.mjs

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

import { writeApp } from "./catalogs.mjs";
import { eventually, expectStatus, start, within } from "./harness.mjs";
import { Load, numbers, quantile } from "./load.mjs";

const KILLS = Number(process.env.KILLS ?? 50);
const SEED = Number(process.env.KILLS_SEED ?? Date.now() % 1_000_000);
/** The points of crates/store/src/failpoint.rs, and the highest number at which one is asked for: some are reached more often. */
const FAILPOINTS = { before_commit: 400, after_commit: 400, during_claim: 2_000 };

const APP = `
[app]
name = "shop"
tenant = "orgId"
[rooms]
"org:{orgId}" = { join = "auto" }
[events.worked]
rooms = ["org:{orgId}"]
data = { id = "string", attempt = "integer" }
[queues.work]
attempts = 1000
# What kills a worker here is never the job.
poison = 1000
keep = { completed = 1000000, failed = 1000 }
[jobs.work]
queue = "work"
data = { id = "string" }
[jobs.child]
queue = "work"
data = { id = "string", attempt = "integer" }
`;

let server;
let tenants;
let load;
before(async () => {
  server = await start({ app: writeApp("kills", APP) });
  tenants = [server.newTenant(), server.newTenant(), server.newTenant()];
  load = new Load(server, SEED);
});

/** Starts the server again. False if it has ended before it was ready, as it may when it was asked to. */
async function restart(env = {}) {
  load.restarting();
  server.env = { ...server.plainEnv, ...env };
  try {
    await server.restart();
    return true;
  } catch (error) {
    if (server.child.signalCode !== "SIGABRT") throw error;
    return false;
  }
}

/** Kills at a random moment; now and then while the server is still starting. */
async function killAtRandom(random) {
  const isEarly = random() < 0.15;
  const restarted = restart();
  restarted.catch(() => {});
  if (isEarly) {
    await pause(random() * 150);
  } else {
    await restarted;
    await pause(random() * 1_200);
  }
  assert.equal((await server.kill()).signal, "SIGKILL");
  // What `ready` says of a server that was killed while it started is no news.
  await restarted.catch(() => {});
}

async function killAtFailpoint(name, nth) {
  await restart({ TIDEWIRE_FAILPOINT: `${name}:${nth}` });
  const what = `the server to abort at ${name}:${nth} (builds without debug assertions have no failpoints)`;
  const { signal } = await within(30_000, what, server.child.ended);
  assert.equal(signal, "SIGABRT", server.child.err);
}

describe(`a server that is killed ${KILLS} times (KILLS_SEED=${SEED})`, () => {
  test("is killed and started under load, and everything drains", async (t) => {
    t.diagnostic(`seed ${SEED}`);
    const random = numbers(SEED);
    server.plainEnv = server.env;
    // 32 and 18 of 50, in random order.
    const points = Array.from({ length: Math.round(KILLS * 0.36) }, (_, n) => Object.entries(FAILPOINTS)[n % 3]);
    const kills = [...points, ...Array.from({ length: KILLS - points.length }, () => undefined)]
      .map((kill) => ({ kill, order: random() }))
      .sort((a, b) => a.order - b.order);
    load.begin({ callers: tenants, workers: 3 });
    await server.kill();
    for (const { kill } of kills) {
      const killed = kill ? killAtFailpoint(kill[0], 1 + Math.floor(random() * kill[1])) : killAtRandom(random);
      await Promise.race([killed, load.failed]);
    }
    await restart();
    await within(30_000, "the callers to get their last answers", load.stopCallers());
    const isDrained = async () => {
      const { items } = expectStatus(await server.api("/v1/queues"), 200);
      return items.every(({ counts }) => Object.entries(counts).every(([state, count]) => state === "completed" || count === 0));
    };
    await Promise.race([eventually("every job to be completed", isDrained, 40_000), load.failed]);
    await within(30_000, "the workers to get their last answers", load.stopWorkers());
    const times = load.firstLeases;
    t.diagnostic(`restart to first lease: p50 ${Math.round(quantile(times, 0.5))} ms, p99 ${Math.round(quantile(times, 0.99))} ms`);
  });

  test("has each job once, completed, with every run counted", async (t) => {
    const total = { jobs: 0, runs: 0, unseen: 0, duplicates: 0 };
    const seen = new Map();
    for (const run of load.runs.values()) {
      const key = `${run.tenant}/${run.id}`;
      seen.set(key, [...(seen.get(key) ?? []), run]);
    }
    for (const tenant of tenants) {
      const jobs = await tenant.list("/v1/jobs");
      const byId = new Map(jobs.map((job) => [job.id, job]));
      assert.equal(byId.size, jobs.length, "no job twice");
      const expected = [...load.acknowledged].filter(([, name]) => name === tenant.name).map(([id]) => id);
      assert.deepEqual(expected.filter((id) => !byId.has(id)), [], "no acknowledged job is lost");
      for (const { ids } of load.abandoned.filter((batch) => batch.tenant === tenant.name)) {
        const there = ids.filter((id) => byId.has(id)).length;
        assert.ok(there === 0 || there === ids.length, `${there} of the ${ids.length} jobs of one commit are there`);
        if (there > 0) expected.push(...ids);
      }
      const worked = jobs.filter(({ type }) => type === "work");
      assert.deepEqual(worked.map(({ id }) => id).sort(), expected.sort(), "and no other was made");

      const effects = [];
      for (const { id, state, result, attempt, type } of jobs) {
        const what = `${type} ${tenant.name}/${id}`;
        assert.equal(state, "completed", what);
        assert.deepEqual(result, { id, attempt }, `${what} is completed by its last run`);
        const runs = seen.get(`${tenant.name}/${id}`) ?? [];
        const last = runs.find((run) => run.attempt === attempt);
        assert.ok(last?.isSettling && last.verdict === "done", `${what} was completed by a worker that had it`);
        if (last.hasEffects) effects.push(`${id}/${attempt}`);
        await everyRunIsCounted(tenant, { id, attempt, what }, runs, total);
      }
      const name = ({ id, attempt }) => `${id}/${attempt}`;
      effects.sort();
      const log = await tenant.log();
      assert.deepEqual(log.map(({ position }) => position), log.map((_, n) => n + 1), "positions without gaps");
      assert.deepEqual(log.map(({ data }) => name(data)).sort(), effects, "the events of the runs that counted, once each");
      const children = jobs.filter(({ type }) => type === "child");
      assert.deepEqual(children.map(({ data }) => name(data)).sort(), effects, "and their jobs");

      const { items } = expectStatus(await tenant.api("/v1/queues"), 200);
      const counts = Object.entries(items.find((queue) => queue.name === "work").counts).filter(([, count]) => count > 0);
      assert.deepEqual(counts, [["completed", jobs.length]], "the counts are those of the jobs");
      total.jobs += jobs.length;
    }
    assert.ok(load.completed.size > 0 && load.acknowledged.size > KILLS * 10, "there was a load");
    t.diagnostic(`${total.jobs} jobs, ${load.acknowledged.size} acknowledged, ${load.completed.size} completions answered`);
    t.diagnostic(`${total.runs} runs, ${total.unseen} of them in lost answers; ${total.duplicates} beyond the needed ones`);
  });
});

/**
 * Each attempt of a job is a run that one worker was given, or one of a lease call whose answer was lost; and each run that did not
 * end the job is in its history once.
 */
async function everyRunIsCounted(tenant, { id, attempt, what }, runs, total) {
  const observed = new Map(runs.map((run) => [run.attempt, run]));
  total.runs += attempt;
  if (attempt === 1 && runs.length === 1) return;
  assert.ok(runs.length <= attempt, `${what}: ${runs.length} runs were seen and only ${attempt} counted`);
  const { failedAttempts } = await tenant.job(id);
  const numbers = failedAttempts.map((failed) => failed.attempt);
  assert.deepEqual(numbers, Array.from({ length: attempt - 1 }, (_, n) => n + 1), `${what}: each failed run is listed once`);
  for (const failed of failedAttempts) {
    const run = observed.get(failed.attempt);
    if (run) {
      assert.equal(failed.worker, run.worker, `${what}: attempt ${failed.attempt} was that worker's`);
    } else {
      total.unseen += 1;
      assert.ok(load.unanswered.has(failed.worker), `${what}: nobody saw attempt ${failed.attempt}, but ${failed.worker} had its answer`);
    }
    if (failed.error === "asked to") assert.equal(run?.verdict, "retry", `${what}: attempt ${failed.attempt} asked for a retry`);
    else total.duplicates += 1;
  }
}
