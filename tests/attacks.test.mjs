// What careless and hostile callers get: an answer with a code, and nothing stored.

import assert from "node:assert/strict";
import { once } from "node:events";
import { request } from "node:http";
import { text } from "node:stream/consumers";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect, connectError } from "./clients.mjs";
import { expectProblem, expectStatus, start } from "./harness.mjs";

let server;
before(async () => {
  server = await start({ app: shop(), env: { TIDEWIRE_PORT: "tcp://10.0.0.1:7400" }, config: "[http]\nmaxBodyBytes = 1000000\n" });
});

describe("JSON that the grammar allows and nobody can read", () => {
  for (const [what, value] of [["half a surrogate pair", `"\\ud83d"`], ["a number beyond all numbers", "1e999"], ["200 levels", "[".repeat(200) + "]".repeat(200)]]) {
    test(`with ${what} is refused as data`, async () => {
      const tenant = server.newTenant();
      const event = `{"type":"item:added","data":{"itemId":"a","amount":1,"x":${value}}}`;
      const { detail } = expectProblem(await tenant.api("/v1/events", { body: event }), 400, "event.invalid_data");
      assert.match(detail, /^data: /);
      const job = `{"type":"pack","data":{"x":${value}}}`;
      expectProblem(await tenant.api("/v1/jobs", { body: job }), 400, "job.invalid_data");
      assert.equal((await tenant.log()).length, 0);
    });
  }

  test("is refused as a result, and the lease holds", async () => {
    const tenant = server.newTenant();
    expectStatus(await tenant.api("/v1/jobs", { body: { type: "pack" } }), 201);
    const [job] = expectStatus(await tenant.api("/v1/leases", { body: {} }), 200).jobs;
    const settle = (result) => `{"results":[{"id":"${job.id}","lease":"${job.lease}","verdict":"done","result":${result}}]}`;
    const refused = expectStatus(await tenant.api("/v1/leases/settle", { body: settle("1e999") }), 200);
    assert.equal(refused.results[0].error.code, "json.invalid");
    const taken = expectStatus(await tenant.api("/v1/leases/settle", { body: settle("1e9") }), 200);
    assert.equal(taken.results[0].state, "completed");
  });
});

describe("what is too much", () => {
  test("beside the data is refused", async () => {
    const tenant = server.newTenant();
    for (const field of ["userId", "correlationId", "causationId", "stream"]) {
      const body = { type: "item:added", data: { itemId: "a", amount: 1 }, [field]: "x".repeat(300) };
      expectProblem(await tenant.api("/v1/events", { body }), 413, "data.too_large");
    }
    const delays = Array(101).fill("1s");
    const job = { type: "pack", backoff: { kind: "delays", delays } };
    expectProblem(await tenant.api("/v1/jobs", { body: job }), 400, "job.invalid_option");
    expectProblem(await tenant.api("/v1/jobs", { body: { type: "pack", attempts: 1001 } }), 400, "job.invalid_option");
  });

  test("as a body is answered, not cut off", async () => {
    const tenant = server.newTenant();
    expectProblem(await tenant.api("/v1/events", { body: " ".repeat(20_000_000) }), 413, "body.too_large");
  });

  test("on a page of the log ends the page and not the listing", async () => {
    const tenant = server.newTenant();
    const note = "y".repeat(200_000);
    for (let n = 0; n < 25; n += 1) await tenant.publish("item:noted", { itemId: "a", note });
    const first = expectStatus(await tenant.api("/v1/events?limit=1000"), 200);
    assert.ok(first.items.length < 25 && first.nextCursor, `${first.items.length} events on the first page`);
    const rest = expectStatus(await tenant.api(`/v1/events?limit=1000&cursor=${first.nextCursor}`), 200);
    assert.equal(first.items.length + rest.items.length, 25);
  });
});

describe("a key of one tenant", () => {
  test("cannot make up claims that open the rooms of all", async () => {
    const tenant = server.newTenant();
    expectStatus(await tenant.api("/v1/tokens", { body: { user: "ann" } }), 201);
    const body = { user: "ann", claims: { superAdmin: true } };
    expectProblem(await tenant.api("/v1/tokens", { body }), 403, "auth.forbidden");
  });
});

describe("a visitor", () => {
  test("cannot name a tenant that the configuration does not", async () => {
    const listed = await start({ app: shop(), env: { TIDEWIRE_TENANTS: "t1,t2" } });
    const refused = await connectError(listed, { auth: { orgId: "elsewhere" } });
    assert.equal(refused.message, "Authentication token required");
  });
});

test("a repeated request delivers its ephemeral event once", async () => {
  const tenant = server.newTenant();
  const client = await connect(server, { token: tenant.token("ann") });
  const body = { type: "user:typing", data: { text: "once" } };
  for (const key of ["k1", "k1", "k2"]) {
    expectStatus(await tenant.api("/v1/events", { body, headers: { "idempotency-key": key } }), 201);
  }
  await tenant.publish("item:added", { itemId: "end", amount: 0 });
  await client.seen.until("item:added");
  assert.equal(client.seen.all.filter(({ type }) => type === "user:typing").length, 2);
});

test("a stop answers the workers that wait", async () => {
  const own = await start({ app: shop() });
  const poll = request(`${own.url}/v1/leases`, { method: "POST", headers: { authorization: `Bearer ${own.newTenant().key}` } });
  const answered = once(poll, "response");
  poll.end(JSON.stringify({ wait: "60s" }));
  await once(poll, "finish");
  // The poll was sent before this, and the server takes connections in their order.
  expectStatus(await own.api("/health/ready"), 200);
  const begin = Date.now();
  await own.stop();
  const [response] = await answered;
  assert.equal(response.statusCode, 200);
  assert.deepEqual(JSON.parse(await text(response)), { jobs: [] });
  assert.ok(Date.now() - begin < 10_000, "the stop waited for the long poll");
});

test("an empty list of types is a slip, not a wish for all", async () => {
  const tenant = server.newTenant();
  expectProblem(await tenant.api("/v1/leases", { body: { types: [] } }), 400, "lease.invalid_option");
});

test("a path that is no text is answered with a code", async () => {
  expectProblem(await server.newTenant().api("/v1/jobs/%ff"), 400, "request.invalid");
});
