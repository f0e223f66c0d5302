// The reference worker: runs Tidewire's jobs in Node.js 20 or newer. Nothing to install: copy it and change what you like.
//
//   import { work, NonRetryable } from "./worker.mjs";
//   await work({ "send-mail": async (job, signal) => ({ sent: await mail(job.data, signal) }) });
//   process.exit(); // a handler that still runs has given its job back and must not go on
//
// What a handler returns is the job's result. An error means: try again later. NonRetryable means: it will never work.
// To say more it returns a verdict: { verdict: "done", result, effects: { events: [{ type, data }], jobs: [{ type, data }] } },
// { verdict: "snooze", delay: "5m" }, { verdict: "retry", error, delay } or { verdict: "fail", error }.
// `signal` aborts when the job was cancelled, its time is over, its lease was lost, or a stop takes too long. Then leave quickly.

import { setTimeout as sleep } from "node:timers/promises";

const { TIDEWIRE_URL = "http://127.0.0.1:7400", TIDEWIRE_KEY } = process.env;
const headers = { authorization: `Bearer ${TIDEWIRE_KEY}`, "content-type": "application/json" };

const PASSING = ["store.busy", "unavailable", "store.failed"]; // the same again may work
const MOST_BYTES = 256 * 1024; // of one answer
const AT_ONCE = 25; // answers in one call

/** What an error says, as far as the server keeps it. */
function text(error) {
  try {
    return `${error?.stack ?? error}`.slice(0, 8_000).toWellFormed();
  } catch {
    return "an error that cannot be shown";
  }
}

/** Ends a worker whose call is refused for good: its key or its types are wrong. */
const must = ({ refused, ...answer }) => (refused ? process.exit(1) : answer);

/** Settles these together, or each alone when the call is refused. What is refused alone fails with the reason. */
async function settled(results) {
  const { refused, results: answers } = await call("/leases/settle", { results });
  if (!refused) return answers;
  const [{ id, lease }, ...more] = results;
  const alone = more.length > 0 ? [results[0]] : [{ id, lease, verdict: "fail", error: text(refused) }];
  const first = more.length > 0 ? await settled(alone) : must(await call("/leases/settle", { results: alone })).results;
  return more.length > 0 ? [...first, ...(await settled(more))] : first;
}

export class NonRetryable extends Error {}

/** One call. It waits for a server that is away or busy: leases go on over a restart. */
async function call(path, body, signal) {
  for (;; await sleep(500)) {
    try {
      const answer = await fetch(`${TIDEWIRE_URL}/v1${path}`, { method: "POST", headers, body: JSON.stringify(body), signal });
      if (answer.ok) return await answer.json();
      const refused = await answer.text();
      console.error(path, answer.status, refused);
      if (answer.status < 500 && answer.status !== 429) return { refused };
    } catch (error) {
      if (signal?.aborted) return { jobs: [] };
      console.error(path, error.cause ?? error);
    }
  }
}

/** Runs jobs until SIGTERM or SIGINT. Then those that run have `graceMs` to finish; the others are given back. */
export async function work(handlers, { concurrency = 10, leaseMs = 4_500, graceMs = 10_000 } = {}) {
  const runs = new Map(); // { id, lease } -> { abort, onError, ended }
  const stop = new AbortController();
  let wake = () => {}; // called when there may be a free place, and at a stop
  for (const name of ["SIGTERM", "SIGINT"]) process.once(name, () => (stop.abort(), wake()));

  async function run(held, job, self) {
    const verdict = (async () => {
      const answer = await handlers[job.type](job, self.abort.signal);
      // What is no JSON, or too large to be sent, is the handler's error.
      if (Buffer.byteLength(JSON.stringify(answer) ?? "") > MOST_BYTES) throw new NonRetryable(`it answered more than ${MOST_BYTES} bytes`);
      return typeof answer?.verdict === "string" ? answer : { verdict: "done", result: answer };
    })().catch((error) => ({ verdict: error instanceof NonRetryable ? "fail" : self.onError, error: text(error) }));
    await settle(held, await verdict);
    runs.delete(held);
    wake();
  }

  // Settle calls follow each other. Each takes along all that has ended since the one before, so a busy worker makes few.
  const outcomes = [];
  let settling = Promise.resolve();
  function settle(held, { verdict, result, error, delay, effects }) {
    outcomes.push({ ...held, verdict, result, error: error && text(error), delay, effects });
    return (settling = settling.then(async () => {
      for (let results; (results = outcomes.splice(0, AT_ONCE)).length > 0; ) {
        const answers = await settled(results);
        for (const [index, { id, error }] of answers.entries()) {
          if (!error) continue;
          console.error("not settled:", id, error.code, error.detail);
          if (PASSING.includes(error.code)) outcomes.push(results[index]);
          // Unless the job is somebody else's by now, it learns why its effects or its result cannot be kept.
          else if (error.code !== "job.lease_lost") outcomes.push({ id, lease: results[index].lease, verdict: "retry", error: error.detail });
        }
        if (answers.some(({ error }) => PASSING.includes(error?.code))) await sleep(500);
      }
    }));
  }

  let timer, ended; // the next renewal; whether there is none any more
  async function renew() {
    const [leases, held] = [[...runs.keys()], [...runs.values()]];
    const answers = leases.length > 0 ? must(await call("/leases/renew", { leases, extend: leaseMs })).leases : [];
    for (const [index, { cancelled, timedOut, error }] of answers.entries()) {
      if (cancelled) held[index].onError = "cancel";
      if (cancelled || timedOut || error?.code === "job.lease_lost") held[index].abort.abort();
    }
    if (!ended) timer = setTimeout(renew, leaseMs / 3);
  }
  renew();

  while (!stop.signal.aborted) {
    const ask = { types: Object.keys(handlers), max: concurrency - runs.size, wait: "30s", lease: leaseMs, worker: `node-${process.pid}` };
    for (const { id, lease, ...job } of must(await call("/leases", ask, stop.signal)).jobs) {
      const [held, self] = [{ id, lease }, { abort: new AbortController(), onError: "retry" }];
      runs.set(held, self);
      self.ended = run(held, { id, ...job }, self);
    }
    if (runs.size === concurrency && !stop.signal.aborted) await new Promise((done) => (wake = done));
  }

  await Promise.race([sleep(graceMs), Promise.all([...runs.values()].map(({ ended }) => ended))]);
  const unfinished = [...runs];
  for (const [, { abort }] of unfinished) abort.abort();
  // A server that is away gets them back by itself, when their leases end.
  await Promise.race([sleep(graceMs), Promise.all(unfinished.map(([held]) => settle(held, { verdict: "release" })))]);
  ended = true;
  clearTimeout(timer);
}
