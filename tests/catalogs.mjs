// Catalogs that tests write for themselves.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { temporaryDirectory } from "./harness.mjs";

/** Writes `toml` as the catalog of an app called `name` and answers its folder. */
export function writeApp(name, toml) {
  const directory = join(temporaryDirectory(), name);
  mkdirSync(directory);
  writeFileSync(join(directory, "app.toml"), toml);
  return directory;
}

/**
 * A small app with one of everything: rooms of each kind, an event for two rooms, a redacted copy, a visibility rule, a stream, an
 * ephemeral event, and a rule that turns `item:sold` into a job. `app` and `rooms` are added to those, `more` at the end.
 */
export function shop({
  history = "{ count = 20000, age = \"24h\" }", rate = "500/s", connects = "1000/s", auth = JWT, app = "", rooms = "", more = "",
} = {}) {
  return writeApp("shop", `
[app]
name = "shop"
tenant = "orgId"
timezone = "UTC"
${app}

[auth]
sources = ["auth.token", "authorization", "query.token", "cookie:session"]
roles = ["admin", "agent"]

${auth}

[realtime]
namespaces = ["/"]
profile = "named"
history = ${history}
rate = { messages = "${rate}", connects = "${connects}" }

[rooms]
"org:{orgId}" = { join = "auto" }
"user:{userId}" = { join = "auto" }
"item:{itemId}" = { join = "request", when = "params.itemId != 'sealed'" }
"board:{orgId}" = { join = "public" }
"spot:{spotId}" = { join = "public" }
${rooms}

[events."item:added"]
rooms = ["org:{orgId}"]
data = { itemId = "string", amount = "number" }

[events."item:moved"]
rooms = ["org:{orgId}", "item:{itemId}"]
data = { itemId = "string", from = "string", to = "string" }
views = [{ room = "board:{orgId}", fields = ["itemId", "to"] }]

[events."spot:lit"]
rooms = ["spot:{spotId}"]

[events."item:noted"]
rooms = ["item:{itemId}"]
data = { itemId = "string", note = "string" }

[events."item:sold"]
rooms = ["org:{orgId}"]
data = { itemId = "string" }

[events."user:pinged"]
rooms = ["user:{userId}"]

[events."user:typing"]
rooms = ["org:{orgId}"]
data = { text = "string" }
ephemeral = true

[events."lead:created"]
rooms = ["org:{orgId}"]
data = { leadId = "string", agentId = "string" }
visible = "'admin' in user.roles || user.id == data.agentId"

[events."ledger:booked"]
rooms = ["org:{orgId}"]
data = { ledgerId = "string", amount = "number" }
stream = "ledger-{ledgerId}"

[queues.work]
concurrency = 1000
attempts = 3
delays = ["50ms"]
keep = { completed = 20000, failed = 1000 }

[queues.slow]
concurrency = 1000
attempts = 2
backoff = { kind = "fixed", base = "1h" }

[jobs.pack]
queue = "work"

[jobs.ship]
queue = "work"
data = { itemId = "string" }

[jobs.audit]
queue = "slow"

[[rules]]
on = "item:sold"
enqueue = { job = "ship", data = { itemId = "{{ data.itemId }}" } }

${more}
`);
}

const JWT = `
[auth.jwt]
algorithms = ["HS256"]
claims = { user = "sub", tenant = "orgId", roles = "roles" }
`;
