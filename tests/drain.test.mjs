// A stop spreads its clients over a window, so that they do not all come to the next server at once.

import assert from "node:assert/strict";
import { test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect } from "./clients.mjs";
import { Metrics } from "./exposition.mjs";
import { eventually, start, within } from "./harness.mjs";

const SOCKETS = 200;
const WINDOW = 2_000;

test("200 sockets are closed one after the other and come back recovered to the next process", async () => {
  const server = await start({ app: shop(), config: `[realtime]\ndrain = "${WINDOW}ms"\n` });
  const tenant = server.newTenant();
  const clients = [];
  for (let n = 0; n < SOCKETS; n += 1) {
    // A few poll: they are to be spread and come back like the others.
    const transports = n % 20 === 0 ? ["polling"] : ["websocket"];
    clients.push(await connect(server, { token: tenant.token(`user-${n}`), transports, reconnection: true }));
  }
  await tenant.publish("item:added", { itemId: "before", amount: 1 });
  await Promise.all(clients.map(({ seen }) => seen.until("item:added")));

  const closed = clients.map(({ socket }) => new Promise((done) => socket.once("disconnect", (reason) => done({ at: performance.now(), reason }))));
  const back = clients.map(({ socket }) => new Promise((done) => socket.once("connect", () => done(socket.recovered))));
  const told = performance.now();
  const ended = server.stop();
  const ends = await within(15_000, "all to be closed", Promise.all(closed));
  const times = ends.map(({ at }) => at - told).toSorted((a, b) => a - b);
  assert.ok(ends.every(({ reason }) => /^transport (close|error)$/.test(reason)), "not one is told to stay away");
  const span = times.at(-1) - times[0];
  assert.ok(span > WINDOW * 0.6, `closed within ${span} ms of a window of ${WINDOW} ms`);
  for (const from of times) {
    const together = times.filter((at) => at >= from && at < from + 100).length;
    assert.ok(together <= SOCKETS / 4, `${together} of ${SOCKETS} closed within 100 ms`);
  }
  assert.deepEqual(await ended, { code: 0, signal: null });

  await server.restart();
  await tenant.publish("item:added", { itemId: "after", amount: 2 });
  const recovered = await within(30_000, "all to be back", Promise.all(back));
  assert.equal(recovered.filter(Boolean).length, SOCKETS);
  await Promise.all(clients.map(({ seen }) => seen.until("item:added", ({ itemId }) => itemId === "after")));
  for (const { seen } of clients) assert.deepEqual(seen.of("item:added").map(({ itemId }) => itemId), ["before", "after"]);
  await eventually("all recoveries to be counted", async () => {
    return (await Metrics.of(server)).get("tidewire_socket_recoveries_total", { outcome: "recovered" }) === SOCKETS;
  });
  await server.stop();
});
