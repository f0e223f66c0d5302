// Coming back: a stock client gets exactly what it missed, in order and once, or is told that it does not.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { Raw, connect } from "./clients.mjs";
import { start } from "./harness.mjs";

let server;
before(async () => {
  server = await start({ app: shop() });
});

/** Publishes `count` numbered events, one after the other. */
async function publish(tenant, from, count) {
  for (let n = from; n < from + count; n += 1) await tenant.publish("item:added", { itemId: "a", amount: n });
}

const amounts = ({ seen }) => seen.of("item:added").map(({ amount }) => amount);
const upTo = (count) => Array.from({ length: count }, (_, n) => n);

/** Publishes number `n` as the last one and waits until the client has it. Then what it has not seen will not come. */
async function last(tenant, client, n) {
  await publish(tenant, n, 1);
  await client.seen.until("item:added", ({ amount }) => amount === n);
}

describe("a client that lost its transport", () => {
  for (const how of ["close", "cut"]) {
    test(`by ${how} gets what it missed, in order and once`, async () => {
      const tenant = server.newTenant();
      const client = await connect(server, { token: tenant.token("ann") });
      await publish(tenant, 0, 3);
      await client.seen.until("item:added", ({ amount }) => amount === 2);
      const id = client.socket.id;
      await client.drop(how);
      await publish(tenant, 3, 20);
      const hello = await client.comeBack();
      assert.equal(client.socket.recovered, true);
      assert.equal(client.socket.id, id, "it is the same session");
      assert.equal(hello.recovered, true);
      await last(tenant, client, 23);
      assert.deepEqual(amounts(client), upTo(24));
      assert.deepEqual(client.seen.of("continuity:lost"), []);
    });
  }

  test("over polling recovers, too", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann"), transports: ["polling"] });
    await last(tenant, client, 0);
    await client.drop();
    await publish(tenant, 1, 5);
    await client.comeBack();
    assert.equal(client.socket.recovered, true);
    await last(tenant, client, 6);
    assert.deepEqual(amounts(client), upTo(7));
  });

  test("before it had seen any event recovers", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    await client.drop();
    await publish(tenant, 0, 5);
    await client.comeBack();
    assert.equal(client.socket.recovered, true);
    await last(tenant, client, 5);
    assert.deepEqual(amounts(client), upTo(6));
  });

  test("when nothing was missed recovers and sees nothing twice", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    await last(tenant, client, 0);
    await client.drop();
    await client.comeBack();
    assert.equal(client.socket.recovered, true);
    await last(tenant, client, 1);
    assert.deepEqual(amounts(client), [0, 1]);
  });

  test("after an ephemeral event that ends in text recovers", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    await last(tenant, client, 0);
    await tenant.publish("user:typing", { text: "not an offset" });
    await client.seen.until("user:typing");
    await client.drop();
    await publish(tenant, 1, 3);
    await client.comeBack();
    assert.equal(client.socket.recovered, true);
    await last(tenant, client, 4);
    assert.deepEqual(amounts(client), upTo(5));
  });

  test("recovers again and again", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    let n = 0;
    for (let round = 0; round < 6; round += 1) {
      await client.drop(round % 2 ? "cut" : "close");
      await publish(tenant, n, round);
      n += round;
      await client.comeBack();
      assert.equal(client.socket.recovered, true, `round ${round}`);
    }
    await last(tenant, client, n);
    assert.deepEqual(amounts(client), upTo(n + 1));
  });

  test("comes back without a gap into a stream of events that does not stop", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    const publishing = publish(tenant, 0, 300);
    for (const seen of [50, 150, 250]) {
      await client.seen.until("item:added", ({ amount }) => amount >= seen);
      await client.drop("cut");
      await client.comeBack();
      assert.equal(client.socket.recovered, true);
    }
    await publishing;
    await last(tenant, client, 300);
    assert.deepEqual(amounts(client), upTo(301));
  });

  test("has its rooms and its filter back", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    await client.must("join room", "item:a");
    await client.must("subscribe", { eventTypes: ["item:noted"] });
    await client.drop();
    await publish(tenant, 0, 2);
    await tenant.publish("item:noted", { itemId: "a", note: "missed" });
    await tenant.publish("item:noted", { itemId: "b", note: "of another room" });
    await client.comeBack();
    assert.equal(client.socket.recovered, true);
    await tenant.publish("item:noted", { itemId: "a", note: "live" });
    await client.seen.until("item:noted", ({ note }) => note === "live");
    assert.deepEqual(client.seen.of("item:noted").map(({ note }) => note), ["missed", "live"]);
    assert.deepEqual(amounts(client), []);
  });

  test("comes back beside another tab of its user, each with its own rooms and its own gap", async () => {
    const tenant = server.newTenant();
    const token = tenant.token("ann");
    const [one, two] = [await connect(server, { token }), await connect(server, { token })];
    await one.must("join room", "item:a");
    await last(tenant, one, 0);
    const ids = [one, two].map(({ socket }) => socket.id);
    await one.drop("cut");
    await tenant.publish("item:noted", { itemId: "a", note: "for the first tab" });
    await last(tenant, two, 1);
    await two.drop("close");
    await publish(tenant, 2, 2);
    for (const client of [two, one]) {
      await client.comeBack();
      assert.equal(client.socket.recovered, true);
    }
    assert.deepEqual([one, two].map(({ socket }) => socket.id), ids);
    await last(tenant, one, 4);
    await two.seen.until("item:added", ({ amount }) => amount === 4);
    assert.deepEqual([amounts(one), amounts(two)], [upTo(5), upTo(5)]);
    assert.deepEqual(one.seen.of("item:noted").map(({ note }) => note), ["for the first tab"]);
    assert.deepEqual(two.seen.of("item:noted"), []);
  });

  test("on purpose begins anew, and is told", async () => {
    const tenant = server.newTenant();
    const client = await connect(server, { token: tenant.token("ann") });
    await last(tenant, client, 0);
    const id = client.socket.id;
    client.socket.disconnect();
    await publish(tenant, 1, 1);
    const hello = await client.comeBack();
    assert.deepEqual([client.socket.recovered, hello.recovered], [false, false]);
    assert.notEqual(client.socket.id, id);
    const { position } = await client.seen.until("continuity:lost");
    assert.equal(position, hello.position);
    await last(tenant, client, 2);
    assert.deepEqual(amounts(client), [0, 2]);
  });

  test("gets only what it may see today", async () => {
    const tenant = server.newTenant();
    const roles = ["admin"];
    const client = await connect(server, { token: tenant.token("ann", { roles }) });
    await tenant.publish("lead:created", { leadId: "1", agentId: "bob" });
    await client.seen.until("lead:created");
    await client.drop();
    await tenant.publish("lead:created", { leadId: "2", agentId: "bob" });
    client.socket.auth = { token: tenant.token("ann", { roles: [] }) };
    await client.comeBack();
    await last(tenant, client, 0);
    assert.deepEqual(client.seen.of("lead:created").map(({ leadId }) => leadId), ["1"]);
  });
});

describe("a client that outlives the server", () => {
  let own;
  before(async () => {
    own = await start({ app: shop() });
  });

  for (const [how, ending] of [["SIGTERM", "stop"], ["SIGKILL", "kill"]]) {
    test(`gets what was published while it was away over a ${how}`, async () => {
      const tenant = own.newTenant();
      const client = await connect(own, { token: tenant.token("ann") });
      await client.must("join room", "item:a");
      await last(tenant, client, 0);
      client.socket.io.reconnection(false);
      const gone = new Promise((done) => client.socket.once("disconnect", done));
      await own[ending]();
      await gone;

      // The client is away while another process of the same data takes events, and ends in the same way.
      const other = await own.elsewhere();
      const there = Object.assign(Object.create(tenant), { server: other });
      await publish(there, 1, 5);
      await there.publish("item:noted", { itemId: "a", note: "missed" });
      await other[ending]();

      await own.restart();
      await publish(tenant, 6, 2);
      await client.comeBack();
      assert.equal(client.socket.recovered, true);
      await last(tenant, client, 8);
      assert.deepEqual(amounts(client), upTo(9));
      assert.deepEqual(client.seen.of("item:noted"), [{ itemId: "a", note: "missed" }]);
    });
  }

  test("has after a SIGKILL what was acknowledged in the moment before", async () => {
    const tenant = own.newTenant();
    const client = await connect(own, { token: tenant.token("ann") });
    assert.equal(client.hello.eventTypes, null);
    const rooms = new Set(client.hello.rooms);
    const types = [];
    const changes = [
      ["join", "item:a", () => rooms.add("item:a")],
      ["subscribe", { eventTypes: ["item:*"] }, () => types.push("item:*")],
      ["leave", `user:ann`, () => rooms.delete("user:ann")],
      ["subscribe", { eventTypes: ["lead:*"], rooms: ["item:b"] }, () => types.push("lead:*") && rooms.add("item:b")],
      ["unsubscribe", { eventTypes: ["item:*"], rooms: ["item:a"] }, () => types.shift() && rooms.delete("item:a")],
    ];
    for (const [message, argument, change] of changes) {
      client.socket.io.reconnection(false);
      const gone = new Promise((done) => client.socket.once("disconnect", done));
      await client.must(message, argument);
      await own.kill();
      change();
      await gone;
      await own.restart();
      const hello = await client.comeBack();
      assert.equal(client.socket.recovered, true, message);
      assert.deepEqual([[...hello.rooms].sort(), hello.eventTypes], [[...rooms].sort(), types.length ? types : null], message);
    }
  });

  test("gets again after a SIGKILL what it had not acknowledged", async () => {
    const tenant = own.newTenant();
    const client = await connect(own, { token: tenant.token("ann") });
    await publish(tenant, 0, 5);
    await client.seen.until("item:added", ({ amount }) => amount === 4);
    client.socket.io.reconnection(false);
    const gone = new Promise((done) => client.socket.once("disconnect", done));
    await client.must("ack", { position: 2 });
    await own.kill();
    await gone;
    await own.restart();
    await client.comeBack();
    assert.equal(client.socket.recovered, true);
    await last(tenant, client, 5);
    assert.deepEqual(amounts(client), [...upTo(5), 2, 3, 4, 5]);
  });

  test("comes back by itself, again and again", async () => {
    const tenant = own.newTenant();
    const client = await connect(own, { token: tenant.token("ann"), reconnection: true });
    let n = 0;
    for (const ending of ["kill", "stop", "kill"]) {
      await last(tenant, client, n);
      n += 1;
      await own[ending]();
      await own.restart();
      await publish(tenant, n, 3);
      n += 3;
      await client.connected();
      await client.seen.until("item:added", ({ amount }) => amount === n - 1);
      assert.equal(client.socket.recovered, true, `after ${ending}`);
    }
    await last(tenant, client, n);
    assert.deepEqual(amounts(client), upTo(n + 1));
  });
});

describe("a session that is not the client's own", () => {
  /** A bare client's connect packet and what the server answered. */
  async function offer(auth) {
    const raw = new Raw(server);
    const answer = await raw.session(auth);
    await raw.until(/^42\["connected"/);
    return { ...answer, raw };
  }

  test("is not recovered by a forged or a changed pid", async () => {
    const tenant = server.newTenant();
    const token = tenant.token("ann");
    const mine = await offer({ token });
    assert.ok(mine.pid, "the server offers recovery");
    const { position } = await tenant.publish("item:added", { itemId: "a", amount: 1 });
    const offset = JSON.parse((await mine.raw.until(/^42\["item:added"/)).slice(2)).at(-1);
    assert.ok(offset.endsWith(`.${position}`), offset);
    const middle = Math.floor(mine.pid.length / 2);
    const changed = mine.pid.slice(0, middle) + (mine.pid[middle] === "A" ? "B" : "A") + mine.pid.slice(middle + 1);
    for (const pid of ["forged", "", changed, mine.pid.slice(0, -4), `${mine.pid}AAAA`, "x".repeat(10_000)]) {
      const { sid, pid: fresh, raw } = await offer({ token, pid, offset });
      assert.notEqual(sid, mine.sid, `pid ${pid.slice(0, 40)}`);
      assert.notEqual(fresh, pid);
      raw.close();
    }
  });

  test("is not recovered by another user or another tenant", async () => {
    const [tenant, elsewhere] = [server.newTenant(), server.newTenant()];
    const mine = await offer({ token: tenant.token("ann") });
    await tenant.publish("user:pinged", { secret: "for ann" }, { userId: "ann" });
    await mine.raw.until(/"secret"/);
    const offset = JSON.parse((await mine.raw.until(/^42\["connected"/)).slice(2)).at(-1);
    for (const token of [tenant.token("bob"), elsewhere.token("ann")]) {
      const { sid, pid, raw } = await offer({ token, pid: mine.pid, offset });
      assert.notEqual(sid, mine.sid);
      assert.notEqual(pid, mine.pid);
      assert.ok(!raw.received.some((packet) => packet.includes("for ann")), raw.received.join(" | "));
    }
  });

  test("is taken over from a connection that is only half gone", async () => {
    const tenant = server.newTenant();
    const token = tenant.token("ann");
    const old = await offer({ token });
    const offset = JSON.parse((await old.raw.until(/^42\["connected"/)).slice(2)).at(-1);
    const next = await offer({ token, pid: old.pid, offset });
    assert.deepEqual([next.sid, next.pid], [old.sid, old.pid]);
    await old.raw.closed();
    await tenant.publish("item:added", { itemId: "a", amount: 7 });
    await next.raw.until(/"amount":7/);
  });
});

describe("continuity that is lost", () => {
  let short;
  before(async () => {
    short = await start({ app: shop({ history: `{ count = 5, age = "24h" }` }) });
  });

  test("because more was missed than history holds is told", async () => {
    const tenant = short.newTenant();
    const client = await connect(short, { token: tenant.token("ann") });
    await last(tenant, client, 0);
    await client.drop();
    await publish(tenant, 1, 20);
    await client.comeBack();
    assert.equal(client.socket.recovered, false);
    const { position } = await client.seen.until("continuity:lost");
    assert.equal(position, 21, "the position from which events come again");
    await last(tenant, client, 21);
    assert.deepEqual(amounts(client), [0, 21], "nothing in part");

    // The new session is a session like any other.
    await client.drop();
    await publish(tenant, 22, 3);
    await client.comeBack();
    assert.equal(client.socket.recovered, true);
    await last(tenant, client, 25);
    assert.deepEqual(amounts(client), [0, 21, 22, 23, 24, 25]);
  });

  test("because the offset is not one of this log is told", async () => {
    const tenant = short.newTenant();
    const client = await connect(short, { token: tenant.token("ann") });
    await last(tenant, client, 0);
    const [epoch] = client.seen.all.at(-1).offset.split(".");
    for (const offset of ["another1epoch.1", `${epoch}.999999`, "nonsense"]) {
      const raw = new Raw(short);
      const session = new Raw(short);
      const { pid, sid } = await session.session({ token: tenant.token("ann") });
      const answer = await raw.session({ token: tenant.token("ann"), pid, offset });
      assert.notEqual(answer.sid, sid, offset);
      await raw.until(/^42\["continuity:lost"/);
      raw.close();
      session.close();
    }
  });
});
