// Server-sent events: the log live, for programs and for end users, with the rights, limits and promises of sockets.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { join } from "node:path";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect } from "./clients.mjs";
import { ADMIN_KEY, APPS, eventually, expectProblem, expectStatus, freePort, start } from "./harness.mjs";
import { Stream, follow, refusal } from "./streams.mjs";

const CONFIG = `
[realtime]
pingInterval = "400ms"
maxPerUser = 3
allowedOrigins = ["https://app.example.com"]

[[keys]]
key = "a-key-that-may-only-publish"
tenant = "t1"
scopes = ["publish"]
`;

const MORE = `
[events."level:changed"]
rooms = ["org:{orgId}"]
data = { pad = "string", n = "integer" }
`;

let server;
before(async () => {
  server = await start({ app: shop({ more: MORE }), config: CONFIG });
});

async function publish(tenant, from, count) {
  for (let n = from; n < from + count; n += 1) await tenant.publish("item:added", { itemId: "a", amount: n });
}

/** Publishes `count` events of 20 kB. */
async function flood(tenant, count) {
  const pad = "x".repeat(20_000);
  for (let from = 0; from < count; from += 50) {
    const events = Array.from({ length: 50 }, (_, n) => ({ type: "level:changed", data: { pad, n: from + n } }));
    expectStatus(await tenant.api("/v1/events", { body: events }), 201);
  }
}

const amounts = (...streams) => streams.flatMap((stream) => stream.of("item:added")).map(({ amount }) => amount);
const upTo = (count) => Array.from({ length: count }, (_, n) => n);
const positions = ({ all }) => all.map(({ id }) => Number(id.split(".")[1]));

describe("a user's stream", () => {
  test("begins with headers that nobody buffers or caches, a time to come back and connected", async () => {
    const tenant = server.newTenant();
    const stream = await follow(server, { token: tenant.token("ann", { roles: ["agent"] }) });
    assert.equal(stream.headers["content-type"], "text/event-stream");
    assert.equal(stream.headers["cache-control"], "no-store");
    assert.equal(stream.headers["x-accel-buffering"], "no");
    assert.equal(stream.headers["transfer-encoding"], "chunked");
    assert.ok(stream.retry >= 1_000 && stream.retry < 3_000, `retry: ${stream.retry}`);
    const { socketId, ...hello } = stream.hello;
    assert.deepEqual(hello, {
      userId: "ann", tenant: tenant.name, rooms: [`org:${tenant.name}`, "user:ann"], roles: ["agent"], eventTypes: null, position: 0, recovered: false,
    });
    const { items } = expectStatus(await tenant.api("/v1/realtime/connections"), 200);
    assert.deepEqual(items.map((item) => [item.socketId, item.transport, item.userId]), [[socketId, "sse", "ann"]]);
  });

  test("shows exactly what a socket of that user sees, in order", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const users = [["ann", ["agent"]], ["root", ["admin"]]];
    const pairs = await Promise.all(users.map(async ([user, roles]) => {
      const token = tenant.token(user, { roles });
      const socket = await connect(server, { token });
      await socket.must("join", "item:i1");
      return [socket, await follow(server, { token, query: "rooms=item:i1" })];
    }));
    const foreign = await follow(server, { token: other.token("ann") });
    await tenant.publish("item:moved", { itemId: "i1", from: "x", to: "y" });
    await tenant.publish("item:noted", { itemId: "i1", note: "line\nbreak" });
    await tenant.publish("item:noted", { itemId: "i2", note: "in a room of others" });
    await tenant.publish("lead:created", { leadId: "l1", agentId: "ann" });
    await tenant.publish("lead:created", { leadId: "l2", agentId: "bob" });
    await tenant.publish("user:pinged", {}, { params: { userId: "root" } });
    await tenant.publish("user:typing", { text: "…" });
    // Data keeps the line ends between its parts.
    const body = `{"type":"item:added","data":{\n"itemId":"i1",\r\n"amount":7}}`;
    expectStatus(await tenant.api("/v1/events", { body }), 201);
    await tenant.publish("item:sold", { itemId: "end" });
    for (const [socket, stream] of pairs) {
      await socket.seen.until("item:sold");
      await stream.until("item:sold");
      const own = ({ type }) => type !== "connected";
      const ofSocket = socket.seen.all.filter(own).map(({ type, data, offset }) => ({ id: offset, type, data }));
      assert.deepEqual(stream.all.filter(own), ofSocket);
    }
    assert.deepEqual(pairs.map(([, stream]) => stream.of("lead:created").map(({ leadId }) => leadId)), [["l1"], ["l1", "l2"]]);
    assert.deepEqual(pairs.map(([, stream]) => stream.of("user:pinged").length), [0, 1]);
    assert.equal(pairs[0][1].of("user:typing").length, 1);
    await other.publish("item:sold", { itemId: "mine" });
    await foreign.until("item:sold");
    assert.deepEqual(foreign.all.map(({ type }) => type), ["connected", "item:sold"], "nothing of another tenant");
  });

  test("can be of some types only, and a sign of life moves its id on all the same", async () => {
    const tenant = server.newTenant();
    const stream = await follow(server, { token: tenant.token("ann"), query: "types=item:sold,lead:*" });
    await publish(tenant, 0, 5);
    await stream.when("a later id", () => stream.lastEventId.endsWith(".5"));
    assert.ok(stream.beats >= 1);
    assert.deepEqual(stream.all.map(({ type }) => type), ["connected"]);
    await tenant.publish("item:sold", { itemId: "a" });
    await stream.until("item:sold");
  });

  test("takes the credential from the catalog's cookie or its query, too", async () => {
    const tenant = server.newTenant();
    const token = tenant.token("ann");
    const cookie = await follow(server, { headers: { cookie: `theme=dark; session=${token}` } });
    const query = await follow(server, { query: `token=${token}` });
    assert.deepEqual([cookie.hello.userId, query.hello.userId], ["ann", "ann"]);
    const bad = await refusal(server, { token: "nonsense", headers: { cookie: `session=${token}` } });
    expectProblem(bad, 401, "auth.invalid");
  });

  test("shows a visitor the redacted copies of public rooms", async () => {
    const tenant = server.newTenant();
    const stream = await follow(server, { query: `orgId=${tenant.name}` });
    await tenant.publish("item:added", { itemId: "i1", amount: 1 });
    await tenant.publish("item:moved", { itemId: "i1", from: "secret", to: "y" });
    assert.deepEqual((await stream.until("item:moved")).data, { itemId: "i1", to: "y" });
    assert.deepEqual(stream.all.map(({ type }) => type), ["connected", "item:moved"]);
  });

  test("is in the tenant that it names, of those of its user", async () => {
    const [home, away] = [server.newTenant(), server.newTenant()];
    const token = home.token("ann", { roles: ["admin"], tenants: { [away.name]: ["agent"] } });
    for (const name of ["tenant", "orgId"]) {
      const stream = await follow(server, { token, query: `${name}=${away.name}` });
      assert.deepEqual([stream.hello.tenant, stream.hello.roles], [away.name, ["agent"]]);
      await home.publish("item:sold", { itemId: "at home" });
      await away.publish("item:sold", { itemId: "away" });
      assert.deepEqual((await stream.until("item:sold")).data, { itemId: "away" });
      stream.close();
    }
  });

  test("ends with its credential: revoked, expired, disconnected", async () => {
    const tenant = server.newTenant();
    const soon = Math.floor(Date.now() / 1000) - 24;
    const [ann, bob, cy] = await Promise.all([
      follow(server, { token: tenant.token("ann") }),
      follow(server, { token: tenant.token("bob") }),
      // The catalog's leeway of 30 s leaves it about 6 s.
      follow(server, { token: tenant.token("cy", { exp: soon }) }),
    ]);
    expectStatus(await tenant.api("/v1/realtime/disconnect", { body: { userId: "bob" } }), 200);
    assert.equal(await bob.over(), "ended");
    expectStatus(await tenant.api("/v1/realtime/revoke", { body: { userId: "ann" } }), 200);
    assert.equal(await ann.over(), "ended");
    assert.equal(ann.all.at(-1).type, "auth:revoked");
    expectProblem(await refusal(server, { token: tenant.token("ann", { iat: 1 }), lastEventId: ann.lastEventId }), 401, "auth.invalid");
    assert.ok(await cy.until("auth:expiring"));
    assert.equal(await cy.over(), "ended");
    const again = await follow(server, { token: tenant.token("bob"), lastEventId: bob.lastEventId });
    assert.equal(again.hello.recovered, true);
  });

  test("counts among the sockets of its user, and gives its place back", async () => {
    const tenant = server.newTenant();
    const token = tenant.token("ann");
    const streams = [await follow(server, { token }), await follow(server, { token })];
    await connect(server, { token });
    const full = await refusal(server, { token });
    expectProblem(full, 429, "limit.connections");
    assert.ok(Number(full.headers.get("retry-after")) >= 1, "when to come again");
    await follow(server, { token: tenant.token("bob") });
    streams[0].close();
    await eventually("a place", async () => (await new Stream(server, { token }).begin()) instanceof Stream);
  });

  test("counts among the sockets of its tenant, and so does a program's", async () => {
    const own = await start({ app: shop(), config: "[realtime]\nmaxPerTenant = 2\n" });
    const [tenant, other] = [own.newTenant(), own.newTenant()];
    await follow(own, { token: tenant.token("ann") });
    await follow(own, { token: tenant.key });
    for (const token of [tenant.token("bob"), tenant.key]) {
      expectProblem(await refusal(own, { token }), 429, "limit.tenant");
    }
    await follow(own, { token: other.key });
    await own.kill();
  });

  test("has envelopes where the app's sockets have them", async () => {
    const umroh = await start({ app: join(APPS, "travel-umroh"), tenantClaim: "tenantId" });
    const tenant = umroh.newTenant();
    const stream = await follow(umroh, { token: tenant.token("ann") });
    const published = await tenant.publish("jamaah.created", { jamaahId: "j1" }, { correlationId: "c1" });
    const { data, id } = await stream.until("jamaah.created");
    const { items } = expectStatus(await tenant.api("/v1/events"), 200);
    const { tenant: _, ...envelope } = items[0];
    assert.deepEqual(data, envelope);
    assert.deepEqual([data.id, id.split(".")[1]], [published.id, "1"]);
    await umroh.kill();
  });

  test("is refused with a reason", async () => {
    const tenant = server.newTenant();
    const token = tenant.token("ann");
    const none = server.newTenant().name;
    for (const [options, status, code] of [
      [{}, 401, "auth.required"],
      [{ token: "nonsense" }, 401, "auth.invalid"],
      [{ token, query: "rooms=item:sealed" }, 403, "room.forbidden"],
      [{ token, query: `rooms=org:${none}` }, 403, "room.forbidden"],
      [{ token, query: "types=item:soldd" }, 400, "event.unknown_type"],
      [{ token, query: "types=a*b" }, 400, "request.invalid"],
      [{ token, query: "types=" }, 400, "request.invalid"],
      [{ token, query: "types=%ff" }, 400, "request.invalid"],
      [{ token, query: "type=item:sold" }, 400, "request.invalid"],
      [{ token, query: "after=soon" }, 400, "request.invalid"],
      [{ token, query: `tenant=${none}` }, 404, "tenant.unknown"],
      [{ token: tenant.key, query: `orgId=${none}` }, 400, "request.invalid"],
      [{ token, lastEventId: "what" }, 400, "offset.invalid"],
      [{ token, query: "lastEventId=12" }, 400, "offset.invalid"],
      [{ token, headers: { origin: "https://evil.example.com" } }, 403, "origin.forbidden"],
      [{ token, headers: { accept: "text/html" } }, 406, "request.not_acceptable"],
      [{ token, headers: { accept: "application/json" } }, 401, "auth.invalid"],
    ]) {
      expectProblem(await refusal(server, options), status, code);
    }
  });

  test("is for pages of allowed origins, which ask first", async () => {
    const tenant = server.newTenant();
    const origin = "https://app.example.com";
    const stream = await follow(server, { token: tenant.token("ann"), headers: { origin } });
    assert.equal(stream.headers["access-control-allow-origin"], origin);
    assert.equal(stream.headers["access-control-allow-credentials"], "true");
    const refused = await refusal(server, { headers: { origin } });
    assert.equal(refused.headers.get("access-control-allow-origin"), origin, "so that the page can read why");
    const ask = (method, from) => fetch(`${server.url}/v1/events`, {
      method: "OPTIONS",
      headers: { origin: from, "access-control-request-method": method, "access-control-request-headers": "authorization" },
    });
    const asked = await ask("GET", origin);
    assert.deepEqual(
      [asked.status, asked.headers.get("access-control-allow-origin"), asked.headers.get("access-control-allow-headers")],
      [204, origin, "authorization"],
    );
    assert.equal((await ask("GET", "https://evil.example.com")).headers.get("access-control-allow-origin"), null);
    assert.equal((await ask("POST", origin)).status, 405);
  });
});

describe("a stream that comes back", () => {
  test("gets what it missed, in order and once, and only what it may see by now", async () => {
    const tenant = server.newTenant();
    const token = tenant.token("ann", { roles: ["admin"] });
    const stream = await follow(server, { token });
    await publish(tenant, 0, 3);
    await stream.until("item:added", ({ amount }) => amount === 2);
    stream.close();
    await publish(tenant, 3, 20);
    await tenant.publish("lead:created", { leadId: "l1", agentId: "bob" });
    for (const options of [{ lastEventId: stream.lastEventId }, { query: `lastEventId=${stream.lastEventId}` }, { query: "after=3" }]) {
      // No longer an administrator.
      const back = await follow(server, { token: tenant.token("ann"), ...options });
      assert.equal(back.hello.recovered, true);
      await publish(tenant, 23, 1);
      await back.until("item:added", ({ amount }) => amount === 23);
      assert.deepEqual([...new Set(amounts(stream, back))], upTo(24));
      assert.deepEqual(amounts(back).slice(0, 20), upTo(23).slice(3));
      assert.deepEqual(back.of("lead:created", "continuity:lost"), []);
      back.close();
    }
    const newer = await follow(server, { token, query: "after=1", lastEventId: stream.lastEventId });
    assert.equal(newer.hello.recovered, true);
    await newer.until("lead:created");
    assert.equal(amounts(newer)[0], 3, "the header is newer than the query");
  });

  test("over kill -9 and restart of the server has lost nothing and sees nothing twice", async () => {
    const own = await start({ app: shop() });
    const tenant = own.newTenant();
    const readers = [{ token: tenant.token("ann") }, { token: tenant.key }];
    let streams = await Promise.all(readers.map((options) => follow(own, options)));
    const [seen, acknowledged] = [[[], []], []];
    for (let round = 0; round < 4; round += 1) {
      let publishing = true;
      const load = (async () => {
        while (publishing) {
          const amount = round * 1_000_000 + acknowledged.length;
          try {
            await tenant.publish("item:added", { itemId: "a", amount });
            acknowledged.push(amount);
          } catch {
            return;
          }
        }
      })();
      const target = acknowledged.length + 40;
      await eventually("some events", () => acknowledged.length >= target);
      await own.kill();
      publishing = false;
      await load;
      await Promise.all(streams.map((stream) => stream.over()));
      streams.forEach((stream, index) => seen[index].push(...stream.all.filter(({ type }) => type === "item:added")));
      await own.restart();
      streams = await Promise.all(readers.map((options, index) => follow(own, { ...options, lastEventId: streams[index].lastEventId })));
      streams.forEach((stream) => assert.equal(stream.hello.recovered, true));
    }
    await tenant.publish("item:sold", { itemId: "end" });
    for (const [index, stream] of streams.entries()) {
      await stream.until("item:sold");
      seen[index].push(...stream.all.filter(({ type }) => type === "item:added"));
    }
    const log = (await tenant.log("type=item:added")).map(({ data }) => data.amount);
    const came = [seen[0].map(({ data }) => data.amount), seen[1].map(({ data }) => data.data.amount)];
    for (const amounts of came) assert.deepEqual(amounts, log);
    assert.deepEqual(acknowledged.filter((amount) => !log.includes(amount)), []);
    await own.kill();
  });

  test("is told when continuity is lost", async () => {
    const own = await start({ app: shop({ history: `{ count = 10, age = "24h" }` }) });
    const tenant = own.newTenant();
    const token = tenant.token("ann");
    const stream = await follow(own, { token });
    stream.close();
    await publish(tenant, 0, 11);
    const epoch = stream.lastEventId.split(".")[0];
    for (const lastEventId of [stream.lastEventId, `${epoch}.12`, "0otherepoch.3"]) {
      const back = await follow(own, { token, lastEventId });
      assert.equal(back.hello.recovered, false);
      assert.deepEqual((await back.until("continuity:lost")).data, { position: 11, offset: lastEventId });
      assert.equal(back.lastEventId, `${epoch}.11`);
      assert.deepEqual(amounts(back), []);
      back.close();
    }
    // A program reads the log itself, for which there is no such bound.
    const program = await follow(own, { token: tenant.key, lastEventId: stream.lastEventId });
    await program.when("all", () => program.of("item:added").length === 11);
    const lost = await follow(own, { token: tenant.key, lastEventId: `${epoch}.12` });
    await lost.until("continuity:lost");
    await own.kill();
  });
});

describe("a program's stream", () => {
  test("has every logged event of its tenant as the pages have it, and none of another", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    await publish(tenant, 0, 2);
    const stream = await follow(server, { token: tenant.key, query: "after=0" });
    const admin = await follow(server, { token: ADMIN_KEY, query: `tenant=${tenant.name}` });
    const some = await follow(server, { token: tenant.key, query: "types=lead:*" });
    await other.publish("item:sold", { itemId: "theirs" });
    await tenant.publish("user:typing", { text: "not logged" });
    await tenant.publish("lead:created", { leadId: "l2", agentId: "bob" }, { correlationId: "c1" });
    await tenant.publish("ledger:booked", { ledgerId: "x", amount: 1 });
    await tenant.publish("item:sold", { itemId: "end" });
    for (const each of [stream, admin]) await each.until("item:sold");
    const log = await tenant.log();
    const events = ({ all }) => all.filter(({ type }) => type !== "connected");
    assert.deepEqual(events(stream).map(({ data }) => data), log);
    assert.deepEqual(events(stream).map(({ type }) => type), log.map(({ type }) => type));
    assert.deepEqual(positions(stream).slice(1), log.map(({ position }) => position));
    assert.deepEqual(events(admin).map(({ data }) => data), log.slice(2));
    assert.deepEqual(events(some).map(({ data }) => data), [log[2]]);
    const { items } = expectStatus(await tenant.api("/v1/realtime/rooms"), 200);
    assert.deepEqual(items, [], "it is in no room");
  });

  test("needs a key that may read, and one tenant", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    expectProblem(await refusal(server, { token: "a-key-that-may-only-publish" }), 403, "auth.forbidden");
    expectProblem(await refusal(server, { token: ADMIN_KEY }), 400, "tenant.required");
    expectProblem(await refusal(server, { token: tenant.key, query: `tenant=${other.name}` }), 404, "tenant.unknown");
    expectProblem(await refusal(server, { token: tenant.key, query: "rooms=item:i1" }), 400, "request.invalid");
    expectProblem(await refusal(server, { token: tenant.key, lastEventId: "x".repeat(500) }), 400, "offset.invalid");
  });

  test("is not touched when its tenant's users are revoked", async () => {
    const tenant = server.newTenant();
    const [program, user] = [await follow(server, { token: tenant.key }), await follow(server, { token: tenant.token("ann") })];
    expectStatus(await tenant.api("/v1/realtime/revoke", { body: { tenant: tenant.name } }), 200);
    await user.over();
    await tenant.publish("item:sold", { itemId: "a" });
    await program.until("item:sold");
  });
});

describe("a slow reader", () => {
  test("is parked on the log, and gets everything when it reads on", async () => {
    const tenant = server.newTenant();
    const streams = [await follow(server, { token: tenant.token("slow") }), await follow(server, { token: tenant.key })];
    for (const stream of streams) stream.answer.pause();
    const count = 1_500;
    await flood(tenant, count);
    const { items } = await eventually("both to be behind", async () => {
      const { body } = await tenant.api("/v1/realtime/connections");
      return body.items.every(({ behind }) => behind) && body;
    });
    for (const { bytesQueued } of items) assert.ok(bytesQueued <= 2 * 1024 * 1024, `${bytesQueued} bytes wait`);
    await tenant.publish("item:sold", { itemId: "end" });
    for (const stream of streams) {
      stream.answer.resume();
      await stream.until("item:sold", () => true, 30_000);
      assert.deepEqual(positions(stream).slice(1), Array.from({ length: count + 1 }, (_, n) => n + 1));
      stream.close();
    }
  });
});

describe("a server that stops", () => {
  test("ends streams, so that they come back elsewhere", async () => {
    const own = await start({ app: shop({ more: MORE }) });
    const tenant = own.newTenant();
    const stuck = await follow(own, { token: tenant.token("stuck"), query: "types=level:changed" });
    stuck.answer.pause();
    await flood(tenant, 1_000);
    const { socketId } = stuck.hello;
    await eventually("it to be stuck", async () => {
      const { body } = await tenant.api("/v1/realtime/connections");
      return body.items.find((item) => item.socketId === socketId).behind;
    });
    const streams = [await follow(own, { token: tenant.token("ann") }), await follow(own, { token: tenant.key })];
    await publish(tenant, 0, 1);
    for (const stream of streams) await stream.until("item:added");
    const begun = Date.now();
    const stopped = await own.stop();
    assert.equal(stopped.code, 0);
    // It has 5 s for what waits; without them the stop would wait for it as for any request, 20 s.
    assert.ok(Date.now() - begun < 15_000, `the one that does not read held the server for ${Date.now() - begun} ms`);
    for (const stream of streams) assert.equal(await stream.over(), "ended");
    const next = await own.elsewhere();
    tenant.server = next;
    await publish(tenant, 1, 1);
    for (const [index, token] of [tenant.token("ann"), tenant.key].entries()) {
      const back = await follow(next, { token, lastEventId: streams[index].lastEventId });
      await back.until("item:added");
      assert.deepEqual([back.hello.recovered, back.of("item:added").length], [true, 1]);
    }
    await next.kill();
  });
});

describe("an app that checks its sessions itself", () => {
  test("is asked about a stream again, and its answer counts", async () => {
    let known = true;
    const port = await freePort();
    const app = createServer((request, answer) => {
      const ok = known && request.headers.cookie === "session=s1";
      answer.writeHead(ok ? 200 : 401, { "content-type": "application/json" });
      answer.end(ok ? JSON.stringify({ user: { id: "ann", orgId: "t1" }, session: { id: "s1" } }) : "{}");
    });
    await new Promise((done) => app.listen(port, "127.0.0.1", done));
    const own = await start({ app: shop({ auth: `[auth.session]\nintrospect = "http://127.0.0.1:${port}/me"\nrecheck = "1s"\n` }) });
    const stream = await follow(own, { headers: { cookie: "session=s1" } });
    assert.equal(stream.hello.userId, "ann");
    known = false;
    assert.equal(await stream.over(), "ended");
    assert.equal(stream.all.at(-1).type, "auth:revoked");
    await own.kill();
    app.close();
  });
});
