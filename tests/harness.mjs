// The real binary, started and stopped like an operator would, and the HTTP face of it.
//
// A test file starts one or more servers, each with a data directory and a port of its own, and works in fresh tenants, so that
// no test sees what another one wrote. Every wait has a deadline and says what it was waiting for.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL(".", import.meta.url));

/** The binary under test: TIDEWIRE_BIN, or what `cargo build` leaves. */
export const BINARY = resolve(here, process.env.TIDEWIRE_BIN ?? "../target/debug/tidewire");
/** The catalogs that ship with Tidewire. */
export const APPS = resolve(here, "../apps");
/** The key of every tenant and every scope. */
export const ADMIN_KEY = "admin-key-of-the-black-box-tests-0001";
/** The HS256 secret that end users' tokens are signed with. */
export const SECRET = "black-box-tests-sign-their-tokens-with-this";

const children = new Set();
const directories = new Set();

after(() => Promise.all([...children].map((child) => end(child, "SIGKILL"))));
process.once("exit", () => {
  for (const child of children) child.kill("SIGKILL");
  for (const directory of directories) rmSync(directory, { recursive: true, force: true });
});
// The runner ends a file that takes too long with SIGTERM; its servers must not outlive it.
process.once("SIGTERM", () => process.exit(143));

/** `promise`, or an error that says `what` did not happen within `ms`. */
export async function within(ms, what, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${typeof what === "function" ? what() : what}: not within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** The first truthy answer of `probe`. For what has no signal that could be awaited; a probe that throws is asked again. */
export async function eventually(what, probe, ms = 15_000) {
  const deadline = Date.now() + ms;
  let last;
  for (;;) {
    try {
      const answer = await probe();
      if (answer) return answer;
      last = `last answer: ${JSON.stringify(answer)}`;
    } catch (error) {
      last = error.message;
    }
    if (Date.now() > deadline) throw new Error(`${what}: not within ${ms} ms; ${last}`);
    await new Promise((done) => setTimeout(done, 25));
  }
}

/** A directory that is gone when the file is done. */
export function temporaryDirectory() {
  const directory = mkdtempSync(join(tmpdir(), "tidewire-test-"));
  directories.add(directory);
  return directory;
}

/**
 * A loopback port that is free now. It lies below the range from which the kernel takes ports for outgoing connections: a client
 * that keeps trying a closed port of that range can end up connected to itself.
 */
export async function freePort() {
  for (;;) {
    const port = 15_000 + Math.floor(Math.random() * 15_000);
    const probe = createServer();
    const free = await new Promise((done) => {
      probe.once("error", () => done(false));
      probe.listen(port, "127.0.0.1", () => probe.close(() => done(true)));
    });
    if (free) return port;
  }
}

/** Starts the binary with `args` and nothing of this process's Tidewire settings. Answers at once. */
export function run(args, { env = {}, cwd } = {}) {
  const child = spawn(BINARY, args, {
    cwd,
    env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  child.out = "";
  child.err = "";
  child.stdout.setEncoding("utf8").on("data", (text) => (child.out = (child.out + text).slice(-100_000)));
  child.stderr.setEncoding("utf8").on("data", (text) => (child.err = (child.err + text).slice(-100_000)));
  children.add(child);
  child.ended = new Promise((done) => {
    child.once("error", (error) => done({ code: null, signal: null, error }));
    child.once("close", (code, signal) => done({ code, signal }));
  }).finally(() => children.delete(child));
  return child;
}

/** Sends `signal` to a child and waits for its end. */
export async function end(child, signal = "SIGTERM", ms = 20_000) {
  child.kill(signal);
  return within(ms, () => `pid ${child.pid} to end after ${signal}; its stderr: ${child.err}`, child.ended);
}

/** Waits until the server at `url` says it is ready, or says why its process ended first. */
export async function ready(child, url, ms = 30_000) {
  let ended;
  child.ended.then((status) => (ended = status));
  await eventually(
    `${url}/health/ready to answer 200`,
    async () => {
      if (ended) return true;
      return (await fetch(`${url}/health/ready`, { signal: AbortSignal.timeout(2_000) })).status === 200;
    },
    ms,
  );
  if (ended) {
    const why = ended.error?.message ?? `exit code ${ended.code}, signal ${ended.signal}`;
    throw new Error(`${BINARY} ended before it was ready (${why}). stderr: ${child.err}`);
  }
}

/** A token as an app's own login would sign it. */
export function mint(claims, secret = SECRET) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ iat: now, exp: now + 3600, ...claims })}`;
  return `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
}

/** The body of an answer that must have `status`. */
export function expectStatus(answer, status) {
  assert.equal(answer.status, status, `expected status ${status}, got ${answer.status}: ${JSON.stringify(answer.body)}`);
  return answer.body;
}

/** The problem of an answer that must be an error with `status` and `code`. */
export function expectProblem(answer, status, code) {
  const problem = expectStatus(answer, status);
  assert.match(answer.headers.get("content-type") ?? "", /^application\/problem\+json/);
  assert.equal(problem.status, status);
  assert.equal(problem.code, code, `detail: ${problem.detail}`);
  assert.ok(problem.title && problem.detail, `title and detail: ${JSON.stringify(problem)}`);
  return problem;
}

const KEYED_TENANTS = 60;
const keyOf = (name) => `key-of-${name}-which-does-everything-there`;

/** A running `tidewire serve`. Start one with {@link start}. */
export class Server {
  constructor(options) {
    Object.assign(this, options);
    this.url = `http://127.0.0.1:${this.port}`;
    this.handedOut = 0;
  }

  /** Starts the process again on the same data and port. */
  async restart() {
    const args = ["serve", "--app", this.app, "--data", this.data, "--listen", `127.0.0.1:${this.port}`];
    this.child = run([...args, "--config", this.config, ...this.args], { env: this.env });
    await ready(this.child, this.url);
    return this;
  }

  get pid() {
    return this.child.pid;
  }

  /** SIGTERM; answers how the process ended. */
  stop() {
    return end(this.child, "SIGTERM");
  }

  /** SIGKILL. */
  kill() {
    return end(this.child, "SIGKILL");
  }

  /** A second process on the same data, on a port of its own. Only for when this one has ended. */
  async elsewhere() {
    return new Server({ ...this, port: await freePort() }).restart();
  }

  /** One HTTP call. A body that is text goes out as it is. */
  async api(path, { method, body, key = ADMIN_KEY, headers = {}, ms = 30_000 } = {}) {
    const response = await fetch(this.url + path, {
      method: method ?? (body === undefined ? "GET" : "POST"),
      headers: {
        ...(key ? { authorization: `Bearer ${key}` } : {}),
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...headers,
      },
      body: body === undefined || typeof body === "string" ? body : JSON.stringify(body),
      signal: AbortSignal.timeout(ms),
    });
    const text = await response.text();
    const isJson = /json/.test(response.headers.get("content-type") ?? "");
    return { status: response.status, headers: response.headers, body: isJson && text ? JSON.parse(text) : text };
  }

  /** A tenant that nothing was written for yet. */
  newTenant() {
    assert.ok(this.handedOut < KEYED_TENANTS, "more tenants than the configuration has keys for");
    this.handedOut += 1;
    return new Tenant(this, `t${this.handedOut}`);
  }
}

/** Starts a server of the catalog at `app` and waits until it is ready. `config` is added to the generated configuration. */
export async function start({ app, config = "", data, env = {}, args = [], tenantClaim = "orgId" }) {
  const directory = temporaryDirectory();
  const names = Array.from({ length: KEYED_TENANTS }, (_, index) => `t${index + 1}`);
  const scopes = `["publish", "enqueue", "work", "read", "admin"]`;
  const keys = names.map((name) => `[[keys]]\nkey = "${keyOf(name)}"\ntenant = "${name}"\nscopes = ${scopes}\n`);
  writeFileSync(join(directory, "tidewire.toml"), `${keys.join("\n")}\n${config}`);
  const server = new Server({
    app,
    args,
    config: join(directory, "tidewire.toml"),
    data: data ?? join(directory, "data"),
    env: { TIDEWIRE_ADMIN_KEY: ADMIN_KEY, TIDEWIRE_AUTH__JWT__SECRET: SECRET, ...env },
    port: await freePort(),
    tenantClaim,
  });
  return server.restart();
}

/** One tenant of a server, with a key that is bound to it. */
export class Tenant {
  constructor(server, name) {
    this.server = server;
    this.name = name;
    this.key = keyOf(name);
  }

  api(path, options = {}) {
    return this.server.api(path, { key: this.key, ...options });
  }

  /** A token of one of its users. */
  token(user, { roles = [], ...claims } = {}) {
    return mint({ sub: user, [this.server.tenantClaim]: this.name, roles, ...claims });
  }

  /** Publishes one event and answers how it was appended. */
  async publish(type, data = {}, more = {}) {
    const answer = await this.api("/v1/events", { body: { type, data, ...more } });
    return expectStatus(answer, 201).events[0];
  }

  /** The whole log, read page by page. */
  async log(query = "") {
    return this.list(`/v1/events?${query}`);
  }

  /** All items of a list, read page by page. */
  async list(path) {
    const items = [];
    for (let cursor = ""; ; ) {
      const separator = path.includes("?") ? "&" : "?";
      const page = expectStatus(await this.api(`${path}${separator}limit=500${cursor}`), 200);
      items.push(...page.items);
      if (!page.nextCursor) return items;
      cursor = `&cursor=${encodeURIComponent(page.nextCursor)}`;
    }
  }

  /** Enqueues one job and answers how it was enqueued. */
  async enqueue(type, data = {}, more = {}) {
    const answer = await this.api("/v1/jobs", { body: { type, data, ...more } });
    return expectStatus(answer, 201).jobs[0];
  }

  async job(id) {
    return expectStatus(await this.api(`/v1/jobs/${encodeURIComponent(id)}`), 200);
  }

  /** Leases jobs; an empty list when none came within `wait`. */
  async lease(options = {}) {
    const body = { max: 1, wait: "10s", lease: "30s", worker: "test", ...options };
    return expectStatus(await this.api("/v1/leases", { body }), 200).jobs;
  }

  /** Leases exactly one job, or fails. */
  async leaseOne(options = {}) {
    const jobs = await this.lease(options);
    assert.equal(jobs.length, 1, `expected one job within the wait of the lease, got ${jobs.length}`);
    return jobs[0];
  }

  /** Settles one leased job and answers what became of it. */
  async settle({ id, lease }, verdict, more = {}) {
    const answer = await this.api("/v1/leases/settle", { body: { results: [{ id, lease, verdict, ...more }] } });
    return expectStatus(answer, 200).results[0];
  }
}
