// Starting and stopping: what is wrong is said in one clear line, and nothing is half started.

import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { describe, test } from "node:test";

import { shop, writeApp } from "./catalogs.mjs";
import { connect } from "./clients.mjs";
import { ADMIN_KEY, APPS, SECRET, end, freePort, ready, run, start, temporaryDirectory, within } from "./harness.mjs";

const SECRETS = { TIDEWIRE_ADMIN_KEY: ADMIN_KEY, TIDEWIRE_AUTH__JWT__SECRET: SECRET };

async function check(directory) {
  const child = run(["check", directory]);
  const { code } = await within(20_000, "`tidewire check` to end", child.ended);
  return { code, text: child.out + child.err };
}

describe("tidewire check", () => {
  for (const app of ["port-nimara", "ai-crm", "angel-investing", "alga-psa", "travel-umroh"]) {
    test(`finds ${app} valid`, async () => {
      const { code, text } = await check(join(APPS, app));
      assert.equal(code, 0, text);
    });
  }

  const HEAD = `[app]\nname = "broken"\ntenant = "orgId"\n[rooms]\n"org:{orgId}" = { join = "auto" }\n`;
  const broken = [
    {
      what: "an unknown key",
      toml: `[events."item:added"]\nromms = ["org:{orgId}"]\n`,
      line: 7,
      says: [/romms/, /did you mean "rooms"/],
    },
    {
      what: "a job of an undeclared queue",
      toml: `[queues.email]\nconcurrency = 1\n[jobs.send]\nqueue = "emial"\n`,
      line: 9,
      says: [/queue/, /emial/, /did you mean "email"/],
    },
    {
      what: "a schedule of an undeclared job",
      toml: `[queues.email]\n[jobs.send]\nqueue = "email"\n[schedules.daily]\njob = "sent"\nevery = "1h"\n`,
      line: 10,
      says: [/daily/, /sent/, /did you mean "send"/],
    },
    {
      what: "a rule on an undeclared event",
      toml: `[events."item:added"]\nrooms = ["org:{orgId}"]\n[queues.q]\n[jobs.j]\nqueue = "q"\n[[rules]]\non = "item:addded"\nenqueue = { job = "j" }\n`,
      line: 12,
      says: [/item:addded/, /did you mean "item:added"/],
    },
    {
      what: "an event in a room of no declared shape",
      toml: `[events."item:added"]\nrooms = ["shelf:{shelfId}"]\n`,
      line: 7,
      says: [/shelf:\{shelfId\}/],
    },
    {
      what: "a number that makes no sense",
      toml: `[queues.email]\nconcurrency = 0\n`,
      line: 7,
      says: [/concurrency/, /0/],
    },
    {
      what: "a duration that is none",
      toml: `[queues.email]\ntimeout = "soon"\n`,
      line: 7,
      says: [/timeout/, /soon/],
    },
    {
      what: "a condition over an unknown variable",
      toml: `[events."item:added"]\nrooms = ["org:{orgId}"]\nvisible = "usr.id == data.id"\n`,
      line: 8,
      says: [/visible/, /usr/],
    },
    { what: "text that is no TOML", toml: `[events\n`, line: 6, says: [] },
  ];
  for (const { what, toml, line, says } of broken) {
    test(`names the place of ${what}`, async () => {
      const { code, text } = await check(writeApp("broken", HEAD + toml));
      assert.equal(code, 1, text);
      assert.match(text, new RegExp(`app\\.toml:${line}\\b`));
      for (const pattern of says) assert.match(text, pattern);
    });
  }

  test("names several mistakes in one go", async () => {
    const toml = `[queues.a]\nconcurrency = 0\n[queues.b]\nattempts = 0\n[queues.c]\nprioritty = 1\n`;
    const { code, text } = await check(writeApp("broken", HEAD + toml));
    assert.equal(code, 1, text);
    for (const line of [7, 9, 11]) assert.match(text, new RegExp(`app\\.toml:${line}\\b`));
  });

  test("says that a folder has no catalog", async () => {
    const { code, text } = await check(temporaryDirectory());
    assert.equal(code, 1, text);
    assert.match(text, /app\.toml/);
  });
});

/** Runs `tidewire serve`, which must refuse: one line on stderr that matches, exit code 1, nothing listening. */
async function refuses({ app = shop(), data = join(temporaryDirectory(), "data"), port, env = SECRETS, args = [], says }) {
  const listen = port ?? (await freePort());
  const child = run(["serve", "--app", app, "--data", data, "--listen", `127.0.0.1:${listen}`, ...args], { env });
  const { code } = await within(20_000, () => `the refusal; stdout: ${child.out} stderr: ${child.err}`, child.ended);
  const lines = child.err.split("\n").filter((line) => line.trim());
  assert.equal(code, 1, `exit code; stderr: ${child.err}`);
  assert.equal(lines.length, 1, `one line on stderr, got: ${child.err}`);
  for (const pattern of says) assert.match(lines[0], pattern);
  if (!port) {
    await assert.rejects(fetch(`http://127.0.0.1:${listen}/health/live`), "nothing may listen after a refusal");
  }
  return { data };
}

describe("tidewire serve refuses", () => {
  test("a broken catalog, and creates no store", async () => {
    const app = writeApp("broken", `[app]\nname = "broken"\ntenant = "orgId"\n[queues.email]\nconcurency = 1\n`);
    const { data } = await refuses({ app, says: [/app\.toml:5\b/, /concurency/, /did you mean "concurrency"/] });
    assert.ok(!existsSync(data) || readdirSync(data).length === 0, "the data directory is untouched");
  });

  test("a missing catalog", () => refuses({ app: join(temporaryDirectory(), "nothing-here"), says: [/nothing-here/] }));

  test("to start without an admin key", async () => {
    const { TIDEWIRE_ADMIN_KEY: _, ...env } = SECRETS;
    await refuses({ env, says: [/TIDEWIRE_ADMIN_KEY/] });
  });

  test("to start without a secret for tokens", async () => {
    const { TIDEWIRE_AUTH__JWT__SECRET: _, ...env } = SECRETS;
    await refuses({ env, says: [/TIDEWIRE_AUTH__JWT__SECRET/] });
  });

  test("a secret that is too short", async () => {
    const env = { ...SECRETS, TIDEWIRE_AUTH__JWT__SECRET: "short" };
    await refuses({ env, says: [/TIDEWIRE_AUTH__JWT__SECRET|auth\.jwt\.secret/, /32/] });
  });

  test("a configuration key that it does not know", async () => {
    const config = join(temporaryDirectory(), "tidewire.toml");
    writeFileSync(config, "[http]\nmaxBodyByte = 5\n");
    await refuses({ args: ["--config", config], says: [/tidewire\.toml/, /maxBodyByte/] });
  });

  test("a data path that is a file", async () => {
    const data = join(temporaryDirectory(), "data");
    writeFileSync(data, "not a directory");
    await refuses({ data, says: [/data/] });
  });

  // Permissions do not bind root, so there is nothing to refuse there.
  test("a data directory that it may not write", { skip: process.getuid() === 0 && "runs as root" }, async () => {
    const data = join(temporaryDirectory(), "data");
    mkdirSync(data);
    chmodSync(data, 0o555);
    await refuses({ data, says: [/data/] });
  });

  test("a data directory that another server uses", async () => {
    const server = await start({ app: shop() });
    await refuses({ data: server.data, says: [/data|tidewire\.db/] });
    assert.equal((await server.api("/health/ready")).status, 200, "the first server is undisturbed");
    await server.stop();
  });

  test("a port that is taken", async () => {
    const port = await freePort();
    const other = createServer();
    await new Promise((done) => other.listen(port, "127.0.0.1", done));
    try {
      await refuses({ port, says: [new RegExp(`${port}`)] });
    } finally {
      await new Promise((done) => other.close(done));
    }
  });
});

describe("a running server", () => {
  test("ends with code 0 on SIGTERM and tells its sockets to come back", async () => {
    const server = await start({ app: shop() });
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    const gone = new Promise((done) => client.socket.once("disconnect", done));
    assert.deepEqual(await server.stop(), { code: 0, signal: null }, server.child.err);
    // After "io server disconnect" a stock client would never try again.
    assert.equal(await within(5_000, "disconnect", gone), "transport close");
  });

  test("answers its health checks", async () => {
    const server = await start({ app: shop() });
    for (const path of ["/health/live", "/health/ready", "/health/ws"]) {
      assert.equal((await server.api(path, { key: null })).status, 200, path);
    }
    await server.stop();
  });

  test("is ready soon after a cold start", async (t) => {
    const port = await freePort();
    const data = join(temporaryDirectory(), "data");
    const begin = performance.now();
    const child = run(["serve", "--app", shop(), "--data", data, "--listen", `127.0.0.1:${port}`], { env: SECRETS });
    await ready(child, `http://127.0.0.1:${port}`);
    t.diagnostic(`cold start to ready: ${Math.round(performance.now() - begin)} ms`);
    assert.equal((await end(child)).code, 0);
  });
});
