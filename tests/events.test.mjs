// Events over HTTP: what is accepted is logged once and in order, what is refused is refused whole and says why.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { expectProblem, expectStatus, start } from "./harness.mjs";

const READER = "key-of-the-library-which-only-reads-there";
let server;

before(async () => {
  const reader = `[[keys]]\nkey = "${READER}"\ntenant = "library"\nscopes = ["read"]\n`;
  server = await start({ app: shop(), config: `${reader}\n[http]\nmaxBodyBytes = 60000\n` });
});

const added = (itemId, more = {}) => ({ type: "item:added", data: { itemId, amount: 1 }, ...more });

describe("publishing", () => {
  test("answers where an event stands in the log", async () => {
    const tenant = server.newTenant();
    const body = expectStatus(await tenant.api("/v1/events", { body: added("a") }), 201);
    const [event] = body.events;
    assert.equal(body.events.length, 1);
    assert.equal(event.type, "item:added");
    assert.equal(event.position, 1);
    assert.match(event.id, /^[0-9a-f]{8}-[0-9a-f]{4}-7/, "an id of ours is a UUIDv7");
    assert.match(event.time, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$/);
    assert.ok(Math.abs(Date.parse(event.time) - Date.now()) < 60_000, `the time is now: ${event.time}`);
  });

  test("takes an array as one commit, in order", async () => {
    const tenant = server.newTenant();
    const body = expectStatus(await tenant.api("/v1/events", { body: ["a", "b", "c"].map((id) => added(id)) }), 201);
    assert.deepEqual(body.events.map(({ position }) => position), [1, 2, 3]);
    assert.deepEqual((await tenant.log()).map(({ data }) => data.itemId), ["a", "b", "c"]);
  });

  test("tells which jobs a rule made of it", async () => {
    const tenant = server.newTenant();
    const body = expectStatus(await tenant.api("/v1/events", { body: { type: "item:sold", data: { itemId: "a" } } }), 201);
    assert.equal(body.caused.jobs.length, 1);
    const job = await tenant.job(body.caused.jobs[0].id);
    assert.deepEqual([job.type, job.data, job.causationId], ["ship", { itemId: "a" }, body.events[0].id]);
  });

  test("numbers each tenant's log from 1 without gaps, also when many publish at once", async () => {
    const tenants = [server.newTenant(), server.newTenant()];
    const calls = Array.from({ length: 200 }, (_, n) => tenants[n % 2].publish("item:added", { itemId: `${n}`, amount: n }));
    await Promise.all(calls);
    for (const tenant of tenants) {
      const positions = (await tenant.log()).map(({ position }) => position);
      assert.deepEqual(positions, Array.from({ length: 100 }, (_, n) => n + 1));
    }
  });

  test("delivers an ephemeral event without logging it", async () => {
    const tenant = server.newTenant();
    const event = await tenant.publish("user:typing", { text: "…" });
    assert.equal(event.position, undefined);
    assert.deepEqual(await tenant.log(), []);
  });

  test("lets the key of all tenants name one, and requires it", async () => {
    const tenant = server.newTenant();
    const [event] = expectStatus(await server.api("/v1/events", { body: added("a", { tenant: tenant.name }) }), 201).events;
    assert.equal((await tenant.log())[0].id, event.id);
    expectProblem(await server.api("/v1/events", { body: added("a") }), 400, "tenant.required");
  });
});

describe("a commit", () => {
  test("writes events and jobs together", async () => {
    const tenant = server.newTenant();
    const body = { events: [added("a"), { type: "item:sold", data: { itemId: "a" } }], jobs: [{ type: "pack", data: { n: 1 } }] };
    const answer = expectStatus(await tenant.api("/v1/commit", { body }), 201);
    assert.deepEqual(answer.events.map(({ position }) => position), [1, 2]);
    assert.deepEqual(answer.jobs.map(({ type, state }) => [type, state]), [["pack", "pending"]]);
    assert.deepEqual(answer.caused.jobs.map(({ type }) => type), ["ship"]);
    assert.equal((await tenant.list("/v1/jobs")).length, 2);
  });

  for (const [what, body, code] of [
    ["a bad event behind good ones", { events: [added("a"), added("b"), { type: "item:added", data: {} }] }, "event.invalid_data"],
    ["an undeclared job", { events: [added("a")], jobs: [{ type: "pack" }, { type: "pakc" }] }, "job.unknown_type"],
  ]) {
    test(`writes nothing at all with ${what}`, async () => {
      const tenant = server.newTenant();
      expectProblem(await tenant.api("/v1/commit", { body }), 400, code);
      assert.deepEqual(await tenant.log(), []);
      assert.deepEqual(await tenant.list("/v1/jobs"), []);
      assert.equal((await tenant.publish("item:added", { itemId: "c", amount: 1 })).position, 1, "no position was used up");
    });
  }

  test("is written once per dedup key", async () => {
    const tenant = server.newTenant();
    const body = { events: [added("a")], jobs: [{ type: "pack" }], dedup: { key: "import-7", ttl: "1h" } };
    assert.ok(!expectStatus(await tenant.api("/v1/commit", { body }), 201).deduplicated);
    assert.equal(expectStatus(await tenant.api("/v1/commit", { body }), 201).deduplicated, true);
    assert.equal((await tenant.log()).length, 1);
    assert.equal((await tenant.list("/v1/jobs")).length, 1);
    const other = { ...body, dedup: { key: "import-8", ttl: "1h" } };
    assert.ok(!expectStatus(await tenant.api("/v1/commit", { body: other }), 201).deduplicated);
    assert.equal((await tenant.log()).length, 2);
  });
});

describe("a bad request", () => {
  let tenant;
  before(() => (tenant = server.newTenant()));

  test("with an undeclared type says which one was meant", async () => {
    const answer = await tenant.api("/v1/events", { body: { type: "item:aded", data: {} } });
    const { detail } = expectProblem(answer, 400, "event.unknown_type");
    assert.match(detail, /item:aded/);
    assert.match(detail, /did you mean "item:added"/);
  });

  test("with a field of the wrong type says what was expected and found", async () => {
    const answer = await tenant.api("/v1/events", { body: { type: "item:added", data: { itemId: "a", amount: "12" } } });
    const problem = expectProblem(answer, 400, "event.invalid_data");
    assert.equal(problem.detail, `data.amount: expected number, got "12"`);
    assert.deepEqual(problem.errors, [{ path: "data.amount", message: `expected number, got "12"` }]);
  });

  test("names every wrong field, also in an array", async () => {
    const body = [added("a"), { type: "item:added", data: { itemId: 7 } }];
    const problem = expectProblem(await tenant.api("/v1/events", { body }), 400, "event.invalid_data");
    assert.deepEqual(problem.errors.map(({ path }) => path).sort(), ["events[1].data.amount", "events[1].data.itemId"]);
    assert.ok(problem.errors.some(({ message }) => message === "expected number, got nothing"), JSON.stringify(problem.errors));
  });

  test("without a parameter that a room needs names it", async () => {
    const answer = await tenant.api("/v1/events", { body: { type: "user:pinged", data: {} } });
    assert.match(expectProblem(answer, 400, "event.missing_param").detail, /userId/);
    await tenant.publish("user:pinged", {}, { params: { userId: "ann" } });
    await tenant.publish("user:pinged", {}, { userId: "ann" });
    await tenant.publish("user:pinged", { userId: "ann" });
  });

  for (const body of [`{"type":`, `[1,2`, `nonsense`, ``]) {
    test(`of malformed JSON ${JSON.stringify(body)}`, async () => {
      expectProblem(await tenant.api("/v1/events", { body }), 400, "json.invalid");
    });
  }

  test("that is too large", async () => {
    const body = { type: "item:added", data: { itemId: "x".repeat(70_000), amount: 1 } };
    expectProblem(await tenant.api("/v1/events", { body }), 413, "body.too_large");
  });

  test("to a path that does not exist is a problem, too", async () => {
    const answer = await tenant.api("/v1/nothing-of-this-name");
    assert.match(expectProblem(answer, 404, answer.body.code).code, /^[a-z]+\.[a-z_]+$/);
  });

  test("changed nothing", async () => {
    assert.deepEqual((await tenant.log()).map(({ type }) => type), ["user:pinged", "user:pinged", "user:pinged"]);
  });
});

describe("credentials", () => {
  test("are required", async () => {
    expectProblem(await server.api("/v1/events", { key: null }), 401, "auth.required");
    expectProblem(await server.api("/v1/events", { key: null, body: added("a") }), 401, "auth.required");
  });

  test("must be known", async () => {
    expectProblem(await server.api("/v1/events", { key: "no-such-key" }), 401, "auth.invalid");
    expectProblem(await server.api("/v1/events", { key: "a.b.c", body: added("a") }), 401, "auth.invalid");
  });

  test("do only what their scopes allow", async () => {
    expectStatus(await server.api("/v1/events", { key: READER }), 200);
    for (const path of ["/v1/events", "/v1/commit", "/v1/jobs", "/v1/leases", "/v1/tokens"]) {
      const body = {
        "/v1/events": added("a"),
        "/v1/commit": { events: [added("a")] },
        "/v1/jobs": { type: "pack" },
        "/v1/leases": { wait: "0s", max: 1 },
        "/v1/tokens": { tenant: "library", user: "ann" },
      }[path];
      expectProblem(await server.api(path, { key: READER, body }), 403, "auth.forbidden");
    }
  });

  test("of one tenant do not reach another", async () => {
    const [mine, other] = [server.newTenant(), server.newTenant()];
    const write = await mine.api("/v1/events", { body: added("a", { tenant: other.name }) });
    const read = await mine.api(`/v1/events?tenant=${other.name}`);
    for (const answer of [write, read]) {
      assert.ok([403, 404].includes(answer.status), `403 or 404, got ${answer.status}: ${JSON.stringify(answer.body)}`);
      assert.ok(["tenant.unknown", "auth.forbidden"].includes(answer.body.code), answer.body.code);
    }
    assert.deepEqual(await other.log(), []);
    assert.deepEqual(await mine.log(), []);
  });

  test("of an end user do not publish", async () => {
    const tenant = server.newTenant();
    const answer = await server.api("/v1/events", { key: tenant.token("ann", { roles: ["admin"] }), body: added("a") });
    assert.ok([401, 403].includes(answer.status), `401 or 403, got ${answer.status}`);
    assert.deepEqual(await tenant.log(), []);
  });
});

describe("doing it twice", () => {
  test("with an idempotency key gives the same answer and writes once", async () => {
    const tenant = server.newTenant();
    const call = (path, body) => tenant.api(path, { body, headers: { "idempotency-key": "order-17" } });
    const first = await call("/v1/events", added("a"));
    const second = await call("/v1/events", added("a"));
    assert.deepEqual([second.status, second.body], [expectStatus(first, 201) && 201, first.body]);
    assert.equal((await tenant.log()).length, 1);
    expectProblem(await call("/v1/events", added("b")), 409, "idempotency.key_reused");
    assert.equal((await tenant.log()).length, 1);
  });

  test("at the same moment with an idempotency key writes once", async () => {
    const tenant = server.newTenant();
    const call = () => tenant.api("/v1/events", { body: added("a"), headers: { "idempotency-key": "once" } });
    const answers = await Promise.all(Array.from({ length: 10 }, call));
    const ids = new Set(answers.map((answer) => expectStatus(answer, 201).events[0].id));
    assert.equal(ids.size, 1);
    assert.equal((await tenant.log()).length, 1);
  });

  test("with an idempotency key covers jobs and their types, too", async () => {
    const tenant = server.newTenant();
    const call = (body) => tenant.api("/v1/jobs", { body, headers: { "idempotency-key": "job-17" } });
    const first = expectStatus(await call({ type: "pack", data: { n: 1 } }), 201);
    assert.deepEqual(expectStatus(await call({ type: "pack", data: { n: 1 } }), 201), first);
    expectProblem(await call({ type: "audit", data: { n: 1 } }), 409, "idempotency.key_reused");
    assert.equal((await tenant.list("/v1/jobs")).length, 1);
  });

  test("with the caller's own id is one event and one job", async () => {
    const tenant = server.newTenant();
    const first = await tenant.publish("item:sold", { itemId: "a" }, { id: "sale-1" });
    const second = await tenant.publish("item:sold", { itemId: "a" }, { id: "sale-1" });
    assert.deepEqual([first.id, first.position, first.deduplicated ?? false], ["sale-1", 1, false]);
    assert.deepEqual([second.id, second.position, second.deduplicated], ["sale-1", 1, true]);
    assert.equal((await tenant.log()).length, 1);
    assert.equal((await tenant.list("/v1/jobs")).length, 1, "the rule ran once");
  });
});

describe("a stream", () => {
  test("numbers its events and refuses a version that it does not have", async () => {
    const tenant = server.newTenant();
    const book = (ledgerId, expectedVersion) =>
      tenant.api("/v1/events", { body: { type: "ledger:booked", data: { ledgerId, amount: 1 }, expectedVersion } });
    assert.equal(expectStatus(await book("x", 0), 201).events[0].version, 1);
    assert.equal(expectStatus(await book("x", 1), 201).events[0].version, 2);
    assert.equal(expectStatus(await book("y", 0), 201).events[0].version, 1);
    expectProblem(await book("x", 1), 409, "event.version_conflict");
    expectProblem(await book("x", 0), 409, "event.version_conflict");
    assert.equal(expectStatus(await book("x", undefined), 201).events[0].version, 3);
    assert.deepEqual((await tenant.log("stream=ledger-x")).map(({ version }) => version), [1, 2, 3]);
  });

  test("lets exactly one of many writers win", async () => {
    const tenant = server.newTenant();
    const body = { type: "ledger:booked", data: { ledgerId: "x", amount: 1 }, expectedVersion: 0 };
    const answers = await Promise.all(Array.from({ length: 8 }, () => tenant.api("/v1/events", { body })));
    assert.deepEqual(answers.map(({ status }) => status).sort(), [201, ...Array(7).fill(409)]);
    assert.equal((await tenant.log()).length, 1);
  });
});

describe("reading the log", () => {
  let tenant;
  let events;
  before(async () => {
    tenant = server.newTenant();
    const body = [
      added("a"),
      added("b", { userId: "ann" }),
      { type: "item:moved", data: { itemId: "a", from: "x", to: "y" }, correlationId: "move-1" },
      added("c", { userId: "bob" }),
      { type: "ledger:booked", data: { ledgerId: "x", amount: 5 }, userId: "ann" },
    ];
    events = expectStatus(await tenant.api("/v1/events", { body }), 201).events;
  });
  const positions = async (query) => (await tenant.log(query)).map(({ position }) => position);

  test("shows an event whole", async () => {
    const [event] = await tenant.log("after=2");
    assert.equal(event.id, events[2].id);
    assert.equal(event.tenant, tenant.name);
    assert.equal(event.type, "item:moved");
    assert.deepEqual(event.data, { itemId: "a", from: "x", to: "y" });
    assert.equal(event.correlationId, "move-1");
    assert.equal(event.time, events[2].time);
  });

  test("goes page by page, ascending", async () => {
    const seen = [];
    let cursor = "";
    let pages = 0;
    do {
      const page = expectStatus(await tenant.api(`/v1/events?limit=2${cursor}`), 200);
      assert.ok(page.items.length <= 2);
      seen.push(...page.items.map(({ position }) => position));
      cursor = page.nextCursor ? `&cursor=${encodeURIComponent(page.nextCursor)}` : "";
      pages += 1;
      assert.ok(pages < 10, "the pages come to an end");
    } while (cursor);
    assert.deepEqual(seen, [1, 2, 3, 4, 5]);
    const last = expectStatus(await tenant.api("/v1/events?limit=2&after=3"), 200);
    assert.equal(last.nextCursor, null, "full, and nothing behind it");
    expectProblem(await tenant.api("/v1/events?cursor=abc"), 400, "cursor.invalid");
  });

  for (const [query, expected] of [
    ["after=3", [4, 5]],
    ["before=3", [1, 2]],
    ["after=1&before=4", [2, 3]],
    ["type=item:added", [1, 2, 4]],
    ["userId=ann", [2, 5]],
    ["type=item:added&userId=ann", [2]],
    ["stream=ledger-x", [5]],
    ["from=2020-01-01T00:00:00Z&to=2999-01-01T00:00:00Z", [1, 2, 3, 4, 5]],
    ["from=2999-01-01T00:00:00Z", []],
    ["to=2020-01-01T00:00:00Z", []],
  ]) {
    test(`filters by ${query}`, async () => assert.deepEqual(await positions(query), expected));
  }

  test("refuses a filter that makes no sense", async () => {
    for (const query of ["after=x", "limit=0", "limit=-1", "from=yesterday"]) {
      const answer = await tenant.api(`/v1/events?${query}`);
      assert.equal(answer.status, 400, `${query}: ${JSON.stringify(answer.body)}`);
      assert.match(answer.headers.get("content-type"), /problem\+json/);
    }
  });

  test("finds one event by its id, and not for another tenant", async () => {
    const event = expectStatus(await tenant.api(`/v1/events/${events[2].id}`), 200);
    assert.deepEqual([event.id, event.position, event.data.to], [events[2].id, 3, "y"]);
    const other = server.newTenant();
    expectProblem(await other.api(`/v1/events/${events[2].id}`), 404, "event.not_found");
    expectProblem(await tenant.api("/v1/events/no-such-event"), 404, "event.not_found");
  });
});
