// Adds jobs to BullMQ's queue "bench", as the bench starts it:
//
//   node producer.mjs PORT single COUNT IN_FLIGHT    one job per call, IN_FLIGHT calls under way
//   node producer.mjs PORT bulk COUNT IN_FLIGHT      100 jobs per call
//   node producer.mjs PORT paced COUNT PER_SECOND    one job per call, at even distances
//   node producer.mjs PORT delayed COUNT SPREAD_MS   jobs that are due one after the other over SPREAD_MS, the first in 1 s
//
// A job's data is a JSON object of 300 bytes whose `t` is the time in microseconds since 1970 at which it was added, or is due. At the
// end it prints one line of JSON: when it began and when the last call was answered, and the CPU time in between, all in microseconds.

import { Queue } from "bullmq";

import { connection, nowMicros } from "./settings.mjs";

const [port, mode, count, option] = process.argv.slice(2).map((text) => (/^\d+$/.test(text) ? Number(text) : text));
const BULK = 100;

function dataOf(t) {
  const bare = JSON.stringify({ t, pad: "" }).length;
  return { t, pad: "x".repeat(300 - bare) };
}

/** Keeps `inFlight` calls under way until `calls` of them were answered. */
async function inParallel(calls, inFlight, call) {
  let next = 0;
  const caller = async () => {
    while (next < calls) {
      next += 1;
      await call(next - 1);
    }
  };
  await Promise.all(Array.from({ length: inFlight }, caller));
}

const queue = new Queue("bench", { connection: connection(port) });
await queue.waitUntilReady();

const began = nowMicros();
const cpu = process.cpuUsage();
switch (mode) {
  case "single":
    await inParallel(count, option, () => queue.add("bench", dataOf(nowMicros())));
    break;
  case "bulk":
    await inParallel(count / BULK, option, () =>
      queue.addBulk(Array.from({ length: BULK }, () => ({ name: "bench", data: dataOf(nowMicros()) }))),
    );
    break;
  case "paced": {
    const calls = [];
    for (let n = 0; n < count; n += 1) {
      const due = began + (n * 1e6) / option;
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, (due - nowMicros()) / 1000)));
      calls.push(queue.add("bench", dataOf(nowMicros())));
    }
    await Promise.all(calls);
    break;
  }
  case "delayed": {
    const first = Date.now() + 1_000;
    await inParallel(count / BULK, 8, (call) => {
      const dueOf = (n) => first + Math.floor(((call * BULK + n) * option) / count);
      const timestamp = Date.now();
      const jobOf = (due) => ({ name: "bench", data: dataOf(due * 1000), opts: { timestamp, delay: due - timestamp } });
      return queue.addBulk(Array.from({ length: BULK }, (_, n) => jobOf(dueOf(n))));
    });
    break;
  }
  default:
    throw new Error(`expected single, bulk, paced or delayed, got ${mode}`);
}
const finished = nowMicros();
const { user, system } = process.cpuUsage(cpu);
console.log(JSON.stringify({ began, finished, cpu: user + system }));
process.exit();
