// Messages of clients that the catalog answers with a job.

import assert from "node:assert/strict";
import { before, describe, test } from "node:test";

import { shop } from "./catalogs.mjs";
import { connect } from "./clients.mjs";
import { start } from "./harness.mjs";

const MESSAGES = `
[jobs.label]
queue = "work"
data = { itemId = "string", copies = "integer" }

[jobs.recount]
queue = "slow"
unique = {}

[messages.ship]
data = { itemId = "string", urgent = "boolean?" }
publish = [{ type = "item:added", data = { itemId = "{{ data.itemId }}", amount = 1 } }]
enqueue = [
  { job = "ship", data = { itemId = "{{ data.itemId }}", by = "{{ user.id }}" }, priority = 1 },
  { job = "audit", when = "data.urgent == true", delay = "1h" },
]

[messages.label]
args = ["string", "any"]
publish = [{ type = "item:added", data = { itemId = "{0}", amount = 1 } }]
enqueue = [{ job = "label", data = { itemId = "{0}", copies = "{1}" } }]

[messages.recount]
enqueue = [{ job = "recount", when = "'admin' in user.roles" }]
`;

describe("a message that the catalog answers with a job", () => {
  let server;
  before(async () => (server = await start({ app: shop({ more: MESSAGES }) })));

  test("is one commit, and its job has the tenant and the user of the socket", async () => {
    const tenant = server.newTenant();
    const ann = await connect(server, { token: tenant.token("ann") });
    const lying = { itemId: "i1", userId: "bob", tenant: "other", orgId: "other" };
    const answer = await ann.ask("ship", lying);
    assert.equal(answer.ok, true, JSON.stringify(answer));
    assert.equal(answer.events.length, 1);
    assert.deepEqual(answer.jobs.map(({ type, state }) => [type, state]), [["ship", "pending"]]);
    const leased = await tenant.leaseOne({ types: ["ship"] });
    assert.deepEqual(
      [leased.id, leased.tenant, leased.userId, leased.priority, leased.data],
      [answer.jobs[0].id, tenant.name, "ann", 1, { itemId: "i1", by: "ann" }],
    );
    assert.deepEqual(await ann.seen.until("item:added"), { itemId: "i1", amount: 1 });
    const urgent = await ann.ask("ship", { itemId: "i2", urgent: true });
    assert.deepEqual(urgent.jobs.map(({ type, state }) => [type, state]), [["ship", "pending"], ["audit", "scheduled"]]);
  });

  test("with wrong data is refused and leaves neither job nor event", async () => {
    const tenant = server.newTenant();
    const ann = await connect(server, { token: tenant.token("ann") });
    const wrongMessage = await ann.ask("ship", { itemId: 7 });
    assert.deepEqual([wrongMessage.ok, wrongMessage.error.code], [false, "message.invalid_data"]);
    // Good for the message and its event, and not for its job.
    const wrongJob = await ann.ask("label", "i1", "many");
    assert.deepEqual([wrongJob.ok, wrongJob.error.code], [false, "job.invalid_data"]);
    assert.deepEqual(await tenant.log(), []);
    assert.deepEqual(await tenant.list("/v1/jobs"), []);
  });

  test("is refused when its condition does not hold, and says when the job was there already", async () => {
    const tenant = server.newTenant();
    const ann = await connect(server, { token: tenant.token("ann") });
    const refused = await ann.ask("recount");
    assert.deepEqual([refused.ok, refused.error.code], [false, "message.refused"]);
    assert.deepEqual(await tenant.list("/v1/jobs"), []);
    const admin = await connect(server, { token: tenant.token("zoe", { roles: ["admin"] }) });
    const [first] = (await admin.ask("recount")).jobs;
    const [again] = (await admin.ask("recount")).jobs;
    assert.deepEqual([first.type, first.deduplicated], ["recount", undefined]);
    assert.deepEqual([again.id, again.deduplicated], [first.id, true]);
  });
});
