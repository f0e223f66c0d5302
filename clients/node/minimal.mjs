// The shortest correct worker, to be read before you write one: work(url, key, { "send-mail": (job, signal) => … }).
// To copy there is worker.mjs: it bounds a stop, has verdicts and effects, and tells a job why its answer was refused.
import { setTimeout as sleep } from "node:timers/promises";

export async function work(url, key, handlers, { concurrency = 10, leaseMs = 4_500 } = {}) {
  let [runs, ended, stop, settling] = [new Map(), [], new AbortController(), Promise.resolve()];
  const passing = ["store.busy", "store.failed", "unavailable"]; // the same again may work
  process.once("SIGTERM", () => stop.abort()); // hangs up, and the server keeps its jobs
  async function call(path, body, signal) { // a server that is away or busy is asked again; a refusal ends the worker
    const request = { method: "POST", headers: { authorization: `Bearer ${key}` }, body: JSON.stringify(body), signal };
    for (; !signal?.aborted; await sleep(500)) {
      const answer = await fetch(`${url}/v1/leases${path}`, request).catch(() => ({ status: 503 }));
      if (answer.status >= 400 && answer.status < 500 && answer.status !== 429) throw new Error(await answer.text());
      const [entries] = answer.ok ? Object.values(await answer.json().catch(() => ({}))) : [];
      if (entries?.every(({ error }) => !passing.includes(error?.code))) return entries;
    }
  }
  async function run(job, abort) { // each settle call takes along all that has ended since the one before
    runs.set(abort, { id: job.id, lease: job.lease });
    const result = (async () => JSON.parse(JSON.stringify(await handlers[job.type](job, abort.signal)) ?? "null"))();
    const retry = (error) => ({ verdict: "retry", error: `${error?.stack ?? error}`.slice(0, 8_000).toWellFormed() });
    ended.push({ ...runs.get(abort), ...(await result.then((result) => ({ verdict: "done", result }), retry)) });
    await (settling = settling.then(() => ended.length > 0 && call("/settle", { results: ended.splice(0) })));
    runs.delete(abort);
  }
  const renewals = (async () => {
    for (; runs.size > 0 || !stop.signal.aborted; await sleep(leaseMs / 3)) {
      const held = [...runs];
      const answers = held.length ? await call("/renew", { leases: held.map(([, job]) => job), extend: leaseMs }) : [];
      const told = held.filter((_, at) => answers[at].cancelled || answers[at].timedOut || answers[at].error);
      for (const [abort] of told) abort.abort();
    }
  })();
  while (!stop.signal.aborted) {
    const ask = { types: Object.keys(handlers), max: concurrency - runs.size, wait: "30s", lease: leaseMs };
    for (const job of (await call("", ask, stop.signal)) ?? []) run(job, new AbortController());
    while (runs.size === concurrency) await sleep(20);
  }
  await renewals;
}
