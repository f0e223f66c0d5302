// The browser's own EventSource against the real server: it comes back by itself, over kill -9, and misses nothing.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { after, before, describe, test } from "node:test";

import { chromium } from "playwright-core";

import { shop } from "./catalogs.mjs";
import { start } from "./harness.mjs";

const CHROMIUM = "/usr/bin/chromium";
const absent = !existsSync(CHROMIUM) && `${CHROMIUM} is not installed (apt-get install chromium)`;
// As with the live page: on a build machine a browser that was not there is a failure.
if (absent && process.env.CI === "true") throw new Error(absent);

describe("an EventSource of a browser", { skip: absent }, () => {
  let browser;
  let server;
  before(async () => {
    server = await start({ app: shop(), config: `[realtime]\npingInterval = "300ms"\n` });
    browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  });
  after(() => browser?.close());

  test("comes back by itself with what it missed, by its session's cookie", async () => {
    const tenant = server.newTenant();
    const context = await browser.newContext();
    await context.addCookies([{ name: "session", value: tenant.token("ann"), url: server.url }]);
    const page = await context.newPage();
    await page.goto(`${server.url}/health/live`);
    await page.evaluate(() => {
      const seen = (window.seen = { hellos: [], amounts: [], ids: [], sold: 0, lost: 0 });
      const events = (window.events = new EventSource("/v1/events?types=item:*"));
      events.addEventListener("connected", ({ data }) => seen.hellos.push(JSON.parse(data)));
      events.addEventListener("continuity:lost", () => (seen.lost += 1));
      events.addEventListener("item:sold", () => (seen.sold += 1));
      events.addEventListener("item:added", ({ data, lastEventId }) => {
        seen.amounts.push(JSON.parse(data).amount);
        seen.ids.push(lastEventId);
      });
    });
    const seen = () => page.evaluate(() => window.seen);
    const until = (check, argument) => page.waitForFunction(check, argument, { timeout: 20_000 });
    const add = (amount) => tenant.publish("item:added", { itemId: "a", amount });
    await until(() => window.seen.hellos.length === 1);
    await add(0);
    await until(() => window.seen.amounts.length === 1);
    await server.kill();
    await server.restart();
    for (const amount of [1, 2, 3]) await add(amount);
    await until(() => window.seen.amounts.length === 4);
    const now = await seen();
    assert.deepEqual([now.amounts, now.lost], [[0, 1, 2, 3], 0]);
    assert.equal(now.hellos.at(-1).recovered, true);
    assert.deepEqual(now.ids.map((id) => id.split(".")[1]), ["1", "2", "3", "4"]);
    const { body } = await tenant.api("/v1/realtime/disconnect", { body: { userId: "ann" } });
    assert.equal(body.disconnected, 1);
    await until((count) => window.seen.hellos.length === count, now.hellos.length + 1);
    await tenant.publish("item:sold", { itemId: "a" });
    await until(() => window.seen.sold === 1);
    assert.deepEqual((await seen()).amounts, [0, 1, 2, 3]);
    await tenant.api("/v1/realtime/revoke", { body: { userId: "ann" } });
    await until(() => window.events.readyState === EventSource.CLOSED);
    await context.close();
  });
});
