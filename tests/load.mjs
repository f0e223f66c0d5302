// Callers and workers that go on whatever happens to the server, and remember all they were told: what tests of kills compare with.

import assert from "node:assert/strict";
import { setTimeout as pause } from "node:timers/promises";

import { ADMIN_KEY, expectStatus } from "./harness.mjs";

/** Numbers from 0 to 1 that are the same for the same seed. mulberry32, in the public domain. */
export function numbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The value below which a share of `values` lies. */
export function quantile(values, share) {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
}

/** What everybody of one load saw. */
export class Load {
  /** Jobs that are to be there: id -> tenant. */
  acknowledged = new Map();
  /** Batches that got no answer and were not repeated: each is there whole or not at all. */
  abandoned = [];
  /** Runs by `id/attempt`: what a worker was given, and what it answered. */
  runs = new Map();
  /** The latest run of each job. */
  latest = new Map();
  /** Jobs whose completion was answered. */
  completed = new Set();
  /** Names of lease calls that got no answer: runs may have begun that nobody saw. */
  unanswered = new Set();
  /** When a server was last started, and how long each took until it gave out its first job, in ms. */
  started = performance.now();
  firstLeases = [];
  #measured = true;
  #enqueued = 0;
  #ended = 0;
  #stopping = { callers: false, workers: false };

  constructor(server, seed) {
    this.server = server;
    this.seed = seed;
  }

  /** From now on the time to the first lease counts. */
  restarting() {
    this.started = performance.now();
    this.#measured = false;
  }

  /** Begins the work of `callers` and `workers`. What one of them finds wrong rejects {@link failed} at once. */
  begin({ callers, workers }) {
    this.callers = Promise.all(callers.map((tenant, n) => this.#enqueue(tenant, n)));
    this.workers = Promise.all(Array.from({ length: workers }, (_, n) => this.#work(n)));
    this.failed = Promise.all([this.callers, this.workers]).then(() => new Promise(() => {}));
    this.failed.catch(() => {});
  }

  async stopCallers() {
    this.#stopping.callers = true;
    await this.callers;
  }

  async stopWorkers() {
    this.#stopping.workers = true;
    await this.workers;
  }

  /** One call: its body, or nothing when there was no answer. A server that is not ready yet has not answered. */
  async #call(path, body, key, status) {
    let answer;
    try {
      answer = await this.server.api(path, { body, key });
    } catch {
      return undefined;
    }
    return answer.status === 503 ? undefined : expectStatus(answer, status);
  }

  async #enqueue(tenant, n) {
    const random = numbers(this.seed + n);
    for (let batch = 0; !this.#stopping.callers; batch += 1) {
      // Enough to keep the workers busy, few enough to be done soon after the last kill.
      if (this.#enqueued - this.#ended > 400) {
        await pause(5);
        continue;
      }
      const jobs = Array.from({ length: 1 + Math.floor(random() * 20) }, (_, index) => {
        const id = `${tenant.name}-${batch}-${index}`;
        return { id, type: "work", data: { id } };
      });
      const ids = jobs.map(({ id }) => id);
      this.#enqueued += ids.length;
      const repeats = random() < 0.8;
      for (;;) {
        const answer = await this.#call("/v1/jobs", jobs, tenant.key, 201);
        if (answer) {
          assert.deepEqual(answer.jobs.map(({ id }) => id), ids);
          for (const id of ids) this.acknowledged.set(id, tenant.name);
          break;
        }
        if (!repeats) {
          this.#enqueued -= ids.length;
          this.abandoned.push({ tenant: tenant.name, ids });
          break;
        }
        await pause(5);
      }
    }
  }

  async #work(n) {
    const random = numbers(this.seed + 1_000 + n);
    const late = [];
    for (let call = 0; !this.#stopping.workers; call += 1) {
      // Each call has a name of its own, so that the history of a job tells which call began a run.
      const worker = `w${n}-${call}`;
      const lease = 2_000 + Math.floor(random() * 1_000);
      const max = 1 + Math.floor(random() * 40);
      const answer = await this.#call("/v1/leases", { max, wait: "200ms", lease, worker }, ADMIN_KEY, 200);
      if (!answer) {
        this.unanswered.add(worker);
        await pause(5);
        continue;
      }
      if (answer.jobs.length === 0) continue;
      if (!this.#measured) {
        this.#measured = true;
        this.firstLeases.push(performance.now() - this.started);
      }
      const runs = answer.jobs.map((job) => this.#take(job, worker, random()));
      late.push(...runs.filter(({ isLate }) => isLate));
      const now = Date.now();
      const overdue = late.filter(({ expires }) => expires < now);
      for (const run of overdue) late.splice(late.indexOf(run), 1);
      await this.#settle([...runs.filter(({ isLate }) => !isLate), ...overdue]);
    }
  }

  /** Remembers a run that begins, and decides how it is to end. */
  #take({ id, tenant, type, attempt, lease, expires }, worker, chance) {
    const key = `${tenant}/${id}/${attempt}`;
    const twice = this.runs.get(key);
    assert.ok(!twice, `run ${key} was given to ${worker} and, before, to ${twice?.worker}`);
    const before = this.latest.get(id);
    if (before && !before.isSettling) {
      assert.ok(Date.now() >= before.expires, `run ${key} began while ${before.worker} held the lease of attempt ${before.attempt}`);
    }
    assert.ok(!this.completed.has(id), `run ${key} began after ${id} was answered as completed`);
    const verdict = chance < 0.1 ? "retry" : "done";
    // Effects come with every retry too, where they must leave nothing. A child has none, so that there is an end.
    const hasEffects = type === "work" && (verdict === "retry" || chance > 0.75);
    // Some workers are slow: they answer when their lease is over.
    const isLate = chance > 0.995;
    const run = { id, tenant, type, attempt, lease, worker, verdict, hasEffects, isLate, expires: Date.parse(expires), isSettling: false };
    this.runs.set(key, run);
    this.latest.set(id, run);
    return run;
  }

  /** Settles runs, again and again until there is an answer. */
  async #settle(runs) {
    if (runs.length === 0) return;
    const results = runs.map(({ id, lease, verdict, attempt, hasEffects }) => {
      const said = { id, attempt };
      const effects = hasEffects ? { events: [{ type: "worked", data: said }], jobs: [{ type: "child", data: said }] } : undefined;
      const end = verdict === "done" ? { result: said } : { error: "asked to", delay: "20ms" };
      return { id, lease, verdict, effects, ...end };
    });
    for (const run of runs) run.isSettling = true;
    for (;;) {
      const answer = await this.#call("/v1/leases/settle", { results }, ADMIN_KEY, 200);
      if (!answer) {
        await pause(5);
        continue;
      }
      for (const [index, run] of runs.entries()) {
        const { state, error } = answer.results[index];
        // Lost: it took too long, or an earlier settle was written and its answer was not.
        if (error) assert.equal(error.code, "job.lease_lost", JSON.stringify(error));
        run.answered = error?.code ?? state;
        if (run.type === "work" && run.verdict === "done") this.#ended += 1;
        if (state !== "completed") continue;
        assert.ok(!this.completed.has(run.id), `${run.id} was answered as completed twice`);
        this.completed.add(run.id);
      }
      return;
    }
  }
}
