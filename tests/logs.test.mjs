// What is logged: lines that a program can read, and in none of them what clients sent or proved themselves with.

import assert from "node:assert/strict";
import { test } from "node:test";

import { shop } from "./catalogs.mjs";
import { Raw, connect, connectError } from "./clients.mjs";
import { expectProblem, expectStatus, mint, run, start, within } from "./harness.mjs";

const MARK = "xyzzymark";

const LEVELS = { TIDEWIRE_LOG: "info,tidewire_gateway=debug,tidewire_server=debug,tidewire_runtime=debug,tidewire_store=debug" };

test("no line has a payload, a token or a key", async () => {
  const env = { TIDEWIRE_LOG_FORMAT: "json", ...LEVELS };
  const server = await start({ app: shop(), env });
  const tenant = server.newTenant();
  const body = (data) => ({ type: "item:added", data });

  // What is taken.
  const token = tenant.token("ann", { [MARK]: MARK, tenants: [tenant.name, "elsewhere"] });
  const ann = await connect(server, { token, auth: { more: MARK } });
  await tenant.publish("item:added", { itemId: MARK, amount: 1 }, { correlationId: "c1" });
  await ann.seen.until("item:added");
  await tenant.enqueue("ship", { itemId: MARK });
  const job = await tenant.leaseOne();
  await tenant.settle(job, "fail", { error: `it said ${MARK}`, result: { a: MARK } });

  // What is refused.
  await ann.refused(`message-${MARK}`, { a: MARK });
  await ann.refused("subscribe", { eventTypes: [`${MARK}*`] });
  await ann.refused("auth", { token: `${MARK}.${MARK}.${MARK}` });
  await connectError(server, { token: MARK });
  await connectError(server, { token: mint({ sub: "ann", orgId: tenant.name, a: MARK }, `another secret ${MARK} and longer`) });
  await connectError(server, { query: { token: `${MARK}.x.y` } });
  await connectError(server, { extraHeaders: { cookie: `session=${MARK}` } });
  for (const text of [`4${MARK}`, `42["${MARK}"`, MARK]) {
    const raw = new Raw(server);
    await raw.session({ token });
    raw.ws.send(text);
    await raw.closed();
  }
  expectProblem(await tenant.api("/v1/events", { body: body({ itemId: MARK, amount: MARK }) }), 400, "event.invalid_data");
  expectProblem(await tenant.api("/v1/events", { body: `{"${MARK}` }), 400, "json.invalid");
  expectProblem(await server.api("/v1/stats", { key: `${MARK}-is-not-a-key` }), 401, "auth.invalid");
  assert.equal((await server.api(`/socket.io/?EIO=4&transport=${MARK}`)).status, 400);

  // What operators do, which is logged.
  await ann.must("switch", "elsewhere");
  expectStatus(await tenant.api("/v1/realtime/disconnect", { body: { userId: "bob" } }), 200);
  expectStatus(await tenant.api("/v1/realtime/revoke", { body: { userId: "eve" } }), 200);
  await server.stop();

  const lines = server.child.err.trimEnd().split("\n").map((line) => JSON.parse(line));
  for (const { timestamp, level, message, target } of lines) {
    assert.ok(Date.parse(timestamp) && /^(DEBUG|INFO|WARN|ERROR)$/.test(level) && message && target, JSON.stringify(lines));
  }
  const said = lines.map(({ message }) => message);
  const expected = ["a socket switched tenants", "an operator disconnected sockets", "credentials were revoked", "socket connected"];
  for (const message of [...expected, "closing over a malformed packet"]) {
    assert.ok(said.includes(message), `${message} is not among ${said.join(" | ")}`);
  }
  assert.deepEqual(lines.filter((line) => JSON.stringify(line).includes(MARK)), []);
  for (const secret of [token.split(".")[2], tenant.key]) assert.ok(!server.child.err.includes(secret));
});

test("an unknown format is refused at the start", async () => {
  const child = run(["check", shop()], { env: { TIDEWIRE_LOG_FORMAT: "xml" } });
  const { code } = await within(10_000, "the end", child.ended);
  assert.equal(code, 1);
  assert.match(child.err, /TIDEWIRE_LOG_FORMAT: expected text or json, got "xml"/);
});
