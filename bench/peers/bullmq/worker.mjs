// A BullMQ worker with a handler that does nothing, as the bench starts it:
//
//   node worker.mjs PORT CONCURRENCY COUNT
//
// It works on the queue "bench" of the Redis at PORT until it has completed COUNT jobs. It prints "ready" when it has connected, and
// at the end one line of JSON: when the last job was completed, in microseconds since 1970; the CPU time that it used from "ready"
// on, in microseconds; and for each job how long after the time in its data (`t`) the handler began, in microseconds.
//
// A line on its input lets it begin, so that a backlog can be prepared first.

import { once } from "node:events";

import { Worker } from "bullmq";

import { connection, nowMicros } from "./settings.mjs";

const [port, concurrency, count] = process.argv.slice(2).map(Number);
const waits = [];
let completed = 0;
let done;
const allCompleted = new Promise((resolve) => (done = resolve));

const worker = new Worker("bench", async (job) => void waits.push(nowMicros() - job.data.t), {
  connection: connection(port),
  concurrency,
  autorun: false,
  // The cheapest that it has: nothing is kept of a job that is done.
  removeOnComplete: { count: 0 },
});
worker.on("completed", () => {
  completed += 1;
  if (completed === count) done(nowMicros());
});
worker.on("error", (error) => {
  console.error(error);
  process.exit(1);
});

await worker.waitUntilReady();
console.log("ready");
await once(process.stdin, "data");
const cpu = process.cpuUsage();
worker.run();
const finished = await allCompleted;
const { user, system } = process.cpuUsage(cpu);
// An exit would cut off what the pipe has not taken yet.
process.stdout.write(`${JSON.stringify({ finished, cpu: user + system, waits })}\n`, () => process.exit());
