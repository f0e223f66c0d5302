// The live page of `tidewire dev` in a real browser: what a newcomer sees in the first minute.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { chromium } from "playwright-core";

import { end, freePort, ready, run, temporaryDirectory } from "./harness.mjs";

const CHROMIUM = "/usr/bin/chromium";
const absent = !existsSync(CHROMIUM) && `${CHROMIUM} is not installed (apt-get install chromium)`;
// On a build machine a page that nobody looked at is a failure; at a desk it is only said aloud.
if (absent && process.env.CI === "true") throw new Error(absent);

describe("the live page", { skip: absent }, () => {
  const directory = temporaryDirectory();
  let browser;
  let child;
  let url;
  let listen;
  let ports;

  const boot = async () => {
    child = run(["dev", "--listen", listen], { cwd: directory });
    await ready(child, url);
  };

  before(async () => {
    listen = `127.0.0.1:${await freePort()}`;
    url = `http://${listen}`;
    await boot();
    ports = await (await fetch(`${url}/demo/ports`)).json();
    browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"] });
  });
  after(async () => {
    await browser?.close();
    if (child) await end(child, "SIGKILL");
  });

  /** Opens the page of one port and waits until it is live. */
  async function open(port) {
    const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
    const errors = [];
    page.on("pageerror", (error) => errors.push(error.message));
    await page.goto(`${url}/demo?port=${encodeURIComponent(port.id)}`);
    await page.locator("[data-testid=status][data-state=connected]").waitFor();
    return Object.assign(page, { errors });
  }

  const registrations = (page) => page.locator(`[data-testid=event][data-type="registration:new"]`);

  /** Registers by HTTP, as the public website would. */
  async function register(port, name) {
    const response = await fetch(`${url}/api/public/interests`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ portId: port.id, name, email: `${name.toLowerCase()}@example.org`, berthNumber: "A1" }),
    });
    const body = await response.json();
    assert.equal(response.status, 201, JSON.stringify(body));
    return body;
  }

  test("says its admin key in a file and offers two ports", () => {
    assert.ok(readFileSync(join(directory, ".tidewire", "admin-key"), "utf8").trim().length >= 20);
    assert.ok(ports.length >= 2, JSON.stringify(ports));
  });

  test("shows a registration, its job and its notification, in its own port only, and catches up after a kill", async () => {
    const [here, there] = [await open(ports[0]), await open(ports[1])];

    const form = here.locator("[data-testid=form]");
    await form.locator("[name=name]").fill("Ada Sailor");
    await form.locator("[name=email]").fill("ada@example.org");
    await here.locator("[data-testid=submit]").click();
    await registrations(here).first().waitFor();
    await here.locator("[data-testid=job][data-state=completed]").first().waitFor();
    await here.locator("[data-testid=notification]").first().waitFor({ state: "attached" });
    await here.locator(`[data-testid=unread]:not([data-count="0"])`).waitFor();
    assert.match(await registrations(here).first().innerText(), /Ada Sailor/);

    // Once the other port has shown an event of its own, what it did not show before will not come.
    await register(ports[1], "Bob");
    await registrations(there).first().waitFor();
    assert.equal(await registrations(there).count(), 1);
    assert.match(await registrations(there).first().innerText(), /Bob/);

    await end(child, "SIGKILL");
    await here.locator("[data-testid=status][data-state=reconnecting]").waitFor();
    await boot();
    await register(ports[0], "Cleo");
    await registrations(here).nth(1).waitFor({ timeout: 20_000 });
    assert.match(await registrations(here).first().innerText(), /Cleo/, "the newest on top");
    assert.equal(await registrations(here).count(), 2, "nothing twice");
    assert.deepEqual([here.errors, there.errors], [[], []], "no error in the page's own code");
  });

  test("shows at the field what was wrong", async () => {
    const response = await fetch(`${url}/api/public/interests`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ portId: ports[0].id, name: "", email: "nonsense" }),
    });
    assert.ok([400, 422].includes(response.status), `400 or 422, got ${response.status}`);
    const { errors } = await response.json();
    assert.ok(errors.some(({ path }) => path.includes("email")), JSON.stringify(errors));
  });
});
