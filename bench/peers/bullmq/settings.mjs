// What both programs share.

/** The connection to Redis. ioredis' automatic pipelining was tried: it made no difference that could be told from noise. */
export function connection(port) {
  return { host: "127.0.0.1", port, maxRetriesPerRequest: null };
}

/** Microseconds since 1970, the same in every process. */
export function nowMicros() {
  return Math.round((performance.timeOrigin + performance.now()) * 1000);
}
