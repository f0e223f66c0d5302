// The lives of jobs as events: whoever the catalog lets see them hears of them on a socket, and nobody else.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect } from "./clients.mjs";
import { expectStatus, start } from "./harness.mjs";

const LIVES = `
[events."job.failed"]
rooms = ["org:{orgId}"]
visible = "'admin' in user.roles"
data = { jobId = "string", type = "string", error = "string?" }

[events."job.completed"]
rooms = ["user:{userId}"]
data = { jobId = "string", result = "any?" }
`;

let server;
before(async () => {
  server = await start({ app: shop({ more: LIVES }) });
});

describe("the life of a job", () => {
  test("is told to the roles of its tenant that may see it", async () => {
    const [tenant, other] = [server.newTenant(), server.newTenant()];
    const admin = await connect(server, { token: tenant.token("ada", { roles: ["admin"] }) });
    const agent = await connect(server, { token: tenant.token("bob", { roles: ["agent"] }) });
    const stranger = await connect(server, { token: other.token("eve", { roles: ["admin"] }) });

    const { id } = await tenant.enqueue("pack");
    await tenant.settle(await tenant.leaseOne(), "fail", { error: "no such box" });
    assert.deepEqual(await admin.seen.until("job.failed"), { jobId: id, type: "pack", error: "no such box" });

    // Events come in the order of the log, so who has seen a later one has been passed over.
    await tenant.publish("item:sold", { itemId: "last" });
    await other.publish("item:sold", { itemId: "last" });
    for (const client of [agent, stranger]) {
      await client.seen.until("item:sold");
      assert.deepEqual(client.seen.of("job.failed"), []);
    }
    const { events } = await agent.must("history", {});
    assert.deepEqual(events.map(({ type }) => type), ["item:sold"], "nor is it in the history");
    for (const client of [admin, agent, stranger]) client.close();
  });

  test("is told to the user that the job works for", async () => {
    const tenant = server.newTenant();
    const [ada, bob] = await Promise.all(["ada", "bob"].map((user) => connect(server, { token: tenant.token(user) })));
    const { jobs } = expectStatus(await tenant.api("/v1/jobs", { body: { type: "pack", userId: "ada" } }), 201);
    await tenant.settle(await tenant.leaseOne(), "done", { result: { boxes: 2 } });
    assert.deepEqual(await ada.seen.until("job.completed"), { jobId: jobs[0].id, result: { boxes: 2 } });
    await tenant.publish("item:sold", { itemId: "last" });
    await bob.seen.until("item:sold");
    assert.deepEqual(bob.seen.of("job.completed"), []);
    for (const client of [ada, bob]) client.close();
  });
});
