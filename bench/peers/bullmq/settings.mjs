// What both programs share.

/** The connection to Redis. Commands of one turn of the event loop leave in one write, which is the fastest that ioredis has. */
export function connection(port) {
  return { host: "127.0.0.1", port, maxRetriesPerRequest: null, enableAutoPipelining: process.env.PIPELINING !== "0" };
}

/** Microseconds since 1970, the same in every process. */
export function nowMicros() {
  return Math.round((performance.timeOrigin + performance.now()) * 1000);
}
