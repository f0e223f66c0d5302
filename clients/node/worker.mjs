// The reference worker: runs Tidewire's jobs in Node.js 20 or newer. Nothing to install: copy it and change what you like.
//
//   import { work, NonRetryable } from "./worker.mjs";
//   await work({ "send-mail": async (job, signal) => ({ sent: await mail(job.data, signal) }) });
//   process.exit(); // a handler that still runs has given its job back and must not go on
//
// What a handler returns is the job's result. An error means: try again later. NonRetryable means: it will never work.
// `signal` aborts when somebody cancelled the job, when its time is over, when its lease was lost, and at the end of a stop. Then leave
// quickly. What a run whose time is over comes to still counts: an error is tried again.

import { setTimeout as sleep } from "node:timers/promises";

const { TIDEWIRE_URL = "http://127.0.0.1:7400", TIDEWIRE_KEY } = process.env;

export class NonRetryable extends Error {}

/** One call. It waits for a server that is away or busy: leases go on over a restart. Any other refusal is a mistake to mend. */
async function call(path, body, signal) {
  const headers = { authorization: `Bearer ${TIDEWIRE_KEY}`, "content-type": "application/json" };
  const options = { method: "POST", headers, body: JSON.stringify(body), signal };
  for (;;) {
    try {
      const answer = await fetch(`${TIDEWIRE_URL}/v1${path}`, options);
      const text = await answer.text();
      if (answer.ok) return JSON.parse(text);
      console.error(path, answer.status, text);
      if (answer.status < 500 && answer.status !== 429) process.exit(1);
    } catch (error) {
      if (signal?.aborted) throw error;
      console.error(path, error.cause ?? error);
    }
    await sleep(500);
  }
}

/** Runs jobs until SIGTERM or SIGINT. Then those that run have `graceMs` to finish; the others are given back. */
export async function work(handlers, { concurrency = 10, leaseMs = 5_000, graceMs = 10_000 } = {}) {
  const running = new Map(); // what this worker holds: lease -> { job, abort, ended }
  const stop = new AbortController();
  for (const name of ["SIGTERM", "SIGINT"]) process.once(name, () => stop.abort());
  const stopped = new Promise((done) => stop.signal.addEventListener("abort", done));

  async function run(entry) {
    const { job, abort } = entry;
    let outcome;
    try {
      const result = await handlers[job.type](job, abort.signal);
      JSON.stringify(result); // a result that is no JSON is the handler's error
      outcome = { verdict: "done", result };
    } catch (error) {
      const isUnwanted = abort.signal.aborted && !entry.timedOut;
      const verdict = isUnwanted ? "cancel" : error instanceof NonRetryable ? "fail" : "retry";
      outcome = { verdict, error: `${error?.stack ?? error}` };
    }
    if (running.has(job.lease)) await settle(job, outcome);
    running.delete(job.lease);
  }

  // Settle calls follow each other. Each takes along all that has ended since the one before, so a busy worker makes few.
  const outcomes = [];
  let settling = Promise.resolve();
  const settle = ({ id, lease }, outcome) => {
    outcomes.push({ id, lease, ...outcome });
    return (settling = settling.then(async () => {
      const results = outcomes.splice(0);
      const answers = results.length > 0 ? (await call("/leases/settle", { results })).results : [];
      for (const answer of answers) if (answer.error) console.error("not settled:", answer);
    }));
  };

  async function renew() {
    for (;;) {
      await sleep(leaseMs / 3, undefined, { ref: false });
      const leases = [...running.values()].map(({ job }) => ({ id: job.id, lease: job.lease }));
      const answers = leases.length > 0 ? (await call("/leases/renew", { leases, extend: leaseMs })).leases : [];
      for (const [index, { cancelled, timedOut, error }] of answers.entries()) {
        const { lease } = leases[index];
        const entry = running.get(lease);
        if (entry && timedOut) entry.timedOut = true;
        if (cancelled || timedOut || error) entry?.abort.abort();
        if (error) running.delete(lease); // lost: the job may run elsewhere by now, so there is nothing to settle
      }
    }
  }
  renew();

  while (!stop.signal.aborted) {
    const free = concurrency - running.size;
    if (free > 0) {
      const ask = { types: Object.keys(handlers), max: free, wait: "30s", lease: leaseMs, worker: `node-${process.pid}` };
      // Hanging up on a call that waits gives back what it would have brought.
      const { jobs } = await call("/leases", ask, stop.signal).catch(() => ({ jobs: [] }));
      for (const job of jobs) {
        const entry = { job, abort: new AbortController() };
        running.set(job.lease, entry);
        entry.ended = run(entry);
      }
    } else {
      await Promise.race([stopped, ...[...running.values()].map(({ ended }) => ended)]);
    }
  }

  await Promise.race([sleep(graceMs), Promise.all([...running.values()].map(({ ended }) => ended))]);
  const unfinished = [...running.values()];
  running.clear();
  for (const { abort } of unfinished) abort.abort();
  await Promise.all(unfinished.map(({ job }) => settle(job, { verdict: "release" })));
}
