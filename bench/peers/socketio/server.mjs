// The stock Node.js Socket.IO server, set up as its documentation does, for comparison under the same load.
//
//   node server.mjs PORT EMIT_PORT
//
// PORT       Socket.IO over WebSocket. A socket joins the rooms that its auth.token names, separated by commas.
// EMIT_PORT  POST /emit?room=R&count=N&size=BYTES[&t=MICROS] emits N events to room R, or to each of several rooms that are
//            separated by commas, and answers {"emitted":N} when the last one was handed to Socket.IO. The event is named "bench", its data is
//            an object of BYTES bytes as JSON that holds the send time at "t": the caller's, or else the time of the
//            emit, in microseconds since 1970.
//
// The emit port is a second, plain HTTP server, so that what it costs does not depend on Socket.IO's request handling.

import { createServer } from "node:http";
import { Server } from "socket.io";

const [port, emitPort] = process.argv.slice(2).map(Number);
if (!port || !emitPort) {
  console.error("usage: node server.mjs PORT EMIT_PORT");
  process.exit(2);
}

// Far above any sensible load; it keeps a mistyped number from freezing the process.
const MAX_COUNT = 100_000;
const MAX_SIZE = 1_000_000;

const sockets = createServer();
const io = new Server(sockets, { transports: ["websocket"], serveClient: false });

io.on("connection", (socket) => {
  const token = socket.handshake.auth.token;
  const rooms = typeof token === "string" ? token.split(",").filter(Boolean) : [];
  socket.join(rooms);
  // Tidewire greets its sockets as well, so both sides pay for it when connects are measured.
  socket.emit("connected", { socketId: socket.id, rooms });
});

const nowMicros = () => Math.round((performance.timeOrigin + performance.now()) * 1000);

function dataOf(size, t) {
  const bare = JSON.stringify({ t, pad: "" }).length;
  return { t, pad: "x".repeat(Math.max(0, size - bare)) };
}

function whole(params, name, fallback, max) {
  const value = params.has(name) ? Number(params.get(name)) : fallback;
  if (!Number.isSafeInteger(value) || value < 0 || value > max) {
    throw new RangeError(`${name} must be a whole number from 0 to ${max}`);
  }
  return value;
}

function emit(params) {
  const room = params.get("room");
  if (!room) throw new RangeError("room is missing");
  const count = whole(params, "count", 1, MAX_COUNT);
  const size = whole(params, "size", 300, MAX_SIZE);
  const t = params.has("t") ? whole(params, "t", 0, Number.MAX_SAFE_INTEGER) : undefined;
  const rooms = room.split(",");
  for (const to of rooms) {
    for (let i = 0; i < count; i++) io.to(to).emit("bench", dataOf(size, t ?? nowMicros()));
  }
  return { emitted: rooms.length * count };
}

function answer(response, status, body) {
  const text = JSON.stringify(body);
  response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text) });
  response.end(text);
}

const emitter = createServer((request, response) => {
  request.resume();
  const url = new URL(request.url, "http://localhost");
  if (request.method !== "POST" || url.pathname !== "/emit") {
    return answer(response, 404, { error: "expected POST /emit?room=&count=&size=" });
  }
  try {
    answer(response, 200, emit(url.searchParams));
  } catch (error) {
    answer(response, error instanceof RangeError ? 400 : 500, { error: error.message });
  }
});
// The default of 5 s would close connections that a load generator left idle between two runs.
emitter.keepAliveTimeout = 120_000;

// The emit port opens last: whoever waits for it finds both.
sockets.listen(port, "127.0.0.1", 4096, () => emitter.listen(emitPort, "127.0.0.1"));
