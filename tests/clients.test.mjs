// The reference workers of clients/, as somebody runs them who copied one: against the real binary, stopped and killed in mid-job.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { join, resolve } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

import { shop } from "./catalogs.mjs";
import { eventually, expectStatus, start, temporaryDirectory, within } from "./harness.mjs";

const CLIENTS = fileURLToPath(new URL("../clients/", import.meta.url));
/** Short, so that a killed worker's job runs again soon, and several renewals fit into a second. */
const LEASE_MS = 900;
const GRACE_MS = 1_500;

/** What a handler can answer instead of a result, by the item that it ships. */
const VERDICTS = {
  gift: {
    verdict: "done",
    result: { wrapped: true },
    effects: { events: [{ type: "item:sold", data: { itemId: "card" } }], jobs: [{ type: "audit", data: { of: "gift" } }] },
  },
  sleepy: { verdict: "snooze", delay: "1h" },
  closed: { verdict: "retry", error: "the carrier opens at nine", delay: "2h" },
  forbidden: { verdict: "fail", error: "it may not leave the country" },
  nameless: { verdict: "done", effects: { events: [{ type: "item:sold", data: {} }] } },
  senseless: { verdict: "done", effects: "many", delay: {}, more: true },
};

// Both programs do the same: each item is a way in which a handler can behave. They say on their output what happens.
const node = (file, before, settings) => `
import * as worker from ${JSON.stringify(pathToFileURL(join(CLIENTS, "node", file)).href)};

const { work, NonRetryable } = worker;
const verdicts = ${JSON.stringify(VERDICTS)};
const say = (what, { id, attempt }) => console.log(JSON.stringify({ what, id, attempt }));
async function ship(job, signal) {
  say("begun", job);
  const { itemId } = job.data;
  if (itemId === "broken") throw new Error("the carrier is closed");
  if (itemId === "unknown") throw new NonRetryable("there is no such item");
  if (itemId === "second try" && job.attempt === 1) throw new Error("not yet");
  if (itemId === "unwritable") return 1n;
  if (itemId === "half a word") throw new Error("half \\ud800 a word");
  if (itemId === "half an answer") return "half \\ud800 an answer";
  if (itemId === "long story") throw new Error("and then ".repeat(1_000_000));
  if (itemId === "wordless") throw Object.create(null);
  if (verdicts[itemId]) return verdicts[itemId];
  if (itemId === "last word") await new Promise((done) => process.stdin.once("data", done));
  if (itemId === "long") await new Promise((done) => setTimeout(done, ${LEASE_MS * 2.5}));
  if (itemId === "deaf") await new Promise(() => {});
  if (itemId === "patient" || (itemId === "second time" && job.attempt === 1)) {
    await new Promise((told) => signal.addEventListener("abort", told));
    say("told", job);
    throw new Error("told to leave");
  }
  return { shipped: itemId };
}
await work(${before}{ ship }, { concurrency: 3, leaseMs: ${LEASE_MS}${settings} });
process.exit();
`;

const python = (module, before, settings) => `
import json, os, sys, threading, time
import ${module} as worker

verdicts = json.loads("""${JSON.stringify(VERDICTS)}""")
reading, words = threading.Lock(), []

def say(what, job):
    print(json.dumps({"what": what, "id": job["id"], "attempt": job["attempt"]}), flush=True)

def ship(job, cancelled):
    say("begun", job)
    item = job["data"]["itemId"]
    if item == "broken":
        raise ValueError("the carrier is closed")
    if item == "unknown":
        raise worker.NonRetryable("there is no such item")
    if item == "second try" and job["attempt"] == 1:
        raise ValueError("not yet")
    if item == "unwritable":
        return {1, 2}
    if item == "half a word":
        raise ValueError("half \\ud800 a word")
    if item == "half an answer":
        return "half \\ud800 an answer"
    if item == "long story":
        raise ValueError("and then " * 1_000_000)
    if item == "wordless":
        sys.exit(1)
    if item in verdicts:
        return verdicts[item]
    if item == "last word":
        with reading:
            if not words:
                words.append(sys.stdin.readline())
    if item == "long":
        time.sleep(${(LEASE_MS * 2.5) / 1000})
    if item == "deaf":
        threading.Event().wait()
    if item == "patient" or (item == "second time" and job["attempt"] == 1):
        cancelled.wait()
        say("told", job)
        raise RuntimeError("told to leave")
    return {"shipped": item}

worker.work(${before}{"ship": ship}, concurrency=3, ${settings})
`;

const version = spawnSync("python3", ["-c", "import sys; sys.exit(sys.version_info < (3, 9))"]);
const noPython = version.status !== 0 && "python3 3.9 or newer is not installed";
// On a build machine a worker that nobody ran is a failure; at a desk it is only said aloud.
if (noPython && process.env.CI === "true") throw new Error(noPython);

/** A running worker of one tenant. */
class Worker {
  constructor(program, args, tenant, env = {}) {
    this.said = [];
    this.err = "";
    this.waiting = new Set();
    this.child = spawn(program, args, {
      env: { PATH: process.env.PATH, TIDEWIRE_URL: tenant.server.url, TIDEWIRE_KEY: tenant.key, ...env },
      stdio: ["pipe", "pipe", "pipe"],
    });
    let rest = "";
    this.child.stdout.setEncoding("utf8").on("data", (text) => {
      const lines = (rest + text).split("\n");
      rest = lines.pop();
      this.said.push(...lines.map((line) => JSON.parse(line)));
      for (const check of this.waiting) check();
    });
    this.child.stderr.setEncoding("utf8").on("data", (text) => (this.err += text));
    this.ended = new Promise((done) => this.child.once("close", (code, signal) => done({ code, signal })));
  }

  /** What the worker has said of these jobs, as soon as there is one such line for each. */
  async heard(saying, ids, ms = 15_000) {
    const lines = () => this.said.filter(({ what, id }) => what === saying && ids.includes(id));
    let check;
    const all = new Promise((done) => {
      check = () => lines().length >= ids.length && done();
      this.waiting.add(check);
      check();
    });
    const what = () => `"${saying}" of ${ids}; said: ${JSON.stringify(this.said)}; stderr: ${this.err}`;
    await within(ms, what, all).finally(() => this.waiting.delete(check));
    return lines();
  }

  /** The runs of these jobs, as soon as each has begun one. */
  begun(ids) {
    return this.heard("begun", ids);
  }

  /** Sends a signal and answers how the worker ended. */
  async end(signal) {
    this.child.kill(signal);
    return within(15_000, () => `the worker to end after ${signal}; stderr: ${this.err}`, this.ended);
  }
}

/**
 * A tenant whose workers reach its server through somebody in between. `meddle` is asked with the path and the body of each call;
 * what it answers, if anything, is the answer, and the server does not hear of the call.
 */
async function between(tenant, meddle) {
  const proxy = createServer(async (request, response) => {
    const body = Buffer.concat(await request.toArray()).toString();
    const { authorization } = request.headers;
    const hungUp = new AbortController();
    response.once("close", () => hungUp.abort());
    const pass = () =>
      fetch(tenant.server.url + request.url, { method: "POST", headers: { authorization }, body, signal: hungUp.signal });
    try {
      const answer = (await meddle(request.url, JSON.parse(body))) ?? (await pass());
      response.writeHead(answer.status, { "content-type": "application/json" }).end(await answer.text());
    } catch {
      response.destroy();
    }
  });
  await new Promise((done) => proxy.listen(0, "127.0.0.1", done));
  proxies.add(proxy);
  return { key: tenant.key, server: { url: `http://127.0.0.1:${proxy.address().port}` } };
}

let server;
const proxies = new Set();
const workers = new Set();
before(async () => {
  server = await start({ app: shop() });
});
after(async () => {
  await Promise.all([...workers].map((worker) => worker.end("SIGKILL")));
  for (const proxy of proxies) proxy.close().closeAllConnections();
});
process.once("exit", () => workers.forEach(({ child }) => child.kill("SIGKILL")));

const directory = temporaryDirectory();
// The minimal ones are told the server and the key by their caller.
const PLACE = {
  node: "process.env.TIDEWIRE_URL, process.env.TIDEWIRE_KEY, ",
  python: 'os.environ["TIDEWIRE_URL"], os.environ["TIDEWIRE_KEY"], ',
};
const seconds = `lease_seconds=${LEASE_MS / 1000}, grace_seconds=${GRACE_MS / 1000}`;
writeFileSync(join(directory, "ship.mjs"), node("worker.mjs", "", `, graceMs: ${GRACE_MS}`));
writeFileSync(join(directory, "ship.py"), python("worker", "", seconds));
writeFileSync(join(directory, "ship-minimal.mjs"), node("minimal.mjs", PLACE.node, ""));
writeFileSync(join(directory, "ship-minimal.py"), python("minimal", PLACE.python, `lease_ms=${LEASE_MS}`));

const inNode = (program) => (tenant) => new Worker(process.execPath, [join(directory, program)], tenant);
const inPython = (program) => (tenant) =>
  new Worker("python3", ["-B", join(directory, program)], tenant, { PYTHONPATH: resolve(CLIENTS, "python") });

const languages = [
  { name: "the worker in node", launch: inNode("ship.mjs") },
  { name: "the worker in python", launch: inPython("ship.py"), skip: noPython },
  { name: "the minimal worker in node", launch: inNode("ship-minimal.mjs"), isMinimal: true },
  { name: "the minimal worker in python", launch: inPython("ship-minimal.py"), isMinimal: true, skip: noPython },
];

test("the minimal workers have at most 40 lines of at most 120 columns", () => {
  for (const file of ["node/minimal.mjs", "python/minimal.py"]) {
    const lines = readFileSync(join(CLIENTS, file), "utf8").trimEnd().split("\n");
    assert.ok(lines.length <= 40, `${file} has ${lines.length} lines`);
    for (const [index, line] of lines.entries()) assert.ok(line.length <= 120, `${file}:${index + 1} has ${line.length} columns`);
  }
});

for (const { name, launch, isMinimal = false, skip = false } of languages) {
  const started = (tenant) => {
    const worker = launch(tenant);
    workers.add(worker);
    worker.ended.finally(() => workers.delete(worker));
    return worker;
  };
  const ship = async (tenant, itemId) => (await tenant.enqueue("ship", { itemId })).id;
  const inState = (tenant, id, state) =>
    eventually(`job ${id} to be ${state}`, async () => {
      const job = await tenant.job(id);
      return job.state === state && job;
    });

  // What a minimal worker leaves to the complete one.
  const further = isMinimal ? () => {} : test;

  describe(name, { skip }, () => {
    test("completes jobs with what their handler returns, several at once", async () => {
      const tenant = server.newTenant();
      const stuck = [await ship(tenant, "patient"), await ship(tenant, "patient")];
      const worker = started(tenant);
      await worker.begun(stuck);
      // Two of three places are taken and stay so: the rest goes through the third.
      const ids = [];
      for (let n = 0; n < 12; n += 1) ids.push(await ship(tenant, `item ${n}`));
      for (const [n, id] of ids.entries()) {
        const job = await inState(tenant, id, "completed");
        assert.deepEqual([job.result, job.attempt], [{ shipped: `item ${n}` }, 1]);
      }
      assert.equal((await worker.begun(ids)).length, ids.length);
    });

    further("tries again after an error, and never after one that is not retryable", async () => {
      const tenant = server.newTenant();
      const [broken, unknown, unwritable] = [await ship(tenant, "broken"), await ship(tenant, "unknown"), await ship(tenant, "unwritable")];
      started(tenant);
      const dead = await inState(tenant, broken, "dead");
      assert.equal(dead.attempt, 3);
      assert.match(dead.error, /the carrier is closed/);
      const failed = await inState(tenant, unknown, "failed");
      assert.equal(failed.attempt, 1);
      assert.match(failed.error, /there is no such item/);
      assert.match((await inState(tenant, unwritable, "dead")).error, /serializ/);
    });

    test("tries again after an error and completes then", async () => {
      const tenant = server.newTenant();
      const id = await ship(tenant, "second try");
      started(tenant);
      const job = await inState(tenant, id, "completed");
      assert.deepEqual([job.attempt, job.result, job.failedAttempts.length], [2, { shipped: "second try" }, 1]);
      assert.match(job.failedAttempts[0].error, /not yet/);
    });

    test("leases many in one call, and settles together what ends during a settle call", async () => {
      const tenant = server.newTenant();
      const ids = [await ship(tenant, "a"), await ship(tenant, "b"), await ship(tenant, "c")];
      const [asked, settled] = [[], []];
      const worker = started(
        await between(tenant, async (path, body) => {
          if (path === "/v1/leases") asked.push(body.max);
          if (path !== "/v1/leases/settle") return;
          settled.push(...body.results.map(() => body.results.length));
          // All that the worker has must have ended when its first settle call returns.
          await worker.begun(ids);
        }),
      );
      for (const id of ids) assert.equal((await inState(tenant, id, "completed")).attempt, 1);
      assert.equal(asked[0], 3);
      assert.equal(settled.length, 3);
      assert.ok(Math.max(...settled) > 1, `settled in calls of ${settled}`);
    });

    test("asks again when the server is too busy, and loses no result", async () => {
      const tenant = server.newTenant();
      const id = await ship(tenant, "item");
      const calls = {};
      const worker = started(
        await between(tenant, (path, { results }) => {
          calls[path] = (calls[path] ?? 0) + 1;
          if (calls[path] === 1) return new Response("<h1>Bad Gateway</h1>", { status: 502 });
          const entry = ({ id }) => ({ id, error: { code: "store.busy", detail: "too much at once" } });
          if (results && calls[path] === 2) return Response.json({ results: results.map(entry) });
        }),
      );
      const job = await inState(tenant, id, "completed");
      assert.deepEqual([job.attempt, job.result, (await worker.begun([id])).length], [1, { shipped: "item" }, 1]);
    });

    further("lives on after errors and answers that cannot be sent, and so do its other jobs", async () => {
      const tenant = server.newTenant();
      const odd = ["half a word", "half an answer", "long story", "wordless"];
      const ids = await Promise.all([...odd, "fine"].map((itemId) => ship(tenant, itemId)));
      const worker = started(tenant);
      assert.equal((await inState(tenant, ids.pop(), "completed")).attempt, 1);
      for (const id of ids) {
        const [word, answer, story] = ids;
        const { error } = await inState(tenant, id, "dead");
        if (id === word) assert.match(error, /half .* a word/);
        if (id === answer) assert.match(error, /JSON/);
        if (id === story) assert.match(error, /and then/);
      }
      assert.equal(worker.child.exitCode, null);
    });

    further("does what its handler answers in place of a result", async () => {
      const tenant = server.newTenant();
      const [gift, sleepy, closed, forbidden] = await Promise.all(
        ["gift", "sleepy", "closed", "forbidden"].map((itemId) => ship(tenant, itemId)),
      );
      started(tenant);
      assert.deepEqual((await inState(tenant, gift, "completed")).result, { wrapped: true });
      // The event, the job of its rule, and the job that was staged are one commit with the job's end.
      const [sold] = await tenant.log();
      assert.deepEqual([sold.type, sold.causationId, sold.data.itemId], ["item:sold", gift, "card"]);
      assert.deepEqual((await tenant.list("/v1/jobs?type=audit")).map(({ causationId }) => causationId), [gift]);
      const hours = ({ runAt }) => Math.round((new Date(runAt) - Date.now()) / 3_600_000);
      const asleep = await inState(tenant, sleepy, "scheduled");
      assert.deepEqual([asleep.attempt, hours(asleep)], [0, 1]);
      const later = await inState(tenant, closed, "scheduled");
      assert.deepEqual([later.attempt, later.error, hours(later)], [1, "the carrier opens at nine", 2]);
      assert.equal((await inState(tenant, forbidden, "failed")).error, "it may not leave the country");
    });

    further("tells a job why its effects were refused", async () => {
      const tenant = server.newTenant();
      const [nameless, senseless] = [await ship(tenant, "nameless"), await ship(tenant, "senseless")];
      started(tenant);
      const dead = await inState(tenant, nameless, "dead");
      assert.equal(dead.attempt, 3);
      assert.match(dead.error, /itemId/);
      assert.match((await inState(tenant, senseless, "dead")).error, /^delay: .*expected/);
      assert.deepEqual(await tenant.log(), []);
    });

    further("that was stopped for longer than its lease can no longer settle", async () => {
      const tenant = server.newTenant();
      // All its places are taken: a call that waits for jobs would be given them again, as nobody knows that it is stopped.
      const id = await ship(tenant, "last word");
      const ids = [id, await ship(tenant, "deaf"), await ship(tenant, "deaf")];
      const first = started(tenant);
      await first.begun(ids);
      first.child.kill("SIGSTOP");
      const second = started(tenant);
      assert.deepEqual((await second.begun(ids)).map(({ attempt }) => attempt), [2, 2, 2]);
      second.child.stdin.write("finish\n");
      const job = await inState(tenant, id, "completed");
      first.child.stdin.write("finish\n");
      first.child.kill("SIGCONT");
      await eventually("the first worker to be refused", () => /not settled: .*job\.lease_lost/.test(first.err));
      assert.deepEqual(await tenant.job(id), job, "it is as the second worker left it");
      assert.deepEqual([job.attempt, job.failedAttempts.length], [2, 1]);
      const begun = [first, second].map(({ said }) => said.filter((line) => line.what === "begun" && line.id === id).length);
      assert.deepEqual(begun, [1, 1], "each began it once");
    });

    test("keeps a lease for as long as the handler runs", async () => {
      const tenant = server.newTenant();
      const id = await ship(tenant, "long");
      const worker = started(tenant);
      const job = await inState(tenant, id, "completed");
      assert.deepEqual([job.attempt, (await worker.begun([id])).length], [1, 1]);
    });

    test("that is killed in mid-job leaves it to another, as attempt 2", async () => {
      const tenant = server.newTenant();
      const id = await ship(tenant, "second time");
      const first = started(tenant);
      await first.begun([id]);
      const second = started(tenant);
      assert.equal((await first.end("SIGKILL")).signal, "SIGKILL");
      assert.deepEqual((await second.begun([id])).map(({ attempt }) => attempt), [2]);
      const job = await inState(tenant, id, "completed");
      assert.deepEqual([job.attempt, job.result], [2, { shipped: "second time" }]);
    });

    test("tells a handler that its job was cancelled", async () => {
      const tenant = server.newTenant();
      const id = await ship(tenant, "patient");
      const worker = started(tenant);
      await worker.begun([id]);
      expectStatus(await tenant.api(`/v1/jobs/${id}/cancel`, { method: "POST" }), 200);
      await worker.heard("told", [id]);
      assert.equal((await inState(tenant, id, "cancelled")).attempt, 1);
    });

    test("tells a handler that its time is over, and tries again what then leaves", async () => {
      const tenant = server.newTenant();
      const job = { type: "ship", data: { itemId: "patient" }, timeout: "1s", queue: "slow" };
      const [{ id }] = expectStatus(await tenant.api("/v1/jobs", { body: job }), 201).jobs;
      const worker = started(tenant);
      await worker.heard("told", [id]);
      const { attempt, error, failedAttempts } = await inState(tenant, id, "scheduled");
      assert.deepEqual([attempt, failedAttempts.length], [1, 1]);
      assert.match(error, /told to leave/);
    });

    further("lets jobs finish at a stop and gives back those that take too long", async () => {
      const tenant = server.newTenant();
      const [last, patient, deaf] = [await ship(tenant, "last word"), await ship(tenant, "patient"), await ship(tenant, "deaf")];
      const worker = started(tenant);
      await worker.begun([last, patient, deaf]);
      const late = await ship(tenant, "item");
      const ended = worker.end("SIGTERM");
      worker.child.stdin.write("finish\n");
      assert.deepEqual(await ended, { code: 0, signal: null });
      assert.equal((await tenant.job(last)).state, "completed");
      for (const id of [patient, deaf, late]) {
        const job = await tenant.job(id);
        assert.deepEqual([job.state, job.attempt], ["pending", 0], `job ${id}`);
      }
    });

    // The complete ones bound it, as the test before says.
    const unbounded = isMinimal ? test : () => {};
    unbounded("finishes at a stop what runs, however long it takes, and takes no more", async () => {
      const tenant = server.newTenant();
      const last = await ship(tenant, "last word");
      const worker = started(tenant);
      await worker.begun([last]);
      const renewed = async () => {
        const { leaseUntil } = await tenant.job(last);
        await eventually("the lease to be renewed", async () => (await tenant.job(last)).leaseUntil > leaseUntil);
      };
      worker.child.kill("SIGTERM");
      // Two of its three places are free all the time. Its first renewal after the signal says that it knows of the stop.
      await renewed();
      const late = await ship(tenant, "item");
      for (let n = 0; n < 4; n += 1) await renewed();
      worker.child.stdin.write("finish\n");
      assert.deepEqual(await within(15_000, "the worker to end", worker.ended), { code: 0, signal: null });
      const [done, left] = [await tenant.job(last), await tenant.job(late)];
      assert.deepEqual([done.state, done.attempt, done.result], ["completed", 1, { shipped: "last word" }]);
      assert.deepEqual([left.state, left.attempt], ["pending", 0]);
    });

    test("that is idle stops at once", async () => {
      const tenant = server.newTenant();
      const worker = started(tenant);
      await worker.begun([await ship(tenant, "item")]);
      assert.deepEqual(await worker.end("SIGTERM"), { code: 0, signal: null });
    });

    test("ends with a reason when its key is refused", async () => {
      const worker = started({ server, key: "a-key-that-nobody-has-given-out" });
      const { code } = await within(15_000, "the worker to give up", worker.ended);
      assert.equal(code, 1);
      assert.match(worker.err, /auth\./);
    });

    test("waits for a server that restarts and settles then", async () => {
      const own = await start({ app: shop() });
      const tenant = own.newTenant();
      const id = await ship(tenant, "long");
      const worker = started(tenant);
      await worker.begun([id]);
      await own.kill();
      await own.restart();
      assert.equal((await inState(tenant, id, "completed")).result.shipped, "long");
      const next = await ship(tenant, "item");
      await inState(tenant, next, "completed");
      await worker.end("SIGKILL");
      await own.kill();
    });
  });
}
